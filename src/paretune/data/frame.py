"""Frames and views: what is asked of a policy beside the prompt, and what scorers are shown of its response.

The policy is credited for every token it writes; a view hides a part of the text from scorers alone.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from paretune.data.confidence import CONFIDENCE_INSTRUCTION, append_instruction, strip_confidence
from paretune.data.records import Prompt, Sample

PromptFormat = Literal["", "think", "confidence"]
"""What is asked for: nothing; to think in tags before the answer; to state a confidence after it."""
ScorerView = Literal["whole", "after_thinking", "without_confidence"]
"""What scorers are shown: everything, the answer behind the thoughts, or all but the stated confidence."""
FormatInstructions = Mapping[str, str]
"""Frame -> the words that ask for it."""

THINK_START_TAG, THINK_END_TAG = "<think>", "</think>"
"""The tags of thoughts; a reply has one of each."""

CHAT_MODEL_INSTRUCTIONS: FormatInstructions = {
    "think": f"First think about what a good answer needs, inside {THINK_START_TAG} and {THINK_END_TAG}. Behind {THINK_END_TAG} give "
    "the answer itself, complete: nobody reads the thoughts. Use each of the two tags once.",
    "confidence": CONFIDENCE_INSTRUCTION,
}
"""For models that follow instructions."""
BASE_MODEL_INSTRUCTIONS: FormatInstructions = {
    "think": f"(Form of the reply: {THINK_START_TAG} thoughts {THINK_END_TAG} answer)",
    "confidence": "(Form of the reply: answer, then a line Confidence: 0 to 10)",
}
"""For models without a chat template, which go on with a text rather than obey."""

_THINKING_PATTERN = re.compile(rf"\s*{THINK_START_TAG}(?P<trace>.*?){THINK_END_TAG}(?P<answer>.*)", re.DOTALL)


def add_format_instruction(
    prompt: Prompt, prompt_format: PromptFormat, instructions: FormatInstructions
) -> Prompt:
    """The prompt as the policy reads it; the empty frame changes nothing.

    Raises:
        DataError: The last turn, which would ask, is not the user's.
    """
    return append_instruction(prompt, instructions[prompt_format]) if prompt_format else prompt


def parse_thinking(response: str) -> tuple[str, str] | None:
    """The thoughts and the answer of a response; None where it does not have this form.

    It begins with the opening tag and has each tag once; its answer is not empty.

    Source: the strict mode of Bhaskar et al. 2025 (arXiv:2509.20357). Differs: their code cuts at the first
    closing tag wherever it stands, so that more tags, or none before it, pass; here they do not.
    """
    found = _THINKING_PATTERN.fullmatch(response)
    if found is None or response.count(THINK_START_TAG) != 1 or response.count(THINK_END_TAG) != 1:
        return None
    answer = found["answer"].strip()
    return (found["trace"].strip(), answer) if answer else None


def visible_text(sample: Sample, scorer_view: ScorerView) -> Sample | None:
    """The sample as scorers see it, with the text as written beside; None where the view finds nothing."""
    if scorer_view == "whole":
        return sample
    if scorer_view == "without_confidence":
        return replace(sample, response=strip_confidence(sample.response), original_response=sample.response)
    parts = parse_thinking(sample.response)
    return None if parts is None else replace(sample, response=parts[1], original_response=sample.response)
