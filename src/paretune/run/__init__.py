"""The run folder: files, lock, metric definitions, resume checks, and memory of the process."""
