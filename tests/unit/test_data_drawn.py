"""Records are drawn in their order, once, and no further than somebody looks."""

from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler

import pytest

from paretune.data.records import LazySequence


def test_no_more_is_drawn_than_is_looked_at() -> None:
    made: list[int] = []

    def draw() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield 10 * i

    rows = LazySequence(5, draw)
    assert len(rows) == 5
    assert rows
    assert made == []
    assert rows[1] == 10
    assert rows[:2] == (0, 10)
    assert made == [0, 1]
    first, again = iter(rows), iter(rows)
    assert (next(first), next(again), next(first)) == (0, 0, 10)
    assert made == [0, 1]
    assert list(rows) == [0, 10, 20, 30, 40]
    assert (rows[-1], rows[::2], list(reversed(rows))) == (40, (0, 20, 40), [40, 30, 20, 10, 0])
    assert made == [0, 1, 2, 3, 4]
    for place in (5, -6):
        with pytest.raises(IndexError, match=f"record {place} of 5"):
            rows[place]


def test_they_are_equal_where_their_records_are() -> None:
    assert LazySequence(3, lambda: iter("abc")) == ["a", "b", "c"] == LazySequence(3, lambda: iter("abc"))
    assert LazySequence(2, lambda: iter("ab")) != ["a", "c"]
    assert not LazySequence(0, lambda: iter(()))


def test_another_process_gets_the_records() -> None:
    drawn = LazySequence(3, lambda: iter("abc"))
    assert ForkingPickler.loads(bytes(ForkingPickler.dumps(drawn))) == ("a", "b", "c")
    assert list(drawn) == ["a", "b", "c"]
