"""Every algorithm variant of the probability ratio learns the toy task."""

import pytest

from paretune.algorithms.ratio_variants import cispo, dapo, gspo, sapo
from paretune.algorithms.trl import trl_grpo
from paretune.rl.loop import train
from paretune.run.folder import Run
from paretune.run.io import read_jsonl
from toy import WEIGHTS, toy_world

COMMON = {"num_generations": 6, "max_new_tokens": 6, "minibatch_size": 18}
RECIPES = (
    dapo(WEIGHTS, overlong_buffer_fraction=0.0, **COMMON),
    gspo(WEIGHTS, clip_low=0.03, clip_high=0.04, **COMMON),
    cispo(WEIGHTS, **COMMON),
    sapo(WEIGHTS, **COMMON),
    trl_grpo(WEIGHTS, loss_type="vespo", mask_truncated_completions=True, top_entropy_quantile=0.8, **COMMON),
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_both_objectives_rise(tmp_path, recipe):
    train(recipe, toy_world(1), max_steps=25, seed=1, run=Run(tmp_path), save_steps=25)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    for name in ("even", "high"):
        means = [line[f"score/{name}/mean"] for line in lines]
        assert sum(means[-4:]) / 4 > sum(means[:4]) / 4 + 0.1, (name, means)
