"""`pipeline check`: a candidate's real latency against a baseline's, as a gate that CI can keep on.

Nothing here imports torch but `accuracy`, and that only where data is given.
"""
