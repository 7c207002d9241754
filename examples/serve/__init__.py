"""A small HTTP server for a bundle: the KServe v2 protocol on a CPU, without torch."""
