"""Models that answer at once, in place of those that the chat page of `paretune view` loads."""

from dataclasses import dataclass, replace
from threading import Event
from typing import ClassVar

from paretune.chat.session import ChatEvent
from paretune.chat.streaming import ChatSettings
from paretune.core.errors import DataError
from paretune.core.goals import Goal

SETTINGS = ChatSettings(temperature=0.7, max_new_tokens=48)
ANSWERS = ("Turn it off, wait, and turn it on again.", "No.")


@dataclass
class FakeChat:
    """A conversation of two models that say the same to every prompt, one word at a time."""

    answers: tuple[str, ...] = ANSWERS
    scores: tuple = (
        {"reward": {"safety": 0.812}, "judge": {"safety": 0.5, "length": None}},
        {"reward": {"safety": -1.0}},
    )
    goals: ClassVar = {"safety": Goal(), "length": Goal("target", 20.0)}
    notes: tuple = ("judges.remote does not score here: it asks m; add --llm-judges to use it",)
    settings: ChatSettings = SETTINGS
    weights_bytes: int = 2_500_000
    pause: Event | None = None
    """Before the second piece of an answer, it waits for this."""
    error: str = ""
    """A prompt is refused with it."""

    def __post_init__(self):
        self.prompts, self.configured, self.is_closed = [], [], False
        self.paused = Event()

    def describe_settings(self):
        return f"temperature {self.settings.temperature:g}, seed {self.settings.seed}"

    def configure(self, **settings):
        given = {name: value for name, value in settings.items() if value is not None}
        self.configured.append(given)
        self.settings = replace(self.settings, **given)

    def clear(self):
        self.prompts = []

    def stream(self, prompt):
        if self.error:
            raise DataError(self.error)
        self.prompts.append(prompt)
        try:
            for side, text in enumerate(self.answers):
                words = text.split(" ")
                for i, word in enumerate(words):
                    if self.pause is not None and i == 1:
                        self.paused.set()
                        assert self.pause.wait(10)
                    yield ChatEvent(side=side, model="m", event="text", text=" " * bool(i) + word)
                done = {"text": text, "num_tokens": len(words), "truncated": side > 0}
                yield ChatEvent(side=side, model="m", event="done", **done)
            for side, own in enumerate(self.scores):
                yield ChatEvent(side=side, model="m", event="scores", scores=own)
        except GeneratorExit:
            self.is_closed = True
            raise


class FakeModels:
    """Loads a `FakeChat`, and keeps what was asked for."""

    def __init__(self, chat=None):
        self.chat, self.loaded = chat or FakeChat(), []

    def __call__(self, models, device):
        self.loaded.append((models, device))
        return self.chat
