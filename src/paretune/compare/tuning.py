"""Which settings a method is compared with: the trial with the highest training reward, never the judge's."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from paretune.config.contest import Contest, Entry, Settings
from paretune.errors import TrainingGuard
from paretune.files import read_json
from paretune.stages.trial import FOUND


def training_reward(folder: Path, weights: Mapping[str, float]) -> float | None:
    """The weighted sum of the mean scores that a trial's trained policy got; None: it came to no end.

    Gates are left out, since methods apply them in different places; scores are those of the reward model, of
    answers to prompts of the training.

    Args:
        folder: Of the trial.
        weights: Of the objectives.
    """
    found = read_json(folder.joinpath(*FOUND))
    if found is None or any(found["mean"][name] is None for name in weights):
        return None
    return float(sum(weight * found["mean"][name] for name, weight in weights.items()))


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
