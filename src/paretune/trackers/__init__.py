"""Trackers: processes of their own that read the files of a run and show its metrics elsewhere.

Training knows nothing of them: a tracker that fails, hangs or is killed changes no byte of the run.
"""
