"""Images for training and for verdicts; import `sources.load_data` directly, it needs torch."""
