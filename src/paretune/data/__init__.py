"""What a run learns from and is tried on, first in the flow of data.

The records of prompts, ratings, preferences and demonstrations, the readers that make them of files, the one
place where text becomes tokens, confidence in words, and the built-in help desk. All of it is deterministic,
and a bad row is an error that names its line, never a silent loss.
"""
