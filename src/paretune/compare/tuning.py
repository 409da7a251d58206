"""Which settings a method is compared with: the trial with the highest training reward, never the judge's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from paretune.config.contest import Contest, Entry, Settings
from paretune.errors import TrainingGuard
from paretune.files import read_jsonl

LAST = 5
"""The last fifth of a trial's steps is what counts."""


def training_reward(folder: Path, weights: Mapping[str, float]) -> float | None:
    """Mean over the last fifth of the steps of the weighted sum of the mean scores; None: it came to no end.

    Gates are left out, since methods apply them in different places; scores are those of the reward model.

    Args:
        folder: Of the trial.
        weights: Of the objectives.
    """
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]
    last = lines[-max(len(lines) // LAST, 1) :]
    found = [
        sum(weight * line[f"score/{name}/mean"] for name, weight in weights.items())
        for line in last
        if all(line.get(f"score/{name}/mean") is not None for name in weights)
    ]
    return sum(found) / len(found) if found else None


def chosen(contest: Contest, codes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Method -> its trials with their training rewards, and the number of the one that is taken.

    Args:
        contest: The comparison.
        codes: Folder of a trial -> its exit code; one that stopped itself has no reward.

    Raises:
        TrainingGuard: No trial of a method came to an end.
    """
    found = {}
    for method in contest.said.methods:
        trials = contest.tried(method)
        rewards = [_reward(trial, codes) for trial in trials]
        known = [reward for reward in rewards if reward is not None]
        if trials and not known:
            raise TrainingGuard(
                f"{method}: every tuning trial stopped itself; fix: try other values in tuning.over"
            )
        if trials:
            best = rewards.index(max(known))
            found[method] = {
                "trials": [
                    {"set": dict(settings), "training_reward": reward}
                    for settings, reward in zip(contest.trials, rewards, strict=True)
                ],
                "chosen": best,
                "set": dict(contest.trials[best]),
                "best": max(known),
                "median": median(known),
            }
    return found


def settings_of(tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Settings]:
    """Method -> what its runs set."""
    return {method: dict(found["set"]) for method, found in tuned.items()}


def _reward(trial: Entry, codes: Mapping[str, int]) -> float | None:
    folder = trial.experiment.run.folder
    return None if codes.get(folder) else training_reward(Path(folder), trial.experiment.weights)


def trial_folders(trials: Sequence[Entry]) -> list[str]:
    """Where they lie."""
    return [trial.experiment.run.folder for trial in trials]
