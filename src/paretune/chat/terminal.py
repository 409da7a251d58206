"""A conversation in a terminal, or from a pipe: one prompt per line."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from enum import Enum
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paretune.chat.session import Chat, ChatEvent, ChatEvents
from paretune.core.errors import EXIT_INTERRUPTED, ConfigError, ParetuneError
from paretune.report.formatting import format_number, sanitize
from paretune.report.terminal import TextStream, safe_stream

MIN_COLUMNS = 80
"""Width from which the answers are beside each other."""
GAP = 3
"""Columns between two answers."""
OTHER_LINES = 6
"""Lines of the screen that are kept free of streamed answers: names, scores and the prompt."""
REFRESHES_PER_SECOND = 12
COMMANDS = {
    "/clear": "begin a new conversation",
    "/retry": "answer the last prompt again, with the next random numbers",
    "/seed N": "seed of the next answers",
    "/temperature T": "sampling temperature of the next answers; 0: the most probable tokens",
    "/help": "these commands; a prompt that begins with / is written with //",
    "/quit": "end; as Ctrl-D, or Ctrl-C twice",
}


class CommandError(ConfigError):
    """A line that begins with / and is not a command."""


def run_terminal(chat: Chat) -> int:
    """Talk in this terminal until the person ends it; the exit code."""
    with suppress(ImportError):  # Windows has none; with it, the arrow keys edit the line
        import readline  # noqa: F401
    console = RichConsole(file=safe_stream(sys.stdout), highlight=False)  # type: ignore[arg-type]
    names = " | ".join(f"{side.name}" for side in chat.sides)
    for line in (names, chat.describe_settings(), *chat.notes, "/help lists the commands."):
        console.print(Text(sanitize(line)), soft_wrap=True)
    return _Terminal(chat, console).run()


def run_lines(chat: Chat, lines: Iterator[str], stream: TextStream, *, as_json: bool) -> int:
    """Answer one prompt per line, each in a conversation of its own; the exit code.

    Prompt i is prompt i of an evaluation with the same seed. Commands change the lines that follow.

    Args:
        chat: The models.
        lines: The prompts.
        stream: Where the answers go.
        as_json: One JSON object per event instead of text.

    Raises:
        DataError: A prompt is no UTF-8 text, or longer than the context of a model.
    """
    output = safe_stream(stream)

    def write(text: str) -> None:
        print(text, file=output, flush=True)

    index = 0
    for number, line in enumerate((each.strip() for each in lines), 1):
        if not line:
            continue
        try:
            action = _execute(chat, line, (lambda _: None) if as_json else write)
            if action is Action.QUIT:
                return 0
            if action is Action.CONTINUE:
                continue
            if isinstance(action, str):
                chat.clear(prompt_index=index)
                index += 1
            events = _events(chat, action)
        except ParetuneError as error:
            raise type(error)(f"line {number}: {error}") from error
        if as_json:
            write(json.dumps({"event": "prompt", "text": chat.last_prompt}))
            for event in events:
                write(json.dumps(event.to_json()))
        else:
            write(_plain_text(chat, list(events)))
    return 0


class Action(Enum):
    """What to do after a command."""

    CONTINUE = "continue"
    RETRY = "retry"
    QUIT = "quit"


def _execute(chat: Chat, line: str, write: Callable[[str], None]) -> str | Action:
    """Do what a line asks for: the prompt to answer, or what comes next.

    Raises:
        CommandError: There is no such command, or its value is wrong.
    """
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    name, _, value = line.partition(" ")
    value = value.strip()
    takes_value = name in ("/seed", "/temperature")
    if name not in {each.split()[0] for each in COMMANDS}:
        known = ", ".join(each.split()[0] for each in COMMANDS)
        raise CommandError(
            f"{name}: there is no such command; fix: one of {known}, or // for a prompt with /"
        )
    if takes_value != bool(value):
        raise CommandError(f"{name}: {'needs a number' if takes_value else 'takes no value'}")
    if name in ("/quit", "/retry"):
        return Action(name.removeprefix("/"))
    if name == "/help":
        width = max(map(len, COMMANDS))
        write("\n".join(f"{each:<{width}}  {text}" for each, text in COMMANDS.items()))
    elif name == "/clear":
        chat.clear()
        write("a new conversation")
    else:
        _configure(chat, name, value)
        write(chat.describe_settings())
    return Action.CONTINUE


def _events(chat: Chat, action: str | Action) -> ChatEvents:
    """The answers to a prompt, or once more to the last one."""
    return chat.stream(action) if isinstance(action, str) else chat.retry()


def _configure(chat: Chat, name: str, value: str) -> None:
    try:
        if name == "/seed":
            chat.configure(seed=int(value))
        else:
            chat.configure(temperature=float(value))
    except ParetuneError as error:
        raise CommandError(str(error)) from error
    except ValueError as error:
        kind = "whole number" if name == "/seed" else "number"
        raise CommandError(f"{name}: {value} is not a {kind}") from error


class _Terminal:
    """The answers of a conversation on a screen."""

    def __init__(self, chat: Chat, console: RichConsole) -> None:
        self.chat, self.console = chat, console
        self.texts: list[str] = []
        self.scores: list[Mapping[str, Mapping[str, float | None]]] = []
        self.is_interrupted = False
        """Ctrl-C was pressed, and nothing was entered since."""

    def run(self) -> int:
        """Read prompts and answer them; the exit code."""
        while True:
            try:
                line = input("\n> ").strip()
            except EOFError:
                self.console.print()
                return 0
            except KeyboardInterrupt:
                if self.is_interrupted:
                    self.console.print()
                    return EXIT_INTERRUPTED
                self.is_interrupted = True
                self.console.print("\nCtrl-C again, or /quit, ends the chat")
                continue
            self.is_interrupted = False
            try:
                action = _execute(self.chat, line, self._write) if line else Action.CONTINUE
                if action is Action.QUIT:
                    return 0
                if action is not Action.CONTINUE:
                    self._answer(action)
            except ParetuneError as error:
                self._write(str(error))

    def _write(self, text: str) -> None:
        for line in text.split("\n"):
            self.console.print(Text(sanitize(line)), soft_wrap=True)

    def _answer(self, action: str | Action) -> None:
        if action is Action.RETRY and self.chat.settings.temperature == 0:
            self._write("at temperature 0 the answer is always the same; fix: /temperature 1")
            return
        events = _events(self.chat, action)
        self.texts, self.scores = [""] * len(self.chat.sides), [{}] * len(self.chat.sides)
        note = ""
        live = Live(
            get_renderable=lambda: self._screen(self.console.height - OTHER_LINES),
            console=self.console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )
        with live, closing(events):
            try:
                for event in events:
                    self._show(event)
            except KeyboardInterrupt:
                self.is_interrupted = True
                note = "stopped; Ctrl-C again ends the chat"
        self.console.print(self._screen())
        if note:
            self._write(note)

    def _show(self, event: ChatEvent) -> None:
        if event.event == "text":
            self.texts[event.side] += event.text
        elif event.event == "done":
            self.texts[event.side] = event.text + (" [...]" if event.truncated else "")
        else:
            self.scores[event.side] = event.scores

    def _screen(self, max_lines: int = 0) -> RenderableType:
        """All answers with their scores.

        Args:
            max_lines: Show the last lines of an answer that has more; 0: all.
        """
        num_sides = len(self.chat.sides)
        beside = num_sides > 1 and self.console.width >= MIN_COLUMNS
        width = (self.console.width - GAP * (num_sides - 1)) // num_sides if beside else self.console.width
        limit = max(max_lines if beside else max_lines // num_sides, 3) if max_lines else 0
        answers = [self._answer_block(i, width, limit) for i in range(num_sides)]
        scores = [self._score_block(i, width) for i in range(num_sides)]
        if not beside:
            return Group(*(block for pair in zip(answers, scores, strict=True) for block in pair))
        table = Table.grid(padding=(0, GAP, 0, 0))
        for _ in answers:
            table.add_column(width=width)
        table.add_row(*answers)
        table.add_row(*scores)  # a row of its own: scores stand beside each other, however long the answers
        return table

    def _answer_block(self, side: int, width: int, max_lines: int) -> RenderableType:
        """One answer under the name of its model."""
        text = Text(sanitize(self.texts[side]))
        lines = list(text.wrap(self.console, width))
        if max_lines and len(lines) > max_lines:
            lines = lines[-max_lines:]
        return Group(Text(sanitize(self.chat.sides[side].name), style="bold"), *lines)

    def _score_block(self, side: int, width: int) -> RenderableType:
        return Group(*(Text(line, style="dim") for line in score_lines(self.scores[side], width)))


def score_lines(scores: Mapping[str, Mapping[str, float | None]], width: int = 0) -> Sequence[str]:
    """A line per scorer, or several where one would be wider than `width`: objective and score."""
    label_width = max(map(len, scores), default=0)
    lines: list[str] = []
    for name, own in scores.items():
        label = sanitize(f"{name:<{label_width}}")
        line = label
        for objective, score in own.items():
            item = sanitize(f"{objective} {_score(score)}")
            if width and line != label and len(line) + 2 + len(item) > width:
                lines.append(line)
                line = " " * label_width
            line += f"  {item}"
        lines.append(line)
    return lines


def _score(value: float | None) -> str:
    return "not scored" if value is None or not math.isfinite(value) else format_number(value)


def _plain_text(chat: Chat, events: Sequence[ChatEvent]) -> str:
    """The answers to one prompt, one under the other."""
    lines = [f"> {chat.last_prompt}"]
    for i, side in enumerate(chat.sides):
        own = [event for event in events if event.side == i]
        (done,) = [event for event in own if event.event == "done"]
        lines.append(f"[{side.name}] {done.text}{' [...]' if done.truncated else ''}")
        for event in own:
            lines += [f"  {line}" for line in score_lines(event.scores)]
    return sanitize("\n".join(lines)) + "\n"


def json_header(chat: Chat) -> dict[str, Any]:
    """The first line for machines: the models and the settings."""
    settings = chat.settings
    return {
        "event": "chat",
        "schema": "paretune/chat/1",
        "models": [side.name for side in chat.sides],
        "temperature": settings.temperature,
        "seed": settings.seed,
        "max_new_tokens": settings.max_new_tokens,
        "notes": list(chat.notes),
    }
