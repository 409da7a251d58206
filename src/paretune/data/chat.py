"""Chat templates, prompt formats (thinking, stated confidence) and scorer views.

The only module that handles chat templates and special tokens. A prompt is rendered by the tokenizer's chat
template with the generation prompt; a response is its own tokens and EOS. The two are tokenized separately,
in training as in sampling.

A prompt format adds an instruction to the prompt; a scorer view hides the thinking or the stated confidence
from the scorers. The policy is still trained on every token of its response.
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

THINK_START_TAG, THINK_END_TAG = "<think>", "</think>"
"""Tags around the thinking; a well-formed response has each exactly once."""

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


FIXED_DATE = "26 Jul 2024"
DATE_MACRO = "{% macro strftime_now(format) %}" + FIXED_DATE + "{% endmacro %}{{ '' }}"
"""Prepended to templates that print today's date, so that prompts do not depend on the day of the run."""


class ChatTemplateError(DataError):
    """A chat template cannot render the messages of a prompt."""

    fix = (
        "use roles it supports (many templates reject system messages, or two messages of one role in a row)"
    )

    def __init__(self, prompt_id: str, problem: str) -> None:
        super().__init__(format_issue(f'prompt "{prompt_id}"', None, None, "", problem, fix=self.fix))
        self.problem = problem


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of everything before the response.

    With a chat template: its rendering with the generation prompt and no further special tokens, since
    templates write BOS themselves. Without one: BOS if the tokenizer has it, then the message contents, one
    per line. A prompt without messages is the generation prompt alone, or BOS alone, or empty if the
    tokenizer has neither.

    Raises:
        ChatTemplateError: The chat template rejects the prompt, as some do with a system message.
    """
    ids = list(
        tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False, verbose=False)["input_ids"]
    )
    is_empty = not prompt.messages and not ids
    bos_id = tokenizer.bos_token_id if tokenizer.chat_template is None or is_empty else None
    return ids if bos_id is None else [bos_id, *ids]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text of a prompt before tokenization.

    Raises:
        ChatTemplateError: The chat template rejects the prompt.
    """
    if tokenizer.chat_template is None:
        return "\n".join(message.content for message in prompt.messages)
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    if messages:
        return _apply_chat_template(tokenizer, messages, prompt.id, add_generation_prompt=True)
    # Templates fail on an empty conversation: take the difference that the generation prompt makes instead.
    messages = [{"role": "user", "content": "x"}]
    without = _apply_chat_template(tokenizer, messages, prompt.id, add_generation_prompt=False)
    with_prompt = _apply_chat_template(tokenizer, messages, prompt.id, add_generation_prompt=True)
    return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""


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
        roles = ", ".join(message["role"] for message in messages)
        reason = " ".join(str(error).split())
        raise ChatTemplateError(
            prompt_id, f"the chat template rejects messages of the roles {roles}: {reason}"
        ) from error
    assert isinstance(text, str)
    return text


def format_instructions_for(tokenizer: PreTrainedTokenizerBase) -> FormatInstructions:
    """The format instructions for models of this tokenizer.

    Those stored with the tokenizer (`format_instructions` in tokenizer_config.json) if there are any, else
    full sentences for models with a chat template and the bare form of the reply for base models.
    """
    stored = tokenizer.init_kwargs.get(FORMAT_INSTRUCTIONS_KEY)
    if isinstance(stored, dict):
        return stored
    return BASE_MODEL_INSTRUCTIONS if tokenizer.chat_template is None else CHAT_MODEL_INSTRUCTIONS


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str, *, eos_id: int) -> list[int]:
    """Token ids of a response, followed by EOS."""
    return [*tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"], eos_id]


def decode_response(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], eos_ids: Collection[int]
) -> str:
    """Text of response tokens up to the first EOS, without special tokens."""
    end = next((i for i, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
    text = tokenizer.decode(
        list(token_ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the renderings of four conversations: equal for tokenizers that render prompts equally."""
    conversations = (
        (),
        (Message("user", " a\nb "),),
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
        (Message("system", "s"), Message("user", "a")),
    )
    # The keys are hashed too: renaming one invalidates every stored hash.
    renderings: dict[str, Any] = {"begin": tokenizer.bos_token, "bare": tokenizer.chat_template is None}
    for i, messages in enumerate(conversations):
        try:
            renderings[str(i)] = render_prompt(tokenizer, Prompt(messages=messages))
        except ChatTemplateError:
            renderings[str(i)] = None
    return hashlib.sha256(json.dumps(renderings, sort_keys=True).encode()).hexdigest()
