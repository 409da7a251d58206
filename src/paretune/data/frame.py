"""Frames and views: what is asked of a policy beside the prompt, and what scorers are shown of its response.

The policy is credited for every token it writes; a view hides a part of the text from scorers alone.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from paretune.data.confidence import ASK, with_request, without_confidence
from paretune.data.records import Prompt, Sample

Frame = Literal["", "think", "confidence"]
"""What is asked for: nothing; to think in tags before the answer; to state a confidence after it."""
View = Literal["whole", "after_thinking", "without_confidence"]
"""What scorers are shown: everything, the answer behind the thoughts, or all but the stated confidence."""
Wording = Mapping[str, str]
"""Frame -> the words that ask for it."""

OPEN, CLOSE = "<think>", "</think>"
"""The tags of thoughts; a reply has one of each."""

CHAT: Wording = {
    "think": f"First think about what a good answer needs, inside {OPEN} and {CLOSE}. Behind {CLOSE} give "
    "the answer itself, complete: nobody reads the thoughts. Use each of the two tags once.",
    "confidence": ASK,
}
"""For models that follow instructions."""
BARE: Wording = {
    "think": f"(Form of the reply: {OPEN} thoughts {CLOSE} answer)",
    "confidence": "(Form of the reply: answer, then a line Confidence: 0 to 10)",
}
"""For models without a chat template, which go on with a text rather than obey."""

_THOUGHT = re.compile(rf"\s*{OPEN}(?P<trace>.*?){CLOSE}(?P<answer>.*)", re.DOTALL)


def framed(prompt: Prompt, frame: Frame, wording: Wording) -> Prompt:
    """The prompt as the policy reads it; the empty frame changes nothing.

    Raises:
        DataError: The last turn, which would ask, is not the user's.
    """
    return with_request(prompt, wording[frame]) if frame else prompt


def thought(response: str) -> tuple[str, str] | None:
    """The thoughts and the answer of a response; None where it does not have this form.

    It begins with the opening tag and has each tag once; its answer is not empty.

    Source: the strict mode of Bhaskar et al. 2025 (arXiv:2509.20357). Differs: their code cuts at the first
    closing tag wherever it stands, so that more tags, or none before it, pass; here they do not.
    """
    found = _THOUGHT.fullmatch(response)
    if found is None or response.count(OPEN) != 1 or response.count(CLOSE) != 1:
        return None
    answer = found["answer"].strip()
    return (found["trace"].strip(), answer) if answer else None


def shown(sample: Sample, view: View) -> Sample | None:
    """The sample as scorers see it, with the text as written beside; None where the view finds nothing."""
    if view == "whole":
        return sample
    if view == "without_confidence":
        return replace(sample, response=without_confidence(sample.response), written=sample.response)
    parts = thought(sample.response)
    return None if parts is None else replace(sample, response=parts[1], written=sample.response)
