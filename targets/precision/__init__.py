"""Graphs in fp16 and int8, and what they are held against."""
