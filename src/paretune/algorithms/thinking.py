"""Thinking before the answer, around any recipe that samples: RLMT."""

from dataclasses import replace
from functools import partial
from typing import Literal

from paretune.algorithms.views import SpecT, insert_after_aggregation
from paretune.credit.unread import InvalidFormatPenalty
from paretune.data.frame import PromptFormat, ScorerView
from paretune.errors import WiringError
from paretune.learn.recipe import map_phases
from paretune.rollout.sample import OnPolicy

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
