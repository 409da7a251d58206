"""The command line: one thin function a command, and the one place where errors become exit codes.

Nothing heavy is imported before a command needs it: `--help`, `recipes`, `report` and `doctor` load no torch.
"""

import gc
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from paretune import __version__
from paretune.core.errors import ConfigError, ParetuneError

EXIT_BUG, EXIT_INTERRUPTED = 1, 130

app = typer.Typer(
    name="paretune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 ok, 1 a bug of ours, 2 wrong input, 3 the machine lacks something, 4 training "
    "stopped itself, 75 stopped by a signal, 130 Ctrl-C (the message says what is saved).",
)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that replace those of the recipe.")
]


def _print_version(requested: bool | None) -> None:
    if requested:
        _echo(f"paretune {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    """Align a language model to several objectives at once, and see what each one costs the others."""


@app.command()
def demo(
    overrides: OverridesArgument = None,
    seed: Annotated[int, typer.Option(help="Another seed makes another world and another run.")] = 0,
) -> None:
    """From nothing to a report in minutes, offline."""
    _run_recipe("demo", [f"run.seed={seed}", *(overrides or [])])


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: Annotated[
        Literal["judge", "align", "trial", "judged-trial"] | None,
        typer.Option(
            help="Leave out the stages after this one; trial: score answers to training prompts; "
            "judged-trial: by the judge too."
        ),
    ] = None,
    reuse_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Take over policy, reward and judge of a run `--until judge`."),
    ] = None,
) -> None:
    """Run a recipe; again: go on where it stopped."""
    _run_recipe(recipe, overrides or [], until or "", reuse_from)


@app.command()
def benchmark(
    benchmark_file: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML file, or the name of a shipped comparison.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that replace those of the file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--check", help="Only say what it would do.")] = False,
) -> None:
    """Compare methods under one budget; again: go on."""
    try:
        from paretune.benchmark.spec import load_benchmark
        from paretune.config import find_recipe

        contest = load_benchmark(find_recipe(benchmark_file), overrides or [])
        if dry_run:
            from paretune.benchmark.plan import describe_benchmark

            _echo(describe_benchmark(contest))
            return
        from paretune.benchmark.run import run_benchmark

        found = run_benchmark(contest)
    except KeyboardInterrupt as error:
        _echo(str(error) or "interrupted; the same command goes on from what is saved", error=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if found["refused"]:
        raise ConfigError("\n".join(found["refused"]))


@app.command()
def check(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Check a recipe, its files and its wiring."""
    with _gc_disabled():
        from paretune.config import find_recipe, load_config
        from paretune.experiment.dry_run import check as plan

        _echo(plan(load_config(find_recipe(recipe), overrides or [])))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to be copied and changed.")] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from paretune.config import bundled_recipes, find_recipe, recipe_summary

    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    every = bundled_recipes()
    width = max(map(len, every), default=0)
    for known, path in every.items():
        _echo(f"{known:<{width}}  {recipe_summary(path)}")


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Write the report of a run again."""
    _require_results(run_dir)
    from paretune.report.run_page import write_report

    _echo(str(write_report(run_dir)))


@app.command()
def reward_filtering(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    arm: Annotated[
        str, typer.Option(help="before: the start's responses; after: the trained policy's.")
    ] = "before",
) -> None:
    """Say which responses a reward can be trusted on."""
    from paretune.evaluate.reward_filtering import compare_reward_filters
    from paretune.report.tables import reward_filtering_table

    if arm not in ("before", "after"):
        raise ConfigError(f"--arm: {arm} is neither before nor after; fix: --arm before, or --arm after")
    _echo(reward_filtering_table(compare_reward_filters(run_dir, "before" if arm == "before" else "after")))


@app.command()
def merge(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN RUN [RUN]...", help="Finished runs.")],
    grid_steps: Annotated[int, typer.Option(min=1, max=20, help="Equal steps from one run to the next.")] = 4,
    output_dir: Annotated[Path, typer.Option(help="Where the mixtures go.")] = Path("runs/soup"),
) -> None:
    """Average aligned runs, and evaluate every mixture."""
    from paretune.experiment.merge import merge_runs
    from paretune.report.tables import merge_table
    from paretune.run.io import read_json

    found = merge_runs(run_dirs, output_dir, grid_steps)
    _echo(f"{merge_table(read_json(found) or {})}\n\n{found}")


@app.command()
def doctor() -> None:
    """Say what this machine has and lacks."""
    from paretune.run.system import check_environment

    lines, healthy = check_environment()
    _echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 3)


def _run_recipe(
    recipe: str, overrides: Sequence[str], until: str = "", reuse_from: Path | None = None
) -> None:
    folder = None
    try:
        from paretune.config import find_recipe, load_config

        experiment = load_config(find_recipe(recipe), overrides)
        folder = Path(experiment.run.output_dir)
        from paretune.experiment.console import make_console
        from paretune.experiment.pipeline import run_pipeline as run_stages

        command = shlex.join(["paretune", *sys.argv[1:]])
        run_stages(experiment, make_console(), command=command, until=until, reuse_from=reuse_from)
    except KeyboardInterrupt as error:
        # One that waited for a step to be complete says itself what was saved; one that did not wait cannot.
        _echo(str(error) or _interrupted_message(folder), error=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """For what ends soon: to look for garbage among all that it imports takes a third of its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is there by now is not gone through at the end of the program either
        gc.enable()


def _interrupted_message(output_dir: Path | None) -> str:
    if output_dir is not None and (output_dir / "run.json").exists():
        return f"interrupted; the same command goes on from what is saved in {output_dir}"
    return "interrupted before anything was saved; the same command begins anew"


def _require_results(run_dir: Path) -> None:
    """Refuse a folder that is no run, or a run of which there is nothing to report yet."""
    from paretune.run.io import read_json

    if not run_dir.is_dir():
        wrong = "is a file" if run_dir.exists() else "there is no such folder"
        raise ConfigError(f"{run_dir}: {wrong}; fix: name the folder of a run")
    book = read_json(run_dir / "run.json")
    said = (run_dir / "metrics.jsonl", *run_dir.glob("eval/*/eval.json"))
    if book is not None and not any(file.exists() and file.stat().st_size for file in said):
        state = f"{book.get('status', 'begun')}, stage {book.get('stage', 'data')}"
        raise ConfigError(f"{run_dir}: nothing to report yet ({state}); fix: give the run's command again")


def _echo(text: str, *, error: bool = False) -> None:
    """Print lines, without the control characters that names and rows of data may hold."""
    from paretune.report.formatting import sanitize

    for line in text.splitlines():
        print(sanitize(line), file=sys.stderr if error else sys.stdout, flush=True)


def _write_crash_file(error: Exception) -> Path:
    """The traceback in a file of its own: it holds code lines only, no values."""
    name = time.strftime("paretune-crash-%Y%m%d-%H%M%S-")
    with tempfile.NamedTemporaryFile("w", prefix=name, suffix=".txt", delete=False, encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return Path(file.name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    # Threads that wait by spinning are ten times slower wherever another program wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=None if argv is None else list(argv))
    except ParetuneError as error:
        _echo(str(error), error=True)
        code = error.exit_code
    except Exception as error:
        _echo(
            f"a bug of ours: {type(error).__name__}; the traceback is in {_write_crash_file(error)}",
            error=True,
        )
        code = EXIT_BUG
    else:
        code = 0
    sys.exit(code)
