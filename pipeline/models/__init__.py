"""Networks by name, and their weights; import `zoo` and `weights` directly, both need torch."""
