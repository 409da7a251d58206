"""Confidence in words: how a prompt asks for it, how a response states it, and the response without it.

Frames and views: what is asked of a policy beside the prompt, and what scorers are shown of its response.

The policy is credited for every token it writes; a view hides a part of the text from scorers alone.

Text to tokens and back: the only file that knows of chat templates and special tokens.

A prompt is rendered by the tokenizer's own chat template up to the point where the assistant begins to speak,
and a response is what follows: its tokens and a stop token. The two are tokenized apart, in training as in
sampling.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from paretune.core.errors import DataError, format_issue
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.records import Message, Prompt, Sample
from paretune.worlds.helpdesk.model import HELPDESK_INSTRUCTIONS, is_helpdesk_tokenizer

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


FIXED_DATE = "26 Jul 2024"
DATE_MACRO = "{% macro strftime_now(format) %}" + FIXED_DATE + "{% endmacro %}{{ '' }}"
"""Put before templates that ask for today's date: a prompt is the same on every day that a run goes on."""


class ChatTemplateError(DataError):
    """A chat template that cannot render the turns of a prompt."""

    fix = "use turns it knows (many refuse system turns, or two turns of one role in a row)"

    def __init__(self, prompt_id: str, problem: str) -> None:
        super().__init__(format_issue(f'prompt "{prompt_id}"', None, None, "", problem, fix=self.fix))
        self.problem = problem


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Tokens of everything before the response.

    With a chat template, its rendering with the generation prompt; nothing is added to it, since templates
    write their own beginning-of-sequence token. Without one, the contents of the turns, one below the other,
    behind the tokenizer's beginning-of-sequence token if it has one. An empty prompt is the generation prompt
    alone, or that token alone; it is empty where a tokenizer has neither.

    Raises:
        Refused: The chat template refuses the prompt, as some do with a system turn.
    """
    ids = list(
        tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False, verbose=False)["input_ids"]
    )
    bare = not prompt.messages and not ids
    begin = tokenizer.bos_token_id if tokenizer.chat_template is None or bare else None
    return ids if begin is None else [begin, *ids]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text whose tokens a prompt is.

    Raises:
        Refused: The chat template refuses the prompt.
    """
    if tokenizer.chat_template is None:
        return "\n".join(message.content for message in prompt.messages)
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    if turns:
        return _apply_chat_template(tokenizer, turns, prompt.id, add_generation_prompt=True)
    # A template cannot render nothing, so the generation prompt is what it adds to a conversation.
    turns = [{"role": "user", "content": "x"}]
    closed = _apply_chat_template(tokenizer, turns, prompt.id, add_generation_prompt=False)
    opened = _apply_chat_template(tokenizer, turns, prompt.id, add_generation_prompt=True)
    return opened.removeprefix(closed) if opened.startswith(closed) else ""


def _apply_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    prompt_id: str,
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    try:
        template = tokenizer.get_chat_template()
        dated = DATE_MACRO + template if "strftime_now" in template else template
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=dated,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=FIXED_DATE,
        )
    except (TemplateError, ValueError) as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise ChatTemplateError(
            prompt_id, f"the chat template refuses turns of {roles}: {' '.join(str(error).split())}"
        ) from error
    assert isinstance(text, str)
    return text


def format_instructions_for(tokenizer: PreTrainedTokenizerBase) -> FormatInstructions:
    """How a model of this tokenizer is asked by a frame: an instruction, or the bare form of the reply.

    Models of the built-in world are asked in words they have.
    """
    if is_helpdesk_tokenizer(tokenizer):
        return HELPDESK_INSTRUCTIONS
    return BASE_MODEL_INSTRUCTIONS if tokenizer.chat_template is None else CHAT_MODEL_INSTRUCTIONS


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str, *, eos_id: int) -> list[int]:
    """Tokens of a response, and the stop token that ends it."""
    return [*tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"], eos_id]


def decode_response(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], eos_ids: Collection[int]
) -> str:
    """The text of response tokens up to the first stop token, as scorers and people read it."""
    end = next((i for i, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
    text = tokenizer.decode(
        list(token_ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of how this tokenizer renders; two that agree show a model the same text for a prompt."""
    conversations = (
        (),
        (Message("user", " a\nb "),),
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
        (Message("system", "s"), Message("user", "a")),
    )
    shown: dict[str, Any] = {"begin": tokenizer.bos_token, "bare": tokenizer.chat_template is None}
    for i, messages in enumerate(conversations):
        try:
            shown[str(i)] = render_prompt(tokenizer, Prompt(messages=messages))
        except ChatTemplateError:
            shown[str(i)] = None
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
