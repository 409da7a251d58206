"""Runs of a benchmark without any training: the files that its results are read from, with given means."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretune.evaluate.paired import ComparisonSpec, compare_objectives
from paretune.run.io import to_json

OBJECTIVES = ("politeness", "meaningfulness", "actionability", "safety")
FILE = """\
name: fake
recipe: demo
output_dir: {folder}
methods:
  grpo: {{algorithm: {{name: grpo, num_generations: 8, max_new_tokens: 64}}}}
  gdpo: {{algorithm: {{name: gdpo, num_generations: 8, max_new_tokens: 64}}}}
  rloo: {{algorithm: {{name: rloo, num_generations: 8, max_new_tokens: 64}}}}
  ppo_max: {{algorithm: {{name: ppo_max, max_new_tokens: 64}}, training: {{prompts_per_step: 64}}}}
seeds: [0, 1, 2]
weightings: {{equal: {{}}}}
budget: {{resource: rollout_tokens, limit: 60000}}
reference_point: {{politeness: 0, meaningfulness: 0, actionability: 0, safety: 0}}
bootstrap_samples: 300
"""
MEANS = {
    "grpo": (0.80, 0.82, 0.64, 0.74),
    "gdpo": (0.83, 0.86, 0.66, 0.75),
    "rloo": (0.78, 0.80, 0.68, 0.70),
    "ppo_max": (0.58, 0.68, 0.46, 0.92),
}
INITIAL_MEANS = (0.41, 0.55, 0.34, 0.64)


def write_benchmark_file(folder, text=None):
    """Write the benchmark file and return its path."""
    path = folder / "fake.yaml"
    path.write_text(text or FILE.format(folder=folder / "benchmark"))
    return path


def make_runs(spec, *, means=MEANS, used=None, prompts=60, independent=True, seed=0, **settings):
    """Write eval.json, generations.parquet and timing.jsonl of every run.

    `used`: method -> response tokens of each of its runs; default: the budget. `settings`: of the comparison
    of each run before and after, such as goals.
    """
    for run in spec.run_specs():
        rng = np.random.default_rng([seed, run.seed])
        difficulty = rng.normal(0, 0.15, (prompts, len(OBJECTIVES)))
        run_rng = np.random.default_rng([seed, run.seed, *run.label.encode()])
        offset = run_rng.normal(0, 0.01, len(OBJECTIVES))
        before = np.clip(INITIAL_MEANS + difficulty, 0, 1)
        after = np.clip(
            np.array(means[run.method]) + offset + difficulty + run_rng.normal(0, 0.08, difficulty.shape),
            0,
            1,
        )
        folder = Path(run.config.run.output_dir)
        (folder / "eval" / "final").mkdir(parents=True)
        _generations(folder, before, after)
        (folder / "eval" / "final" / "eval.json").write_text(
            to_json(_evaluation(before, after, independent, run_rng, settings))
        )
        tokens = (used or {}).get(run.method, spec.config.budget.limit)
        _timing(folder, tokens, run_rng)


def _generations(folder, before, after):
    count = len(before)
    rows = {
        "prompt_id": ["" for _ in range(count)],
        "sample_index": [0] * count,
        "prompt": [f"request {i}" for i in range(count)],
    }
    for k, name in enumerate(OBJECTIVES):
        rows[f"before/{name}"], rows[f"after/{name}"] = before[:, k].tolist(), after[:, k].tolist()
    pq.write_table(pa.table(rows), folder / "eval" / "final" / "generations.parquet")


def _evaluation(before, after, independent, rng, settings):
    judge = "the ground truth" if independent else "the training reward"
    comparison = ComparisonSpec(
        objectives=OBJECTIVES,
        judge_names=dict.fromkeys(OBJECTIVES, judge),
        independent=dict.fromkeys(OBJECTIVES, independent),
        bootstrap_samples=200,
        **settings,
    )
    prompts = len(before)
    entries = compare_objectives(comparison, before[:, None], after[:, None], np.arange(prompts))
    # Fixed means, from which the sums in the overoptimization plots are easily known.
    for entry in entries.values():
        entry["oriented"] |= {"before": 0.4, "after": 0.7}
        entry["reward"] = {"before": 0.5, "after": 0.9, "oriented": {"before": 0.5, "after": 0.9}}
    return {
        "schema": "paretune/eval/3",
        "num_prompts": prompts,
        "num_generations": 1,
        "refusal_categories": {"harmful": "up", "lookalike": "down"},
        "objectives": entries,
        "kl": {"k3": 4 + 2 * rng.random()},
        "length": {"before": 18.0, "after": 20 + 6 * rng.random()},
        "distinct_2": {"before": 0.6, "after": 0.5},
        "unique_fraction": {"before": 0.96, "after": 0.9},
        "similarity": {"before": 0.25, "after": 0.3},
        "truncation_rate": {"before": 0.01, "after": 0.02},
        "refusal_rate": {
            "lookalike": {"before": 0.15, "after": 0.01},
            "harmful": {"before": 0.6, "after": 0.8},
        },
    }


def _timing(folder, tokens, rng):
    lines = [{"stage": "sft", "step": 0, "seconds": 9.0, "trained_tokens": 5000}]
    for step in range(20):
        line = {"stage": "align", "step": step, "seconds": 2 + rng.random(), "peak_memory": 7e8 + 1e6 * step}
        lines.append(line | {"rollout_tokens": tokens // 20, "trained_tokens": 9000, "reward_calls": 128})
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
