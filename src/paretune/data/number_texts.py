"""Texts of cells that spell a number in another way than Python does, or that look like one and are none."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SIGN = r"[+-]?"
GROUP = r"[1-9]\d{0,2}"
"""What stands before the first separator of thousands."""
DECIMAL_COMMA_PATTERN = re.compile(rf"{SIGN}\d+,\d+")
THREE_AFTER_DOT_PATTERN = re.compile(rf"{SIGN}{GROUP}\.\d{{3}}")
"""1.250, which is 1.25, or 1250 where numbers have a decimal comma."""
THREE_AFTER_COMMA_PATTERN = re.compile(rf"{SIGN}{GROUP},\d{{3}}")
DOT_GROUPS_PATTERN = re.compile(rf"{SIGN}{GROUP}(?:(?:\.\d{{3}})+,\d+|(?:\.\d{{3}}){{2,}})")
"""1.250,5 or 1.250.000, which can only be read with dots between thousands."""
COMMA_GROUPS_PATTERN = re.compile(rf"{SIGN}{GROUP}(?:(?:,\d{{3}})+\.\d+|(?:,\d{{3}}){{2,}})")
OTHER_GROUPS_PATTERN = re.compile(rf"{SIGN}{GROUP}(?:['\u2019\u00a0\u202f]\d{{3}})+(?:[.,]\d+)?")
DECIMAL_DOT_PATTERN = re.compile(rf"{SIGN}\d*\.\d+")

PERCENT_PATTERN = re.compile(r"(\d+(?:[.,]\d+)?)\s*(?:%|‰|percent|per cent|pct\.?)", re.IGNORECASE)
FRACTION_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)")
DATE_PATTERN = re.compile(
    r"(?:\d{1,2}([-/.])\d{1,2}\1(?:\d{4}|\d{2})|\d{4}([-/.])\d{1,2}\2\d{1,2})(?:[T ]\d{1,2}:\d{2}.*)?"
)
DAY_OF_MONTH_PATTERN = re.compile(
    r"(?:\d{1,4}\.?[-/ ]?)?(?P<month>[^\W\d_]{3,9})\.?(?:[-/ ]\d{1,4}){0,2}", re.IGNORECASE
)
MONTHS = frozenset(
    """
    jan feb mar apr may jun jul aug sep sept oct nov dec january february march april june july august
    september october november december mrz mär mai okt dez januar februar märz juni juli oktober dezember
    """.split()
)
VOTES_PATTERN = re.compile(r"[+-]?\d+(?:\.\d+)?(?:(?:\s*[;|,/]\s*|\s+)[+-]?\d+(?:\.\d+)?)+")
VOTE_PATTERN = re.compile(r"[+-]?\d+(?:\.\d+)?")


@dataclass(slots=True)
class NumberStyles:
    """How the columns of a file write decimals, from the cells that leave no doubt."""

    comma_columns: set[str] = field(default_factory=set)
    """Columns with a decimal comma, or with dots between thousands."""
    dot_columns: set[str] = field(default_factory=set)
    """Columns with a decimal dot, or with commas between thousands."""

    def observe(self, cells: Mapping[str, str]) -> None:
        """Learn from the cells of a row."""
        for column, cell in cells.items():
            text = cell.strip()
            if not text or text[-1] not in "0123456789":
                continue  # most texts
            if DOT_GROUPS_PATTERN.fullmatch(text) or (
                DECIMAL_COMMA_PATTERN.fullmatch(text) and not THREE_AFTER_COMMA_PATTERN.fullmatch(text)
            ):
                self.comma_columns.add(column)
            elif COMMA_GROUPS_PATTERN.fullmatch(text) or (
                DECIMAL_DOT_PATTERN.fullmatch(text) and not THREE_AFTER_DOT_PATTERN.fullmatch(text)
            ):
                self.dot_columns.add(column)

    def python_spelling(self, text: str, column: str) -> str | None:
        """A number as Python spells it, other texts unchanged; None if it can be read in two ways."""
        has_comma, has_dot = column in self.comma_columns, column in self.dot_columns
        if THREE_AFTER_DOT_PATTERN.fullmatch(text):
            if has_comma and not has_dot:
                return text.replace(".", "")
            # With commas in other columns alone, this one may have whole numbers only.
            return None if has_comma or (self.comma_columns and not has_dot) else text
        if THREE_AFTER_COMMA_PATTERN.fullmatch(text) and (has_dot or not self.comma_columns):
            return None
        if DOT_GROUPS_PATTERN.fullmatch(text):
            return text.replace(".", "").replace(",", ".")
        return text.replace(",", ".") if DECIMAL_COMMA_PATTERN.fullmatch(text) else text


def two_readings(text: str) -> tuple[str, str]:
    """Problem and fix of a text such as 1.250 or 5,000, whose separator may be of thousands or decimals."""
    whole, decimal = re.sub("[.,]", "", text), f"{float(text.replace(',', '.')):g}"
    if THREE_AFTER_DOT_PATTERN.fullmatch(decimal):
        decimal += "0"  # which leaves no doubt
    problem = f'"{text}" may be {whole} or {decimal}: the rest of the file does not tell'
    return problem, f"write it as {whole} or {decimal}, whichever is meant"


def number_problem(text: str) -> tuple[str, str] | None:
    """Problem and fix of a text that looks like a number and is none as it stands; None for other texts."""
    if match := PERCENT_PATTERN.fullmatch(text):
        fix = (
            "write all labels of the column as numbers on one scale: 80% is 0.8 from 0 to 1, 4.2 from 1 to 5"
        )
        return f'"{text}" is a percentage', fix
    if match := FRACTION_PATTERN.fullmatch(text):
        share = f"{float(match[1]) / (float(match[2]) or 1):g}"
        fix = f"write all labels of the column as numbers on one scale: {match[1]}, or {share} from 0 to 1"
        return f'"{text}" is a fraction', fix
    month = DAY_OF_MONTH_PATTERN.fullmatch(text)
    if DATE_PATTERN.fullmatch(text) or (month and month["month"].lower() in MONTHS):
        fix = "correct these cells, with the column formatted as text; what they were cannot be told"
        return f'"{text}" is a date, which spreadsheets make of ratings such as 5/5 or 4.5', fix
    if THREE_AFTER_COMMA_PATTERN.fullmatch(text):
        return two_readings(text)
    if DECIMAL_COMMA_PATTERN.fullmatch(text):
        fix = f"write {text.replace(',', '.')}; only a file with semicolons may have such numbers"
        return f'"{text}" has a decimal comma', fix
    if number := _without_groups(text):
        return f'"{text}" has separators between thousands', f"write {number}"
    if VOTES_PATTERN.fullmatch(text):
        votes = ", ".join(VOTE_PATTERN.findall(text)[:5])
        fix = f'write votes as a list, "[{votes}]", or in a row each; a single number has no separators'
        return f'"{text}" is several numbers in one cell', fix
    return None


def _without_groups(text: str) -> str:
    """The number without separators of thousands; "" if it has none."""
    if DOT_GROUPS_PATTERN.fullmatch(text):
        return text.replace(".", "").replace(",", ".")
    if COMMA_GROUPS_PATTERN.fullmatch(text):
        return text.replace(",", "")
    if OTHER_GROUPS_PATTERN.fullmatch(text):
        return re.sub("['\u2019\u00a0\u202f]", "", text).replace(",", ".")
    return ""


def leading_numbers(texts: Iterable[str]) -> dict[str, str]:
    """Text -> the number that it begins with, of texts without further digits, such as "4 - good"."""
    matches = {text: re.match(r"(-?\d+(?:\.\d+)?)(?=\W)\D*$", text) for text in texts}
    return {text: match[1] for text, match in matches.items() if match}
