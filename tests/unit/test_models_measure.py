"""What models say of a batch: aligned, without gradient, in any order and cut of rows."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.model_passes import (
    ImplicitReward,
    ModelPass,
    Models,
    OldLogprobs,
    RefLogprobs,
    response_logprobs,
)
from support.tiny_models import tiny_model
from tinyrows import VOCAB, batch_of, rows

POLICY = tiny_model("llama", VOCAB, initial=0.3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_cut_into_rows_gives_the_same(count):
    tokens, attend, respond = rows((3, 9, 6, 9, 2), (1, 4, 2, 8, 1))
    batch = batch_of(tokens, attend, respond)
    out = response_logprobs(POLICY, batch, temperature=0.5, rows_per_pass=count)
    assert not out.requires_grad
    whole = compute_logprobs(POLICY, tokens, attend, respond, temperature=0.5).detach()
    assert torch.allclose(out, whole, atol=1e-6)
    assert (out[~respond] == 0).all()


def test_behaviour_is_the_samplers_word_or_the_trainers():
    batch = batch_of(*rows())
    models = Models(policy=POLICY)
    with pytest.raises(WiringError, match=r"batch\.sampler_logp"):
        OldLogprobs()(batch, models, 1.0, 8)
    word = torch.full(batch.input_ids.shape, -1.0)
    assert OldLogprobs()(batch.replace(rollout_logprobs=word), models, 1.0, 8).old_logprobs is word
    asked = OldLogprobs(source="trainer")(batch, models, 2.0, 8).require("old_logprobs")
    assert torch.equal(asked, response_logprobs(POLICY, batch, temperature=2.0))


def test_reference_asks_the_model_of_its_role():
    batch = batch_of(*rows())
    frozen = tiny_model("gpt2", VOCAB, initial=0.3)
    out = RefLogprobs("start")(batch, Models(policy=POLICY, frozen={"start": frozen}), 1.0, 2)
    assert torch.allclose(out.require("ref_logprobs"), response_logprobs(frozen, batch), atol=1e-6)
    with pytest.raises(WiringError, match='frozen model "start"; the run has none'):
        RefLogprobs("start")(batch, Models(policy=POLICY), 1.0, 2)


def test_parts_are_measures():
    assert isinstance(OldLogprobs(), ModelPass)
    assert isinstance(RefLogprobs(), ModelPass)
    assert repr(OldLogprobs("trainer")) == "Behaviour(by='trainer')"


def test_an_implicit_reward_is_the_gain_of_the_tuned_model_at_temperature_one():
    batch = batch_of(*rows())
    tuned, start = (tiny_model("llama", VOCAB, initial=0.3, seed=seed) for seed in (1, 2))
    models = Models(policy=POLICY, frozen={"dpo": tuned, "reference": start})
    gap = response_logprobs(tuned, batch) - response_logprobs(start, batch)
    out = ImplicitReward(0.05)(batch, models, 0.7, 2)
    assert out.token_rewards.shape == (*batch.input_ids.shape, 1)
    assert torch.allclose(out.token_rewards[..., 0], 0.05 * gap, atol=1e-6)
    twice = ImplicitReward(0.05)(out, models, 0.7, 2)
    assert torch.allclose(twice.token_rewards, 2 * out.token_rewards)
    cut = ImplicitReward(1.0, clip=0.05)(batch, models, 1.0, 8).token_rewards[..., 0]
    assert torch.allclose(cut, gap.clamp(-0.05, 0.05), atol=1e-5)
    assert (cut[~batch.response_mask] == 0).all()


def test_an_implicit_reward_needs_two_models_and_a_scale():
    batch, models = batch_of(*rows()), Models(policy=POLICY, frozen={"reference": POLICY})
    with pytest.raises(WiringError, match='frozen model "dpo"; the run has reference'):
        ImplicitReward()(batch, models, 1.0, 8)
    for wrong in ({"beta": 0.0}, {"clip": 0.0}):
        with pytest.raises(WiringError, match="must be above 0"):
            ImplicitReward(**wrong)
    same = ImplicitReward(tuned_role="reference")(batch, models, 1.0, 8)
    assert (same.token_rewards == 0).all()
