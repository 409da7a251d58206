"""PPO for policies that say how sure they are, and shall be right about it.

Thinking before the answer, around any recipe that samples: RLMT.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from paretune.algorithms.aggregators import SpecT, insert_after_aggregation
from paretune.algorithms.ppo import ppo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.types import NonNegativeFloat
from paretune.credit.score_transforms import InvalidFormatPenalty
from paretune.credit.shaping import AdjustmentType, ConfidenceCalibratedReward
from paretune.data.chat import PromptFormat, ScorerView
from paretune.rl.algorithm_spec import CONFIDENCE_OBJECTIVE, AlgorithmSpec, map_phases
from paretune.rollout.sampler import OnPolicy


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


InvalidFormatHandling = Literal["worst", "drop"]
"""What a response without readable thoughts is: as bad as the worst so far, or not learnt from."""


def with_thinking(
    spec: SpecT,
    invalid_format: InvalidFormatHandling,
    *,
    prompt_format: PromptFormat = "think",
    scorer_view: ScorerView = "after_thinking",
) -> SpecT:
    """The recipe with a policy that thinks first, and scorers that are shown the answer alone.

    Every token is credited, those of the thoughts too. With the empty frame and the whole view it is the
    recipe as it was.

    Args:
        spec: Any that samples; models that it makes beforehand think likewise.
        invalid_format: What a response is worth whose tags are missing or doubled, or whose answer is empty. "drop"
            teaches nothing about the form.
        prompt_format: What is asked of the policy.
        scorer_view: What scorers are shown.

    Raises:
        WiringError: The recipe reads stored responses, or already asks for something else.

    Source: Bhaskar et al. 2025, RLMT (arXiv:2509.20357). Differs: form is checked strictly and always; what
    a response without it gets is a choice.
    """
    if not isinstance(spec.rollout, OnPolicy):
        raise WiringError(f"{spec.name} reads stored responses, and thoughts have to be sampled")
    if spec.prompt_format or spec.scorer_view != "whole":
        asked = spec.prompt_format or spec.scorer_view
        raise WiringError(f"{spec.name} has a frame and a view of its own ({asked}), and a response has one")
    again = partial(
        with_thinking, invalid_format=invalid_format, prompt_format=prompt_format, scorer_view=scorer_view
    )
    base = spec if invalid_format == "drop" else insert_after_aggregation(spec, InvalidFormatPenalty())
    source = replace(spec.rollout, prompt_format=prompt_format)
    return base.replace(
        name=f"thinking_{spec.name}",
        rollout=source,
        scorer_view=scorer_view,
        phases=map_phases(spec.phases, again),
    )
