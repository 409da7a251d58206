"""The kinds of the heads that a recipe names, and whether the labels fit them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from paretune.config.data_schema import RewardHeadSection, RewardSection
from paretune.core.errors import DataError, join_issues
from paretune.data.raters import ReadSummary
from paretune.data.records import LazySequence
from paretune.reward.heads import HeadKind, bradley_terry, calibrated, huber, mse
from paretune.reward.ordinal import Ordinal
from paretune.reward.training import kinds_from_labels

if TYPE_CHECKING:  # dataset.py imports this module
    from paretune.experiment.dataset import RewardData


def head_kinds(section: RewardSection) -> dict[str, HeadKind]:
    """Objective -> kind of its head, of a reward model that is fitted in the run."""
    return {name: _head_kind(head) for name, head in section.objectives.items()}


def check_labels(
    name: str, section: RewardSection, data: RewardData, summaries: Mapping[str, ReadSummary]
) -> None:
    """Check that the labels fit the kinds of their heads.

    Args:
        name: "reward" or "judge".
        section: Its section of the recipe.
        data: Its rows.
        summaries: "reward SOURCE" -> what the reader of its file counted.

    Raises:
        DataError: One line per key below the section whose labels do not fit.
    """
    if isinstance(data.train, LazySequence):  # the built-in world, which ordinal heads refuse
        return
    if issues := list(_joined_vote_issues(name, section, summaries)):
        raise DataError(join_issues(issues))
    kinds_from_labels(data.train, head_kinds(section), data.test)


def _joined_vote_issues(
    name: str, section: RewardSection, summaries: Mapping[str, ReadSummary]
) -> Iterator[str]:
    """Votes whose means or medians an ordinal head would have to take for levels."""
    for source, ratings in section.ratings.items():
        if ratings.raters == "separate":
            continue
        for objective, summary in summaries[f"{name} {source}"].labels.items():
            if section.objectives[objective].loss == "ordinal" and summary.num_votes > summary.num_responses:
                rule = ratings.raters or "mean"
                yield (
                    f"ratings.{source}.raters: {objective} is ordinal, and the {rule} of several votes need "
                    "not be a level; fix: write raters: separate, which learns from each vote, or loss: mse"
                )


def _head_kind(head: RewardHeadSection) -> HeadKind:
    if head.loss == "ordinal":
        return Ordinal(levels=head.levels or ())
    if head.loss == "huber":
        return huber(head.huber_delta)
    return {"mse": mse, "bradley_terry": bradley_terry, "calibrated": calibrated}[head.loss]()
