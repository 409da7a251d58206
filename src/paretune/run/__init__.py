"""The run folder: its files, its lock, the dictionary of metrics, and what it takes to resume it."""
