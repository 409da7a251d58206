"""Text of unknown origin, made safe to show: nothing invisible, nothing that moves a cursor."""

import unicodedata

_ALLOWED_ZERO_WIDTH = {"\u200c", "\u200d"}
"""Zero-width, but Persian, Indic scripts and emoji are spelt with them."""


def escape_invisible(text: str) -> str:
    """The text with every control, direction and invisible character written out as ⟨U+202E⟩.

    Line feeds and tabs stay. The result can be encoded as UTF-8, lone surrogates included.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_escape(character) for character in text.replace("\r\n", "\n"))


def sanitize(text: str) -> str:
    """What may be printed on a terminal: `visible`, under the name the printing code knows it by."""
    return escape_invisible(text)


def one_line(text: str, max_chars: int | None = None) -> str:
    """The text on one line and, when longer than `max_chars` characters, cut with an ellipsis."""
    line = " ".join(escape_invisible(text).split())
    return line if max_chars is None or len(line) <= max_chars else line[: max(max_chars - 1, 0)] + "…"


def _escape(character: str) -> str:
    if character in "\n\t" or character in _ALLOWED_ZERO_WIDTH:
        return character
    # Cc control, Cf format (bidi, tags, zero width), Cs surrogate, Zl and Zp separators that end a line.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or _is_blank(character):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _is_blank(character: str) -> bool:
    """Letters and marks that draw nothing: fillers and variation selectors past the common two."""
    code = ord(character)
    return code in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0) or 0xE0100 <= code <= 0xE01EF
