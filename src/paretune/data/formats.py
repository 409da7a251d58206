"""Rows of JSONL, JSON, CSV and Parquet files and of hub data sets, with their locations."""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.core.errors import DataError, MissingDependencyError, format_issue

HUB_PREFIX = "hf:"
SUPPORTED_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: column values and location, as `file:line`."""

    location: str
    values: dict[str, Any]


def read_rows(source: str | Path, issues: list[str], root: str | Path = ".") -> Iterator[Row]:
    """Iterate over the rows of a file; a row that cannot be parsed adds an error message to `issues` instead.

    Args:
        source: A .jsonl, .json or .csv file (also .gz), a .parquet file, or `hf:owner/name[/config][:split]`.
        issues: Extended by one error message per bad row.
        root: Folder of relative paths.

    Raises:
        DataError: The file does not exist, or has an unknown format.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    if str(source).startswith(HUB_PREFIX):
        yield from _hub_rows(str(source))
        return
    path = Path(root) / source
    _require_file(path)
    suffix = "".join(path.suffixes[-2:]).lower().removesuffix(".gz").rpartition(".")[2]
    if suffix == "parquet":
        yield from _parquet_rows(path, issues)
        return
    readers = {"jsonl": _jsonl_rows, "json": _json_rows, "csv": _csv_rows}
    if suffix not in readers:
        known = ", ".join(SUPPORTED_SUFFIXES)
        raise DataError(
            format_issue(path, None, None, "", "unknown file format", fix=f"use one of {known} (or .gz)")
        )
    with _open_decompressed(path) as stream:
        yield from readers[suffix](path, stream, issues)


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise DataError(format_issue(path, None, None, "", "is a folder", fix="name a file in it"))
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    suggestion = next(iter(get_close_matches(path.name, siblings, 1)), "")
    problem = "no such file" if siblings else f"no such file (folder {path.parent} is empty or missing)"
    raise DataError(
        format_issue(path, None, None, "", problem, suggestion=suggestion, fix="check data.root and the name")
    )


@contextmanager
def _open_decompressed(path: Path) -> Iterator[Iterable[bytes]]:
    """Open a file for reading bytes, decompressed if its name ends in .gz."""
    try:
        with path.open("rb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.open(raw) as decompressed:
                    yield decompressed
            else:
                yield raw
    except PermissionError as error:
        raise DataError(
            format_issue(path, None, None, "", "permission denied", fix="make the file readable")
        ) from error


def _decode_lines(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[tuple[int, str, bool]]:
    """Line number, text, and True if the line is valid UTF-8; a truncated stream adds an issue at its end."""
    number = 0
    try:
        for number, raw in enumerate(stream, 1):
            if number == 1 and (encoding := _detect_wide_encoding(raw)):
                fix = (
                    f'save the file as UTF-8 (Excel: "CSV UTF-8"), or iconv -f {encoding} -t UTF-8 OLD > NEW'
                )
                issues.append(format_issue(path, 1, 1, "", f"{encoding}, not UTF-8", fix=fix))
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


def _json_issue(path: Path, error: Exception, line: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        fix = (
            "write one JSON object per line"
            if path.name.removesuffix(".gz").endswith(".jsonl")
            else "write one list of objects"
        )
        return format_issue(
            path, line + error.lineno - 1, error.colno, "", f"invalid JSON: {error.msg}", fix=fix
        )
    return format_issue(
        path,
        line,
        None,
        "",
        "invalid JSON: a number is too long or lists are nested too deeply",
        fix="fix the row",
    )


def _jsonl_rows(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[Row]:
    for number, text, is_valid in _decode_lines(path, stream, issues):
        if not is_valid or not text.strip():
            continue
        try:
            values = json.loads(text.rstrip("\r\n"))  # else an incomplete row is reported on the next line
        except (ValueError, RecursionError) as error:
            issues.append(_json_issue(path, error, number))
            continue
        if isinstance(values, dict):
            yield Row(f"{path}:{number}", values)
        else:
            fix = 'write one {"prompt": ..., ...} per line'
            issues.append(
                format_issue(path, number, 1, "", f"{json_type_name(values)}, not an object", fix=fix)
            )


def _json_rows(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[Row]:
    text = "".join(text for _, text, _ in _decode_lines(path, stream, issues))
    if issues or not text.strip():
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        issues.append(_json_issue(path, error, 1))
        return
    if not isinstance(rows, list):
        fix = "write [{...}, {...}], or name the file .jsonl if it has one object per line"
        issues.append(format_issue(path, 1, 1, "", f"{json_type_name(rows)}, not a list of objects", fix=fix))
        return
    for number, values in enumerate(rows, 1):
        if isinstance(values, dict):
            yield Row(f"{path}:row {number}", values)
        else:
            problem = f"{json_type_name(values)}, not an object"
            issues.append(format_issue(f"{path}:row {number}", None, None, "", problem, fix="fix the row"))


def _csv_rows(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[Row]:
    old_limit = csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB
    try:
        lines = (text for _, text, _ in _decode_lines(path, stream, issues))
        header_line = next(lines, "")
        if delimiter := _detect_wrong_delimiter(header_line):
            fix = "save it with commas, or as JSONL"
            issues.append(format_issue(path, 1, None, "", f"columns are separated by {delimiter}", fix=fix))
            return
        reader = csv.reader(chain([header_line], lines), strict=True)
        header = next(reader, None) or []
        duplicates = sorted({name for name in header if header.count(name) > 1})
        if duplicates:
            issues.append(format_issue(path, 1, None, duplicates[0], "duplicate column", fix="rename one"))
            return
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Row(f"{path}:{start}", dict(zip(header, cells, strict=True)))
            elif cells:  # not an empty line
                problem = f"{len(cells)} cells, but the header has {len(header)}"
                fix = 'put cells with commas or line breaks in "quotes"'
                issues.append(format_issue(path, start, None, "", problem, fix=fix))
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'close every "quote", and double quotes inside a cell'
        issues.append(format_issue(path, reader.line_num, None, "", f"invalid CSV: {error}", fix=fix))
    finally:
        csv.field_size_limit(old_limit)


def _detect_wrong_delimiter(header: str) -> str:
    """Name of the delimiter of a header without commas; "" if it has one column."""
    if "," in header:
        return ""
    delimiters = {";": "semicolons", "\t": "tabs"}
    return next(
        (
            name
            for character, name in delimiters.items()
            if len(next(csv.reader([header], delimiter=character))) > 1
        ),
        "",
    )


def _parquet_rows(path: Path, issues: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"invalid Parquet: {str(error).splitlines()[0]}"
        issues.append(format_issue(path, None, None, "", problem, fix="write the file again"))


def _hub_rows(source: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        problem, fix = "needs the package `datasets`", "pip install 'paretune[hub]'"
        raise MissingDependencyError(format_issue(source, None, None, "", problem, fix=fix)) from error
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    owner, _, rest = name.partition("/")
    dataset, _, config = rest.partition("/")
    try:
        rows = datasets.load_dataset(f"{owner}/{dataset}", config or None, split=split or "train")
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "write hf:owner/name, hf:owner/name:split or hf:owner/name/config:split"
        raise DataError(
            format_issue(source, None, None, "", f"cannot be loaded: {reason}", fix=fix)
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(f"{source}:row {number}", dict(values))


def json_type_name(value: object) -> str:
    """Name of a value's JSON type, with article."""
    names = {str: "text", bool: "a boolean", list: "a list", dict: "an object"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
