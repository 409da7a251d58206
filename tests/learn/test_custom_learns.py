"""Algorithms from parts learn the toy task, with parts that no named algorithm has, and so does one's own."""

from pathlib import Path

import pytest

from paretune.algorithms.custom import custom
from paretune.algorithms.lookup import find_algorithm
from paretune.rl.loop import train
from paretune.run.folder import Run
from paretune.run.io import read_jsonl
from toy import WEIGHTS, toy_world

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_algorithm.py"
ADVANTAGES = [{"type": "GroupNormalize"}, {"type": "BroadcastToTokens"}]
SPECS = {
    "entropy": custom(
        WEIGHTS,
        model_passes=[{"type": "OldLogprobs"}, {"type": "PolicyEntropy"}],
        credit=[
            *ADVANTAGES,
            {"type": "MaskTruncated"},
            {"type": "TopEntropyTokens", "top_entropy_quantile": 0.8},
        ],
        losses=[{"type": "ClippedSurrogate"}, {"type": "EntropyBonus", "coefficient": 0.005}],
        max_new_tokens=16,  # truncated ones are masked
    ),
    "off_policy": custom(
        WEIGHTS,
        model_passes=[{"type": "OldLogprobs", "source": "policy"}],
        credit=[*ADVANTAGES, {"type": "TruncatedImportanceSampling", "level": "sequence", "mode": "mask"}],
        losses=[{"type": "OffPolicyMask", "loss": {"type": "GammaWeight"}, "threshold": 0.05}],
        num_iterations=2,
        max_new_tokens=6,
    ),
    "own": find_algorithm(f"{EXAMPLE}:rank_grpo")(WEIGHTS, max_new_tokens=6, kl_coef=0.0),
}
LOGGED = {
    "entropy": {"top_entropy_tokens/kept": (0.7, 0.9)},
    "off_policy": {"importance_weights/mean": (0.99, 1.01), "clip_fraction/off_policy_mask": (0.0, 0.5)},
}
"""Metric of a part -> bounds of its mean, so that the part acts and does not take over."""


@pytest.mark.parametrize("name", SPECS)
def test_both_objectives_rise(tmp_path, name):
    train(SPECS[name], toy_world(1, lr=2e-2), max_steps=25, seed=1, run=Run(tmp_path), save_steps=25)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    for objective in WEIGHTS:
        means = [line[f"score/{objective}/mean"] for line in lines]
        assert sum(means[-4:]) / 4 > sum(means[:4]) / 4 + 0.1, (objective, means)
    for metric, (low, high) in LOGGED.get(name, {}).items():
        mean = sum(line[metric] for line in lines) / len(lines)
        assert low < mean < high, (metric, mean)
