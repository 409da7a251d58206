"""Records of a known number that are made only when somebody looks at them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

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
