"""Output that no terminal can break: characters it cannot show are spelled out, and lost output is dropped.

A run must not end because of a line that it prints. Standard output may be ASCII (a batch system,
`LC_ALL=C`), a Windows code page, closed from the start, or a pipe whose reader has gone. Files are UTF-8.
"""

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

TextStream = TextIO | io.TextIOBase

ENCODING_ERRORS = "paretune-ascii"
"""Name of the error handler of codecs that spells out what an encoding lacks."""

ASCII_FORMS = {
    "ρ": "rho",
    "α": "alpha",
    "σ": "sigma",
    "→": "->",
    "±": "+/-",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "·": "|",
    "•": "*",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "≈": "~",
    "²": "^2",
    "⚠": "!",
    "▲": "^",
    "▼": "v",
    "◆": "=",
    "●": "o",
    "◇": "?",
    "○": ".",
    "⊘": "x",
    "↑": "^",
    "↓": "v",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "⟨": "<",
    "⟩": ">",
    "\u00a0": " ",
    **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)),
    **dict(zip("━╸╺░▒▓", "#>-.:#", strict=True)),
}
"""Characters of our own output, as ASCII."""


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """Error handler of codecs: ASCII forms of our own characters, escapes of all others.

    An escape keeps what a question mark would lose: the name of a file in an error message, say.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    forms = (ASCII_FORMS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(forms), error.end


codecs.register_error(ENCODING_ERRORS, _spell_out)


class SafeStream(io.TextIOBase):
    """A text stream whose `write` and `flush` never raise.

    After the first failed write, of a pipe without a reader or of a terminal that is gone, output is dropped.
    """

    def __init__(self, stream: TextStream) -> None:
        self.stream = stream
        self.lost = False
        """The reader has gone."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream; UTF-8 if it has none."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write what the encoding can show."""
        shown = text.encode(self.encoding, ENCODING_ERRORS).decode(self.encoding)
        self._attempt(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Flush, if there is a reader."""
        self._attempt(self.stream.flush)

    def isatty(self) -> bool:
        """Whether this is a terminal; a closed stream is none."""
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The file descriptor of the stream."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    # Without an attribute `buffer`: click would write past this class where the encoding is ASCII.

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.lost:
            return
        try:
            action()
        except (OSError, ValueError):  # no reader, no terminal; a closed stream
            self.lost = True
            self._discard_buffer()

    def _discard_buffer(self) -> None:
        """Point the descriptor at nothing: what is still buffered would fail again when the program ends."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


def safe_stream(stream: TextStream | None) -> SafeStream:
    """The stream as one that cannot fail; output is dropped where there is none."""
    if stream is None:
        # The lowest free descriptor is the closed one itself, so that no file of a run can be opened as it.
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the program ends
    return stream if isinstance(stream, SafeStream) else SafeStream(stream)


@contextmanager
def safe_output() -> Iterator[None]:
    """Standard output and standard error cannot fail inside."""
    originals = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe_stream(sys.stdout), safe_stream(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = originals


def echo(text: str, *, error: bool = False) -> None:
    """Print lines without control characters, which names and rows of data may contain.

    Args:
        text: One or more lines.
        error: Print to standard error.
    """
    # Imported here: most of what this module is for happens before anything is printed.
    from paretune.report.formatting import sanitize

    for line in text.splitlines():
        print(sanitize(line), file=sys.stderr if error else sys.stdout, flush=True)
