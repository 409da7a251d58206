"""The records: what one row of data says, whatever file or world it came from.

Records of a known number that are made only when somebody looks at them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of "system", "user", "assistant"."""
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a response answers; no messages at all means that the response stands alone."""

    messages: tuple[Message, ...]
    id: str = ""
    category: str = ""
    """The user's word for a class of prompts that is evaluated apart, such as "harmful" or "lookalike"."""
    preference_weights: tuple[tuple[str, float], ...] = ()
    """(objective, weight) of what this prompt asks for, where prompts differ in that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A response that a policy wrote."""

    prompt: Prompt
    response: str
    truncated: bool = False
    """The response ran into the length limit before it ended."""
    original_response: str | None = None
    """The response as the policy wrote it, where `response` is what a view shows of it."""

    @property
    def full_response(self) -> str:
        """The response as the policy wrote it."""
        return self.response if self.original_response is None else self.original_response


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """A response and what its raters said of it."""

    prompt: Prompt
    response: str
    labels: Mapping[str, float]
    """Objective to label, each in its own units; absent or NaN = nobody was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, of which the chosen one is better by one objective."""

    prompt: Prompt
    chosen: str
    rejected: str
    objective: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseGroup:
    """Stored responses to one prompt, to be compared with each other."""

    prompt: Prompt
    responses: tuple[str, ...]
    labels: tuple[Mapping[str, float], ...]
    """Of each response, objective to label; absent = nobody was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A response to be learnt by imitation."""

    prompt: Prompt
    response: str


Record = Prompt | Rating | PreferencePair | Demonstration


R = TypeVar("R")


class LazySequence(Sequence[R], Generic[R]):
    """A sequence whose records are drawn in their order, as far as they are looked at, and then kept.

    Args:
        count: How many there will be.
        draw: Gives all of them; called once, at the first look.
    """

    def __init__(self, length: int, make_iterator: Callable[[], Iterator[R]]) -> None:
        self._length, self._make_iterator = length, make_iterator
        self._items: list[R] = []
        self._iterator: Iterator[R] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> R: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[R]: ...

    def __getitem__(self, at: int | slice) -> R | Sequence[R]:
        if isinstance(at, slice):
            return tuple(self[i] for i in range(*at.indices(self._length)))
        place = at + self._length if at < 0 else at
        if not 0 <= place < self._length:
            raise IndexError(f"record {at} of {self._length}")
        if self._iterator is None:
            self._iterator = self._make_iterator()
        while len(self._items) <= place:
            self._items.append(next(self._iterator))
        return self._items[place]

    def __iter__(self) -> Iterator[R]:
        return (self[i] for i in range(self._length))

    def __reduce__(self) -> tuple[type, tuple[tuple[R, ...]]]:
        """Another process gets the records, all drawn."""
        return tuple, (tuple(self),)

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
