"""Serves the pages on a port of this machine."""

import contextlib
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from paretune.core.errors import ConfigError
from paretune.view.answers import Answers
from paretune.view.app import Viewer, make_app
from paretune.view.folders import EVALUATION_FILE, RUN_FILE
from paretune.view.ratings import RatingsFile, parse_scales

ADDRESS = "127.0.0.1"


def make_viewer(
    roots: Sequence[Path],
    ratings: Path | None,
    scales: Sequence[str],
    seed: int,
    answers: Answers,
    token: str = "",
) -> Viewer:
    """The viewer of some folders.

    Args:
        roots: Run folders, or folders of runs.
        ratings: File of the ratings; None = beside the runs.
        scales: Scales of the ratings, such as "1-5" and "safety=0-1".
        seed: Seed of the order in which responses are shown.
        answers: What answers on the chat page.
        token: The key to the pages; "" = a random one.

    Raises:
        ConfigError: The file of the ratings or a scale cannot be used.
    """
    scale, named_scales = parse_scales(scales)
    file = RatingsFile(ratings or default_ratings_file(roots[0]))
    file.check()
    return Viewer(
        roots=tuple(roots),
        ratings=file,
        answers=answers,
        token=token or secrets.token_urlsafe(24),
        seed=seed,
        scale=scale,
        scales=named_scales,
    )


def default_ratings_file(root: Path) -> Path:
    """The file beside the runs: in the folder of several, next to that of a single one."""
    if (root / RUN_FILE).exists() or (root / EVALUATION_FILE).exists():
        return root.parent / f"{root.resolve().name}-ratings.jsonl"
    return root / "ratings.jsonl"


@contextmanager
def open_port(port: int, *, exactly: bool) -> Iterator[socket.socket]:
    """A socket that listens on a port of this machine.

    Args:
        port: The port; 0 = a free one.
        exactly: Fail if the port is taken; else take a free one.

    Raises:
        ConfigError: The port is taken, or may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            connection.bind((ADDRESS, port))
        except OSError as error:
            if exactly:
                problem = f"--port: {port}: cannot be used: {error.strerror}"
                raise ConfigError(f"{problem}; fix: choose another, or 0 for a free one") from error
            connection.bind((ADDRESS, 0))
        connection.listen(128)
        yield connection


def serve(viewer: Viewer, connection: socket.socket) -> None:
    """Serve the pages until Ctrl-C."""
    config = uvicorn.Config(
        make_app(viewer),
        log_level="warning",
        access_log=False,  # addresses of requests would carry the token
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[connection])
    viewer.answers.close()
