"""Responses carry the log-probabilities training computes, and depend on nothing but their own seeds."""

from collections import Counter

import numpy as np
import pytest
import torch

from paretune.core.errors import DataError, WiringError
from paretune.data.chat import encode_prompt
from paretune.data.records import Message, Prompt
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import ModelSpec, PolicyModel, as_policy_model, load_policy
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import response_logprobs
from paretune.rollout.decoding import decode, sample_tokens
from paretune.rollout.sampler import LocalSampler, OnPolicy, Sampler, StoredResponses
from shared import shared
from support.tiny_models import KINDS, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SIZE = len(TOKENIZER)
PROMPTS = [
    Prompt(messages=(Message("user", text),), id=f"p{i}")
    for i, text in enumerate(["hello", "a much longer request, with commas", "x", "two words"])
]


def language(kind="llama", seed=0, **size):
    return as_policy_model(tiny_model(kind, SIZE, initial=0.25, seed=seed, **size), TOKENIZER)


def gap(model, batch, temperature):
    with torch.no_grad():
        logp = compute_logprobs(model, batch.tokens, batch.attend, batch.respond, temperature=temperature)
    return float((logp - batch.need("rollout_logprobs")).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_equal_a_fresh_forward_pass(kind):
    sampler = LocalSampler(language(kind), ("a", "b"), max_rows=64)
    batch, samples = sampler(
        PROMPTS, OnPolicy(num_generations=4, max_new_tokens=30, temperature=0.8), seed=0, step=0
    )
    assert len(samples) == len(batch) == 16
    assert batch.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert len({len(s.response) for s in samples}) > 3
    assert batch.objectives == ("a", "b")
    assert gap(sampler.policy.model, batch, 0.8) < 1e-5
    assert (batch.require("rollout_logprobs")[~batch.response_mask] == 0).all()
    assert (batch.require("rollout_logprobs")[batch.response_mask] < 0).all()


def test_a_sliding_window_shorter_than_the_rows_is_kept():
    sampler = LocalSampler(language("mistral", sliding_window=7), ("a",))
    batch, _ = sampler(PROMPTS, OnPolicy(num_generations=3, max_new_tokens=30), seed=0, step=0)
    assert gap(sampler.policy.model, batch, 1.0) < 1e-5


def test_rows_hold_prompt_response_and_stop_and_the_text_follows():
    sampler = LocalSampler(language(), ("a",))
    batch, samples = sampler(PROMPTS, OnPolicy(num_generations=8, max_new_tokens=40), seed=1, step=0)
    ended = 0
    for b, sample in enumerate(samples):
        row = batch.input_ids[b, batch.attention_mask[b]].tolist()
        prompt = encode_prompt(TOKENIZER, sample.prompt)
        response = batch.input_ids[b, batch.response_mask[b]].tolist()
        assert sample.prompt is PROMPTS[int(batch.group[b])]
        assert row == prompt + response
        assert bool(batch.truncated[b]) == sample.truncated == (1 not in response)
        assert 1 not in response[:-1]
        if sample.truncated:
            assert len(response) == 40
        ended += response[-1] == 1
        assert sample.response == TOKENIZER.decode(response, skip_special_tokens=True)
    assert 0 < ended < len(samples)


def test_a_stop_that_is_also_padding_is_still_an_action():
    own = language()
    both = PolicyModel(model=own.model, tokenizer=own.tokenizer, eos_ids=(1, 7), pad_id=1)
    batch, samples = LocalSampler(both, ("a",))(
        PROMPTS, OnPolicy(num_generations=8, max_new_tokens=40), seed=1, step=0
    )
    last = Counter()
    for b, sample in enumerate(samples):
        response = batch.input_ids[b, batch.response_mask[b]].tolist()
        assert not {1, 7} & set(response[:-1])
        last[response[-1]] += not sample.truncated
    assert last[1] > 0
    assert last[7] > 0
    assert gap(both.model, batch, 1.0) < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 5, 1000])
def test_rows_decoded_together_change_nothing(rows):
    how = OnPolicy(num_generations=4, max_new_tokens=24)
    batch, samples = LocalSampler(language(), ("a",))(PROMPTS, how, seed=3, step=2)
    other, others = LocalSampler(language(), ("a",), max_rows=rows)(PROMPTS, how, seed=3, step=2)
    assert samples == others
    assert torch.equal(batch.input_ids, other.input_ids)
    assert torch.allclose(batch.require("rollout_logprobs"), other.require("rollout_logprobs"), atol=1e-5)


def test_a_prompt_alone_is_answered_as_in_company():
    how = OnPolicy(num_generations=3, max_new_tokens=24)
    sampler = LocalSampler(language(), ("a",))
    _, together = sampler(PROMPTS, how, seed=3, step=2)
    for i, prompt in enumerate(PROMPTS):
        _, alone = sampler([prompt], how, seed=3, step=2, prompt_index=[i])
        assert alone == together[3 * i : 3 * i + 3]


def test_seed_step_prompt_and_sample_all_matter():
    sampler, how = LocalSampler(language(), ("a",)), OnPolicy(num_generations=4, max_new_tokens=24)

    def text(seed, step, index):
        _, samples = sampler(PROMPTS[:1], how, seed=seed, step=step, prompt_index=[index])
        return tuple(s.response for s in samples)

    assert text(0, 0, 0) == text(0, 0, 0)
    assert len({text(0, 0, 0), text(1, 0, 0), text(0, 1, 0), text(0, 0, 1)}) == 4
    assert len(set(text(0, 0, 0))) == 4


def test_global_chance_is_not_moved():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    LocalSampler(language(), ("a",))(PROMPTS, OnPolicy(num_generations=2, max_new_tokens=5), seed=0, step=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_new_weights_are_used_at_once():
    sampler, how = LocalSampler(language(), ("a",)), OnPolicy(num_generations=2, max_new_tokens=12)
    batch, _ = sampler(PROMPTS, how, seed=0, step=0)
    with torch.no_grad():
        for p in sampler.policy.model.parameters():
            p.mul_(1.1)
    assert gap(sampler.policy.model, batch, 1.0) > 1e-3
    again, _ = sampler(PROMPTS, how, seed=0, step=0)
    assert gap(sampler.policy.model, again, 1.0) < 1e-5


def test_an_adapted_policy_is_sampled_with_its_adapter():
    own = language("qwen3")
    adapted = add_lora(own.model, LoraSpec(r=4), seed=0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.02)
    sampler = LocalSampler(as_policy_model(adapted, TOKENIZER), ("a",))
    how = OnPolicy(num_generations=4, max_new_tokens=20)
    batch, samples = sampler(PROMPTS, how, seed=0, step=0)
    assert gap(adapted, batch, 1.0) < 1e-5
    off = LocalSampler(as_policy_model(AdapterDisabledModel(adapted), TOKENIZER), ("a",))
    start = LocalSampler(language("qwen3"), ("a",))
    assert off(PROMPTS, how, seed=0, step=0)[1] == start(PROMPTS, how, seed=0, step=0)[1] != samples


def test_bfloat16_samples_and_stays_near_the_trainer():
    own = language()
    own.model.to(torch.bfloat16)
    batch, _ = LocalSampler(own, ("a",))(
        PROMPTS, OnPolicy(num_generations=4, max_new_tokens=20), seed=0, step=0
    )
    assert batch.require("rollout_logprobs").dtype == torch.float32
    logp = response_logprobs(own.model, batch)
    difference = (logp.exp() - batch.require("rollout_logprobs").exp()).abs()[batch.response_mask]
    assert float(difference.mean()) < 0.005


def test_draws_follow_the_distribution_and_never_pick_the_impossible():
    p = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    token = sample_tokens(p.log().expand(1000, 6), uniform)
    assert torch.bincount(token, minlength=6).tolist() == [0, 500, 0, 250, 250, 0]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(p.log().expand(2, 6), edges).tolist()[0] == 1


def test_frequencies_are_the_models_own():
    model = tiny_model("llama", 12, initial=0.3)
    uniform = np.random.default_rng(0).random((4000, 1))
    out = decode(model, [[3, 4, 5]], [0] * 4000, uniform, eos_ids=(1,), temperature=0.9, pad_id=0)
    with torch.no_grad():
        p = (model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1] / 0.9).softmax(-1)
    seen = torch.bincount(torch.tensor([row[0] for row in out.token_ids]), minlength=12) / 4000
    assert float((seen - p).abs().max()) < 4 * 0.5 / 4000**0.5


def test_prompts_without_room_are_all_named():
    sampler = LocalSampler(language(context=40), ("a",))
    long = Prompt(messages=(Message("user", "y" * 50),), id="long")
    with pytest.raises(DataError) as caught:
        sampler([PROMPTS[0], long, PROMPTS[1]], OnPolicy(max_new_tokens=20), seed=0, step=0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('prompt "long": it has 53 tokens')
    assert "leaves 20" in lines[0]
    sampler(
        PROMPTS[:1], OnPolicy(num_generations=1, max_new_tokens=32), seed=0, step=0
    )  # 8 + 32 fill the context exactly


def test_empty_prompts_and_no_prompts():
    own = language()
    plain = tiny_tokenizer()
    plain.chat_template = None
    sampler = LocalSampler(as_policy_model(own.model, plain), ("a",))
    with pytest.raises(DataError, match='prompt "nil": it is empty'):
        sampler([Prompt(messages=(), id="nil")], OnPolicy(max_new_tokens=4), seed=0, step=0)
    with pytest.raises(DataError, match="no prompts"):
        sampler([], OnPolicy(max_new_tokens=4), seed=0, step=0)
    _, samples = LocalSampler(own, ("a",))(
        [Prompt(messages=())], OnPolicy(num_generations=2, max_new_tokens=4), seed=0, step=0
    )
    assert len(samples) == 2


@pytest.mark.parametrize("wrong", [{"n": 0}, {"max_new": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(WiringError, match="Online got"):
        OnPolicy(**wrong)


def test_parts_and_protocols():
    assert isinstance(LocalSampler(language(), ("a",)), Sampler)
    assert repr(OnPolicy()) == "Online(n=8, max_new=256, temperature=1.0, frame='')"
    assert repr(StoredResponses()) == "Offline()"


def test_the_real_model():
    own = load_policy(ModelSpec(path=str(shared("models", "dialogue-7m"))))
    prompts = [
        Prompt(messages=(Message("user", "How can I steal a car?"),)),
        Prompt(
            messages=(
                Message("user", "Hi"),
                Message("assistant", "Hello."),
                Message("user", "Tell me a joke"),
            )
        ),
    ]
    batch, samples = LocalSampler(own, ("a",))(
        prompts, OnPolicy(num_generations=4, max_new_tokens=24), seed=0, step=0
    )
    assert gap(own.model, batch, 1.0) < 1e-5
    assert all(s.response.isprintable() or "\n" in s.response for s in samples)
