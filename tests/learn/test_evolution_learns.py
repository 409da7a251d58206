"""Evolution of singular values learns the toy task, from an adapter that was trained first."""

from evolving import fitted, method, searched
from paretune.run.io import read_jsonl


def score_gains(folder, seed, **more):
    """Per objective, the mean score of the incumbent in the last four generations minus the first four."""
    evolution = method(
        population_size=12,
        max_new_tokens=5,
        sft_steps=12,
        sft_num_generations=8,
        initial_sigma=1.0,
        **more,
    )
    world = fitted(folder / "warm", evolution, seed, lr=2e-2)
    searched(folder / "search", evolution, world, steps=30, seed=seed, every=30)
    lines = read_jsonl(folder / "search" / "metrics.jsonl")
    return {
        name: sum(last[key] - first[key] for first, last in zip(lines[:4], lines[-4:], strict=True)) / 4
        for name, key in ((name, f"score/{name}/mean") for name in ("even", "high"))
    }


def test_both_objectives_rise_with_cma(tmp_path, seed):
    gains = score_gains(tmp_path, seed)
    assert sum(gains.values()) > 0.15, gains
    assert min(gains.values()) > 0, gains


def test_sum_of_objectives_rises_with_isotropic_es(tmp_path):
    assert sum(score_gains(tmp_path, 0, strategy="isotropic").values()) > 0.15
