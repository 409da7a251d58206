"""Commands that run a recipe, and that show a run elsewhere. `cli` registers them."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from paretune.core.errors import EXIT_INTERRUPTED
from paretune.core.launch import requested_rank
from paretune.report.terminal import echo

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that override the recipe.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="JSON Lines on standard output: one object per event.")
]
ReuseOption = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Reuse policy, reward and judge of an earlier run.")
]


def add_run_commands(app: typer.Typer) -> None:
    """Add `demo` and `run` to an application."""
    app.command()(demo)
    app.command()(run)


def add_track_command(app: typer.Typer) -> None:
    """Add `track` to an application."""
    app.command()(track)


def demo(
    overrides: OverridesArgument = None,
    seed: Annotated[int, typer.Option(help="Seed of the data and of the training.")] = 0,
) -> None:
    """Run a complete example in minutes, offline."""
    _run_recipe("demo", [f"run.seed={seed}", *(overrides or [])])


def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: Annotated[
        Literal["judge", "align", "tuning-trial", "judged-tuning-trial"] | None,
        typer.Option(
            help="Last stage. tuning-trial: score responses to training prompts with the reward; "
            "judged-tuning-trial: with the judge too."
        ),
    ] = None,
    reuse_from: ReuseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe, or resume it."""
    _run_recipe(recipe, overrides or [], until or "", reuse_from, as_json=as_json)


def track(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has ended.")],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="tensorboard|wandb|trackio|mlflow",
            help="The tracker; default: all that the recipe names; repeatable.",
        ),
    ] = None,
) -> None:
    """Send a finished run to a tracker.

    Uses the recipe's settings of the tracker, if it has some. What was already sent is not sent again.
    """
    from paretune.experiment.tracking import track_run

    for line in track_run(run_dir, to or []):
        echo(line)


def _run_recipe(
    recipe: str,
    overrides: Sequence[str],
    until: str = "",
    reuse_from: Path | None = None,
    *,
    as_json: bool = False,
) -> None:
    from paretune.experiment.json_console import JsonConsole

    events = JsonConsole() if as_json and requested_rank() == 0 else None
    output_dir = None
    try:
        from paretune.experiment.all_issues import load_or_tell_all

        config = load_or_tell_all(recipe, overrides)
        output_dir = Path(config.run.output_dir)
        from paretune.experiment.console import make_console
        from paretune.experiment.pipeline import run_pipeline

        command = shlex.join(["paretune", *sys.argv[1:]])
        if events is not None:
            events.start(config.name, output_dir)
        console = events or make_console()
        run_pipeline(config, console, command=command, until=until, reuse_from=reuse_from)
        if events is not None:
            events.finish(output_dir)
    except KeyboardInterrupt as error:
        # A training loop finishes its step and has a message of its own; elsewhere Python's has none.
        message = str(error) or _interrupted_message(output_dir)
        if events is not None:
            events.error(error, message)
        if requested_rank() == 0:
            echo(message, error=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BaseException as error:
        if events is not None:
            events.error(error)
        raise


@contextmanager
def exit_if_interrupted() -> Iterator[None]:
    """End a command that runs several recipes with the exit code of Ctrl-C, and say how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        echo(str(error) or "interrupted; the same command resumes from the last checkpoint", error=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _interrupted_message(output_dir: Path | None) -> str:
    if output_dir is not None and (output_dir / "run.json").exists():
        return f"interrupted; the same command resumes from the last checkpoint in {output_dir}"
    return "interrupted before anything was saved; the same command starts again"
