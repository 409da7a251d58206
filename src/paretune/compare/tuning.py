"""Which settings a method is compared with: the trial that the reward, or the judge, scores highest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from paretune.config.contest import Contest, Entry, Settings
from paretune.errors import TrainingGuard
from paretune.files import read_json
from paretune.stages.trial import FOUND

Number = Callable[[Path, Mapping[str, float]], float | None]


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


def judge_score(folder: Path, weights: Mapping[str, float]) -> float | None:
    """The weighted sum of what the judge says of the same answers; None: no end, or the judge was not asked.

    Gates are left out here too, and so is an objective without a weight, which a judge need not know.

    Args:
        folder: Of the trial.
        weights: Of the objectives.
    """
    means = (read_json(folder.joinpath(*FOUND)) or {}).get("judge", {}).get("mean", {})
    asked = {name: weight for name, weight in weights.items() if weight}
    if any(means.get(name) is None for name in asked):
        return None
    return float(sum(weight * means[name] for name, weight in asked.items()))


def judged(folder: Path) -> bool:
    """Whether the judge scored the answers of this trial."""
    return "judge" in (read_json(folder.joinpath(*FOUND)) or {})


def by_judge(contest: Contest) -> bool:
    """Whether the judge chooses."""
    return contest.said.tuning is not None and contest.said.tuning.by == "judge"


def chosen(contest: Contest, codes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Method -> its trials with what they are known by, and the number of the one that is taken.

    Args:
        contest: The comparison.
        codes: Folder of a trial -> its exit code; one that stopped itself has no score.

    Raises:
        TrainingGuard: No trial of a method came to an end.
    """
    found, asked = {}, by_judge(contest)
    for method in contest.said.methods:
        trials = contest.tried(method)
        rewards = [_of(trial, codes, training_reward) for trial in trials]
        scores = [_of(trial, codes, judge_score) for trial in trials] if asked else rewards
        known = [score for score in scores if score is not None]
        if trials and not known:
            raise TrainingGuard(
                f"{method}: every tuning trial stopped itself; fix: try other values in tuning.over"
            )
        if trials:
            best = scores.index(max(known))
            found[method] = {
                "trials": [
                    {"set": dict(s), "training_reward": reward} | ({"judge": score} if asked else {})
                    for s, reward, score in zip(contest.trials, rewards, scores, strict=True)
                ],
                "by": "judge" if asked else "reward",
                "chosen": best,
                "set": dict(contest.trials[best]),
                "best": max(known),
                "median": median(known),
            }
    return found


def settings_of(tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Settings]:
    """Method -> what its runs set."""
    return {method: dict(found["set"]) for method, found in tuned.items()}


def _of(trial: Entry, codes: Mapping[str, int], number: Number) -> float | None:
    folder = trial.experiment.run.folder
    return None if codes.get(folder) else number(Path(folder), trial.experiment.weights)
