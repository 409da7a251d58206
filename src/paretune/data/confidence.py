"""Confidence in words: how a prompt asks for it, how a response states it, and the response without it."""

import math
import re
from dataclasses import replace

from paretune.data.records import Message, Prompt
from paretune.errors import DataError

CONFIDENCE_INSTRUCTION = (
    "When you have answered, say how sure you are that your answer is right: end with a line of the form "
    '"Confidence: <number>", where the number goes from 0 (a guess) to 10 (certain).'
)
"""What a prompt that asks for confidence says at its end. It holds no number that could be repeated."""

MAX_CONFIDENCE = 10
"""The confidence of somebody who is certain, in the units that are asked for."""

# A label, a number, and what it is out of; the number is whole, so that 12 is not read in "12abc" or "1.2.3".
_CONFIDENCE_PATTERN = re.compile(
    r"\bconfidence[ \t*_]*:[\s*_]*(?P<number>\d++(?:\.\d++)?)(?!\w|[.,]\d)"
    r"(?:[ \t]*(?P<percent>%)|[ \t]*/[ \t]*(?P<most>\d++(?:\.\d++)?))?",
    re.IGNORECASE,
)
_TRAILING_PUNCTUATION = r"[*_]*[\s.,;!?]*"
_CONFIDENCE_REMOVAL_PATTERN = re.compile(
    f"(?:[*_]{{1,3}}(?=confidence))?(?:{_CONFIDENCE_PATTERN.pattern}){_TRAILING_PUNCTUATION}", re.IGNORECASE
)


def add_confidence_instruction(prompt: Prompt) -> Prompt:
    """The prompt, which now asks for a stated confidence at the end of its last turn.

    Raises:
        DataError: The last turn is not the user's.
    """
    return append_instruction(prompt, CONFIDENCE_INSTRUCTION, "for confidence")


def append_instruction(prompt: Prompt, instruction: str, purpose: str = "for more") -> Prompt:
    """The prompt, whose last turn now ends with this request.

    Raises:
        DataError: The last turn is not the user's.
    """
    if not prompt.messages or prompt.messages[-1].role != "user":
        raise DataError(
            f'prompt "{prompt.id}": cannot ask {purpose}: its last turn is not the user\'s; '
            "fix: end it with a turn of the user"
        )
    last = Message("user", f"{prompt.messages[-1].content}\n\n{instruction}")
    return replace(prompt, messages=(*prompt.messages[:-1], last))


def append_confidence(response: str, level: int) -> str:
    """The response with a line that states this confidence, from 0 to 10."""
    if not 0 <= level <= MAX_CONFIDENCE:
        raise DataError(f"a stated confidence of {level}; expected 0 to {MAX_CONFIDENCE}")
    return f"{response.rstrip()}\nConfidence: {level}."


def parse_confidence(response: str) -> float:
    """The confidence that a response states of itself, in [0, 1]; NaN where it states none.

    The last "Confidence: <number>" counts, in any case of letters: "8", "8/10", "80%" and "80/100" are 0.8.
    A number that is out of its scale, and words like "high", state nothing.

    Args:
        response: The response alone: a number in the prompt is not the response's.

    Source: Leng et al. 2024 (arXiv:2410.09724). Differs: its code searches prompt and response, takes the
    first match, reads "85%" as 10 of 10, and takes a response that states nothing for 5 of 10.
    """
    found = list(_CONFIDENCE_PATTERN.finditer(response))
    if not found:
        return math.nan
    last = found[-1]
    most = 100.0 if last["percent"] else float(last["most"] or MAX_CONFIDENCE)
    share = float(last["number"]) / most if most > 0 else math.inf
    return share if share <= 1 else math.nan


def strip_confidence(response: str) -> str:
    """The response as those see it who judge its quality: without any statement of confidence.

    Every one is removed, not only the last, which counts: a reward model pays for the others too.

    Source: Leng et al. 2024 (arXiv:2410.09724), the view of PPO-C.
    """
    text = _CONFIDENCE_REMOVAL_PATTERN.sub("", response)
    return text.rstrip() if text != response else response
