"""Differences between two texts, word by word."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal

Mark = Literal["", "del", "ins"]
Parts = tuple[tuple[Mark, str], ...]
"""Runs of text: "" is in both texts, "del" only in the first, "ins" only in the second."""

MAX_WORDS = 500
"""Longer texts are not compared: the time grows with the product of the lengths."""
MIN_COMMON = 0.3
"""Texts that share a smaller fraction of their words are shown without marks, which would cover all of it."""

# A word with the blanks after it, so that the parts put together are the text.
_WORD = re.compile(r"\S+\s*|\s+")


def word_differences(first: str, second: str) -> tuple[Parts, Parts]:
    """Both texts in parts: what only the first has, and what only the second has, is marked.

    Texts that are too long or too different come back as one part without a mark.
    """
    words: list[list[str]] = [_WORD.findall(text) for text in (first, second)]
    plain: tuple[Parts, Parts] = ((("", first),), (("", second),))
    if max(map(len, words)) > MAX_WORDS:
        return plain
    # Blanks at the end of a word do not make it another word.
    bare = [[word.rstrip() for word in each] for each in words]
    matcher = SequenceMatcher(None, bare[0], bare[1], autojunk=False)
    if matcher.ratio() < MIN_COMMON:
        return plain
    blocks = matcher.get_opcodes()
    before = [(words[0][a:b], tag != "equal") for tag, a, b, _, _ in blocks]
    after = [(words[1][c:d], tag != "equal") for tag, _, _, c, d in blocks]
    return tuple(_parts(before, "del")), tuple(_parts(after, "ins"))


def _parts(runs: list[tuple[list[str], bool]], mark: Mark) -> Iterator[tuple[Mark, str]]:
    for words, differs in runs:
        text = "".join(words)
        marked = text.rstrip() if differs else text
        if marked:
            yield mark if differs else "", marked
        if blanks := text[len(marked) :]:
            yield "", blanks
