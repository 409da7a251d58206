"""Benchmark of paretune against TRL and transformers on the same work, in alternation: `make bench`.

Not part of the package. `__main__` parses the arguments; `workloads` defines the work; `ours`, `peer` and
`ours_fits`, `peer_fits` do it, each in a process of its own with which `wire` communicates; `table` turns
seconds into ratios. `growth` and `limits` measure scaling and hardware utilization.
"""
