import pytest
from transformers import AutoTokenizer

from paretune.core.errors import DataError
from paretune.data.chat import decode_response, encode_prompt, encode_response, render_prompt, template_hash
from shared import shared
from support.chat_tokenizers import CHATML, DATED, LLAMA, STRICT, byte_tokenizer, prompt

HELLO = prompt(("user", "hello"))


def test_prompt_ends_with_the_generation_prompt():
    tokenizer = byte_tokenizer(CHATML)
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(tokenizer, HELLO) == text
    ids = encode_prompt(tokenizer, HELLO)
    assert tokenizer.decode(ids) == text
    assert ids.count(1) == 2


def test_bos_appears_once():
    for template in (LLAMA, None):
        ids = encode_prompt(byte_tokenizer(template), HELLO)
        assert (ids[0], ids.count(0)) == (0, 1)
    assert encode_prompt(byte_tokenizer(CHATML), HELLO).count(0) == 0


def test_without_chat_template_messages_are_joined_by_newlines():
    conversation = prompt(("system", "s"), ("user", "u"))
    tokenizer = byte_tokenizer(bos=None)
    assert tokenizer.decode(encode_prompt(tokenizer, conversation)) == "s\nu"
    assert tokenizer.decode(encode_prompt(byte_tokenizer(), conversation)) == "<s>s\nu"


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (byte_tokenizer(CHATML), "<|im_start|>assistant\n"),
        (byte_tokenizer(LLAMA), "[assistant]"),
        (byte_tokenizer(STRICT), "<s>"),
        (byte_tokenizer(), "<s>"),
        (byte_tokenizer(bos=None), ""),
    ],
)
def test_prompt_without_messages(tokenizer, text):
    assert tokenizer.decode(encode_prompt(tokenizer, prompt())) == text


def test_error_of_a_chat_template_is_reported():
    with pytest.raises(DataError) as caught:
        encode_prompt(byte_tokenizer(STRICT), prompt(("system", "s"), ("user", "u")))
    assert str(caught.value) == (
        'prompt "p1": the chat template rejects messages of the roles system, user: '
        "System role not supported; fix: use roles it supports "
        "(many templates reject system messages, or two messages of one role in a row)"
    )


def test_date_in_a_template_is_fixed():
    assert render_prompt(byte_tokenizer(DATED), HELLO).startswith("26 Jul 2024<|im_start|>")


@pytest.mark.parametrize("text", ["a b", " a  b ", "a , b .", "Grüße\n\n你好 🙂", "don 't", ""])
def test_response_round_trip_is_exact(text):
    tokenizer = byte_tokenizer(CHATML)
    ids = encode_response(tokenizer, text, eos_id=2)
    assert ids[-1] == 2
    assert decode_response(tokenizer, ids, (2, 0)) == text
    assert decode_response(tokenizer, [*ids, *ids], [2]) == text
    assert decode_response(tokenizer, ids[:-1], {2}) == text
    assert decode_response(tokenizer, [1, *ids], {2}) == text, "special tokens are dropped"


def test_template_hash_depends_on_renderings_only():
    hashes = [
        template_hash(byte_tokenizer(*args)) for args in [(CHATML,), (LLAMA,), (STRICT,), (), (None, None)]
    ]
    assert len(set(hashes)) == len(hashes)
    assert template_hash(byte_tokenizer(CHATML)) == hashes[0]
    assert template_hash(byte_tokenizer(CHATML + "{# a remark #}")) == hashes[0]


def test_shared_tokenizers():
    chat = AutoTokenizer.from_pretrained(shared("models", "dialogue-7m"))
    assert render_prompt(chat, HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert (
        decode_response(chat, encode_response(chat, "It 's fine , really.", eos_id=2), (2, 0))
        == "It 's fine , really."
    )
    stories = AutoTokenizer.from_pretrained(shared("models", "stories260K"))
    assert encode_prompt(stories, prompt()) == [stories.bos_token_id]
    ids = encode_prompt(stories, HELLO)
    assert (ids[0], ids.count(ids[0])) == (stories.bos_token_id, 1)
    plain = AutoTokenizer.from_pretrained(shared("models", "gpt2-tokenizer"))
    assert plain.decode(encode_prompt(plain, HELLO), skip_special_tokens=True) == "hello"
