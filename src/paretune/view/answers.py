"""Answers for the chat page.

Two models are loaded at their first prompt, and replace those that were loaded before. Each request has its
own thread, which waits for its turn and passes the events of the answers to the page as they come.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Any

import psutil

from paretune.core.errors import ConfigError, ParetuneError
from paretune.core.goals import Goal
from paretune.report.formatting import escape_invisible, format_number, one_line
from paretune.view.conversation import ChatModels, Conversation, Device, LoadChat

POLL_SECONDS = 0.1
"""How often a request that waits for its turn looks whether it was given up."""
CLOSE_SECONDS = 2.0
"""How long the viewer waits, when it ends, for the answer that is being generated."""
WAITING = "Waiting: another answer is being generated; this one is next."
BROKEN = "the answer was cut off; see the terminal of `paretune view` for the reason"
ENDED = "another page uses the models now, so this conversation has ended; fix: New conversation"
PageEvent = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A prompt of the page."""

    prompt: str
    models: ChatModels
    names: tuple[str, str]
    """Names of the two models on the page."""
    conversation: str
    """Id of the conversation that it belongs to."""
    is_first: bool
    """The page has no answer of this conversation yet."""
    settings: Mapping[str, Any]
    """Temperature, seed and length of the answers; None: those of the run's evaluation."""


@dataclass
class Answers:
    """The loaded models, and whose turn it is."""

    load: LoadChat
    device: Device = "auto"
    _turn: Lock = field(default_factory=Lock)
    _is_closed: Event = field(default_factory=Event)
    _models: ChatModels | None = None
    _chat: Conversation | None = None
    _defaults: Any = None
    """Settings of the run's evaluation."""
    _conversation: str = ""

    async def lines(self, question: Question) -> AsyncIterator[bytes]:
        """The events of the answers to a question as JSON Lines; closed early, the answers end."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[PageEvent | None]()
        is_given_up = Event()

        def emit(event: PageEvent | None) -> None:
            # The loop is closed when the viewer has ended; then nobody reads.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        Thread(target=self._work, args=(question, is_given_up, emit), name="chat", daemon=True).start()
        try:
            while (event := await events.get()) is not None:
                yield json.dumps(event).encode() + b"\n"
        finally:
            is_given_up.set()

    def close(self) -> None:
        """End the answer that is being generated."""
        self._is_closed.set()
        if self._turn.acquire(timeout=CLOSE_SECONDS):
            self._turn.release()

    def _work(self, question: Question, is_given_up: Event, emit: Callable[[PageEvent | None], None]) -> None:
        """Emit all events of a question, then None."""

        def is_over() -> bool:
            return is_given_up.is_set() or self._is_closed.is_set()

        last: PageEvent = {"event": "error", "text": BROKEN}
        try:
            if not self._turn.acquire(blocking=False):
                emit({"event": "state", "text": WAITING})
                while not self._turn.acquire(timeout=POLL_SECONDS):
                    if is_over():
                        return
            try:
                with closing(self._events(question)) as events:
                    for event in events:
                        emit(event)
                        if is_over():
                            return
            finally:
                self._turn.release()
            last = {"event": "end", "text": "Answered."}
        except ParetuneError as error:
            last = {"event": "error", "text": one_line(str(error))}
        finally:
            emit(last)
            emit(None)

    def _events(self, question: Question) -> Generator[PageEvent, None, None]:
        if self._models != question.models:
            names = " and ".join(dict.fromkeys(question.names))
            yield {
                "event": "state",
                "text": f"Loading {escape_invisible(names)}. The first answer waits for it.",
            }
            self._forget()
            self._chat = self.load(question.models, self.device)
            self._models, self._defaults = question.models, self._chat.settings
        chat = self._chat
        assert chat is not None
        if self._conversation != question.conversation:
            if not question.is_first:
                raise ConfigError(ENDED)
            chat.clear()
            self._conversation = question.conversation
        chat.settings = self._defaults
        chat.configure(**question.settings)
        yield {
            "event": "start",
            "text": "Answering.",
            "settings": escape_invisible(f"{chat.describe_settings()}; {memory_words(chat.weights_bytes)}"),
            "notes": [one_line(note) for note in chat.notes],
        }
        with closing(chat.stream(question.prompt)) as events:
            for event in events:
                yield page_event(event.to_json(), chat.goals)

    def _forget(self) -> None:
        """Free the models before others are loaded: both pairs may be more than the memory."""
        self._models = self._chat = self._defaults = None
        self._conversation = ""


def page_event(event: Mapping[str, Any], goals: Mapping[str, Goal]) -> PageEvent:
    """An event of a chat as the page shows it: texts with invisible characters written out, and numbers."""
    side, kind = event["side"], event["event"]
    if kind != "scores":
        shown = {"event": kind, "side": side, "text": escape_invisible(event["text"])}
        if kind == "done":
            shown |= {"num_tokens": event["num_tokens"], "truncated": event["truncated"]}
        return shown
    scores = event["scores"]
    rows = []
    for name in dict.fromkeys(name for own in scores.values() for name in own):
        goal = goals.get(name)
        rows.append(
            {
                "objective": escape_invisible(name),
                "arrow": goal.arrow if goal else "",
                "words": goal.words if goal else "",
                "values": [_score(own, name) for own in scores.values()],
            }
        )
    return {
        "event": "scores",
        "side": side,
        "scorers": [escape_invisible(name) for name in scores],
        "rows": rows,
    }


def _score(own: Mapping[str, float | None], name: str) -> str:
    if name not in own:
        return "–"
    value = own[name]
    return "not scored" if value is None else format_number(value)


def memory_words(weights_bytes: int) -> str:
    """The memory of the weights and of this process, in words."""
    process = psutil.Process().memory_info().rss
    return f"weights {_size(weights_bytes)}, memory of the viewer {_size(process)}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
