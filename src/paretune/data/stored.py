"""Stored responses as offline methods read them: prompts with several responses and what those are worth."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan

from paretune.chance import numpy_generator
from paretune.data.records import Candidates, Message, Preference, Rating


def candidates(records: Iterable[Rating | Preference]) -> list[Candidates]:
    """Rated responses to the same prompt as one list; every pair is a list of its own.

    The chosen response of a pair has 1 and the rejected one 0 in the pair's objective, whose other labels
    nobody gave. A prompt with a single rated response is a list of one: it can be imitated, not compared.
    """
    rated: dict[tuple[Message, ...], list[Rating]] = {}
    found: list[Candidates] = []
    for record in records:
        if isinstance(record, Rating):
            # Not by the prompt itself: rows of one file have names of their own.
            rated.setdefault(record.prompt.messages, []).append(record)
            continue
        both = ({record.objective: 1.0}, {record.objective: 0.0})
        found.append(
            Candidates(prompt=record.prompt, responses=(record.chosen, record.rejected), labels=both)
        )
    for ratings in rated.values():
        prompt, responses = ratings[0].prompt, tuple(rating.response for rating in ratings)
        found.append(
            Candidates(prompt=prompt, responses=responses, labels=tuple(rating.labels for rating in ratings))
        )
    return found


def comparable(found: Candidates, weights: Mapping[str, float], *, filled: bool) -> bool:
    """Whether two of the responses are worth something different by the weighted sum of their labels.

    Args:
        found: The responses to one prompt.
        weights: Of the objectives; those of weight 0 do not count.
        filled: A label that nobody gave is made up for by the others; else its response is worth nothing.
    """
    used = [name for name, weight in weights.items() if weight]
    worth = set()
    for labels in found.labels:
        known = {name: labels[name] for name in used if not isnan(labels.get(name, nan))}
        if known and (filled or len(known) == len(used)):
            worth.add(tuple(sorted(known.items())))
    return len(worth) > 1


@dataclass(frozen=True)
class CandidateStream:
    """Which lists a step gets: all of them in every pass, shuffled anew; a function of (seed, step)."""

    lists: tuple[Candidates, ...]
    size: int
    """Lists a step."""
    seed: int

    def __call__(self, step: int) -> tuple[Candidates, ...]:
        """The lists of one step."""
        places = range(step * self.size, (step + 1) * self.size)
        count = len(self.lists)
        orders = {turn: self._order(turn) for turn in {place // count for place in places}}
        return tuple(self.lists[orders[place // count][place % count]] for place in places)

    def _order(self, turn: int) -> list[int]:
        order: list[int] = (
            numpy_generator(self.seed, turn, "order stored").permutation(len(self.lists)).tolist()
        )
        return order
