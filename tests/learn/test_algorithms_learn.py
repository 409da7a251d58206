"""Every algorithm raises the toy task's two objectives."""

from battery import recipe_of, world_of
from paretune.rl.loop import train
from paretune.run.folder import Run
from paretune.run.io import read_jsonl

STEPS = {"ppo": 60, "salsa": 60, "pf_ppo": 60, "superhf": 32}
STEPS |= dict.fromkeys(("ppo_c", "ppo_m", "dapo", "sft", "modpo"), 40)
"""Steps of algorithms that learn late or unsteadily: after 28 some seed is near the threshold."""
RISE = {"ppo": 0.2, "modpo": 0.2, "safe_rlhf": 0.2}


def score_sum(line):
    return line["score/even/mean"] + line["score/high/mean"]


def test_scores_rise(tmp_path, name, seed):
    recipe, steps = recipe_of(name), STEPS.get(name, 28)
    world = world_of(recipe, tmp_path, seed)
    train(recipe, world, max_steps=steps, seed=seed, run=Run(tmp_path / "run"), save_steps=steps)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    first, last = (sum(map(score_sum, part)) / len(part) for part in (lines[:4], lines[-4:]))
    assert last > first + RISE.get(name, 0.3), (first, last)
