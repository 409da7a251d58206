"""Rows of JSONL, JSON, CSV and Parquet files and of hub data sets, with their locations."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.core.errors import DataError, MissingDependencyError, first_line, format_issue
from paretune.data.number_texts import NumberStyles
from paretune.data.text_lines import decode_lines, foreign_content, open_decompressed
from paretune.run.io import LFS_FIX, is_lfs_pointer

HUB_PREFIX = "hf:"
SUPPORTED_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
PARQUET_ERRORS = (OSError, ValueError, OverflowError)
"""What pyarrow raises for damaged files besides its own errors: dates out of range, text not in UTF-8."""
NO_REGULAR_FILE = ("is a device or a pipe, not a file", "copy its content into a file")
SEPARATOR_LINE_PATTERN = re.compile(r'"?sep=([^\r\n"])"?[\r\n]*$')
"""First line of a CSV file that tells Excel the delimiter."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: column values and location, as `file:line`."""

    location: str
    values: dict[str, Any]


@dataclass(slots=True)
class FileInfo:
    """What a file turned out to be while it was read."""

    decimal_comma: bool = False
    """True if numbers may be written with a decimal comma: the cells are not separated by commas."""
    number_styles: NumberStyles = field(default_factory=NumberStyles)
    """How its columns write decimals; known before the first row, if there may be decimal commas."""
    notes: list[str] = field(default_factory=list)


def read_rows(
    source: str | Path, issues: list[str], root: str | Path = ".", info: FileInfo | None = None
) -> Iterator[Row]:
    """Iterate over the rows of a file; a row that cannot be parsed adds an error message to `issues` instead.

    Args:
        source: A .jsonl, .json, .csv, .tsv or .txt file (also .gz), a .parquet file, or
            `hf:owner/name[/config][:split]`. A .txt file has one prompt per line.
        issues: Extended by one error message per bad row.
        root: Folder of relative paths.
        info: Filled in with what the file turned out to be.

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
    readers = {"jsonl": _jsonl_rows, "json": _json_rows, "txt": _text_rows}
    if suffix not in (*readers, "csv", "tsv"):
        known = ", ".join(SUPPORTED_SUFFIXES)
        raise DataError(
            format_issue(path, None, None, "", "unknown file format", fix=f"use one of {known} (or .gz)")
        )
    with open_decompressed(path) as stream:
        if suffix in readers:
            yield from readers[suffix](path, stream, issues)
        else:
            yield from _csv_rows(path, stream, issues, info or FileInfo())


def _require_file(path: Path) -> None:
    if path.is_file():
        if foreign := foreign_content(path):
            raise DataError(format_issue(path, None, None, "", foreign[0], fix=foreign[1]))
        if is_lfs_pointer(path):
            problem = "a pointer file of Git LFS, not the file itself"
            raise DataError(format_issue(path, None, None, "", problem, fix=LFS_FIX))
        return
    if path.exists():
        problem, fix = ("is a folder", "name a file in it") if path.is_dir() else NO_REGULAR_FILE
        raise DataError(format_issue(path, None, None, "", problem, fix=fix))
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    suggestion = next(iter(get_close_matches(path.name, siblings, 1)), "")
    problem = "no such file" if siblings else f"no such file (folder {path.parent} is empty or missing)"
    raise DataError(
        format_issue(path, None, None, "", problem, suggestion=suggestion, fix="check data.root and the name")
    )


class _DuplicateKeyError(ValueError):
    """A JSON object has a key twice, of which all but the last would be lost."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return values


JSON_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _json_issue(path: Path, error: Exception, line: int) -> str:
    if isinstance(error, _DuplicateKeyError):
        problem, fix = "stands twice in an object, with one value each", "delete one of them"
        return format_issue(path, line or None, None, str(error), problem, fix=fix)
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
    lines = decode_lines(path, stream, issues)
    first = next(lines, None)
    if first is None:
        return
    if first[1].strip() == "[" or first[1].lstrip().startswith("[{"):
        # One list of objects under the name of JSON lines.
        yield from _parse_json(path, "".join([first[1], *(text for _, text, _ in lines)]), issues)
        return
    yield from _json_line_rows(path, chain([first], lines), issues)


def _json_line_rows(path: Path, lines: Iterable[tuple[int, str, bool]], issues: list[str]) -> Iterator[Row]:
    for number, text, is_valid in lines:
        if not is_valid or not text.strip():
            continue
        try:
            # Without its line end: else an incomplete row is reported on the next line.
            values = JSON_DECODER.decode(text.rstrip("\r\n"))
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
    lines = list(decode_lines(path, stream, issues))
    if issues:
        return
    if _are_json_lines([text for _, text, _ in lines if text.strip()]):
        yield from _json_line_rows(path, lines, issues)
    else:
        yield from _parse_json(path, "".join(text for _, text, _ in lines), issues)


def _are_json_lines(lines: list[str]) -> bool:
    """True if a file has an object per line: its first two lines that are not empty are one each."""
    if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(lines[0]), dict) and lines[1].lstrip().startswith("{")
    except (ValueError, RecursionError):
        return False


def _parse_json(path: Path, text: str, issues: list[str]) -> Iterator[Row]:
    if not text.strip():
        return
    try:
        content = JSON_DECODER.decode(text)
    except _DuplicateKeyError as error:
        issues.append(_json_issue(path, error, _line_of_duplicate(text, str(error))))
        return
    except (ValueError, RecursionError) as error:
        issues.append(_json_issue(path, error, 1))
        return
    rows = _rows_of_object(content) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        fix = "write [{...}, {...}], or name the file .jsonl if it has one object per line"
        problem = f"{json_type_name(content)}, not a list of objects"
        issues.append(format_issue(path, 1, 1, "", problem, fix=fix))
        return
    for number, values in enumerate(rows, 1):
        if isinstance(values, dict):
            yield Row(f"{path}:row {number}", values)
        else:
            problem = f"{json_type_name(values)}, not an object"
            issues.append(format_issue(f"{path}:row {number}", None, None, "", problem, fix="fix the row"))


def _line_of_duplicate(text: str, key: str) -> int:
    """The line of the first object that has the key twice; 0 if it cannot be told."""
    decoder, spelling = json.JSONDecoder(object_pairs_hook=_unique_keys), json.dumps(key, ensure_ascii=False)
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            decoder.raw_decode(text, start)
        except _DuplicateKeyError:
            inner = text.find("{", start + 1)
            first = text.find(spelling, start)
            if inner < 0 or first < inner:
                return text.count("\n", 0, start) + 1
        except ValueError:
            continue
    return 0


def _rows_of_object(content: dict[str, Any]) -> list[Any] | None:
    """The rows in an object: its only list of objects, or columns as pandas and `datasets` write them."""
    lists = [value for value in content.values() if isinstance(value, list)]
    tables = [rows for rows in lists if rows and all(isinstance(row, dict) for row in rows)]
    if len(tables) == 1:
        return tables[0]
    columns = list(content.values())
    if len(columns) > 1 and len(lists) == len(columns) and len({len(column) for column in lists}) == 1:
        return [dict(zip(content, cells, strict=True)) for cells in zip(*columns, strict=True)]
    cells = [column for column in columns if isinstance(column, dict) and column]
    if len(columns) > 1 and len(cells) == len(columns) and all(c.keys() == cells[0].keys() for c in cells):
        return [{name: column[key] for name, column in content.items()} for key in cells[0]]
    return None


def _text_rows(path: Path, stream: Iterable[bytes], issues: list[str]) -> Iterator[Row]:
    """One prompt per line; empty lines are skipped."""
    for number, text, is_valid in decode_lines(path, stream, issues):
        if is_valid and text.strip():
            yield Row(f"{path}:{number}", {"prompt": text.rstrip("\r\n")})


def _csv_rows(path: Path, stream: Iterable[bytes], issues: list[str], info: FileInfo) -> Iterator[Row]:
    old_limit = csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB
    lines: Iterator[str] = (text for _, text, _ in decode_lines(path, stream, issues))
    reader, num_skipped = csv.reader(lines), 0
    try:
        header_line = next(lines, "")
        if match := SEPARATOR_LINE_PATTERN.match(header_line):
            delimiter, header_line, num_skipped = match[1], next(lines, ""), 1
        else:
            delimiter = _detect_delimiter(header_line)
        if delimiter != ",":
            name = DELIMITERS.get(delimiter, f'"{delimiter}"')
            info.decimal_comma = True
            info.notes.append(format_issue(path, 1, None, "", f"columns are separated by {name}"))
            lines = _observe_numbers(header_line, list(lines), delimiter, info.number_styles)
        reader = csv.reader(chain([header_line], lines), strict=True, delimiter=delimiter)
        header = next(reader, None) or []
        names = [name for name in header if name.strip()]
        if len(names) < len(header):
            num_unnamed = len(header) - len(names)
            has = "column has no name and is" if num_unnamed == 1 else "columns have no name and are"
            info.notes.append(format_issue(path, 1, None, "", f"{num_unnamed} {has} not read"))
        if duplicate := next((name for name in names if names.count(name) > 1), ""):
            issues.append(format_issue(path, 1, None, duplicate, "duplicate column", fix="rename one"))
            return
        start = reader.line_num + 1 + num_skipped
        for cells in reader:
            if cells and len(cells) == len(header):
                values = dict(zip(header, cells, strict=True))
                yield Row(
                    f"{path}:{start}",
                    values if len(names) == len(header) else {name: values[name] for name in names},
                )
            elif cells:  # not an empty line
                problem = f"{len(cells)} cell{'s' * (len(cells) != 1)}, but the header has {len(header)}"
                fix = f'put cells with {DELIMITERS.get(delimiter, delimiter)} or line breaks in "quotes"'
                issues.append(format_issue(path, start, None, "", problem, fix=fix))
            start = reader.line_num + 1 + num_skipped
    except csv.Error as error:
        fix = 'close every "quote", and double quotes inside a cell'
        line = max(reader.line_num, 1) + num_skipped
        issues.append(format_issue(path, line, None, "", f"invalid CSV: {error}", fix=fix))
    finally:
        csv.field_size_limit(old_limit)


def _observe_numbers(
    header_line: str, lines: list[str], delimiter: str, styles: NumberStyles
) -> Iterator[str]:
    """The lines, after a first pass that learns how each column writes decimals."""
    with suppress(csv.Error):  # reported by the second pass
        reader = csv.reader([header_line, *lines], strict=True, delimiter=delimiter)
        header = next(reader, [])
        for cells in reader:
            styles.observe(dict(zip(header, cells, strict=False)))
    return iter(lines)


def _detect_delimiter(header: str) -> str:
    """The delimiter that splits a header into most cells; a comma if it has one cell."""
    counts = {}
    for delimiter in DELIMITERS:
        try:
            counts[delimiter] = len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            counts[delimiter] = 0  # reported by the reader
    return max(counts, key=lambda delimiter: counts[delimiter])


def _parquet_rows(path: Path, issues: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:row {number}", values)
    except (pyarrow.ArrowException, *PARQUET_ERRORS) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = f"invalid Parquet: {reason}"
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
        reason = first_line(error)
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
