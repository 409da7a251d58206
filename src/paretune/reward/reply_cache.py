"""Replies of an LLM judge on disk, and what has been spent: nothing is paid for twice, even after a kill."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paretune.core.errors import ResourceError, first_line
from paretune.run.io import write_error

FILE_NAME = "replies.sqlite"
_LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that writes; a write takes milliseconds."""
_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    scope TEXT PRIMARY KEY, requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, cost REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a judge has used, over all starts of a run."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices; of a request without an answer yet, the most that it can cost."""

    def __sub__(self, other: "Usage") -> "Usage":
        """The difference of each number."""
        return Usage(
            self.requests - other.requests,
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
            self.cost - other.cost,
        )


class ReplyCache:
    """Replies by key, and usage by scope, in one SQLite file that several processes may share.

    Every write is a transaction that is on disk when the call returns. The folder must be on a disk of this
    machine: SQLite's write-ahead log does not work over a network file system.

    Raises:
        ResourceError: The file cannot be written, or is not a database; every method may raise it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        with self._errors():
            # Several threads: each call of a scorer may come from another one, but only one at a time.
            self._connection = sqlite3.connect(
                self.path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")  # survives a power cut, not only a kill
            self._connection.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str) -> str | None:
        """The reply under a key, or None."""
        with self._errors():
            row = self._connection.execute("SELECT content FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def usage(self, scope: str) -> Usage:
        """What a scope has used so far."""
        query = "SELECT requests, input_tokens, output_tokens, cost FROM usage WHERE scope = ?"
        with self._errors():
            row = self._connection.execute(query, (scope,)).fetchone()
        return Usage() if row is None else Usage(*row)

    def reserve(self, scope: str, cost: float, max_requests: int | None, max_cost: float | None) -> str:
        """Count a request before it is sent, so that a kill can never lose it.

        Args:
            scope: Whose caps it counts against.
            cost: The most that it can cost.
            max_requests: Cap on the requests of the scope.
            max_cost: Cap on the cost of the scope.

        Returns:
            "" if it may be sent; else the cap that it would exceed, "requests" or "cost".
        """
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO usage VALUES (?, 0, 0, 0, 0.0)", (scope,))
            query = "SELECT requests, cost FROM usage WHERE scope = ?"
            requests, spent = self._connection.execute(query, (scope,)).fetchone()
            if max_requests is not None and requests >= max_requests:
                return "requests"
            if max_cost is not None and spent + cost > max_cost:
                return "cost"
            update = "UPDATE usage SET requests = requests + 1, cost = cost + ? WHERE scope = ?"
            self._connection.execute(update, (cost, scope))
        return ""

    def settle(
        self, scope: str, used: Usage, reserved_cost: float, key: str = "", content: str | None = None
    ) -> None:
        """Replace what was reserved for a request by what it used, and store its reply, in one transaction.

        Args:
            scope: As in `reserve`.
            used: Tokens and cost; its `requests` are not read.
            reserved_cost: What was reserved.
            key: Key of the reply.
            content: The reply; None: it is not worth keeping.
        """
        update = (
            "UPDATE usage SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?, "
            "cost = max(0.0, cost + ?) WHERE scope = ?"
        )
        with self._transaction():
            change = used.cost - reserved_cost
            self._connection.execute(update, (used.input_tokens, used.output_tokens, change, scope))
            if content is not None:
                self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, content))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors(), self._connection:  # commits, or rolls back after an error
            # At once, so that what is read here cannot be changed by another process before the write.
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            is_damaged = isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error)
            fix = (
                "remove the file; its replies are asked for again"
                if is_damaged or "malformed" in str(error)
                else "free disk space, wait for the process that uses it, or choose another cache_dir"
            )
            raise ResourceError(f"{self.path}: {first_line(error)}; fix: {fix}") from error
