"""The best of the policies that were evaluated during a training, by several objectives; and when to stop.

An evaluation compares the policy after some steps with the initial one on the same prompts and seeds. All
numbers here are oriented (higher is better) and in standard deviations that the judge's scores of the initial
policy have over prompts, so that objectives of different units can be weighed. They are measured on the
prompts that select the step, so the selected step looks better on them than it is: the result must be
evaluated on other prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paretune.core.goals import HIGHER, Goal
from paretune.core.rng import numpy_generator
from paretune.evaluate.paired import mean_per_prompt
from paretune.evaluate.statistics import Intervals, simultaneous_intervals

SCHEMA = "paretune/selection/1"
"""Format identifier of selection.json."""
MIN_DOMINANCE_PROBABILITY = 0.95
"""A step is dominated where another one is at least as good in every objective with this probability."""
DOMINANCE_SAMPLES = 2000
"""Bootstrap samples of that probability."""

Rule = Literal["last", "lower_bound", "dominance"]
Changes = NDArray[np.float64]
"""[P, K] mean change of each prompt's responses by objective; NaN = not scored."""


@dataclass(frozen=True, kw_only=True)
class SelectionSpec:
    """What decides, and the settings of the intervals."""

    weights: Mapping[str, float]
    """Objective -> weight; those that decide: judged ones with a weight other than 0."""
    goals: Mapping[str, Goal] = field(default_factory=dict)
    confidence_level: float = 0.95
    bootstrap_samples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StepEvaluation:
    """The evaluation of the policy after some training steps."""

    step: int
    """Training steps before it."""
    results: Mapping[str, Any]
    """Content of its eval.json."""
    changes: Changes
    """Of the judge, in standard deviations, by deciding objective."""
    reward_changes: Changes | None
    """Of the training reward on the same responses; None where there is none."""
    clusters: NDArray[np.int64]
    """[P] prompts with equal numbers depend on each other."""


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """An evaluation as selection.json has it."""

    step: int
    gain: float
    """Weighted mean of the changes."""
    low: float
    high: float
    reward_gain: float | None
    """The same of the training reward."""
    kl: Mapping[str, Any] | None
    worst_low: float
    """Smallest lower bound of an objective; the bounds hold for all objectives at once."""
    eligible: bool
    excluded: str
    """Why this step cannot be chosen; "": it can."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen step, and why."""

    step: int
    reason: str


def scaled_changes(
    spec: SelectionSpec, before: Mapping[str, NDArray[np.float64]], after: Mapping[str, NDArray[np.float64]]
) -> Changes:
    """The change of each prompt's mean score, oriented, in standard deviations of the scores before.

    An objective that gave all prompts the same score before is taken as it is.

    Args:
        spec: The deciding objectives, in the order of the columns.
        before: Objective -> [P, n] scores of the initial policy.
        after: The same of the trained one.
    """
    columns = []
    for name in spec.weights:
        goal = spec.goals.get(name, HIGHER)
        first, second = (mean_per_prompt(goal.orient(scores[name])) for scores in (before, after))
        std = float(np.nanstd(first)) if (~np.isnan(first)).any() else math.nan
        columns.append((second - first) / (std if std > 0 else 1.0))
    return np.stack(columns, 1)


def summarize_evaluation(spec: SelectionSpec, evaluation: StepEvaluation) -> StepSummary:
    """Gain, interval, and whether the step can be chosen.

    It can if no objective is shown to be worse than before the training (its interval below 0), and every
    objective with a non-inferiority margin is shown to be no further below than that, missing judgments
    counted against it.
    """
    gains = prompt_gains(spec, evaluation.changes)
    gain, low, high = _mean_interval(spec, gains, evaluation.clusters)
    rewards = evaluation.reward_changes
    excluded = "; ".join(_exclusions(spec, evaluation, gain))
    lower_bounds = _intervals(spec, evaluation.changes, evaluation.clusters).low
    return StepSummary(
        step=evaluation.step,
        gain=gain,
        low=low,
        high=high,
        reward_gain=None if rewards is None else _nan_mean(prompt_gains(spec, rewards)),
        kl=evaluation.results.get("kl"),
        worst_low=min(lower_bounds.tolist(), default=math.nan),
        eligible=not excluded,
        excluded=excluded,
    )


def prompt_gains(spec: SelectionSpec, changes: Changes) -> NDArray[np.float64]:
    """[P] weighted mean of the changes of each prompt; NaN unless all objectives were scored."""
    weights = np.array(list(spec.weights.values()))
    gains: NDArray[np.float64] = changes @ (weights / weights.sum())
    return gains


def _exclusions(spec: SelectionSpec, evaluation: StepEvaluation, gain: float) -> list[str]:
    if math.isnan(gain):
        return ["no prompt was scored on all objectives"]
    reasons = []
    for name, entry in evaluation.results["objectives"].items():
        oriented, margin = entry["oriented"], entry.get("margin")
        if name not in spec.weights and margin is None:
            continue
        low, high = entry["missing"]["low"], oriented["high"]
        if low is None or high is None or math.isnan(low):
            reasons.append(f"{name} is not measured")
        elif high < 0:
            reasons.append(f"{name} is worse ({_interval(oriented['change'], oriented['low'], high)})")
        elif margin is not None and low <= -margin:
            bound = f"its change may be {low:+.3g}, and the margin is {margin:g}"
            reasons.append(f"{name} is not shown to be no worse: {bound}")
    return reasons


def _intervals(spec: SelectionSpec, changes: Changes, clusters: NDArray[np.int64]) -> Intervals:
    return simultaneous_intervals(
        changes,
        clusters=clusters,
        bootstrap_samples=spec.bootstrap_samples,
        confidence_level=spec.confidence_level,
        seed=spec.seed,
    )


def _mean_interval(
    spec: SelectionSpec, values: NDArray[np.float64], clusters: NDArray[np.int64]
) -> tuple[float, float, float]:
    intervals = _intervals(spec, values[:, None], clusters)
    return float(intervals.mean[0]), float(intervals.low[0]), float(intervals.high[0])


def _nan_mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def choose_step(
    spec: SelectionSpec,
    rule: Rule,
    evaluations: Sequence[StepEvaluation],
    summaries: Sequence[StepSummary] | None = None,
) -> Choice:
    """The step whose policy is kept, by this rule; of equal ones the earliest.

    * last: the last one.
    * lower_bound: the largest lower bound of the weighted gain, among the eligible steps.
    * dominance: eligible steps that another eligible one dominates are dropped; of the rest the one whose
      worst objective has the largest lower bound. No weights matter.

    If no step is eligible, all are compared, and the reason says so.

    Args:
        spec: What decides.
        rule: The rule.
        evaluations: At least one, in the order of the steps.
        summaries: Of the evaluations, if they are known already.
    """
    if rule == "last":
        return Choice(step=evaluations[-1].step, reason="it is the last step")
    known = summaries or [summarize_evaluation(spec, each) for each in evaluations]
    eligible = [i for i, summary in enumerate(known) if summary.eligible]
    candidates = eligible or [i for i, summary in enumerate(known) if not math.isnan(summary.gain)]
    if not candidates:
        return Choice(step=evaluations[-1].step, reason="no step was measured, so the last one is kept")
    dropped: list[int] = []
    if rule == "dominance":
        dropped = _dominated(spec, evaluations, candidates)
        candidates = [i for i in candidates if i not in dropped]
    best = max(candidates, key=lambda i: (_criterion(rule, known[i]), -i))
    return Choice(step=known[best].step, reason=_reason(rule, known[best], known, len(eligible), dropped))


def _criterion(rule: Rule, summary: StepSummary) -> float:
    value = summary.worst_low if rule == "dominance" else summary.low
    return -math.inf if math.isnan(value) else value


def _reason(
    rule: Rule, best: StepSummary, known: Sequence[StepSummary], num_eligible: int, dropped: Sequence[int]
) -> str:
    gain = f"gain {_interval(best.gain, best.low, best.high)} standard deviations"
    if rule == "lower_bound":
        text = f"its weighted gain has the largest lower bound ({gain})"
    else:
        names = ", ".join(str(known[i].step) for i in dropped)
        text = f"its worst objective has the largest lower bound ({best.worst_low:+.2f} standard deviations)"
        text += f", once the dominated steps {names} are left out" if names else "; no step dominates another"
    if not num_eligible:
        return f"{text}; NO evaluated step keeps every objective: {best.excluded}"
    left_out = len(known) - num_eligible
    return text + (f"; {left_out} of {len(known)} steps lost in an objective" if left_out else "")


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _dominated(
    spec: SelectionSpec, evaluations: Sequence[StepEvaluation], candidates: Sequence[int]
) -> list[int]:
    """The candidates that another one dominates in at least 95 % of the bootstrap samples of the prompts."""
    means = _bootstrap_changes(spec, [evaluations[i] for i in candidates])
    dropped = []
    for j, index in enumerate(candidates):
        for other in range(len(candidates)):
            differences = means[:, other] - means[:, j]
            dominates = (differences >= 0).all(1) & (differences > 0).any(1)
            if dominates.mean() >= MIN_DOMINANCE_PROBABILITY:
                dropped.append(index)
                break
    return dropped


def _bootstrap_changes(spec: SelectionSpec, evaluations: Sequence[StepEvaluation]) -> NDArray[np.float64]:
    """[D, S, K] mean changes on the same bootstrap samples of clusters of prompts."""
    labels, index = np.unique(evaluations[0].clusters, return_inverse=True)
    rng = numpy_generator(spec.seed, 0, "dominance")
    counts = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), DOMINANCE_SAMPLES)
    weights = counts[:, index].astype(float)
    stacked = np.stack([each.changes for each in evaluations], 1)
    known = ~np.isnan(stacked)
    totals = np.einsum("dp,psk->dsk", weights, np.where(known, stacked, 0.0))
    sizes = np.einsum("dp,psk->dsk", weights, known.astype(float))
    means: NDArray[np.float64] = np.where(sizes > 0, totals / np.maximum(sizes, 1.0), 0.0)
    return means


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The judge fell from its best evaluation to a later one, while the training reward rose."""

    best_step: int
    """0: the initial policy."""
    step: int
    fall: float
    low: float
    high: float
    """Of the judge's gain from `best_step` to `step`, on the same prompts; below 0."""
    rise: float
    """Of the training reward."""

    def describe(self) -> str:
        """One sentence without a full stop."""
        return (
            f"from step {self.best_step} to step {self.step} the judge fell by "
            f"{_interval(self.fall, self.low, self.high)} standard deviations on the same prompts, while the "
            f"training reward rose by {self.rise:+.2f}"
        )


def find_turn(spec: SelectionSpec, evaluations: Sequence[StepEvaluation]) -> Turn | None:
    """Whether the judge fell below its best so far in the last of the evaluations, while the reward rose.

    The best so far is the evaluation with the largest gain, and that of the initial policy is 0. The fall is
    that of the same prompts, with its whole interval below 0; of the reward the mean counts.
    """
    now = evaluations[-1]
    if now.reward_changes is None:
        return None
    none = np.zeros(len(now.clusters))
    best_step, best, best_reward = 0, none, none
    for each in evaluations[:-1]:
        gains = prompt_gains(spec, each.changes)
        if _nan_mean(gains) > _nan_mean(best) and each.reward_changes is not None:
            best_step, best, best_reward = each.step, gains, prompt_gains(spec, each.reward_changes)
    fall, low, high = _mean_interval(spec, prompt_gains(spec, now.changes) - best, now.clusters)
    rise = _nan_mean(prompt_gains(spec, now.reward_changes) - best_reward)
    if not (high < 0 < rise):
        return None
    return Turn(best_step=best_step, step=now.step, fall=fall, low=low, high=high, rise=rise)


def find_stop(spec: SelectionSpec, evaluations: Sequence[StepEvaluation], patience: int) -> Turn | None:
    """The turn that ends the training: the last `patience` evaluations all have one; None: go on."""
    if len(evaluations) < patience:
        return None
    turns = [find_turn(spec, evaluations[: len(evaluations) - back]) for back in range(patience)]
    return turns[0] if all(turns) else None


def selection_results(
    spec: SelectionSpec,
    rule: Rule,
    evaluations: Sequence[StepEvaluation],
    *,
    max_steps: int,
    patience: int | None = None,
) -> dict[str, Any]:
    """Content of selection.json: the choice, the evaluations that it was made from, and the turning point.

    Args:
        spec: What decides.
        rule: The rule.
        evaluations: In the order of their steps; the last one is that of the end of the training.
        max_steps: Steps that the training would have had.
        patience: Of early stopping; None: off.
    """
    summaries = [summarize_evaluation(spec, each) for each in evaluations]
    choice = choose_step(spec, rule, evaluations, summaries)
    best = choose_step(spec, "lower_bound", evaluations, summaries) if rule == "last" else choice
    turns = (find_turn(spec, evaluations[: n + 1]) for n in range(len(evaluations)))
    turn = next((each for each in turns if each is not None), None)
    last = evaluations[-1].step
    stop = None if patience is None else find_stop(spec, evaluations, patience)
    return {
        "schema": SCHEMA,
        "rule": rule,
        "selected_step": choice.step,
        "last_step": last,
        "max_steps": max_steps,
        "best_step": best.step,
        "reason": choice.reason,
        "num_prompts": len(evaluations[0].clusters),
        "objectives": dict(spec.weights),
        "evaluations": [asdict(each) for each in summaries],
        "turning_step": None if turn is None else turn.best_step,
        "turn": None if turn is None else turn.describe(),
        "early_stopping": None
        if stop is None or last == max_steps
        else {
            "stopped_at": last,
            "max_steps": max_steps,
            "saved_fraction": 1 - last / max_steps,
            "reason": stop.describe(),
        },
    }


def selection_warnings(results: Mapping[str, Any]) -> list[str]:
    """Warnings of the final evaluation: training went beyond its best step, or no step keeps every objective.

    Args:
        results: Content of selection.json.
    """
    warnings, selected = [], results["selected_step"]
    if results["turn"] is not None:
        num_prompts = f"{results['num_prompts']} held-out prompts"
        warnings.append(f"Over-optimized: {results['turn']} ({num_prompts}); step {selected} is kept.")
    chosen = next(each for each in results["evaluations"] if each["step"] == selected)
    if results["rule"] != "last" and not chosen["eligible"]:
        warnings.append(f"No evaluated step keeps every objective; of step {selected}: {chosen['excluded']}.")
    return warnings
