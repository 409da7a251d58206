"""The records: what one row of data says, whatever file or world it came from."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of "system", "user", "assistant"."""
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a response answers; no messages at all means that the response stands alone."""

    messages: tuple[Message, ...]
    id: str = ""
    category: str = ""
    """The user's word for a class of prompts that is evaluated apart, such as "harmful" or "lookalike"."""
    preference_weights: tuple[tuple[str, float], ...] = ()
    """(objective, weight) of what this prompt asks for, where prompts differ in that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A response that a policy wrote."""

    prompt: Prompt
    response: str
    truncated: bool = False
    """The response ran into the length limit before it ended."""
    original_response: str | None = None
    """The response as the policy wrote it, where `response` is what a view shows of it."""

    @property
    def full_response(self) -> str:
        """The response as the policy wrote it."""
        return self.response if self.original_response is None else self.original_response


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """A response and what its raters said of it."""

    prompt: Prompt
    response: str
    labels: Mapping[str, float]
    """Objective to label, each in its own units; absent or NaN = nobody was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, of which the chosen one is better by one objective."""

    prompt: Prompt
    chosen: str
    rejected: str
    objective: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseGroup:
    """Stored responses to one prompt, to be compared with each other."""

    prompt: Prompt
    responses: tuple[str, ...]
    labels: tuple[Mapping[str, float], ...]
    """Of each response, objective to label; absent = nobody was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A response to be learnt by imitation."""

    prompt: Prompt
    response: str


Record = Prompt | Rating | PreferencePair | Demonstration
