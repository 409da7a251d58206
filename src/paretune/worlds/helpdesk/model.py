"""Tokenizer of the help desk, one token per word, and the config of its initial policy."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_template import THINK_END_TAG, THINK_START_TAG
from paretune.data.prompt_formats import (
    FORMAT_INSTRUCTIONS_KEY,
    FormatInstructions,
    PromptFormat,
    add_format_instruction,
)
from paretune.data.records import Prompt
from paretune.worlds.helpdesk import words
from paretune.worlds.helpdesk.words import CONTEXT_LENGTH

PAD_TOKEN, UNK_TOKEN, BOS_TOKEN, EOS_TOKEN, USER_TOKEN, ASSISTANT_TOKEN = (
    "<pad>",
    "<unk>",
    "<start>",
    "<end>",
    "<user>",
    "<desk>",
)

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<desk>{{ message['content'] }}<end>"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<desk>{% endif %}"
)

HELPDESK_INSTRUCTIONS: FormatInstructions = words.FORMAT_INSTRUCTIONS
"""Instructions of the prompt formats in words of the vocabulary."""


def helpdesk_tokenizer(prompt_format: PromptFormat = "") -> PreTrainedTokenizerBase:
    """A word-level tokenizer; decoding gives back the text word for word.

    With a prompt format, the vocabulary also has the words of its instruction and of a formatted answer.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_word_level_tokenizer(prompt_format),
        pad_token=PAD_TOKEN,
        unk_token=UNK_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        additional_special_tokens=[USER_TOKEN, ASSISTANT_TOKEN],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
        # An extra argument: transformers keeps it in tokenizer_config.json, where the sampler finds it.
        **{FORMAT_INSTRUCTIONS_KEY: dict(HELPDESK_INSTRUCTIONS)},
    )


def _word_level_tokenizer(prompt_format: PromptFormat) -> Tokenizer:
    """The tokenizer without chat template and special-token handling."""
    vocabulary = [
        PAD_TOKEN,
        UNK_TOKEN,
        BOS_TOKEN,
        EOS_TOKEN,
        USER_TOKEN,
        ASSISTANT_TOKEN,
        *words.vocabulary(prompt_format),
    ]
    word_level = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK_TOKEN)
    )
    word_level.normalizer = normalizers.Lowercase()
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    if prompt_format == "think":
        # Not special: decoding drops special tokens, and scorers parse the tags.
        word_level.add_tokens(
            [AddedToken(tag, special=False, normalized=False) for tag in (THINK_START_TAG, THINK_END_TAG)]
        )
    return word_level


def max_request_tokens(prompts: Sequence[Prompt], prompt_format: PromptFormat = "") -> int:
    """Length in tokens of the longest rendered request; does not load transformers.

    Args:
        prompts: Prompts of one message each.
        prompt_format: Format whose instruction is added.
    """
    conversations = [
        add_format_instruction(prompt, prompt_format, HELPDESK_INSTRUCTIONS).messages for prompt in prompts
    ]
    assert all(len(messages) == 1 for messages in conversations)
    texts = [message.content for messages in conversations for message in messages]
    num_template_tokens = len((BOS_TOKEN, USER_TOKEN, ASSISTANT_TOKEN))
    tokenizer = _word_level_tokenizer(prompt_format)
    return num_template_tokens + max((len(tokenizer.encode(text).ids) for text in texts), default=0)


def policy_config(vocab_size: int) -> Any:
    """Config of a Llama that learns the help desk from scratch within a minute on two CPU cores."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        **words.POLICY_SHAPE,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        # The default of 0.02 is for wide networks; at this width it doubles the steps until words are copied.
        initializer_range=0.08,
    )
