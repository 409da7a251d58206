"""Thinking before the answer, around any recipe that samples: RLMT."""

from dataclasses import replace
from functools import partial
from typing import Literal

from paretune.algorithms.views import Made, after_sum
from paretune.credit.unread import UnreadIsWorst
from paretune.data.frame import Frame, View
from paretune.errors import WiringError
from paretune.learn.recipe import in_phases
from paretune.rollout.sample import Online

Unscored = Literal["worst", "drop"]
"""What a response without readable thoughts is: as bad as the worst so far, or not learnt from."""


def with_thinking(
    recipe: Made, unscored: Unscored, *, frame: Frame = "think", view: View = "after_thinking"
) -> Made:
    """The recipe with a policy that thinks first, and scorers that are shown the answer alone.

    Every token is credited, those of the thoughts too. With the empty frame and the whole view it is the
    recipe as it was.

    Args:
        recipe: Any that samples; models that it makes beforehand think likewise.
        unscored: What a response is worth whose tags are missing or doubled, or whose answer is empty. "drop"
            teaches nothing about the form.
        frame: What is asked of the policy.
        view: What scorers are shown.

    Raises:
        WiringError: The recipe reads stored responses, or already asks for something else.

    Source: Bhaskar et al. 2025, RLMT (arXiv:2509.20357). Differs: form is checked strictly and always; what
    a response without it gets is a choice.
    """
    if not isinstance(recipe.source, Online):
        raise WiringError(f"{recipe.name} reads stored responses, and thoughts have to be sampled")
    if recipe.frame or recipe.view != "whole":
        asked = recipe.frame or recipe.view
        raise WiringError(
            f"{recipe.name} has a frame and a view of its own ({asked}), and a response has one"
        )
    again = partial(with_thinking, unscored=unscored, frame=frame, view=view)
    base = recipe if unscored == "drop" else after_sum(recipe, UnreadIsWorst())
    source = replace(recipe.source, frame=frame)
    return base.but(
        name=f"thinking_{recipe.name}", source=source, view=view, before=in_phases(recipe.before, again)
    )
