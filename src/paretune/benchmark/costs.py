"""What every run of a comparison took, in six currencies, and whether that is what was declared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.experiment.reuse import time_and_peak_memory, total_usage
from paretune.experiment.tuning_trial import RESULTS_PATH
from paretune.run.io import read_json, read_jsonl

BUDGET_TOLERANCE = 0.02
"""How much of the declared amount, and of each other, what two methods spent may differ."""
COST_COLUMNS = ("rollout_tokens", "trained_tokens", "reward_calls", "judge_calls", "seconds", "peak_memory")
"""Response tokens sampled; tokens trained on, prompts and every epoch counted; responses the reward scored;
responses the judge scored, before and after, and of a trial that is chosen by it; seconds in training steps;
bytes of main memory at most."""

CostRow = dict[str, Any]


def run_costs(run_dir: Path, **labels: Any) -> CostRow:
    """What the alignment in this folder took, models made beforehand included.

    Args:
        run_dir: Of the run.
        labels: What the row is to be called: kind, method, weighting, seed.
    """
    lines = read_jsonl(run_dir / "timing.jsonl")
    numbers = read_json(run_dir / "eval" / "final" / "eval.json") or {}
    trial = read_json(run_dir.joinpath(*RESULTS_PATH)) or {}
    judged = 2 * int(numbers.get("prompts", 0)) * int(numbers.get("n", 0))
    judged += int(trial["prompts"]) if "judge" in trial else 0
    steps = sum(line["stage"] == "align" for line in lines)
    return {
        **labels,
        **total_usage(lines),
        "judge_calls": judged,
        **time_and_peak_memory(lines),
        "steps": steps,
    }


def shared_stage_costs(run_dir: Path, seed: int) -> CostRow:
    """What the stages took that were made once for all."""
    lines = read_jsonl(run_dir / "timing.jsonl")
    return {
        "kind": "shared",
        "key": run_dir.name,
        "seed": seed,
        "trained_tokens": sum(int(line.get("trained_tokens", 0)) for line in lines),
        "seconds": sum(float(line.get("seconds", 0.0)) for line in lines),
        "peak_memory": max((float(line["memory"]) for line in lines if "memory" in line), default=None),
    }


def benchmark_costs(
    spec: BenchmarkSpec, run_specs: Sequence[RunSpec], shared_dirs: Mapping[Path, int]
) -> list[CostRow]:
    """The whole ledger: stages made once, tuning trials, runs."""
    found = [shared_stage_costs(folder, seed) for folder, seed in shared_dirs.items()]
    for method in spec.config.methods:
        for place, trial in enumerate(spec.tuning_specs(method)):
            names = {"kind": "tuning", "method": method, "weighting": trial.weighting, "seed": trial.seed}
            found.append(run_costs(Path(trial.config.run.output_dir), **names, trial=place))
    for entry in run_specs:
        names = {"kind": "run", "method": entry.method, "weighting": entry.weighting, "seed": entry.seed}
        found.append(run_costs(Path(entry.config.run.output_dir), **names))
    return found


def budget_violations(used: Mapping[str, Sequence[int]], budget: int, resource: str) -> dict[str, str]:
    """Methods that cannot be ranked, and why: they spent more or less than was declared, or than the others.

    Args:
        used: Method -> what each of its runs spent.
        budget: The budget.
        resource: In which it was declared.
    """
    found: dict[str, str] = {}
    means = {method: sum(values) / len(values) for method, values in used.items()}
    for method, values in used.items():
        worst = max(values, key=lambda value: abs(value - budget))
        if abs(worst - budget) > BUDGET_TOLERANCE * budget:
            found[method] = (
                f"{method}: not ranked: a run spent {worst:,} {resource}, {worst / budget - 1:+.1%} of the "
                f"{budget:,} declared; fix: raise budget.amount, or lower training.prompts_per_step"
            )
    while left := {method: means[method] for method in means if method not in found}:
        low, high = min(left, key=left.__getitem__), max(left, key=left.__getitem__)
        if left[high] - left[low] <= BUDGET_TOLERANCE * budget:
            break
        out, other = (low, high) if budget - left[low] > left[high] - budget else (high, low)
        found[out] = (
            f"{out}: not ranked: it spent {left[out]:,.0f} {resource} a run and {other} {left[other]:,.0f}: "
            f"more than {BUDGET_TOLERANCE:.0%} apart; fix: raise budget.amount, or lower training.prompts_per_step"
        )
    return found
