"""Sampled responses carry the log-probabilities of training and depend on their policy seeds only."""

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


def random_policy(kind="llama", seed=0, **size):
    return as_policy_model(tiny_model(kind, SIZE, initial=0.25, seed=seed, **size), TOKENIZER)


def max_logprob_error(model, batch, temperature):
    with torch.no_grad():
        logprobs = compute_logprobs(
            model, batch.input_ids, batch.attention_mask, batch.response_mask, temperature=temperature
        )
    return float((logprobs - batch.require("rollout_logprobs")).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_logprobs_equal_a_new_forward_pass(kind):
    sampler = LocalSampler(random_policy(kind), ("a", "b"), max_rows=64)
    batch, samples = sampler(
        PROMPTS, OnPolicy(num_generations=4, max_new_tokens=30, temperature=0.8), seed=0, step=0
    )
    assert len(samples) == len(batch) == 16
    assert batch.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert len({len(s.response) for s in samples}) > 3
    assert batch.objectives == ("a", "b")
    assert max_logprob_error(sampler.policy.model, batch, 0.8) < 1e-5
    assert (batch.require("rollout_logprobs")[~batch.response_mask] == 0).all()
    assert (batch.require("rollout_logprobs")[batch.response_mask] < 0).all()


def test_a_sliding_window_shorter_than_the_rows_is_respected():
    sampler = LocalSampler(random_policy("mistral", sliding_window=7), ("a",))
    batch, _ = sampler(PROMPTS, OnPolicy(num_generations=3, max_new_tokens=30), seed=0, step=0)
    assert max_logprob_error(sampler.policy.model, batch, 1.0) < 1e-5


def test_rows_contain_prompt_response_and_eos_and_match_the_text():
    sampler = LocalSampler(random_policy(), ("a",))
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


def test_an_eos_token_that_is_also_padding_is_part_of_the_response():
    policy = random_policy()
    shared_id = PolicyModel(model=policy.model, tokenizer=policy.tokenizer, eos_ids=(1, 7), pad_id=1)
    batch, samples = LocalSampler(shared_id, ("a",))(
        PROMPTS, OnPolicy(num_generations=8, max_new_tokens=40), seed=1, step=0
    )
    last = Counter()
    for b, sample in enumerate(samples):
        response = batch.input_ids[b, batch.response_mask[b]].tolist()
        assert not {1, 7} & set(response[:-1])
        last[response[-1]] += not sample.truncated
    assert last[1] > 0
    assert last[7] > 0
    assert max_logprob_error(shared_id.model, batch, 1.0) < 1e-5


@pytest.mark.parametrize("max_rows", [1, 3, 5, 1000])
def test_the_number_of_rows_decoded_together_does_not_matter(max_rows):
    rollout = OnPolicy(num_generations=4, max_new_tokens=24)
    batch, samples = LocalSampler(random_policy(), ("a",))(PROMPTS, rollout, seed=3, step=2)
    other, others = LocalSampler(random_policy(), ("a",), max_rows=max_rows)(PROMPTS, rollout, seed=3, step=2)
    assert samples == others
    assert torch.equal(batch.input_ids, other.input_ids)
    assert torch.allclose(batch.require("rollout_logprobs"), other.require("rollout_logprobs"), atol=1e-5)


def test_responses_do_not_depend_on_other_prompts():
    rollout = OnPolicy(num_generations=3, max_new_tokens=24)
    sampler = LocalSampler(random_policy(), ("a",))
    _, together = sampler(PROMPTS, rollout, seed=3, step=2)
    for i, prompt in enumerate(PROMPTS):
        _, alone = sampler([prompt], rollout, seed=3, step=2, prompt_index=[i])
        assert alone == together[3 * i : 3 * i + 3]


def test_responses_depend_on_seed_step_prompt_and_sample():
    sampler, rollout = LocalSampler(random_policy(), ("a",)), OnPolicy(num_generations=4, max_new_tokens=24)

    def text(seed, step, index):
        _, samples = sampler(PROMPTS[:1], rollout, seed=seed, step=step, prompt_index=[index])
        return tuple(s.response for s in samples)

    assert text(0, 0, 0) == text(0, 0, 0)
    assert len({text(0, 0, 0), text(1, 0, 0), text(0, 1, 0), text(0, 0, 1)}) == 4
    assert len(set(text(0, 0, 0))) == 4


def test_the_global_random_generator_is_not_used():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    LocalSampler(random_policy(), ("a",))(
        PROMPTS, OnPolicy(num_generations=2, max_new_tokens=5), seed=0, step=0
    )
    assert torch.equal(before, torch.random.get_rng_state())


def test_changed_weights_are_used_immediately():
    sampler, rollout = LocalSampler(random_policy(), ("a",)), OnPolicy(num_generations=2, max_new_tokens=12)
    batch, _ = sampler(PROMPTS, rollout, seed=0, step=0)
    with torch.no_grad():
        for p in sampler.policy.model.parameters():
            p.mul_(1.1)
    assert max_logprob_error(sampler.policy.model, batch, 1.0) > 1e-3
    again, _ = sampler(PROMPTS, rollout, seed=0, step=0)
    assert max_logprob_error(sampler.policy.model, again, 1.0) < 1e-5


def test_a_policy_is_sampled_with_its_adapter():
    policy = random_policy("qwen3")
    adapted = add_lora(policy.model, LoraSpec(r=4), seed=0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.02)
    sampler = LocalSampler(as_policy_model(adapted, TOKENIZER), ("a",))
    rollout = OnPolicy(num_generations=4, max_new_tokens=20)
    batch, samples = sampler(PROMPTS, rollout, seed=0, step=0)
    assert max_logprob_error(adapted, batch, 1.0) < 1e-5
    disabled = LocalSampler(as_policy_model(AdapterDisabledModel(adapted), TOKENIZER), ("a",))
    base = LocalSampler(random_policy("qwen3"), ("a",))
    assert (
        disabled(PROMPTS, rollout, seed=0, step=0)[1] == base(PROMPTS, rollout, seed=0, step=0)[1] != samples
    )


def test_bfloat16_rollout_logprobs_are_close_to_those_of_training():
    policy = random_policy()
    policy.model.to(torch.bfloat16)
    batch, _ = LocalSampler(policy, ("a",))(
        PROMPTS, OnPolicy(num_generations=4, max_new_tokens=20), seed=0, step=0
    )
    assert batch.require("rollout_logprobs").dtype == torch.float32
    logp = response_logprobs(policy.model, batch)
    difference = (logp.exp() - batch.require("rollout_logprobs").exp()).abs()[batch.response_mask]
    assert float(difference.mean()) < 0.005


def test_sampled_tokens_follow_the_distribution_and_have_nonzero_probability():
    p = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    token = sample_tokens(p.log().expand(1000, 6), uniform)
    assert torch.bincount(token, minlength=6).tolist() == [0, 500, 0, 250, 250, 0]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(p.log().expand(2, 6), edges).tolist()[0] == 1


def test_token_frequencies_match_the_models_distribution():
    model = tiny_model("llama", 12, initial=0.3)
    uniform = np.random.default_rng(0).random((4000, 1))
    out = decode(model, [[3, 4, 5]], [0] * 4000, uniform, eos_ids=(1,), temperature=0.9, pad_id=0)
    with torch.no_grad():
        p = (model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1] / 0.9).softmax(-1)
    frequencies = torch.bincount(torch.tensor([row[0] for row in out.token_ids]), minlength=12) / 4000
    assert float((frequencies - p).abs().max()) < 4 * 0.5 / 4000**0.5


def test_all_prompts_without_room_for_a_response_are_listed():
    sampler = LocalSampler(random_policy(context=40), ("a",))
    long_prompt = Prompt(messages=(Message("user", "y" * 50),), id="long")
    with pytest.raises(DataError) as caught:
        sampler([PROMPTS[0], long_prompt, PROMPTS[1]], OnPolicy(max_new_tokens=20), seed=0, step=0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('prompt "long": 53 tokens are too long')
    assert "leaves 20" in lines[0]
    sampler(
        PROMPTS[:1], OnPolicy(num_generations=1, max_new_tokens=32), seed=0, step=0
    )  # 8 + 32 fill the context exactly


def test_empty_prompts_and_no_prompts_are_errors():
    policy = random_policy()
    no_template = tiny_tokenizer()
    no_template.chat_template = None
    sampler = LocalSampler(as_policy_model(policy.model, no_template), ("a",))
    with pytest.raises(DataError, match='prompt "nil": the prompt is empty'):
        sampler([Prompt(messages=(), id="nil")], OnPolicy(max_new_tokens=4), seed=0, step=0)
    with pytest.raises(DataError, match="no prompts"):
        sampler([], OnPolicy(max_new_tokens=4), seed=0, step=0)
    _, samples = LocalSampler(policy, ("a",))(
        [Prompt(messages=())], OnPolicy(num_generations=2, max_new_tokens=4), seed=0, step=0
    )
    assert len(samples) == 2


@pytest.mark.parametrize(
    "arguments", [{"num_generations": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": -1.0}]
)
def test_invalid_sampling_parameters_are_errors(arguments):
    with pytest.raises(WiringError, match="OnPolicy got"):
        OnPolicy(**arguments)


def test_protocols_and_reprs():
    assert isinstance(LocalSampler(random_policy(), ("a",)), Sampler)
    assert (
        repr(OnPolicy())
        == "OnPolicy(num_generations=8, max_new_tokens=256, temperature=1.0, prompt_format='')"
    )
    assert repr(StoredResponses()) == "StoredResponses()"


def test_a_real_model_is_sampled():
    policy = load_policy(ModelSpec(path=str(shared("models", "dialogue-7m"))))
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
    batch, samples = LocalSampler(policy, ("a",))(
        prompts, OnPolicy(num_generations=4, max_new_tokens=24), seed=0, step=0
    )
    assert max_logprob_error(policy.model, batch, 1.0) < 1e-5
    assert all(s.response.isprintable() or "\n" in s.response for s in samples)
