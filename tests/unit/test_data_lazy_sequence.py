from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler

import pytest

from paretune.data.records import LazySequence


def test_items_are_generated_on_access_in_order_and_once() -> None:
    generated: list[int] = []

    def generate() -> Iterator[int]:
        for i in range(5):
            generated.append(i)
            yield 10 * i

    rows = LazySequence(5, generate)
    assert len(rows) == 5
    assert rows
    assert generated == []
    assert rows[1] == 10
    assert rows[:2] == (0, 10)
    assert generated == [0, 1]
    first, second = iter(rows), iter(rows)
    assert (next(first), next(second), next(first)) == (0, 0, 10)
    assert generated == [0, 1]
    assert list(rows) == [0, 10, 20, 30, 40]
    assert (rows[-1], rows[::2], list(reversed(rows))) == (40, (0, 20, 40), [40, 30, 20, 10, 0])
    assert generated == [0, 1, 2, 3, 4]
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"index {index} is out of range: 5 records"):
            rows[index]


def test_equality_compares_items() -> None:
    assert LazySequence(3, lambda: iter("abc")) == ["a", "b", "c"] == LazySequence(3, lambda: iter("abc"))
    assert LazySequence(2, lambda: iter("ab")) != ["a", "c"]
    assert not LazySequence(0, lambda: iter(()))


def test_pickle_holds_all_items() -> None:
    rows = LazySequence(3, lambda: iter("abc"))
    assert ForkingPickler.loads(bytes(ForkingPickler.dumps(rows))) == ("a", "b", "c")
    assert list(rows) == ["a", "b", "c"]
