"""The stages of an experiment: data, SFT, reward, align, evaluate, report, in order.

Each stage reads the recipe and the files of earlier stages and writes one folder below the run folder; its last
file marks it complete. A complete stage is not run again: with the checkpoints of the training loops, this is
all there is to resuming. `pipeline.py` holds the order.
"""
