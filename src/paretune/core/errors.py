"""Errors that a user can cause and fix. A message says what is wrong, where, and how to fix it."""

from collections.abc import Iterable
from typing import ClassVar


class ParetuneError(Exception):
    """Base class of all errors of this package; `exit_code` is the exit code of the command line."""

    exit_code: ClassVar[int] = 1


class WiringError(ParetuneError, ValueError):
    """The parts of an algorithm do not fit together; raised before any model is loaded."""

    exit_code = 2


class ConfigError(ParetuneError, ValueError):
    """A recipe file or an override is wrong; the message has one line per mistake."""

    exit_code = 2


class DataError(ParetuneError, ValueError):
    """A record does not have the required form; the message has one line per bad row."""

    exit_code = 2


class MissingDependencyError(ParetuneError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 3


class ResourceError(ParetuneError, RuntimeError):
    """Not enough memory or disk space, or a file cannot be written."""

    exit_code = 3


class NonFiniteError(ParetuneError, ArithmeticError):
    """A NaN or infinity occurred in training; raised before it reaches the weights."""

    exit_code = 4


class ScoringError(ParetuneError, RuntimeError):
    """A scorer or judge failed on more responses than allowed, or reached a cap on requests or cost."""

    exit_code = 5


class RankError(ParetuneError, RuntimeError):
    """Another process of the run failed, ended or does not answer; this one is not the cause."""

    first_failed_rank: int = 0
    """The rank that tells the error."""

    exit_code: ClassVar[int] = 75  # the checkpoints are whole: run again to continue


class RunInterrupted(ParetuneError):
    """The run was stopped by a signal after a checkpoint had been written."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: run again to continue


EXIT_INTERRUPTED = 130
"""Of Ctrl-C, as shells have it."""


def exit_code_of(error: BaseException) -> int:
    """The exit code of the command line for this error."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, ParetuneError) else 1


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
    location = ":".join(str(part) for part in (file, line, col) if part is not None)
    tail = (f'; did you mean "{suggestion}"?' if suggestion else "") + (f"; fix: {fix}" if fix else "")
    return f"{location}: {key}: {problem}{tail}" if key else f"{location}: {problem}{tail}"


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the name of its type.

    With the next line, where the first only announces it by a colon at its end.
    """
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    return f"{first} {others[0]}" if first.endswith(":") and others else first


def join_issues(issues: Iterable[str], max_issues: int = 20) -> str:
    """The issues, one per line: at most `max_issues`, then the number of the others."""
    lines = list(issues)
    rest = len(lines) - max_issues
    return "\n".join([*lines[:max_issues], *([f"... and {rest} more"] if rest > 0 else [])])
