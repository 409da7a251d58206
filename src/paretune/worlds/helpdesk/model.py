"""The tokenizer of the built-in help desk, one word a token, and the shape of its starting policy."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import (
    THINK_END_TAG,
    THINK_START_TAG,
    FormatInstructions,
    PromptFormat,
    add_format_instruction,
)
from paretune.data.records import Prompt
from paretune.worlds.helpdesk import words

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

CONTEXT_LENGTH = 192
"""The longest row that the starting policy can read, in tokens."""

HELPDESK_INSTRUCTIONS: FormatInstructions = words.FORMAT_INSTRUCTIONS
"""How the help desk is asked by a frame."""


def is_helpdesk_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of the help desk, whatever folder it comes from."""
    return ASSISTANT_TOKEN in tokenizer.get_vocab()


def helpdesk_tokenizer(prompt_format: PromptFormat = "") -> PreTrainedTokenizerBase:
    """One token a word; what it decodes is the text that a scorer reads, word for word.

    With a frame it also knows the words that ask for it, and what an answer then holds.
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
    )


def _word_level_tokenizer(prompt_format: PromptFormat) -> Tokenizer:
    """The tokenizer of a text alone, without what stands around the turns."""
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
        # Plain tokens, not special ones: those are left out of what is decoded.
        word_level.add_tokens(
            [AddedToken(tag, special=False, normalized=False) for tag in (THINK_START_TAG, THINK_END_TAG)]
        )
    return word_level


def max_request_tokens(prompts: Sequence[Prompt], prompt_format: PromptFormat = "") -> int:
    """Tokens of the longest of these requests as the tokenizer renders them, and transformers is not loaded.

    Args:
        prompts: Of one turn each.
        prompt_format: What is asked beside them.
    """
    turns = [
        add_format_instruction(prompt, prompt_format, HELPDESK_INSTRUCTIONS).messages for prompt in prompts
    ]
    assert all(len(messages) == 1 for messages in turns)
    texts = [message.content for messages in turns for message in messages]
    around = len((BOS_TOKEN, USER_TOKEN, ASSISTANT_TOKEN))
    words = _word_level_tokenizer(prompt_format)
    return around + max((len(words.encode(text).ids) for text in texts), default=0)


def policy_config(vocab_size: int) -> Any:
    """A Llama small enough to learn the help desk from nothing within a minute on two cores."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=240,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        # The usual 0.02 is made for wide networks; at this width it doubles the steps until words are copied.
        initializer_range=0.08,
    )
