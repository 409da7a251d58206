"""What every run of a comparison took, in six currencies, and whether that is what was declared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.config.contest import Contest, Entry
from paretune.files import read_json, read_jsonl
from paretune.stages.account import paid, resources
from paretune.stages.trial import FOUND

TOLERANCE = 0.02
"""How much of the declared amount, and of each other, what two methods spent may differ."""
CURRENCIES = ("rollout_tokens", "trained_tokens", "reward_calls", "judge_calls", "seconds", "peak_memory")
"""Response tokens sampled; tokens trained on, prompts and every epoch counted; responses the reward scored;
responses the judge scored, before and after, and of a trial that is chosen by it; seconds in training steps;
bytes of main memory at most."""

Row = dict[str, Any]


def row_of(folder: Path, **names: Any) -> Row:
    """What the alignment in this folder took, models made beforehand included.

    Args:
        folder: Of the run.
        names: What the row is to be called: kind, method, weighting, seed.
    """
    lines = read_jsonl(folder / "timing.jsonl")
    numbers = read_json(folder / "eval" / "final" / "eval.json") or {}
    trial = read_json(folder.joinpath(*FOUND)) or {}
    judged = 2 * int(numbers.get("prompts", 0)) * int(numbers.get("n", 0))
    judged += int(trial["prompts"]) if "judge" in trial else 0
    steps = sum(line["stage"] == "align" for line in lines)
    return {**names, **paid(lines), "judge_calls": judged, **resources(lines), "steps": steps}


def shared_row(folder: Path, seed: int) -> Row:
    """What the stages took that were made once for all."""
    lines = read_jsonl(folder / "timing.jsonl")
    return {
        "kind": "shared",
        "key": folder.name,
        "seed": seed,
        "trained_tokens": sum(int(line.get("trained_tokens", 0)) for line in lines),
        "seconds": sum(float(line.get("seconds", 0.0)) for line in lines),
        "peak_memory": max((float(line["memory"]) for line in lines if "memory" in line), default=None),
    }


def rows(contest: Contest, entries: Sequence[Entry], shared: Mapping[Path, int]) -> list[Row]:
    """The whole ledger: stages made once, tuning trials, runs."""
    found = [shared_row(folder, seed) for folder, seed in shared.items()]
    for method in contest.said.methods:
        for place, trial in enumerate(contest.tried(method)):
            names = {"kind": "tuning", "method": method, "weighting": trial.weighting, "seed": trial.seed}
            found.append(row_of(Path(trial.experiment.run.folder), **names, trial=place))
    for entry in entries:
        names = {"kind": "run", "method": entry.method, "weighting": entry.weighting, "seed": entry.seed}
        found.append(row_of(Path(entry.experiment.run.folder), **names))
    return found


def refusals(spent: Mapping[str, Sequence[int]], declared: int, currency: str) -> dict[str, str]:
    """Methods that cannot be ranked, and why: they spent more or less than was declared, or than the others.

    Args:
        spent: Method -> what each of its runs spent.
        declared: The budget.
        currency: In which it was declared.
    """
    found: dict[str, str] = {}
    means = {method: sum(values) / len(values) for method, values in spent.items()}
    for method, values in spent.items():
        worst = max(values, key=lambda value: abs(value - declared))
        if abs(worst - declared) > TOLERANCE * declared:
            found[method] = (
                f"{method}: not ranked: a run spent {worst:,} {currency}, {worst / declared - 1:+.1%} of the "
                f"{declared:,} declared; fix: raise budget.amount, or lower learn.prompts"
            )
    while left := {method: means[method] for method in means if method not in found}:
        low, high = min(left, key=left.__getitem__), max(left, key=left.__getitem__)
        if left[high] - left[low] <= TOLERANCE * declared:
            break
        out, other = (low, high) if declared - left[low] > left[high] - declared else (high, low)
        found[out] = (
            f"{out}: not ranked: it spent {left[out]:,.0f} {currency} a run and {other} {left[other]:,.0f}: "
            f"more than {TOLERANCE:.0%} apart; fix: raise budget.amount, or lower learn.prompts"
        )
    return found
