"""Values of a recipe that are invalid: whoever reads one learns that nothing follows from it.

So the rest of the recipe can be checked in the same round, without mistakes that only follow from others.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any, TypeVar

T = TypeVar("T")


class UnknownValueError(Exception):
    """A check read a value that is invalid itself, so it cannot tell anything."""


class KnownItems(dict[str, Any]):
    """The valid items of a section whose other items are unknown: they are reported already.

    Iteration gives the valid items and then raises `UnknownValueError`, as does the look-up of any other.
    """

    def __init__(self, items: dict[str, Any], unknown: Iterable[str] = ()) -> None:
        """Hold some items.

        Args:
            items: The valid ones.
            unknown: Keys of the others; those that are keys of `items` are removed.
        """
        names = {*unknown, *getattr(items, "unknown", ())}
        super().__init__((key, items[key]) for key in dict.keys(items) if key not in names)
        self.unknown = frozenset(names)

    def known(self) -> dict[str, Any]:
        """The valid items alone, for checks of each by itself."""
        return {key: dict.__getitem__(self, key) for key in dict.keys(self)}

    def __copy__(self) -> "KnownItems":
        return KnownItems(self.known(), self.unknown)

    def __iter__(self) -> Iterator[str]:
        yield from self.known()
        raise UnknownValueError

    def keys(self) -> Any:
        """As of a dict."""
        return KeysView(self)

    def values(self) -> Any:
        """As of a dict."""
        return ValuesView(self)

    def items(self) -> Any:
        """As of a dict."""
        return ItemsView(self)

    def __len__(self) -> int:
        raise UnknownValueError

    def __bool__(self) -> bool:
        if not self.known():
            raise UnknownValueError
        return True

    def __contains__(self, key: object) -> bool:
        if dict.__contains__(self, key):
            return True
        raise UnknownValueError

    def __missing__(self, key: str) -> Any:
        raise UnknownValueError

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict; the default stands for no item that is unknown."""
        return self[key] if key in self.unknown or dict.__contains__(self, key) else default


class UnknownAlgorithm:
    """The algorithm of a recipe in which it cannot be built."""

    def __init__(self, known: dict[str, Any]) -> None:
        """Hold the attributes that are known all the same."""
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        raise UnknownValueError


def known_items(items: dict[str, Any]) -> dict[str, Any]:
    """The items that are valid, for checks of each by itself."""
    return items.known() if isinstance(items, KnownItems) else items


def item_names(items: Iterable[str]) -> list[str]:
    """The names of all items, valid or not, for references by name: a scorer with a mistake is there."""
    return [*items.known(), *sorted(items.unknown)] if isinstance(items, KnownItems) else [*items]


def until_unknown(issues: Iterable[T]) -> Iterator[T]:
    """The issues up to the first that would follow from an invalid value."""
    try:
        yield from issues
    except UnknownValueError:
        return
