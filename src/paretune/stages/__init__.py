"""Room 11: the stages of an experiment - data, policy, reward, align, evaluate, report - run in order.

Each stage reads the recipe and the files of the stages before it, and writes one folder below the run's; its
last file marks it complete. A complete stage is not run again: with the checkpoints of the fits and of the
loop, that is all there is to resuming. `pipeline.py` holds the order.
"""
