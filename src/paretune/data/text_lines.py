"""Lines of text files as UTF-8, UTF-16 or UTF-32, decompressed, with any of the usual line ends."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paretune.core.errors import DataError, format_issue

HTML_STARTS = (b"<!doctype html", b"<html")
HTML_FIX = "download the file itself; this may be a page that asks to sign in"
SIGNATURES = {
    b"PK\x03\x04": ("a zip archive, as Excel workbooks are", "save the sheet as CSV UTF-8, or unpack it"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV UTF-8"),
    b"\x1f\x8b": ("compressed with gzip", "end its name with .gz"),
    b"BZh": ("compressed with bzip2", "decompress it"),
    b"\xfd7zXZ": ("compressed with xz", "decompress it"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "decompress it"),
    b"PAR1": ("a Parquet file", "end its name with .parquet"),
    b"ARROW1": ("an Arrow file", "write it as Parquet or JSON lines"),
    b"%PDF-": ("a PDF file", "name a data file"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
}
"""First bytes of files that have the name of another kind -> what they are, and the fix."""
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


def foreign_content(path: Path) -> tuple[str, str] | None:
    """What a file is, and the fix, if its first bytes are of another kind than its name says; else None.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except PermissionError as error:
        raise _permission_error(path) from error
    name = path.name.lower()
    if name.endswith(".gz"):
        with suppress(zlib.error):  # reported when it is read
            start = zlib.decompressobj(wbits=31).decompress(start, 512)
    if start.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(HTML_STARTS):
        return "an HTML page, not a data file", HTML_FIX
    for signature, (kind, fix) in SIGNATURES.items():
        if start.startswith(signature) and not (signature == b"PAR1" and name.endswith(".parquet")):
            return kind, fix
    return None


def _permission_error(path: Path) -> DataError:
    return DataError(format_issue(path, None, None, "", "permission denied", fix="make the file readable"))


@contextmanager
def open_decompressed(path: Path) -> Iterator[Iterable[bytes]]:
    """Open a file for reading bytes, decompressed if its name ends in .gz."""
    try:
        with path.open("rb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.open(raw) as decompressed:
                    yield decompressed
            else:
                yield raw
    except PermissionError as error:
        raise _permission_error(path) from error


def decode_lines(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[tuple[int, str, bool]]:
    """Line number, text, and True if the line is valid UTF-8; a truncated stream adds an issue at its end."""
    number = 0
    try:
        for number, raw in enumerate(stream, 1):
            if number == 1 and (encoding := _detect_wide_encoding(raw)):
                yield from _decode_wide_lines(path, b"".join([raw, *stream]), encoding, issues)
                return
            if number == 1 and b"\r" in raw and not raw.endswith(b"\n"):
                # The whole file, whose lines end as those of old Macs do.
                lines = raw.replace(b"\r", b"\n").splitlines(keepends=True)
                yield from decode_lines(path, lines, issues)
                return
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8"), True
            except UnicodeDecodeError as error:
                problem = f"not UTF-8 (byte 0x{raw[error.start]:02x})"
                issues.append(
                    format_issue(path, number, error.start + 1, "", problem, fix="save the file as UTF-8")
                )
                yield number, raw.decode("utf-8", errors="replace"), False
    except GZIP_ERRORS as error:
        fix = "copy the file again, or decompress it and drop .gz from its name"
        problem = "the gzip stream is truncated" if isinstance(error, EOFError) else f"invalid gzip: {error}"
        issues.append(format_issue(path, number + 1, None, "", problem, fix=fix))


def _decode_wide_lines(
    path: Path, content: bytes, encoding: str, issues: list[str]
) -> Iterator[tuple[int, str, bool]]:
    """Lines of a file in UTF-16 or UTF-32, as Excel and PowerShell write them."""
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        fix = 'save the file as UTF-8 (Excel: "CSV UTF-8")'
        issues.append(format_issue(path, 1, 1, "", f"damaged {encoding}", fix=fix))
        return
    lines = io.StringIO(text if "\n" in text else text.replace("\r", "\n"), newline="\n")
    for number, line in enumerate(lines, 1):
        yield number, line, True


def _detect_wide_encoding(first_bytes: bytes) -> str:
    """UTF-16 or UTF-32, recognized by the first bytes of a file; "" otherwise."""
    if first_bytes.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if first_bytes.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    # Without a byte order mark: an ASCII character has one zero byte in UTF-16.
    if len(first_bytes) > 1 and (first_bytes[0] == 0) != (first_bytes[1] == 0):
        return "UTF-16LE" if first_bytes[1] == 0 else "UTF-16BE"
    return ""
