"""Prompt formats (thinking, stated confidence) and scorer views.

A prompt format adds an instruction to the prompt; a scorer view hides the thinking or the stated confidence
from the scorers. The policy is still trained on every token of its response.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from paretune.core.errors import DataError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_template import THINK_END_TAG, THINK_START_TAG
from paretune.data.records import Message, Prompt, Sample

CONFIDENCE_INSTRUCTION = (
    "When you have answered, say how sure you are that your answer is right: end with a line of the form "
    '"Confidence: <number>", where the number goes from 0 (a guess) to 10 (certain).'
)
"""Instruction of the "confidence" format; names no example value that a model could copy."""

MAX_CONFIDENCE = 10
"""Upper end of the scale that the instruction names."""

# A label, a number and its scale. The possessive quantifiers and lookaheads keep "12abc" and "1.2.3" from
# matching as 12 and 1.2.
_CONFIDENCE_PATTERN = re.compile(
    r"\bconfidence[ \t*_]*:[\s*_]*(?P<number>\d++(?:\.\d++)?)(?!\w|[.,]\d)"
    r"(?:[ \t]*(?P<percent>%)|[ \t]*/[ \t]*(?P<scale>\d++(?:\.\d++)?))?",
    re.IGNORECASE,
)
_TRAILING_PUNCTUATION = r"[*_]*[\s.,;!?]*"
_CONFIDENCE_REMOVAL_PATTERN = re.compile(
    f"(?:[*_]{{1,3}}(?=confidence))?(?:{_CONFIDENCE_PATTERN.pattern}){_TRAILING_PUNCTUATION}", re.IGNORECASE
)


def append_confidence(response: str, level: int) -> str:
    """The response with a line that states a confidence from 0 to 10.

    Raises:
        DataError: The level is out of range.
    """
    if not 0 <= level <= MAX_CONFIDENCE:
        raise DataError(f"confidence level {level} is out of range; fix: use 0 to {MAX_CONFIDENCE}")
    return f"{response.rstrip()}\nConfidence: {level}."


def parse_confidence(response: str) -> float:
    """The stated confidence of a response in [0, 1]; NaN if it states none.

    The last "Confidence: <number>" counts, in upper or lower case: "8", "8/10", "80%" and "80/100" all give
    0.8. A number outside its scale, or a word such as "high", gives NaN.

    Args:
        response: The response without the prompt, whose numbers must not count.

    Source: Leng et al. 2024 (arXiv:2410.09724). Differs: its code searches prompt and response, takes the
    first match, reads "85%" as 10 of 10, and gives 5 of 10 to a response that states none.
    """
    matches = list(_CONFIDENCE_PATTERN.finditer(response))
    if not matches:
        return math.nan
    last = matches[-1]
    scale = 100.0 if last["percent"] else float(last["scale"] or MAX_CONFIDENCE)
    confidence = float(last["number"]) / scale if scale > 0 else math.inf
    return confidence if confidence <= 1 else math.nan


def strip_confidence(response: str) -> str:
    """The response without any stated confidence, for scorers of its quality.

    All statements are removed, not only the last one that `parse_confidence` reads: a reward model would
    score the others too.

    Source: Leng et al. 2024 (arXiv:2410.09724), scorer view of PPO-C.
    """
    text = _CONFIDENCE_REMOVAL_PATTERN.sub("", response)
    return text.rstrip() if text != response else response


PromptFormat = Literal["", "think", "confidence"]
"""Instruction added to the prompt: none, thinking in tags before the answer, or a confidence after it.

The values are part of seeds: another spelling changes every number of runs with a format.
"""
ScorerView = Literal["full", "after_thinking", "without_confidence"]
"""Part of a response that scorers get: all, the answer after the thinking, or all but the confidence."""
FormatInstructions = Mapping[str, str]
"""Prompt format -> instruction text."""

CHAT_MODEL_INSTRUCTIONS: FormatInstructions = {
    "think": f"First think about what a good answer needs, inside {THINK_START_TAG} and {THINK_END_TAG}. "
    f"Behind {THINK_END_TAG} give the answer itself, complete: nobody reads the thoughts. "
    "Use each of the two tags once.",
    "confidence": CONFIDENCE_INSTRUCTION,
}
"""For models with a chat template."""
BASE_MODEL_INSTRUCTIONS: FormatInstructions = {
    "think": f"(Form of the reply: {THINK_START_TAG} thoughts {THINK_END_TAG} answer)",
    "confidence": "(Form of the reply: answer, then a line Confidence: 0 to 10)",
}
"""For base models, which continue a text rather than follow an instruction."""

FORMAT_INSTRUCTIONS_KEY = "format_instructions"
"""Tokenizer init argument, kept in tokenizer_config.json, that replaces the instructions above."""

_THINKING_PATTERN = re.compile(
    rf"\s*{THINK_START_TAG}(?P<thinking>.*?){THINK_END_TAG}(?P<response>.*)", re.DOTALL
)


def add_format_instruction(
    prompt: Prompt, prompt_format: PromptFormat, instructions: FormatInstructions
) -> Prompt:
    """The prompt with the instruction of a prompt format; unchanged for the format "".

    Raises:
        DataError: The last message is not a user message.
    """
    if not prompt_format:
        return prompt
    if not prompt.messages or prompt.messages[-1].role != "user":
        raise DataError(
            f'prompt "{prompt.id}": cannot add the instruction for the prompt format "{prompt_format}": '
            "the last message is not a user message; fix: end the prompt with a user message"
        )
    last = Message("user", f"{prompt.messages[-1].content}\n\n{instructions[prompt_format]}")
    return replace(prompt, messages=(*prompt.messages[:-1], last))


def parse_thinking(response: str) -> tuple[str, str] | None:
    """Thinking and answer of a response, or None if it is not well-formed.

    A well-formed response starts with the opening tag, has each tag once, and has a non-empty answer.

    Source: Bhaskar et al. 2025 (arXiv:2509.20357), strict mode. Differs: their code splits at the first
    closing tag, and so accepts further tags or a missing opening tag.
    """
    match = _THINKING_PATTERN.fullmatch(response)
    if match is None or response.count(THINK_START_TAG) != 1 or response.count(THINK_END_TAG) != 1:
        return None
    answer = match["response"].strip()
    return (match["thinking"].strip(), answer) if answer else None


def visible_text(sample: Sample, scorer_view: ScorerView) -> Sample | None:
    """The sample with the text that scorers get; None if the response lacks the format of the view.

    The complete response is kept in `original_response`.
    """
    if scorer_view == "full":
        return sample
    if scorer_view == "without_confidence":
        return replace(sample, response=strip_confidence(sample.response), original_response=sample.response)
    parts = parse_thinking(sample.response)
    return None if parts is None else replace(sample, response=parts[1], original_response=sample.response)


def format_instructions_for(tokenizer: PreTrainedTokenizerBase) -> FormatInstructions:
    """The format instructions for models of this tokenizer.

    Those stored with the tokenizer (`format_instructions` in tokenizer_config.json) if there are any, else
    full sentences for models with a chat template and the bare form of the reply for base models.
    """
    stored = tokenizer.init_kwargs.get(FORMAT_INSTRUCTIONS_KEY)
    if isinstance(stored, dict):
        return stored
    return BASE_MODEL_INSTRUCTIONS if tokenizer.chat_template is None else CHAT_MODEL_INSTRUCTIONS
