"""`paretune view`: starts the local web pages and prints their address. `cli` registers it."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.core.errors import MissingDependencyError
from paretune.report.terminal import echo
from paretune.view.conversation import Device, LoadChat

DEFAULT_PORT = 8791


def add_commands(app: typer.Typer, load_chat: LoadChat) -> None:
    """Add the command to an application.

    Args:
        app: The application.
        load_chat: Loads the models of the chat page.
    """

    @app.command()
    def view(
        runs: Annotated[
            list[Path] | None,
            typer.Argument(metavar="[RUNS]", help="Run folders, or folders of runs; default: runs."),
        ] = None,
        port: Annotated[
            int | None, typer.Option(min=0, max=65535, help=f"Port; default: {DEFAULT_PORT}, or a free one.")
        ] = None,
        ratings: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="JSON Lines file of your ratings; default: beside the runs."),
        ] = None,
        scale: Annotated[
            list[str] | None,
            typer.Option(help="Scale of ratings: 1-5 for all, safety=0-1 for one; repeatable."),
        ] = None,
        seed: Annotated[int, typer.Option(help="Seed of the order in which responses are shown.")] = 0,
        device: Annotated[Device, typer.Option(help="Device of the models of the chat page.")] = "auto",
    ) -> None:
        """Watch, browse and rate runs, and chat, in a browser.

        Prints the address, and serves it to this machine alone until Ctrl-C. Runs are only read; ratings are
        written to a separate file.
        """
        _serve_pages(tuple(runs or [Path("runs")]), port, ratings, scale or [], seed, load_chat, device)


def _serve_pages(
    roots: tuple[Path, ...],
    port: int | None,
    ratings: Path | None,
    scales: list[str],
    seed: int,
    load_chat: LoadChat,
    device: Device,
) -> None:
    from paretune.view.folders import check_roots, find_folders

    check_roots(roots)
    try:
        from paretune.view.answers import Answers
        from paretune.view.server import make_viewer, open_port, serve
    except ModuleNotFoundError as error:
        problem = f"the pages need the package {error.name}, which is not installed"
        raise MissingDependencyError(f"{problem}; fix: pip install starlette uvicorn") from error

    viewer = make_viewer(roots, ratings, scales, seed, Answers(load_chat, device))
    with open_port(DEFAULT_PORT if port is None else port, exactly=port is not None) as connection:
        number = connection.getsockname()[1]
        found = find_folders(roots)
        num_runs = sum(folder.kind == "run" for folder in found.values())
        echo(f"runs     {num_runs} in {', '.join(map(str, roots))}")
        echo(f"ratings  {viewer.ratings.path}")
        echo(f"address  http://127.0.0.1:{number}/?t={viewer.token}")
        echo("Press Ctrl-C to stop; the runs are not affected.")
        serve(viewer, connection)
