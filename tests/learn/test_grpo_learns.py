"""GRPO learns the toy task."""

from paretune.rl.loop import train
from paretune.run.folder import Run
from paretune.run.io import read_jsonl
from toy import toy_recipe, toy_world


def mean(lines, key):
    return sum(line[key] for line in lines) / len(lines)


def test_both_objectives_rise(tmp_path, seed):
    train(toy_recipe(), toy_world(seed), max_steps=40, seed=seed, run=Run(tmp_path), save_steps=40)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    for name in ("even", "high"):
        first, last = mean(lines[:4], f"score/{name}/mean"), mean(lines[-4:], f"score/{name}/mean")
        assert first < 0.7
        assert last > first + 0.2, (name, first, last)
