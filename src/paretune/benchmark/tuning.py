"""Which settings a method is compared with: the trial that the reward, or the judge, scores highest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from paretune.benchmark.spec import BenchmarkSpec, RunSpec, Settings
from paretune.core.errors import NonFiniteError
from paretune.experiment.tuning_trial import RESULTS_PATH
from paretune.run.io import read_json

ScoreFunction = Callable[[Path, Mapping[str, float]], float | None]


def training_reward(run_dir: Path, weights: Mapping[str, float]) -> float | None:
    """The weighted sum of the mean scores that a trial's trained policy got; None: it came to no end.

    Gates are left out, since methods apply them in different places; scores are those of the reward model, of
    answers to prompts of the training.

    Args:
        run_dir: Of the trial.
        weights: Of the objectives.
    """
    found = read_json(run_dir.joinpath(*RESULTS_PATH))
    if found is None or any(found["mean"][name] is None for name in weights):
        return None
    return float(sum(weight * found["mean"][name] for name, weight in weights.items()))


def judge_score(run_dir: Path, weights: Mapping[str, float]) -> float | None:
    """The weighted sum of what the judge says of the same answers; None: no end, or the judge was not asked.

    Gates are left out here too, and so is an objective without a weight, which a judge need not know.

    Args:
        run_dir: Of the trial.
        weights: Of the objectives.
    """
    means = (read_json(run_dir.joinpath(*RESULTS_PATH)) or {}).get("judge", {}).get("mean", {})
    asked = {name: weight for name, weight in weights.items() if weight}
    if any(means.get(name) is None for name in asked):
        return None
    return float(sum(weight * means[name] for name, weight in asked.items()))


def has_judge_scores(run_dir: Path) -> bool:
    """Whether the judge scored the answers of this trial."""
    return "judge" in (read_json(run_dir.joinpath(*RESULTS_PATH)) or {})


def tuned_by_judge(spec: BenchmarkSpec) -> bool:
    """Whether the judge chooses."""
    return spec.config.tuning is not None and spec.config.tuning.select_by == "judge"


def select_trials(spec: BenchmarkSpec, exit_codes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Method -> its trials with what they are known by, and the number of the one that is taken.

    Args:
        spec: The comparison.
        exit_codes: Folder of a trial -> its exit code; one that stopped itself has no score.

    Raises:
        TrainingGuard: No trial of a method came to an end.
    """
    found, asked = {}, tuned_by_judge(spec)
    for method in spec.config.methods:
        trials = spec.tuning_specs(method)
        rewards = [_trial_score(trial, exit_codes, training_reward) for trial in trials]
        scores = [_trial_score(trial, exit_codes, judge_score) for trial in trials] if asked else rewards
        known = [score for score in scores if score is not None]
        if trials and not known:
            raise NonFiniteError(
                f"{method}: every tuning trial stopped itself; fix: try other values in tuning.over"
            )
        if trials:
            best = scores.index(max(known))
            found[method] = {
                "trials": [
                    {"set": dict(s), "training_reward": reward} | ({"judge": score} if asked else {})
                    for s, reward, score in zip(spec.trial_settings, rewards, scores, strict=True)
                ],
                "by": "judge" if asked else "reward",
                "chosen": best,
                "set": dict(spec.trial_settings[best]),
                "best": max(known),
                "median": median(known),
            }
    return found


def selected_settings(tuning_results: Mapping[str, Mapping[str, Any]]) -> dict[str, Settings]:
    """Method -> what its runs set."""
    return {method: dict(found["set"]) for method, found in tuning_results.items()}


def _trial_score(
    trial: RunSpec, exit_codes: Mapping[str, int], score_function: ScoreFunction
) -> float | None:
    folder = trial.config.run.output_dir
    return None if exit_codes.get(folder) else score_function(Path(folder), trial.config.weights)
