"""Records of a known number that are made only when somebody looks at them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

R = TypeVar("R")


class Drawn(Sequence[R], Generic[R]):
    """A sequence whose records are drawn in their order, as far as they are looked at, and then kept.

    Args:
        count: How many there will be.
        draw: Gives all of them; called once, at the first look.
    """

    def __init__(self, count: int, draw: Callable[[], Iterator[R]]) -> None:
        self._count, self._draw = count, draw
        self._found: list[R] = []
        self._rest: Iterator[R] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> R: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[R]: ...

    def __getitem__(self, at: int | slice) -> R | Sequence[R]:
        if isinstance(at, slice):
            return tuple(self[i] for i in range(*at.indices(self._count)))
        place = at + self._count if at < 0 else at
        if not 0 <= place < self._count:
            raise IndexError(f"record {at} of {self._count}")
        if self._rest is None:
            self._rest = self._draw()
        while len(self._found) <= place:
            self._found.append(next(self._rest))
        return self._found[place]

    def __iter__(self) -> Iterator[R]:
        return (self[i] for i in range(self._count))

    def __reduce__(self) -> tuple[type, tuple[tuple[R, ...]]]:
        """Another process gets the records, all drawn."""
        return tuple, (tuple(self),)

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
