"""Runs of a sweep without any training: a front of given shape, and the files its results are read from."""

import json
from pathlib import Path

import numpy as np

from paretune.benchmark.sweep import load_sweep
from paretune.benchmark.sweep_design import simplex_grid, weighting_name
from paretune.benchmark.sweep_results import sweep_results
from paretune.evaluate.paired import ComparisonSpec, compare_objectives
from paretune.run.io import to_json
from support import fake_benchmark
from support.fake_benchmark import INITIAL_MEANS, OBJECTIVES

OVER = ("safety", "actionability")


def bulging_means(shares):
    """Means that fall off from both ends, with the knee at equal shares; shares of safety, actionability."""
    safety, actionability = shares
    return {"safety": 0.6 + 0.35 * safety**0.4, "actionability": 0.3 + 0.4 * actionability**0.4}


def fake_sweep(folder, *options, points=9, means=bulging_means, **settings):
    """A planned sweep of the shipped demo, and the shares of its weightings by name."""
    overrides = [f"run.output_dir={folder}", *options]
    sweep = load_sweep("demo", overrides, over=OVER, points=points, **settings)
    shares = {weighting_name(each): each for each in simplex_grid(2, points - 1)}
    write_runs(sweep.benchmark, shares, means)
    return sweep, shares


def write_runs(spec, shares, means, *, prompts=60, noise=0.08, independent=True, goals=None):
    """Write run.json, eval.json, generations.parquet and timing.jsonl of every run."""
    for run in spec.run_specs():
        rng = np.random.default_rng([run.seed, 5])
        difficulty = rng.normal(0, 0.15, (prompts, len(OBJECTIVES)))
        run_rng = np.random.default_rng([run.seed, *run.label.encode()])
        own = dict(zip(OBJECTIVES, INITIAL_MEANS, strict=True)) | means(shares[run.weighting])
        before = INITIAL_MEANS + difficulty
        after = np.array([own[name] for name in OBJECTIVES]) + difficulty
        after = after + run_rng.normal(0, noise, after.shape)
        folder = Path(run.config.run.output_dir)
        (folder / "eval" / "final").mkdir(parents=True, exist_ok=True)
        fake_benchmark._generations(folder, before, after)
        evaluation = fake_benchmark._evaluation(before, after, independent, run_rng, {"goals": goals or {}})
        comparison = ComparisonSpec(
            objectives=OBJECTIVES,
            judge_names=dict.fromkeys(OBJECTIVES, "the ground truth"),
            independent=dict.fromkeys(OBJECTIVES, independent),
            bootstrap_samples=200,
            goals=goals or {},
        )
        entries = compare_objectives(comparison, before[:, None], after[:, None], np.arange(prompts))
        for name, entry in entries.items():
            entry["reward"] = evaluation["objectives"][name]["reward"]
        evaluation["objectives"] = entries
        (folder / "eval" / "final" / "eval.json").write_text(to_json(evaluation))
        (folder / "run.json").write_text(json.dumps({"status": "done", "stage": "report"}))
        lines = [
            {"stage": "align", "step": step, "seconds": 1.0, "rollout_tokens": 500, "reward_calls": 64}
            for step in range(spec.config.budget.limit)
        ]
        (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def results_of(sweep, shares, **settings):
    """The content of sweep.json."""
    return sweep_results(sweep.benchmark, sweep.over, shares, design=sweep.design, **settings)
