"""Ours against its peers on the same work, in turn: `make bench`.

Not part of the package. `__main__` reads the arguments; `workloads` says what is done, `ours`, `peer` and
their like do it, each in a process of its own that `wire` speaks with; `table` turns seconds into ratios.
"""
