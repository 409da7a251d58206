"""The tiny models of the tests are reproducible and do not change the global random generator."""

import pytest
import torch

from paretune.models.load import parameter_hash
from support.tiny_models import KINDS, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights(kind):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (parameter_hash(tiny_model(kind, 50, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_tokenizer_round_trips_text_and_has_a_chat_template():
    tokenizer = tiny_tokenizer()
    text = "Hello, you {there}!\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("\n", "")
    turns = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<u>hi</s><a>"
    assert len(tokenizer) == 101
    assert tokenizer.eos_token_id == 1
