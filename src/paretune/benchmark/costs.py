"""Costs of every run of a benchmark, and the check that every method used the preregistered budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.experiment.reuse import time_and_peak_memory, total_usage
from paretune.experiment.tuning_trial import RESULTS_PATH
from paretune.run.io import read_json, read_jsonl

BUDGET_TOLERANCE = 0.02
"""Largest deviation of a run from the budget, and of two ranked methods from each other, as a fraction."""
COST_COLUMNS = ("rollout_tokens", "trained_tokens", "reward_calls", "judge_calls", "seconds", "peak_memory")
"""Response tokens sampled; tokens trained on (prompts included, once per epoch); responses scored by the
reward; responses scored by the judge (before, after, and of trials it selects); seconds in training steps;
peak main memory in bytes."""

CostRow = dict[str, Any]


def run_costs(run_dir: Path, **labels: Any) -> CostRow:
    """Costs of the alignment in a run folder, its pretraining phases included.

    Args:
        run_dir: The run folder.
        labels: Columns that identify the row: kind, method, weighting, seed.
    """
    lines = read_jsonl(run_dir / "timing.jsonl")
    evaluation = read_json(run_dir / "eval" / "final" / "eval.json") or {}
    trial = read_json(run_dir.joinpath(*RESULTS_PATH)) or {}
    # The judge scores the responses of both arms of an evaluation.
    judge_calls = 2 * int(evaluation.get("num_prompts", 0)) * int(evaluation.get("num_generations", 0))
    judge_calls += int(trial["num_prompts"]) if "judge" in trial else 0
    num_steps = sum(line["stage"] == "align" for line in lines)
    return {
        **labels,
        **total_usage(lines),
        "judge_calls": judge_calls,
        **time_and_peak_memory(lines),
        "steps": num_steps,
    }


def shared_stage_costs(run_dir: Path, seed: int) -> CostRow:
    """Costs of the stages that several runs share: initial policy, reward model and judge."""
    lines = read_jsonl(run_dir / "timing.jsonl")
    peaks = (float(line["peak_memory"]) for line in lines if "peak_memory" in line)
    return {
        "kind": "shared",
        "shared_dir": run_dir.name,
        "seed": seed,
        "trained_tokens": sum(int(line.get("trained_tokens", 0)) for line in lines),
        "seconds": sum(float(line.get("seconds", 0.0)) for line in lines),
        "peak_memory": max(peaks, default=None),
    }


def benchmark_costs(
    spec: BenchmarkSpec, run_specs: Sequence[RunSpec], shared_dirs: Mapping[Path, int]
) -> list[CostRow]:
    """All rows of costs.jsonl: shared stages, then tuning trials, then runs.

    Args:
        spec: The benchmark.
        run_specs: Its runs.
        shared_dirs: Folder of shared stages -> their seed.
    """
    rows = [shared_stage_costs(folder, seed) for folder, seed in shared_dirs.items()]
    for method in spec.config.methods:
        for index, trial in enumerate(spec.tuning_specs(method)):
            labels = {"kind": "tuning", "method": method, "weighting": trial.weighting, "seed": trial.seed}
            rows.append(run_costs(Path(trial.config.run.output_dir), **labels, trial_index=index))
    for run in run_specs:
        labels = {"kind": "run", "method": run.method, "weighting": run.weighting, "seed": run.seed}
        rows.append(run_costs(Path(run.config.run.output_dir), **labels))
    return rows


def budget_violations(used: Mapping[str, Sequence[int]], budget: int, resource: str) -> dict[str, str]:
    """Methods that cannot be ranked -> the reason: off the budget, or too far from the other methods.

    Args:
        used: Method -> resources used by each of its runs.
        budget: The preregistered limit.
        resource: The resource that is limited.
    """
    violations: dict[str, str] = {}
    means = {method: sum(values) / len(values) for method, values in used.items()}
    for method, values in used.items():
        worst = max(values, key=lambda value: abs(value - budget))
        if abs(worst - budget) > BUDGET_TOLERANCE * budget:
            violations[method] = (
                f"{method}: not ranked: a run used {worst:,} {resource}, {worst / budget - 1:+.1%} from the "
                f"budget of {budget:,}; fix: raise budget.limit, or lower training.prompts_per_step"
            )
    # Methods at opposite ends of the tolerance differ by twice of it: drop the one further from the budget.
    while remaining := {method: means[method] for method in means if method not in violations}:
        low, high = min(remaining, key=remaining.__getitem__), max(remaining, key=remaining.__getitem__)
        if remaining[high] - remaining[low] <= BUDGET_TOLERANCE * budget:
            break
        low_is_further = budget - remaining[low] > remaining[high] - budget
        dropped, other = (low, high) if low_is_further else (high, low)
        violations[dropped] = (
            f"{dropped}: not ranked: it used {remaining[dropped]:,.0f} {resource} per run and {other} "
            f"{remaining[other]:,.0f}: more than {100 * BUDGET_TOLERANCE:.0f} % apart; "
            "fix: raise budget.limit, or lower training.prompts_per_step"
        )
    return violations
