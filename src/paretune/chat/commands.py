"""The command `chat`; `cli` registers it."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from paretune.core.errors import EXIT_INTERRUPTED, ConfigError
from paretune.model_commands import Device


def add_commands(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(chat)


def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run folder, a model folder, or a hub name.")
    ] = None,
    vs: Annotated[
        str | None,
        typer.Option(
            metavar="base|RUN|MODEL",
            help="The model beside it; base: the policy of the run before its alignment, the default.",
        ),
    ] = None,
    models: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two models instead of RUN and --vs.")
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run whose reward and judges score the answers.")
    ] = None,
    llm_judges: Annotated[
        bool, typer.Option("--llm-judges", help="Ask LLM judges too: a request per answer.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0: the most probable tokens.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the answers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines: one object per event.")] = False,
    device: Device = "auto",
) -> None:
    """Talk to a model and its base, side by side, with scores.

    Prompts may come from a pipe, one per line.
    """
    if (model is None) == (models is None) or (models is not None and vs is not None):
        problem = "no model" if model is None and models is None else "models are given twice"
        raise ConfigError(f"{problem}; fix: paretune chat RUN [--vs MODEL], or --models A B")
    if not sys.stdin:  # None if it was closed
        raise ConfigError("standard input is closed; fix: write the prompts to it, one per line")
    from paretune.chat.loading import load_chat
    from paretune.chat.terminal import json_header, run_lines, run_terminal

    names = models or (str(model), vs)
    conversation = load_chat(*names, rewards=rewards, llm_judges=llm_judges, device=device)
    conversation.configure(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    if not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        raise typer.Exit(run_terminal(conversation))
    if as_json:
        import json

        print(json.dumps(json_header(conversation)), flush=True)
    else:
        from paretune.report.terminal import echo

        for note in conversation.notes:
            echo(note, error=True)
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not text become an error with their line
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        raise typer.Exit(run_lines(conversation, iter(sys.stdin), sys.stdout, as_json=as_json))
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
