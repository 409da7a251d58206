"""A search of singular values learns the toy task, from an adapter that was fitted first."""

import pytest

from evolving import fitted, method, searched
from paretune.run.io import read_jsonl


def risen(folder, seed, **more):
    """Every objective of the incumbent, over the last four generations less over the first four."""
    evolution = method(population=12, max_new=5, warm_steps=12, warm_n=8, sigma=1.0, **more)
    world = fitted(folder / "warm", evolution, seed, lr=2e-2)
    searched(folder / "search", evolution, world, steps=30, seed=seed, every=30)
    lines = read_jsonl(folder / "search" / "metrics.jsonl")
    return {
        name: sum(last[key] - first[key] for first, last in zip(lines[:4], lines[-4:], strict=True)) / 4
        for name, key in ((name, f"score/{name}/mean") for name in ("even", "high"))
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_combined_objectives_rise(tmp_path, seed):
    rise = risen(tmp_path, seed)
    assert sum(rise.values()) > 0.15, rise
    assert min(rise.values()) > 0, rise


def test_so_they_do_with_steps_of_one_size(tmp_path):
    assert sum(risen(tmp_path, 0, search="isotropic").values()) > 0.15
