"""Records: the typed form of one row of data, and a sequence that generates its records on first access."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """One of "system", "user", "assistant", "tool", "developer"."""
    content: str
    extra: tuple[tuple[str, str], ...] = ()
    """Further keys for the chat template, such as `tool_calls`: (key, JSON text) pairs."""


# Shared by all prompts without further columns, as `NO_VOTES` below.
NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The messages before a response; without messages, the response is a text on its own."""

    messages: tuple[Message, ...]
    id: str = ""
    category: str = ""
    """Free-text category of the prompt; the evaluation reports each category separately."""
    preference_weights: tuple[tuple[str, float], ...] = ()
    """(objective, weight) pairs, if this prompt has objective weights of its own."""
    columns: Mapping[str, Any] = field(default_factory=lambda: NO_COLUMNS, hash=False, repr=False)
    """Further columns of its row, such as a reference answer, for scorers that read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A response that a policy generated."""

    prompt: Prompt
    response: str
    truncated: bool = False
    """True if the response reached the length limit before EOS."""
    original_response: str | None = None
    """The complete response, if `response` is only the part in the scorer view."""
    response_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """Its token ids as sampled, EOS included; empty if it was not sampled here."""

    @property
    def full_response(self) -> str:
        """The complete response as generated."""
        return self.response if self.original_response is None else self.original_response


# Shared by all ratings: a dict of its own for each would cost as much time and memory as its labels.
NO_VOTES: Mapping[str, tuple[float, ...]] = {}
NO_WEIGHTS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """A response with labels."""

    prompt: Prompt
    response: str
    labels: Mapping[str, float]
    """Objective -> label, each in its own units; absent or NaN = not labelled."""
    votes: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: NO_VOTES)
    """Objective -> the votes that its label was joined from, if several raters gave one."""
    label_weights: Mapping[str, float] = field(default_factory=lambda: NO_WEIGHTS)
    """Objective -> weight of its label in training; absent = 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, compared by one objective."""

    prompt: Prompt
    chosen: str
    rejected: str
    objective: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseGroup:
    """Stored responses to one prompt, for training on comparisons among them."""

    prompt: Prompt
    responses: tuple[str, ...]
    labels: tuple[Mapping[str, float], ...]
    """Per response: objective -> label; absent = not labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and a response for supervised fine-tuning."""

    prompt: Prompt
    response: str


Record = Prompt | Rating | PreferencePair | Demonstration


R = TypeVar("R")


class LazySequence(Sequence[R], Generic[R]):
    """A sequence of known length whose items are generated in order on first access, and kept.

    Args:
        length: Number of items.
        make_iterator: Returns an iterator over all items; called once, on first access.
    """

    def __init__(self, length: int, make_iterator: Callable[[], Iterator[R]]) -> None:
        self._length, self._make_iterator = length, make_iterator
        self._items: list[R] = []
        self._iterator: Iterator[R] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[R]: ...

    def __getitem__(self, index: int | slice) -> R | Sequence[R]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._length)))
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(f"index {index} is out of range: {self._length} records")
        if self._iterator is None:
            self._iterator = self._make_iterator()
        while len(self._items) <= position:
            self._items.append(next(self._iterator))
        return self._items[position]

    def __iter__(self) -> Iterator[R]:
        return (self[i] for i in range(self._length))

    def __reduce__(self) -> tuple[type, tuple[tuple[R, ...]]]:
        """Pickle as a tuple of all items: iterators cannot be sent to another process."""
        return tuple, (tuple(self),)

    __hash__ = None  # type: ignore[assignment]  # mutable like a list

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
