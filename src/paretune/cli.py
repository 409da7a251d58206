"""The command line: one thin function per command; errors become exit codes here and nowhere else.

Heavy imports are inside the commands that need them: `--help`, `recipes`, `report` and `doctor` do not load
torch.
"""

import gc
import os
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
from paretune.chat.commands import add_commands as add_chat_commands
from paretune.core.errors import ConfigError, ParetuneError, RankError
from paretune.core.launch import FIRST_FAILED_RANK, requested_rank, requested_world_size
from paretune.model_commands import add_commands
from paretune.report.terminal import echo as _echo
from paretune.run_commands import (
    OverridesArgument,
    RecipeArgument,
    add_run_commands,
    add_track_command,
    exit_if_interrupted,
)
from paretune.sweep_commands import add_commands as add_sweep_commands
from paretune.view.commands import add_commands as add_view_commands
from paretune.view.conversation import ChatModels, Conversation, Device

EXIT_BUG = 1

app = typer.Typer(
    name="paretune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 ok, 1 bug in paretune, 2 invalid input, 3 missing hardware or package, "
    "4 NaN or infinity in training, 5 a scorer or judge failed too often, 75 stopped by a signal, 130 Ctrl-C "
    "(the message says what is saved).",
)


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
    """Align a language model with several objectives at once, and measure their trade-offs."""


add_run_commands(app)


@app.command("compare")
def benchmark(
    benchmark_file: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML file, or the name of a shipped benchmark.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that override the file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Describe the benchmark without running it.")
    ] = False,
) -> None:
    """Compare methods under one budget, or resume."""
    with exit_if_interrupted():
        from paretune.benchmark.spec import load_benchmark
        from paretune.config import find_recipe

        spec = load_benchmark(find_recipe(benchmark_file), overrides or [])
        if dry_run:
            from paretune.benchmark.plan import describe_benchmark

            _echo(describe_benchmark(spec))
            return
        from paretune.benchmark.run import run_benchmark

        results = run_benchmark(spec)
    if results["unranked"]:
        raise ConfigError("\n".join(results["unranked"]))


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add the parts of the algorithm with all their settings.")
    ] = False,
) -> None:
    """Check a recipe, its data and models; estimate time."""
    with _gc_disabled():
        from paretune.experiment.all_issues import load_or_tell_all
        from paretune.experiment.dry_run import check as dry_run
        from paretune.experiment.output_folder import describe_next

        config = load_or_tell_all(recipe, overrides or [])
        _echo(dry_run(config, explain=explain))
        _echo(f"{'next':<12}{describe_next(config, ['paretune', 'run', recipe, *(overrides or [])])}")


@app.command()
def explain(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Explain an algorithm, and print it as parts to edit."""
    with _gc_disabled():
        from paretune.config import find_recipe, load_config
        from paretune.experiment.explain import explain as explain_algorithm
        from paretune.experiment.explain import refuse_algorithm_name

        refuse_algorithm_name(recipe)
        _echo(explain_algorithm(load_config(find_recipe(recipe), overrides or [])))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    The shipped recipes name recipe.schema.json beside them: paretune schema > recipe.schema.json
    """
    with _gc_disabled():
        import json

        from paretune.config.schema_export import recipe_schema

        print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


@app.command()
def from_trl(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML, JSON or Python file.")],
    trainer: Annotated[
        Literal["GRPOConfig", "DPOConfig", "RewardConfig"] | None,
        typer.Option(help="What the file configures, if it does not say so."),
    ] = None,
) -> None:
    """Convert a TRL configuration into a recipe.

    Prints the recipe; on standard error, what becomes of each field. Python files are read, never run.
    """
    from paretune.config.trl.convert import convert_trl_config

    conversion = convert_trl_config(config, trainer)
    _echo(conversion.text, error=True)
    _echo(conversion.recipe_yaml)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, as a template.")] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from paretune.config import bundled_recipes, find_recipe, recipe_summary

    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    shipped = bundled_recipes()
    width = max(map(len, shipped), default=0)
    for recipe_name, path in shipped.items():
        _echo(f"{recipe_name:<{width}}  {recipe_summary(path)}")


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write the report of a run again."""
    _require_results(run_dir)
    from paretune.report.run_page import write_report

    _echo(str(write_report(run_dir)))


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with the exit code of the run, for scripts.")
    ] = False,
) -> None:
    """Show where a run is, or how it ended."""
    from paretune.run.status import describe_status

    lines, code = describe_status(run_dir)
    _echo("\n".join(lines))
    raise typer.Exit(code if exit_code else 0)


@app.command()
def reward_filtering(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    arm: Annotated[
        str, typer.Option(help="before or after: responses of the initial or of the trained policy.")
    ] = "before",
) -> None:
    """Measure how well the reward predicts the judge.

    Prints R² per objective and filter, to choose the `filter_strategy` of PF-PPO.
    """
    from paretune.evaluate.reward_filtering import compare_reward_filters
    from paretune.report.tables import reward_filtering_table

    if arm not in ("before", "after"):
        raise ConfigError(f"--arm: {arm} is not before or after; fix: use --arm before or --arm after")
    _echo(reward_filtering_table(compare_reward_filters(run_dir, "before" if arm == "before" else "after")))


@app.command()
def merge(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN RUN [RUN]...", help="Finished runs.")],
    grid_steps: Annotated[
        int, typer.Option(min=1, max=20, help="Steps of the weights from one run to the next.")
    ] = 4,
    output_dir: Annotated[Path, typer.Option(help="Folder of the merges.")] = Path("runs/merge"),
) -> None:
    """Average aligned policies, and evaluate the merges."""
    from paretune.experiment.merge import merge_runs
    from paretune.report.tables import merge_table
    from paretune.run.io import read_json

    path = merge_runs(run_dirs, output_dir, grid_steps)
    _echo(f"{merge_table(read_json(path) or {})}\n\n{path}")


@app.command()
def doctor(
    torch_report: Annotated[
        bool, typer.Option("--torch", help="Add the report of torch.utils.collect_env, for bug reports.")
    ] = False,
) -> None:
    """Check hardware, packages and the hub."""
    from paretune.run.system import check_environment, torch_environment

    lines, healthy = check_environment()
    _echo("\n".join(lines))
    if torch_report:
        _echo(f"\n{torch_environment()}")
    raise typer.Exit(0 if healthy else 3)


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disable garbage collection in short commands, of whose time it takes a third after the imports."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # also exempts them from the collection when the interpreter exits
        gc.enable()


def _load_chat(models: ChatModels, device: Device) -> Conversation:
    """The models of the chat page, which itself knows nothing of how they are loaded."""
    from paretune.chat.loading import load_chat

    return load_chat(
        models.first, models.second, rewards=models.rewards, llm_judges=models.llm_judges, device=device
    )


add_sweep_commands(app)
add_commands(app)
add_chat_commands(app)
add_view_commands(app, _load_chat)
add_track_command(app)


def _require_results(run_dir: Path) -> None:
    """Reject a folder that is not a run, and a run without any results yet."""
    from paretune.run.io import read_json

    if not run_dir.is_dir():
        problem = "is a file" if run_dir.exists() else "there is no such folder"
        raise ConfigError(f"{run_dir}: {problem}; fix: {_run_folder_fix(run_dir)}")
    state = read_json(run_dir / "run.json")
    result_files = (run_dir / "metrics.jsonl", *run_dir.glob("eval/*/eval.json"))
    if state is not None and not any(file.exists() and file.stat().st_size for file in result_files):
        status = f"{state.get('status', 'started')}, stage {state.get('stage', 'data')}"
        raise ConfigError(f"{run_dir}: has no results yet ({status}); fix: resume the run first")


def _run_folder_fix(run_dir: Path) -> str:
    """What to write for a run folder that is not there: the one below `runs/`, or one of a like name."""
    from paretune.config.issues import closest_match

    runs = {str(file.parent): file.parent.name for file in Path("runs").glob("*/run.json")}
    names = {name: path for path, name in runs.items()}
    nearest = names.get(closest_match(run_dir.name, names))
    if nearest is not None:
        return f"write {nearest}"
    return f"name a run folder{', such as ' + min(runs) if runs else ''}"


def _write_crash_file(error: Exception) -> Path:
    """Write the traceback to a temporary file: it has code lines only, no values."""
    name = time.strftime("paretune-crash-%Y%m%d-%H%M%S-")
    with tempfile.NamedTemporaryFile("w", prefix=name, suffix=".txt", delete=False, encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return Path(file.name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its exit code."""
    from paretune.report.terminal import safe_output

    with safe_output():
        code = _exit_code(argv)
    sys.exit(code)


def _exit_code(argv: Sequence[str] | None) -> int:
    """Run one command; its exit code."""
    # OpenMP threads that spin while they wait are ten times slower if another program uses the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=None if argv is None else list(argv))
    except ParetuneError as error:
        if not _is_told_by_another_rank(error):
            _echo(_rank_prefix() + str(error), error=True)
        if isinstance(error, RankError):
            os._exit(error.exit_code)  # a message to a rank that does not answer would keep the interpreter
        return error.exit_code
    except Exception as error:
        if not _is_told_by_another_rank(error):
            text = f"bug in paretune: {type(error).__name__}; the traceback is in {_write_crash_file(error)}"
            _echo(_rank_prefix() + text, error=True)
        return EXIT_BUG
    return 0


def _is_told_by_another_rank(error: BaseException) -> bool:
    """Of several ranks, the first one with an error of its own tells it; all have that of a recipe."""
    first = getattr(error, FIRST_FAILED_RANK, None)
    if first is not None or requested_world_size() == 1:
        return (first or 0) != requested_rank()
    from paretune.core.ranks import is_first_to_tell

    return not is_first_to_tell(str(error))


def _rank_prefix() -> str:
    return f"rank {requested_rank()}: " if requested_rank() else ""
