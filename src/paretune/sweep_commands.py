"""Commands that sweep the weights of a recipe, and choose one of the results. `cli` registers them."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from paretune.core.errors import ConfigError
from paretune.report.terminal import echo
from paretune.run_commands import OverridesArgument, RecipeArgument, ReuseOption, exit_if_interrupted


def add_commands(app: typer.Typer) -> None:
    """Add `sweep` and `choose` to an application."""
    app.command()(sweep)
    app.command()(choose)


def sweep(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    over: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Objectives to sweep; default: all that have a weight."),
    ] = None,
    points: Annotated[int | None, typer.Option(min=2, max=200, help="Weightings; default: about 9.")] = None,
    design: Annotated[
        Literal["grid", "adaptive"],
        typer.Option(help="grid: evenly spaced; adaptive: each where the front has its largest gap."),
    ] = "grid",
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="Training seeds; default: that of the recipe.")
    ] = None,
    reuse_from: ReuseOption = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Runs in parallel.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Describe the sweep without running it.")
    ] = False,
) -> None:
    """Run a recipe under several weightings, or resume."""
    from paretune.benchmark.sweep import describe_sweep, load_sweep, run_sweep

    with exit_if_interrupted():
        spec = load_sweep(
            recipe,
            overrides or [],
            over=None if over is None else _words(over),
            points=points,
            design=design,
            seeds=None if seeds is None else _numbers(seeds),
            reuse_from=reuse_from,
            num_processes=num_processes,
        )
        if dry_run:
            echo(describe_sweep(spec))
            return
        run_sweep(spec)


def choose(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of a sweep, a comparison, merges, or a run.")
    ],
    rule: Annotated[str, typer.Argument(metavar="RULE", help='Such as "safety >= 0.8, then actionability".')],
    export_to: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write the chosen policy to this folder.")
    ] = None,
) -> None:
    """Choose a policy by constraints, then by the best."""
    from paretune.benchmark.choose import choose as choose_point
    from paretune.benchmark.choose import describe_choice

    if export_to is not None and export_to.exists():
        raise ConfigError(f"{export_to}: exists already; fix: choose another folder, or remove it")
    choice = choose_point(folder, rule)
    echo(describe_choice(choice))
    if export_to is not None:
        if choice.chosen.missing_policy:
            problem = f"{choice.chosen.label} cannot be exported: {choice.chosen.missing_policy}"
            fix = "let the run choose, by evaluate.select_checkpoint"
            raise ConfigError(f"{folder}: {problem}; fix: {fix}")
        from paretune.api.exports import export

        echo(f"exported   {export(choice.run_dir, output_dir=export_to)}")


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]


def _numbers(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds: {text!r} is not a list of numbers; fix: write --seeds 0,1,2")
    return [int(word) for word in words]
