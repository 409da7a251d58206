"""Selection of a method's settings: the tuning trial with the highest training reward, or judge score."""

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
    """Weighted sum of the reward model's mean scores of a trial; None if the trial did not finish.

    The scores are of responses of the trained policy to training prompts. Gates are left out, since methods
    apply them in different places.

    Args:
        run_dir: Folder of the trial.
        weights: Objective -> weight.
    """
    scores = read_json(run_dir.joinpath(*RESULTS_PATH))
    if scores is None or any(scores["mean"][name] is None for name in weights):
        return None
    return float(sum(weight * scores["mean"][name] for name, weight in weights.items()))


def judge_score(run_dir: Path, weights: Mapping[str, float]) -> float | None:
    """Weighted sum of the judge's mean scores of the same responses.

    None if the trial did not finish, or has no judge scores. Gates are left out here too. An objective with
    weight 0 is left out, since the judge need not score it.

    Args:
        run_dir: Folder of the trial.
        weights: Objective -> weight.
    """
    means = (read_json(run_dir.joinpath(*RESULTS_PATH)) or {}).get("judge", {}).get("mean", {})
    nonzero = {name: weight for name, weight in weights.items() if weight}
    if any(means.get(name) is None for name in nonzero):
        return None
    return float(sum(weight * means[name] for name, weight in nonzero.items()))


def has_judge_scores(run_dir: Path) -> bool:
    """Whether the judge has scored the responses of this trial."""
    return "judge" in (read_json(run_dir.joinpath(*RESULTS_PATH)) or {})


def tuned_by_judge(spec: BenchmarkSpec) -> bool:
    """Whether the judge selects the trials."""
    return spec.config.tuning is not None and spec.config.tuning.select_by == "judge"


def select_trials(spec: BenchmarkSpec, exit_codes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Method -> its trials with their scores, and the selected one.

    Args:
        spec: The benchmark.
        exit_codes: Folder of a trial -> its exit code; a trial that a training guard stopped has no score.

    Raises:
        NonFiniteError: No trial of a method finished.
    """
    by_judge = tuned_by_judge(spec)
    results = {}
    for method in spec.config.methods:
        trials = spec.tuning_specs(method)
        rewards = [_trial_score(trial, exit_codes, training_reward) for trial in trials]
        scores = [_trial_score(trial, exit_codes, judge_score) for trial in trials] if by_judge else rewards
        known = [score for score in scores if score is not None]
        if trials and not known:
            raise NonFiniteError(
                f"{method}: a training guard stopped every tuning trial; "
                "fix: try other values in tuning.search_space"
            )
        if trials:
            best = scores.index(max(known))
            results[method] = {
                "trials": [
                    {"settings": dict(settings), "training_reward": reward}
                    | ({"judge_score": score} if by_judge else {})
                    for settings, reward, score in zip(spec.trial_settings, rewards, scores, strict=True)
                ],
                "select_by": "judge" if by_judge else "reward",
                "selected_index": best,
                "settings": dict(spec.trial_settings[best]),
                "best_score": max(known),
                "median_score": median(known),
            }
    return results


def selected_settings(tuning_results: Mapping[str, Mapping[str, Any]]) -> dict[str, Settings]:
    """Method -> the settings of its selected trial."""
    return {method: dict(result["settings"]) for method, result in tuning_results.items()}


def _trial_score(
    trial: RunSpec, exit_codes: Mapping[str, int], score_function: ScoreFunction
) -> float | None:
    run_dir = trial.config.run.output_dir
    return None if exit_codes.get(run_dir) else score_function(Path(run_dir), trial.config.weights)
