"""PPO for policies that say how sure they are, and shall be right about it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from paretune.algorithms.ppo import ppo
from paretune.algorithms.signature import inherit_arguments
from paretune.algorithms.views import SpecT, insert_after_aggregation
from paretune.bounds import NonNegativeFloat
from paretune.credit.confidence import AdjustmentType, ConfidenceCalibratedReward
from paretune.errors import WiringError
from paretune.learn.recipe import CONFIDENCE_OBJECTIVE, AlgorithmSpec, map_phases
from paretune.rollout.sample import OnPolicy


def with_confidence(spec: SpecT) -> SpecT:
    """The recipe whose policy is asked for its confidence; so are models that it makes beforehand.

    Raises:
        WiringError: The recipe reads stored responses, or already asks for something else.
    """
    if not isinstance(spec.rollout, OnPolicy):
        raise WiringError(f"{spec.name} reads stored responses, and confidence has to be asked for")
    if spec.prompt_format not in {"", "confidence"}:
        raise WiringError(f"{spec.name} has a frame of its own ({spec.prompt_format}), and a prompt has one")
    source = replace(spec.rollout, prompt_format="confidence")
    return spec.replace(rollout=source, phases=map_phases(spec.phases, with_confidence))


@inherit_arguments(ppo)
def ppo_c(
    weights: Mapping[str, float],
    *,
    confidence_coef: NonNegativeFloat = 2.0,
    adjustment: AdjustmentType = "difference",
    missing_confidence: Literal["unadjusted", "worst", "unscored"] = "unadjusted",
    **kwargs: Any,
) -> AlgorithmSpec:
    """PPO that pays for confidence in answers better than the running mean, and for doubt in worse ones.

    The reward is of the response without its stated confidence, which is an objective of its own.

    Args:
        weights: Weight of each objective.
        confidence_coef: How much confidence matters; 0 is PPO.
        adjustment: "difference" weighs by how far the reward is from the mean, "threshold" by its size.
        missing_confidence: A response that states none is left alone, gets the worse of both extremes, or is unscored.
        kwargs: As for `ppo`.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), w and form as in the released scripts. Differs: see
    `CalibrateByConfidence`; every prompt asks for a confidence, there a part of them.
    """
    step = ConfidenceCalibratedReward(
        confidence_objective=CONFIDENCE_OBJECTIVE,
        adjustment_type=adjustment,
        confidence_coef=confidence_coef,
        missing_confidence=missing_confidence,
    )
    base = insert_after_aggregation(with_confidence(ppo(weights, **kwargs)), step)
    return base.replace(name="ppo_c", scorer_view="without_confidence")


@inherit_arguments(ppo)
def ppo_m(weights: Mapping[str, float], **kwargs: Any) -> AlgorithmSpec:
    """PPO on responses that state a confidence, which a calibrated reward model reads and judges too.

    The method is in the reward model: a head with `loss: calibrated`.

    Args:
        weights: Weight of each objective.
        kwargs: As for `ppo`.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724). Differs: every prompt asks for a confidence, there a
    part of them; the reward model reads the prompt without the request.
    """
    return with_confidence(ppo(weights, **kwargs)).replace(name="ppo_m")
