"""What the chat page needs of two models: handed in by the command, so that these pages need no torch."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from paretune.core.goals import Goal

BASE = "base"
"""Instead of a second model: the policy of the first run before its alignment."""
Device = Literal["auto", "cpu", "cuda"]


@runtime_checkable
class ChatEvent(Protocol):
    """A piece of an answer, its end, or its scores; see `paretune.chat.session.ChatEvent`."""

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""


@runtime_checkable
class Conversation(Protocol):
    """Models that are loaded and answer side by side; see `paretune.chat.session.Chat`."""

    settings: Any
    """How answers are sampled."""
    notes: tuple[str, ...]
    """What a reader should know, such as a scorer that cannot score here."""
    goals: Mapping[str, Goal]
    """Objective -> which of its scores are good, where that is known."""

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights of the models, without those that score."""

    def describe_settings(self) -> str:
        """How answers are sampled, on one line."""

    def configure(self, *, temperature: float | None, seed: int | None, max_new_tokens: int | None) -> None:
        """Change how the next answers are sampled; None: as before."""

    def clear(self) -> None:
        """Begin a new conversation."""

    def stream(self, prompt: str) -> Generator[Any, None, None]:
        """Answer a prompt: its `ChatEvent`s."""


@dataclass(frozen=True, slots=True)
class ChatModels:
    """Two models to talk to, and what scores their answers."""

    first: str
    """Folder of a run or of a model."""
    second: str
    """Folder of a run or of a model, or `BASE`."""
    rewards: str | None = None
    """Folder of the run whose reward and judges score; None: the run among the models."""
    llm_judges: bool = False
    """Ask LLM judges too, a request per answer."""


@runtime_checkable
class LoadChat(Protocol):
    """Loads the models of a conversation."""

    def __call__(self, models: ChatModels, device: Device) -> Conversation:
        """The models, ready to answer.

        Raises:
            ParetuneError: They cannot be loaded.
        """


def number_settings(given: Mapping[str, str]) -> tuple[dict[str, float | int | None], Sequence[str]]:
    """The settings of answers in the fields of a form, and what is wrong with them; empty ones are None."""
    values: dict[str, float | int | None] = {}
    problems = []
    kinds = {"temperature": (float, "number"), "seed": (int, "whole number")}
    for name, (kind, words) in (kinds | {"max_new_tokens": (int, "whole number")}).items():
        text = given.get(name, "").strip()
        try:
            values[name] = kind(text) if text else None
        except ValueError:
            problems.append(f"{name.replace('_', ' ')}: {text} is not a {words}")
    return values, problems
