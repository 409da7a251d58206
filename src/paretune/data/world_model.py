"""The tokenizer of the built-in help desk, one word a token, and the shape of its starting policy."""

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from paretune.data import world_words
from paretune.data.frame import CLOSE, OPEN, Frame, Wording

PAD, UNKNOWN, START, END, USER, DESK = "<pad>", "<unk>", "<start>", "<end>", "<user>", "<desk>"

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<desk>{{ message['content'] }}<end>"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<desk>{% endif %}"
)

WORDING: Wording = world_words.ASKS
"""How the help desk is asked by a frame."""


def of_the_world(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of the help desk, whatever folder it comes from."""
    return DESK in tokenizer.get_vocab()


def tokenizer(frame: Frame = "") -> PreTrainedTokenizerFast:
    """One token a word; what it decodes is the text that a scorer reads, word for word.

    With a frame it also knows the words that ask for it, and what an answer then holds.
    """
    vocabulary = [PAD, UNKNOWN, START, END, USER, DESK, *world_words.words(frame)]
    word_level = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    word_level.normalizer = normalizers.Lowercase()
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame == "think":
        # Plain tokens, not special ones: those are left out of what is decoded.
        word_level.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[USER, DESK],
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=192,
    )


def policy_config(vocab: int) -> LlamaConfig:
    """A Llama small enough to learn the help desk from nothing within a minute on two cores."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=96,
        intermediate_size=240,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=192,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        # The usual 0.02 is made for wide networks; at this width it doubles the steps until words are copied.
        initializer_range=0.08,
    )
