"""Errors a user can cause and mend. Each message: what came, what was expected, what to do."""

from collections.abc import Iterable
from typing import ClassVar


class ParetuneError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class WiringError(ParetuneError, ValueError):
    """A recipe's parts do not fit together; raised before any model is loaded."""

    exit_code = 2


class ConfigError(ParetuneError, ValueError):
    """A recipe file or an override is wrong; the message holds one line for each mistake of the file."""

    exit_code = 2


class DataError(ParetuneError, ValueError):
    """A record does not have the form its reader needs; one line for each bad row."""

    exit_code = 2


class MissingDependencyError(ParetuneError, ImportError):
    """An optional part of the package is not installed."""

    exit_code = 3


class ResourceError(ParetuneError, RuntimeError):
    """The machine lacks something: memory, disk."""

    exit_code = 3


class NonFiniteError(ParetuneError, ArithmeticError):
    """Training met a NaN or an infinity, and stopped before it reached the weights."""

    exit_code = 4


class RunInterrupted(ParetuneError):
    """A signal asked the run to stop, and a good checkpoint was written first."""

    exit_code = 75


def format_issue(
    file: object,
    line: int | None,
    col: int | None,
    key: str,
    problem: str,
    *,
    suggestion: str = "",
    fix: str = "",
) -> str:
    """One line of the form `file:line:col: key: what is wrong; did you mean "..."; fix: ...`."""
    place = ":".join(str(part) for part in (file, line, col) if part is not None)
    tail = (f'; did you mean "{suggestion}"?' if suggestion else "") + (f"; fix: {fix}" if fix else "")
    return f"{place}: {key}: {problem}{tail}" if key else f"{place}: {problem}{tail}"


def join_issues(issues: Iterable[str], max_issues: int = 20) -> str:
    """All complaints, one a line, at most `max_issues` of them and a count of the rest."""
    lines = list(issues)
    rest = len(lines) - max_issues
    return "\n".join([*lines[:max_issues], *([f"... and {rest} more"] if rest > 0 else [])])
