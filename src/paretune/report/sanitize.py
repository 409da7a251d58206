"""Text of unknown origin, made safe to show: nothing invisible, nothing that moves a cursor."""

import unicodedata

_JOINERS = {"\u200c", "\u200d"}
"""Zero-width, but Persian, Indic scripts and emoji are spelt with them."""


def visible(text: str) -> str:
    """The text with every control, direction and invisible character written out as ⟨U+202E⟩.

    Line feeds and tabs stay. The result can be encoded as UTF-8, lone surrogates included.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_shown(character) for character in text.replace("\r\n", "\n"))


def sanitize(text: str) -> str:
    """What may be printed on a terminal: `visible`, under the name the printing code knows it by."""
    return visible(text)


def one_line(text: str, most: int | None = None) -> str:
    """The text on one line and, when longer than `most` characters, cut with an ellipsis."""
    line = " ".join(visible(text).split())
    return line if most is None or len(line) <= most else line[: max(most - 1, 0)] + "…"


def _shown(character: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    # Cc control, Cf format (bidi, tags, zero width), Cs surrogate, Zl and Zp separators that end a line.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or _blank(character):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _blank(character: str) -> bool:
    """Letters and marks that draw nothing: fillers and variation selectors past the common two."""
    code = ord(character)
    return code in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0) or 0xE0100 <= code <= 0xE01EF
