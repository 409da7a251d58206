"""PPO for policies that say how sure they are, and shall be right about it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from paretune.algorithms.ppo import ppo
from paretune.algorithms.signature import extends
from paretune.algorithms.views import Made, after_sum
from paretune.bounds import NotNegative
from paretune.credit.confidence import CalibrateByConfidence, Form
from paretune.errors import WiringError
from paretune.learn.recipe import CONFIDENCE, Recipe, in_phases
from paretune.rollout.sample import Online


def asking(recipe: Made) -> Made:
    """The recipe whose policy is asked for its confidence; so are models that it makes beforehand.

    Raises:
        WiringError: The recipe reads stored responses, or already asks for something else.
    """
    if not isinstance(recipe.source, Online):
        raise WiringError(f"{recipe.name} reads stored responses, and confidence has to be asked for")
    if recipe.frame not in {"", "confidence"}:
        raise WiringError(f"{recipe.name} has a frame of its own ({recipe.frame}), and a prompt has one")
    source = replace(recipe.source, frame="confidence")
    return recipe.but(source=source, before=in_phases(recipe.before, asking))


@extends(ppo)
def ppo_c(
    weights: Mapping[str, float],
    *,
    w: NotNegative = 2.0,
    form: Form = "difference",
    unstated: Literal["unadjusted", "worst", "unscored"] = "unadjusted",
    **more: Any,
) -> Recipe:
    """PPO that pays for confidence in answers better than the running mean, and for doubt in worse ones.

    The reward is of the response without its stated confidence, which is an objective of its own.

    Args:
        weights: Weight of each objective.
        w: How much confidence matters; 0 is PPO.
        form: "difference" weighs by how far the reward is from the mean, "threshold" by its size.
        unstated: A response that states none is left alone, gets the worse of both extremes, or is unscored.
        more: As for `ppo`.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), w and form as in the released scripts. Differs: see
    `CalibrateByConfidence`; every prompt asks for a confidence, there a part of them.
    """
    step = CalibrateByConfidence(confidence=CONFIDENCE, form=form, w=w, unstated=unstated)
    base = after_sum(asking(ppo(weights, **more)), step)
    return base.but(name="ppo_c", view="without_confidence")


@extends(ppo)
def ppo_m(weights: Mapping[str, float], **more: Any) -> Recipe:
    """PPO on responses that state a confidence, which a calibrated reward model reads and judges too.

    The method is in the reward model: a head with `loss: calibrated`.

    Args:
        weights: Weight of each objective.
        more: As for `ppo`.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724). Differs: every prompt asks for a confidence, there a
    part of them; the reward model reads the prompt without the request.
    """
    return asking(ppo(weights, **more)).but(name="ppo_m")
