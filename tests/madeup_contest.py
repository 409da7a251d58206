"""Runs of a comparison that nobody made: the files that its numbers are read from, with chosen means."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretune.run.io import to_json

OBJECTIVES = ("politeness", "meaningfulness", "actionability", "safety")
FILE = """\
name: made-up
recipe: demo
folder: {folder}
methods:
  grpo: {{algorithm: {{name: grpo, n: 8, max_new: 64}}}}
  gdpo: {{algorithm: {{name: gdpo, n: 8, max_new: 64}}}}
  rloo: {{algorithm: {{name: rloo, n: 8, max_new: 64}}}}
  ppo_max: {{algorithm: {{name: ppo_max, max_new: 64}}, learn: {{prompts: 64}}}}
seeds: [0, 1, 2]
weightings: {{equal: {{}}}}
budget: {{currency: rollout_tokens, amount: 60000}}
reference: {{politeness: 0, meaningfulness: 0, actionability: 0, safety: 0}}
draws: 300
"""
MEANS = {
    "grpo": (0.80, 0.82, 0.64, 0.74),
    "gdpo": (0.83, 0.86, 0.66, 0.75),
    "rloo": (0.78, 0.80, 0.68, 0.70),
    "ppo_max": (0.70, 0.74, 0.52, 0.81),
}
START = (0.41, 0.55, 0.34, 0.64)


def written(folder, text=None):
    """The comparison file in a folder of its own."""
    path = folder / "made-up.yaml"
    path.write_text(text or FILE.format(folder=folder / "cmp"))
    return path


def make_runs(contest, *, means=MEANS, spent=None, prompts=60, independent=True, chance=0):
    """Write eval.json, generations.parquet and timing.jsonl of every run.

    `spent`: method -> response tokens of each of its runs, where it is not the declared amount.
    """
    for entry in contest.runs():
        rng = np.random.default_rng([chance, entry.seed])
        hard = rng.normal(0, 0.15, (prompts, len(OBJECTIVES)))
        apart = np.random.default_rng([chance, entry.seed, *entry.label.encode()])
        tilt = apart.normal(0, 0.01, len(OBJECTIVES))
        before = np.clip(START + hard, 0, 1)
        after = np.clip(np.array(means[entry.method]) + tilt + hard + apart.normal(0, 0.08, hard.shape), 0, 1)
        folder = Path(entry.experiment.run.folder)
        (folder / "eval" / "final").mkdir(parents=True)
        _generations(folder, before, after)
        (folder / "eval" / "final" / "eval.json").write_text(
            to_json(_evaluation(prompts, independent, apart))
        )
        tokens = (spent or {}).get(entry.method, contest.said.budget.amount)
        _timing(folder, tokens, apart)


def _generations(folder, before, after):
    count = len(before)
    rows = {
        "prompt_id": ["" for _ in range(count)],
        "sample": [0] * count,
        "prompt": [f"request {i}" for i in range(count)],
    }
    for k, name in enumerate(OBJECTIVES):
        rows[f"before/{name}"], rows[f"after/{name}"] = before[:, k].tolist(), after[:, k].tolist()
    pq.write_table(pa.table(rows), folder / "eval" / "final" / "generations.parquet")


def _evaluation(prompts, independent, rng):
    judge = "the true scorer" if independent else "the training reward"
    objective = {
        "judge": judge,
        "independent": independent,
        "missing": {"share": 0.0},
        "before": 0.4,
        "after": 0.7,
        "reward": {"before": 0.5, "after": 0.9},
    }
    return {
        "prompts": prompts,
        "n": 1,
        "objectives": dict.fromkeys(OBJECTIVES, objective),
        "kl": {"k3": 4 + 2 * rng.random()},
        "length": {"before": 18.0, "after": 20 + 6 * rng.random()},
        "distinct_2": {"before": 0.6, "after": 0.5},
        "unique": {"before": 0.96, "after": 0.9},
        "similarity": {"before": 0.25, "after": 0.3},
        "truncated": {"before": 0.01, "after": 0.02},
        "refusals": {"lookalike": {"before": 0.15, "after": 0.01}, "harmful": {"before": 0.6, "after": 0.8}},
    }


def _timing(folder, tokens, rng):
    lines = [{"stage": "policy", "step": 0, "seconds": 9.0, "trained_tokens": 5000}]
    for step in range(20):
        line = {"stage": "align", "step": step, "seconds": 2 + rng.random(), "memory": 7e8 + 1e6 * step}
        lines.append(line | {"rollout_tokens": tokens // 20, "trained_tokens": 9000, "reward_calls": 128})
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
