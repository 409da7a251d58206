"""The stages of a run: data, SFT, reward model, judge, alignment, evaluation, report.

Each stage reads the recipe and the files of earlier stages, and writes one folder below the run folder; the
file that it writes last marks it as complete. A complete stage is not run again: together with the
checkpoints of the training loops, this is all there is to resuming. `pipeline.py` holds the order of stages.
"""
