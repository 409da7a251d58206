"""Rows of a file, whatever its format, each with its place; what cannot be read is complained of."""

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
    """One row: its columns, and where it stands, as `file:line`."""

    location: str
    values: dict[str, Any]


def read_rows(source: str | Path, issues: list[str], root: str | Path = ".") -> Iterator[Row]:
    """The rows of a file in their order; a row that cannot be read adds a complaint to `issues` instead.

    Args:
        source: A .jsonl, .json or .csv file (also .gz), a .parquet file, or `hf:owner/name[/config][:split]`.
        issues: Grows by one complaint for each bad row.
        root: The folder that a relative path starts from.

    Raises:
        DataError: Nothing there, or not a format that is known.
        MissingExtra: A hub name without the `datasets` package.
    """
    if str(source).startswith(HUB_PREFIX):
        yield from _hub_rows(str(source))
        return
    path = Path(root) / source
    _require_file(path)
    kind = "".join(path.suffixes[-2:]).lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        yield from _parquet_rows(path, issues)
        return
    readers = {"jsonl": _jsonl_rows, "json": _json_rows, "csv": _csv_rows}
    if kind not in readers:
        known = ", ".join(SUPPORTED_SUFFIXES)
        raise DataError(
            format_issue(path, None, None, "", "is of an unknown format", fix=f"use one of {known} (or .gz)")
        )
    with _open_decompressed(path) as stream:
        yield from readers[kind](path, stream, issues)


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise DataError(format_issue(path, None, None, "", "is a folder", fix="name a file in it"))
    neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    meant = next(iter(get_close_matches(path.name, neighbours, 1)), "")
    wrong = "no such file" if neighbours else f"no such file (nor is anything in {path.parent})"
    raise DataError(
        format_issue(path, None, None, "", wrong, suggestion=meant, fix="check data.root and the name")
    )


@contextmanager
def _open_decompressed(path: Path) -> Iterator[Iterable[bytes]]:
    """The bytes of a file, unpacked when its name ends in .gz."""
    try:
        with path.open("rb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.open(raw) as unpacked:
                    yield unpacked
            else:
                yield raw
    except PermissionError as error:
        raise DataError(
            format_issue(path, None, None, "", "may not be read", fix="give yourself access")
        ) from error


def _decode_lines(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[tuple[int, str, bool]]:
    """Line number, text and whether it was good UTF-8; a stream that breaks off ends with a complaint."""
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
                wrong = f"not UTF-8 (byte 0x{raw[error.start]:02x})"
                issues.append(
                    format_issue(path, number, error.start + 1, "", wrong, fix="save the file as UTF-8")
                )
                yield number, raw.decode("utf-8", errors="replace"), False
    except GZIP_ERRORS as error:
        fix = "copy the file again, or unpack it and drop the .gz of its name"
        wrong = "the gzip stream breaks off" if isinstance(error, EOFError) else f"not good gzip: {error}"
        issues.append(format_issue(path, number + 1, None, "", wrong, fix=fix))


def _detect_wide_encoding(first_bytes: bytes) -> str:
    """The encoding of a file whose characters take two or four bytes, by its first bytes; "" of others."""
    if first_bytes.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if first_bytes.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if len(first_bytes) > 1 and (first_bytes[0] == 0) != (first_bytes[1] == 0):
        return "UTF-16LE" if first_bytes[1] == 0 else "UTF-16BE"
    return ""


def _json_issue(path: Path, error: Exception, line: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        fix = (
            "one JSON object a line"
            if path.name.removesuffix(".gz").endswith(".jsonl")
            else "one list of objects"
        )
        return format_issue(
            path, line + error.lineno - 1, error.colno, "", f"broken JSON: {error.msg}", fix=fix
        )
    return format_issue(
        path, line, None, "", "broken JSON: a number too long or lists too deep", fix="mend the row"
    )


def _jsonl_rows(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[Row]:
    for number, text, good in _decode_lines(path, stream, issues):
        if not good or not text.strip():
            continue
        try:
            values = json.loads(text.rstrip("\r\n"))  # so that a row cut short is blamed on its own line
        except (ValueError, RecursionError) as error:
            issues.append(_json_issue(path, error, number))
            continue
        if isinstance(values, dict):
            yield Row(f"{path}:{number}", values)
        else:
            fix = 'write {"prompt": ..., ...} on every line'
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
        fix = "write [{...}, {...}], or name the file .jsonl if it holds one object a line"
        issues.append(format_issue(path, 1, 1, "", f"{json_type_name(rows)}, not a list of objects", fix=fix))
        return
    for number, values in enumerate(rows, 1):
        if isinstance(values, dict):
            yield Row(f"{path}:row {number}", values)
        else:
            wrong = f"{json_type_name(values)}, not an object"
            issues.append(format_issue(f"{path}:row {number}", None, None, "", wrong, fix="mend the row"))


def _csv_rows(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[Row]:
    before = csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB
    try:
        lines = (text for _, text, _ in _decode_lines(path, stream, issues))
        first = next(lines, "")
        if mark := _detect_wrong_delimiter(first):
            fix = "save it with commas, or as JSON lines"
            issues.append(format_issue(path, 1, None, "", f"its columns are parted by {mark}", fix=fix))
            return
        reader = csv.reader(chain([first], lines), strict=True)
        header = next(reader, None) or []
        double = sorted({name for name in header if header.count(name) > 1})
        if double:
            issues.append(
                format_issue(path, 1, None, double[0], "two columns of this name", fix="rename one")
            )
            return
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Row(f"{path}:{start}", dict(zip(header, cells, strict=True)))
            elif cells:
                wrong = f"{len(cells)} cells, but the header has {len(header)}"
                fix = 'put cells that hold commas or line breaks in "quotes"'
                issues.append(format_issue(path, start, None, "", wrong, fix=fix))
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'close every "quote", and double those inside a cell'
        issues.append(format_issue(path, reader.line_num, None, "", f"broken CSV: {error}", fix=fix))
    finally:
        csv.field_size_limit(before)


def _detect_wrong_delimiter(header: str) -> str:
    """What stands between the columns of a header that knows no comma; "" where it has but one."""
    if "," in header:
        return ""
    marks = {";": "semicolons", "\t": "tabs"}
    return next(
        (name for mark, name in marks.items() if len(next(csv.reader([header], delimiter=mark))) > 1), ""
    )


def _parquet_rows(path: Path, issues: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for part in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for values in part.to_pylist():
                number += 1
                yield Row(f"{path}:row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        wrong = f"not good Parquet: {str(error).splitlines()[0]}"
        issues.append(format_issue(path, None, None, "", wrong, fix="write the file again"))


def _hub_rows(source: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        wrong, fix = "needs the package `datasets`", "pip install 'paretune[hub]'"
        raise MissingDependencyError(format_issue(source, None, None, "", wrong, fix=fix)) from error
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    owner, _, rest = name.partition("/")
    title, _, config = rest.partition("/")
    try:
        rows = datasets.load_dataset(f"{owner}/{title}", config or None, split=split or "train")
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "write hf:owner/name, hf:owner/name:split or hf:owner/name/config:split"
        raise DataError(format_issue(source, None, None, "", f"cannot be had: {first}", fix=fix)) from error
    for number, values in enumerate(rows, 1):
        yield Row(f"{source}:row {number}", dict(values))


def json_type_name(value: object) -> str:
    """What JSON calls a value, with its article."""
    names = {str: "text", bool: "a truth value", list: "a list", dict: "an object"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
