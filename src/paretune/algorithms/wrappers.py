"""Verbalized confidence (PPO-M, PPO-C), and thinking before the response (RLMT)."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from paretune.algorithms.aggregators import SpecT, insert_after_aggregation
from paretune.algorithms.ppo import ppo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.types import NonNegativeFloat
from paretune.credit.score_transforms import InvalidFormatPenalty
from paretune.credit.shaping import AdjustmentType, ConfidenceCalibratedReward
from paretune.data.prompt_formats import PromptFormat, ScorerView
from paretune.rl.algorithm_spec import CONFIDENCE_OBJECTIVE, AlgorithmSpec, map_phases


def with_confidence(spec: SpecT) -> SpecT:
    """Ask the policy for its confidence in every prompt, also in the phases of the spec.

    Raises:
        WiringError: The spec uses stored responses, or already has another prompt format.
    """
    if not spec.rollout.generates:
        raise WiringError(
            f"{spec.name} uses stored responses, and confidence must be sampled; fix: an algorithm that "
            "samples"
        )
    if spec.prompt_format not in {"", "confidence"}:
        raise WiringError(
            f'{spec.name} already has the prompt format "{spec.prompt_format}"; fix: use one of the two'
        )
    rollout = spec.rollout.replace(prompt_format="confidence")
    return spec.replace(rollout=rollout, phases=map_phases(spec.phases, with_confidence))


@inherit_arguments(ppo)
def ppo_c(
    weights: Mapping[str, float],
    *,
    confidence_coef: NonNegativeFloat = 2.0,
    adjustment: AdjustmentType = "difference",
    missing_confidence: Literal["unadjusted", "worst", "unscored"] = "unadjusted",
    **kwargs: Any,
) -> AlgorithmSpec:
    """PPO-C: reward confidence in responses above the running mean, and doubt in those below it.

    Scorers read the response without its stated confidence, which is a separate objective.

    Args:
        weights: Weight of each objective.
        confidence_coef: Size of the adjustment; 0 is PPO.
        adjustment: "difference": proportional to the distance of the reward from the mean; "threshold": to
            its magnitude; "spread": compared with the moving standard deviation.
        missing_confidence: A response without a confidence is not adjusted, gets the lower of both extremes,
            or is unscored.
        kwargs: As for `ppo`.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), confidence_coef and adjustment as in the released
    scripts. Differs: see `ConfidenceCalibratedReward`; every prompt asks for a confidence, there a part of
    them.
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
    """PPO-M: PPO on responses that state a confidence, scored by a reward model that is calibrated for it.

    The method is in the reward model: a head with `loss: calibrated`.

    Args:
        weights: Weight of each objective.
        kwargs: As for `ppo`.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724). Differs: every prompt asks for a confidence, there a
    part of them; the reward model reads the prompt without that instruction.
    """
    return with_confidence(ppo(weights, **kwargs)).replace(name="ppo_m")


InvalidFormatHandling = Literal["penalize", "drop"]
"""A response in an invalid format gets the lowest reward so far, or is unscored."""


def with_thinking(
    spec: SpecT,
    invalid_format: InvalidFormatHandling,
    *,
    prompt_format: PromptFormat = "think",
    scorer_view: ScorerView = "after_thinking",
) -> SpecT:
    """RLMT: the policy thinks before it responds, and scorers see the final response only.

    All tokens are trained on, including those of the thinking. With prompt format "" and scorer view "full"
    the training is that of the original spec.

    Args:
        spec: Any that samples; its phases think too.
        invalid_format: Handling of a response whose tags are missing or repeated, or whose final response is
            empty. With "drop" the policy gets no signal about the format.
        prompt_format: Instruction in the prompt.
        scorer_view: Part of the response that scorers see.

    Raises:
        WiringError: The spec uses stored responses, or already has a prompt format or a scorer view.

    Source: Bhaskar et al. 2025, RLMT (arXiv:2509.20357). Differs: the format is always checked strictly; the
    handling of invalid responses is a choice.
    """
    if not spec.rollout.generates:
        raise WiringError(
            f"{spec.name} uses stored responses, and thinking must be sampled; fix: an algorithm that samples"
        )
    if spec.prompt_format or spec.scorer_view != "full":
        raise WiringError(
            f'{spec.name} already has the prompt format "{spec.prompt_format}" and the scorer view '
            f'"{spec.scorer_view}"; fix: use one of the two'
        )
    in_phases = partial(
        with_thinking, invalid_format=invalid_format, prompt_format=prompt_format, scorer_view=scorer_view
    )
    base = spec if invalid_format == "drop" else insert_after_aggregation(spec, InvalidFormatPenalty())
    return base.replace(
        name=f"thinking_{spec.name}",
        rollout=spec.rollout.replace(prompt_format=prompt_format),
        scorer_view=scorer_view,
        phases=map_phases(spec.phases, in_phases),
    )
