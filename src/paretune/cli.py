"""The command line: one thin function a command, and the one place where errors become exit codes.

Nothing heavy is imported before a command needs it: `--help`, `recipes`, `report` and `doctor` load no torch.
"""

import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from paretune.errors import ParetuneError

BUG, INTERRUPTED = 1, 130

app = typer.Typer(
    name="paretune",
    help="Align a language model to several objectives at once, and see what each one costs the others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 ok, 1 a bug of ours, 2 wrong input, 3 the machine lacks something, 4 training "
    "stopped itself, 75 stopped by a signal with a checkpoint, 130 Ctrl-C.",
)

Recipe = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that replace those of the recipe.")
]


@app.command()
def demo(
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Another seed makes another world and another run.")] = 0,
) -> None:
    """From nothing to a report in minutes, offline."""
    _run("demo", [f"run.seed={seed}", *(overrides or [])])


@app.command()
def run(recipe: Recipe, overrides: Overrides = None) -> None:
    """Run a recipe; again: go on where it stopped."""
    _run(recipe, overrides or [])


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe, its files and its wiring."""
    from paretune.config import find_recipe, load
    from paretune.stages.pipeline import check as plan

    _say(plan(load(find_recipe(recipe), overrides or [])))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to be copied and changed.")] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from paretune.config import find_recipe, shipped, summary

    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    for known, path in shipped().items():
        _say(f"{known:<12} {summary(path)}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Write the report of a run again."""
    from paretune.report.page import write_report

    _say(str(write_report(folder)))


@app.command()
def doctor() -> None:
    """Say what this machine has and lacks."""
    from paretune.doctor import examine

    lines, healthy = examine()
    _say("\n".join(lines))
    raise typer.Exit(0 if healthy else 3)


def _run(recipe: str, overrides: Sequence[str]) -> None:
    try:
        from paretune.config import find_recipe, load

        experiment = load(find_recipe(recipe), overrides)
        from paretune.stages.console import make_console
        from paretune.stages.pipeline import run as run_stages

        run_stages(experiment, make_console(), command=shlex.join(["paretune", *sys.argv[1:]]))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint", error=True)
        raise typer.Exit(INTERRUPTED) from None


def _say(text: str, *, error: bool = False) -> None:
    """Print lines, without the control characters that names and rows of data may hold."""
    from paretune.report.sanitize import sanitize

    for line in text.splitlines():
        print(sanitize(line), file=sys.stderr if error else sys.stdout, flush=True)


def _crash_file(error: Exception) -> Path:
    """The traceback in a file of its own: it holds code lines only, no values."""
    name = time.strftime("paretune-crash-%Y%m%d-%H%M%S-")
    with tempfile.NamedTemporaryFile("w", prefix=name, suffix=".txt", delete=False, encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return Path(file.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    # Threads that wait by spinning are ten times slower wherever another program wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=None if arguments is None else list(arguments))
    except ParetuneError as error:
        _say(str(error), error=True)
        code = error.exit_code
    except Exception as error:
        _say(
            f"a bug of ours: {type(error).__name__}; the traceback is in {_crash_file(error)}",
            error=True,
        )
        code = BUG
    else:
        code = 0
    sys.exit(code)
