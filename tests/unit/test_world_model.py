"""The tokenizer of the help desk gives back what it was given, also from disk; its policy is tiny."""

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from paretune.data.chat import add_format_instruction, encode_prompt
from paretune.worlds.helpdesk.model import (
    ASSISTANT_TOKEN,
    BOS_TOKEN,
    EOS_TOKEN,
    HELPDESK_INSTRUCTIONS,
    USER_TOKEN,
    max_request_tokens,
)
from paretune.worlds.helpdesk.world import (
    generate_demonstrations,
    generate_ratings,
    generate_requests,
    helpdesk_tokenizer,
    policy_config,
)


def test_decoding_gives_back_the_text_word_for_word(tmp_path):
    ours = helpdesk_tokenizer()
    ours.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [d.response for d in generate_demonstrations(150, 0)] + [
        r.response for r in generate_ratings(150, 0)
    ]
    texts += [d.prompt.messages[0].content for d in generate_demonstrations(150, 0)]
    for some in (ours, loaded):
        for text in texts:
            ids = some(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(text.split())
            assert some.unk_token_id not in ids
            assert some.decode([*ids, some.eos_token_id], skip_special_tokens=True) == text


def test_the_chat_template_is_the_same_after_loading(tmp_path):
    ours = helpdesk_tokenizer()
    ours.save_pretrained(tmp_path)
    turns = [{"role": "user", "content": "how do i hide my piano ?"}]
    for some in (ours, AutoTokenizer.from_pretrained(tmp_path)):
        text = some.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text == f"{BOS_TOKEN}{USER_TOKEN}how do i hide my piano ?{ASSISTANT_TOKEN}"
        ids = some(text, add_special_tokens=False)["input_ids"]
        assert some.convert_ids_to_tokens(ids) == [
            BOS_TOKEN,
            USER_TOKEN,
            *"how do i hide my piano ?".split(),
            ASSISTANT_TOKEN,
        ]
        whole = some.apply_chat_template([*turns, {"role": "assistant", "content": "sure ."}], tokenize=False)
        assert whole == text + f"sure .{EOS_TOKEN}"


def test_what_people_type_is_lowered_and_split():
    ours = helpdesk_tokenizer()
    assert ours.tokenize("How do I hide my piano?") == "how do i hide my piano ?".split()


def test_the_policy_is_tiny_and_its_special_tokens_agree_with_the_tokenizer():
    ours = helpdesk_tokenizer()
    config = policy_config(len(ours))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        ours.bos_token_id,
        ours.eos_token_id,
        ours.pad_token_id,
    )
    assert sum(p.numel() for p in LlamaForCausalLM(config).parameters()) < 500_000


@pytest.mark.parametrize("knows", ["", "think", "confidence"])
@pytest.mark.parametrize("frame", ["", "think", "confidence"])
def test_requests_are_counted_as_the_tokenizer_renders_them(knows, frame):
    ours, prompts = (
        helpdesk_tokenizer(knows),
        [*generate_requests("train", 150, 0), *generate_requests("test", 50, 0)],
    )
    whole = [
        len(encode_prompt(ours, add_format_instruction(prompt, frame, HELPDESK_INSTRUCTIONS)))
        for prompt in prompts
    ]
    assert len(set(whole)) > 5
    for prompt, tokens in zip(prompts, whole, strict=True):
        assert max_request_tokens([prompt], frame) == tokens
    assert max_request_tokens(prompts, frame) == max(whole)
