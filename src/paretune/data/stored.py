"""Stored responses as offline methods read them: prompts with several responses and what those are worth."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan

from paretune.chance import numpy_generator
from paretune.data.records import Message, PreferencePair, Rating, ResponseGroup


def group_responses(records: Iterable[Rating | PreferencePair]) -> list[ResponseGroup]:
    """Rated responses to the same prompt as one list; every pair is a list of its own.

    The chosen response of a pair has 1 and the rejected one 0 in the pair's objective, whose other labels
    nobody gave. A prompt with a single rated response is a list of one: it can be imitated, not compared.
    """
    rated: dict[tuple[Message, ...], list[Rating]] = {}
    found: list[ResponseGroup] = []
    for record in records:
        if isinstance(record, Rating):
            # Not by the prompt itself: rows of one file have names of their own.
            rated.setdefault(record.prompt.messages, []).append(record)
            continue
        both = ({record.objective: 1.0}, {record.objective: 0.0})
        found.append(
            ResponseGroup(prompt=record.prompt, responses=(record.chosen, record.rejected), labels=both)
        )
    for ratings in rated.values():
        prompt, responses = ratings[0].prompt, tuple(rating.response for rating in ratings)
        found.append(
            ResponseGroup(
                prompt=prompt, responses=responses, labels=tuple(rating.labels for rating in ratings)
            )
        )
    return found


def has_distinct_scores(group: ResponseGroup, weights: Mapping[str, float], *, fill_missing: bool) -> bool:
    """Whether two of the responses are worth something different by the weighted sum of their labels.

    Args:
        group: The responses to one prompt.
        weights: Of the objectives; those of weight 0 do not count.
        fill_missing: A label that nobody gave is made up for by the others; else its response is worth nothing.
    """
    used = [name for name, weight in weights.items() if weight]
    worth = set()
    for labels in group.labels:
        known = {name: labels[name] for name in used if not isnan(labels.get(name, nan))}
        if known and (fill_missing or len(known) == len(used)):
            worth.add(tuple(sorted(known.items())))
    return len(worth) > 1


@dataclass(frozen=True)
class ResponseGroupStream:
    """Which lists a step gets: all of them in every pass, shuffled anew; a function of (seed, step)."""

    groups: tuple[ResponseGroup, ...]
    groups_per_step: int
    """Lists a step."""
    seed: int

    def __call__(self, step: int) -> tuple[ResponseGroup, ...]:
        """The lists of one step."""
        places = range(step * self.groups_per_step, (step + 1) * self.groups_per_step)
        count = len(self.groups)
        orders = {turn: self._permutation(turn) for turn in {place // count for place in places}}
        return tuple(self.groups[orders[place // count][place % count]] for place in places)

    def _permutation(self, epoch: int) -> list[int]:
        order: list[int] = (
            numpy_generator(self.seed, epoch, "order stored").permutation(len(self.groups)).tolist()
        )
        return order
