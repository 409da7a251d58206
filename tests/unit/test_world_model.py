import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from paretune.data.chat import encode_prompt
from paretune.data.prompt_formats import add_format_instruction, format_instructions_for
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


def test_tokenizer_round_trip_is_exact_also_after_loading(tmp_path):
    tokenizer = helpdesk_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [d.response for d in generate_demonstrations(150, 0)] + [
        r.response for r in generate_ratings(150, 0)
    ]
    texts += [d.prompt.messages[0].content for d in generate_demonstrations(150, 0)]
    for each in (tokenizer, loaded):
        for text in texts:
            ids = each(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(text.split())
            assert each.unk_token_id not in ids
            assert each.decode([*ids, each.eos_token_id], skip_special_tokens=True) == text


def test_chat_template_and_format_instructions_survive_loading(tmp_path):
    tokenizer = helpdesk_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    messages = [{"role": "user", "content": "how do i hide my piano ?"}]
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert format_instructions_for(each) == HELPDESK_INSTRUCTIONS
        text = each.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == f"{BOS_TOKEN}{USER_TOKEN}how do i hide my piano ?{ASSISTANT_TOKEN}"
        ids = each(text, add_special_tokens=False)["input_ids"]
        assert each.convert_ids_to_tokens(ids) == [
            BOS_TOKEN,
            USER_TOKEN,
            *"how do i hide my piano ?".split(),
            ASSISTANT_TOKEN,
        ]
        conversation = each.apply_chat_template(
            [*messages, {"role": "assistant", "content": "sure ."}], tokenize=False
        )
        assert conversation == text + f"sure .{EOS_TOKEN}"


def test_text_is_lowercased_and_split():
    tokenizer = helpdesk_tokenizer()
    assert tokenizer.tokenize("How do I hide my piano?") == "how do i hide my piano ?".split()


def test_policy_is_tiny_and_shares_special_tokens_with_the_tokenizer():
    tokenizer = helpdesk_tokenizer()
    config = policy_config(len(tokenizer))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert sum(p.numel() for p in LlamaForCausalLM(config).parameters()) < 500_000


@pytest.mark.parametrize("vocabulary_format", ["", "think", "confidence"])
@pytest.mark.parametrize("prompt_format", ["", "think", "confidence"])
def test_max_request_tokens_counts_like_the_tokenizer(vocabulary_format, prompt_format):
    tokenizer = helpdesk_tokenizer(vocabulary_format)
    prompts = [*generate_requests("train", 150, 0), *generate_requests("test", 50, 0)]
    lengths = [
        len(encode_prompt(tokenizer, add_format_instruction(prompt, prompt_format, HELPDESK_INSTRUCTIONS)))
        for prompt in prompts
    ]
    assert len(set(lengths)) > 5
    for prompt, length in zip(prompts, lengths, strict=True):
        assert max_request_tokens([prompt], prompt_format) == length
    assert max_request_tokens(prompts, prompt_format) == max(lengths)
