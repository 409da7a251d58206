"""Data: prompts, ratings, preference pairs and demonstrations, from files or the hub to token ids.

Records, readers for JSONL, JSON, CSV and Parquet, chat templates, prompt formats, and loaders that are
functions of (seed, step). Everything is deterministic, and a bad row is an error that names its line.
"""
