"""The tokenizer of the built-in help desk, one word a token, and the shape of its starting policy."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from paretune.data import world_words
from paretune.data.frame import CLOSE, OPEN, Frame, Wording, framed
from paretune.data.records import Prompt
from paretune.elsewhere import PreTrainedTokenizerBase

PAD, UNKNOWN, START, END, USER, DESK = "<pad>", "<unk>", "<start>", "<end>", "<user>", "<desk>"

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<desk>{{ message['content'] }}<end>"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<desk>{% endif %}"
)

CONTEXT = 192
"""The longest row that the starting policy can read, in tokens."""

WORDING: Wording = world_words.ASKS
"""How the help desk is asked by a frame."""


def of_the_world(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of the help desk, whatever folder it comes from."""
    return DESK in tokenizer.get_vocab()


def tokenizer(frame: Frame = "") -> PreTrainedTokenizerBase:
    """One token a word; what it decodes is the text that a scorer reads, word for word.

    With a frame it also knows the words that ask for it, and what an answer then holds.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_words(frame),
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[USER, DESK],
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def _words(frame: Frame) -> Tokenizer:
    """The tokenizer of a text alone, without what stands around the turns."""
    vocabulary = [PAD, UNKNOWN, START, END, USER, DESK, *world_words.words(frame)]
    word_level = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    word_level.normalizer = normalizers.Lowercase()
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame == "think":
        # Plain tokens, not special ones: those are left out of what is decoded.
        word_level.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
    return word_level


def longest_request(prompts: Sequence[Prompt], frame: Frame = "") -> int:
    """Tokens of the longest of these requests as the tokenizer renders them, and transformers is not loaded.

    Args:
        prompts: Of one turn each.
        frame: What is asked beside them.
    """
    turns = [framed(prompt, frame, WORDING).messages for prompt in prompts]
    assert all(len(messages) == 1 for messages in turns)
    texts = [message.content for messages in turns for message in messages]
    around = len((START, USER, DESK))
    words = _words(frame)
    return around + max((len(words.encode(text).ids) for text in texts), default=0)


def policy_config(vocab: int) -> Any:
    """A Llama small enough to learn the help desk from nothing within a minute on two cores."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=96,
        intermediate_size=240,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        # The usual 0.02 is made for wide networks; at this width it doubles the steps until words are copied.
        initializer_range=0.08,
    )
