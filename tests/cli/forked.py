"""Runs the program in processes forked from one that has imported everything: imports take seconds."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Started:
    """One of its processes, with as much of `subprocess.Popen` as tests need."""

    def __init__(self, server: "Server", arguments: list[str]) -> None:
        self.stdout, self.stderr = server.folder / "stdout", server.folder / "stderr"
        self.returncode: int | None = None
        files = [str(self.stdout), str(self.stderr)]
        server.write({"arguments": arguments, "files": files, "cwd": str(Path.cwd())})
        self._server, self.pid = server, server.read()

    def poll(self) -> int | None:
        if self.returncode is None and self._server.said_more():
            self.returncode = self._server.read()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._server.read()
        return self.returncode

    def kill(self) -> None:
        """Without warning, it and what it started."""
        os.killpg(self.pid, signal.SIGKILL)


class Server:
    """Forks one process after the other."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self._last: Started | None = None
        # Unbuffered, so that what waits to be read is seen by `select`.
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )

    def start(self, arguments: list[str]) -> Started:
        """Begin the program; one that a failed test left behind is ended first."""
        if self._last is not None and self._last.poll() is None:
            self._last.kill()
            self._last.wait()
        self._last = Started(self, arguments)
        return self._last

    def write(self, said: dict[str, object]) -> None:
        self._process.stdin.write(json.dumps(said).encode() + b"\n")

    def read(self) -> int:
        return int(self._process.stdout.readline())

    def said_more(self) -> bool:
        return bool(select.select([self._process.stdout], [], [], 0)[0])


@cache
def server() -> Server:
    """That of this test process; it ends when nobody can write to it any more."""
    return Server()


def begun(arguments: list[str]) -> Started:
    """The program with these arguments, under way."""
    return server().start(arguments)


def done(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The program with these arguments, over."""
    process = begun(arguments)
    code = process.wait()
    return subprocess.CompletedProcess(
        arguments, code, process.stdout.read_text(), process.stderr.read_text()
    )
