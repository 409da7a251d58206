"""Stored responses as offline methods read them: prompts with several responses and what those are worth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

from paretune.chance import numpy_generator
from paretune.data.records import Candidates, Preference, Prompt, Rating


def candidates(records: Iterable[Rating | Preference]) -> list[Candidates]:
    """Rated responses to the same prompt as one list; every pair is a list of its own.

    The chosen response of a pair has 1 and the rejected one 0 in the pair's objective, whose other labels
    nobody gave. A prompt with a single rated response is a list of one: it can be imitated, not compared.
    """
    rated: dict[Prompt, list[Rating]] = {}
    found: list[Candidates] = []
    for record in records:
        if isinstance(record, Rating):
            rated.setdefault(record.prompt, []).append(record)
            continue
        both = ({record.objective: 1.0}, {record.objective: 0.0})
        found.append(
            Candidates(prompt=record.prompt, responses=(record.chosen, record.rejected), labels=both)
        )
    for prompt, ratings in rated.items():
        responses = tuple(rating.response for rating in ratings)
        found.append(
            Candidates(prompt=prompt, responses=responses, labels=tuple(rating.labels for rating in ratings))
        )
    return found


def comparable(found: Candidates, weights: Sequence[str]) -> bool:
    """Whether two of the responses were both judged by one of these objectives, and differently."""
    for name in weights:
        known = [labels[name] for labels in found.labels if not isnan(labels.get(name, float("nan")))]
        if len(set(known)) > 1:
            return True
    return False


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
