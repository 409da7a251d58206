"""Judges that compare the responses of two policies pair by pair, each pair in both orders."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from paretune.data.prompt_formats import ScorerView, visible_text
from paretune.data.records import Sample
from paretune.evaluate.generate import prompt_clusters
from paretune.evaluate.judging import Arms, Judge
from paretune.evaluate.pairwise import (
    FloatArray,
    combine_orders,
    length_controlled_win_rate,
    win_rate,
)
from paretune.evaluate.verdicts import ChangeEvidence, judge_change

_MAX_LENGTH_CONTROLLED_SAMPLES = 2000
"""Bootstrap samples of the length-controlled rate, each of which fits a model."""


@runtime_checkable
class PairwiseScorer(Protocol):
    """Compares two responses to a prompt by one or more objectives."""

    names: tuple[str, ...]

    def preferences(self, pairs: Sequence[tuple[Sample, Sample]]) -> Float[Tensor, "2 N k"]:
        """1 if the response that is shown first is better, -1 if the second, 0 for a tie, NaN without answer.

        The first axis is the order: as given, and swapped.
        """
        ...


def compare_pairs(
    arms: Arms,
    judges: Sequence[Judge],
    *,
    reward_judges: Sequence[Judge] = (),
    scorer_view: ScorerView = "full",
    confidence_level: float = 0.95,
    bootstrap_samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Win rates of the responses after training over those before, by judge and objective.

    All responses are compared: the first before with the first after, and so on, in both orders.

    Args:
        arms: Responses before and after.
        judges: Their scorers are `PairwiseScorer`s, alone or guarded.
        reward_judges: The training reward: a judge that shares something with it never says "better".
        scorer_view: The part of a response that judges read.
        confidence_level: Confidence level of the intervals, each for itself.
        bootstrap_samples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ScoringError: A judge failed on too many comparisons.
    """
    visible = [[visible_text(sample, scorer_view) for sample in arm.samples] for arm in arms]
    pairs = list(zip(*visible, strict=True))
    readable = [(before, after) for before, after in pairs if before is not None and after is not None]
    rows = np.array([before is not None and after is not None for before, after in pairs], dtype=bool)
    lengths = np.subtract(arms[1].response_lengths, arms[0].response_lengths).astype(float)
    clusters = np.repeat(prompt_clusters(arms[0].prompts), arms[0].num_generations)
    sampling = {"bootstrap_samples": bootstrap_samples, "confidence_level": confidence_level, "seed": seed}
    results: dict[str, Any] = {}
    for judge in judges:
        shared = next((text for reward in reward_judges if (text := judge.shared_with(reward))), "")
        scorer: Any = judge.scorer
        preferred = np.full((2, len(pairs), len(scorer.names)), np.nan)
        if readable:
            preferred[:, rows] = scorer.preferences(readable).double().cpu().numpy()
        results[judge.short_name] = {
            "judge": judge.name,
            "num_pairs": len(pairs),
            "num_unreadable": len(pairs) - len(readable),
            "objectives": {
                name: _objective_result(name, preferred[:, :, k], lengths, clusters, shared, sampling)
                for k, name in enumerate(scorer.names)
            },
        }
    return results


def _objective_result(
    name: str,
    preferred: FloatArray,
    lengths: FloatArray,
    clusters: NDArray[np.int64],
    shared: str,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """From [2, N] preferences for the response shown first, and [N] length differences."""
    # The order as given shows the response before training first.
    after_second, after_first = (1 - preferred[0]) / 2, (1 + preferred[1]) / 2
    rate = win_rate(after_second, after_first, clusters, **sampling)
    preferences, _, _ = combine_orders(after_second, after_first)
    lc_samples = min(sampling["bootstrap_samples"], _MAX_LENGTH_CONTROLLED_SAMPLES)
    controlled = length_controlled_win_rate(
        preferences, lengths, clusters, **{**sampling, "bootstrap_samples": lc_samples}
    )
    missing = _missing(preferred, preferences, rate.rate, (rate.low, rate.high))
    evidence = ChangeEvidence(
        objective=name,
        low=rate.low - 0.5,
        high=rate.high - 0.5,
        independent=not shared,
        shared=shared,
        num_prompts=rate.num_prompts,
        missing_fraction=rate.missing_fraction,
        worst_low=missing["low"] - 0.5,
    )
    judged = ~np.isnan(preferred).any(0)
    return {
        "win_rate": asdict(rate),
        "length_controlled": asdict(controlled),
        "tie_rate": float((preferences[judged] == 0.5).mean()) if judged.any() else float("nan"),
        "position_bias": float(preferred[:, judged].mean()) if judged.any() else float("nan"),
        "missing": missing,
        "independent": not shared,
        **judge_change(evidence).entry(),
    }


def _missing(
    preferred: FloatArray, preferences: FloatArray, rate: float, interval: tuple[float, float]
) -> dict[str, Any]:
    """Comparisons without an answer by order, and the interval if all missing pairs were lost, or won."""
    absent = np.isnan(preferences)
    low, high = interval
    if absent.any() and not absent.all():
        low += float(np.where(absent, 0.0, preferences).mean()) - rate
        high += float(np.where(absent, 1.0, preferences).mean()) - rate
    return {
        "before_first": int(np.isnan(preferred[0]).sum()),
        "after_first": int(np.isnan(preferred[1]).sum()),
        "fraction": float(absent.mean()) if len(absent) else 1.0,
        "low": max(low, 0.0) if np.isfinite(low) else 0.0,
        "high": min(high, 1.0) if np.isfinite(high) else 1.0,
    }
