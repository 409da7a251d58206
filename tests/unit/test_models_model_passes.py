"""Model passes: aligned, without gradients, independent of the split into passes."""

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


@pytest.mark.parametrize("rows_per_pass", [1, 2, 5])
def test_the_split_into_passes_does_not_matter(rows_per_pass):
    input_ids, attention_mask, response_mask = rows((3, 9, 6, 9, 2), (1, 4, 2, 8, 1))
    batch = batch_of(input_ids, attention_mask, response_mask)
    out = response_logprobs(POLICY, batch, temperature=0.5, rows_per_pass=rows_per_pass)
    assert not out.requires_grad
    expected = compute_logprobs(POLICY, input_ids, attention_mask, response_mask, temperature=0.5).detach()
    assert torch.allclose(out, expected, atol=1e-6)
    assert (out[~response_mask] == 0).all()


def test_old_logprobs_come_from_the_rollout_or_the_policy():
    batch = batch_of(*rows())
    models = Models(policy=POLICY)
    with pytest.raises(WiringError, match=r"batch\.rollout_logprobs"):
        OldLogprobs()(batch, models, 1.0, 8)
    rollout_logprobs = torch.full(batch.input_ids.shape, -1.0)
    assert (
        OldLogprobs()(batch.replace(rollout_logprobs=rollout_logprobs), models, 1.0, 8).old_logprobs
        is rollout_logprobs
    )
    recomputed = OldLogprobs(source="policy")(batch, models, 2.0, 8).require("old_logprobs")
    assert torch.equal(recomputed, response_logprobs(POLICY, batch, temperature=2.0))


def test_ref_logprobs_use_the_frozen_model_of_their_role():
    batch = batch_of(*rows())
    frozen = tiny_model("gpt2", VOCAB, initial=0.3)
    out = RefLogprobs("start")(batch, Models(policy=POLICY, frozen={"start": frozen}), 1.0, 2)
    assert torch.allclose(out.require("ref_logprobs"), response_logprobs(frozen, batch), atol=1e-6)
    with pytest.raises(WiringError, match='frozen model "start" in this run; it has none'):
        RefLogprobs("start")(batch, Models(policy=POLICY), 1.0, 2)


def test_passes_follow_the_protocol():
    assert isinstance(OldLogprobs(), ModelPass)
    assert isinstance(RefLogprobs(), ModelPass)
    assert repr(OldLogprobs("policy")) == "OldLogprobs(source='policy')"


def test_implicit_reward_is_the_scaled_log_ratio_at_temperature_one():
    batch = batch_of(*rows())
    tuned, start = (tiny_model("llama", VOCAB, initial=0.3, seed=seed) for seed in (1, 2))
    models = Models(policy=POLICY, frozen={"dpo": tuned, "reference": start})
    log_ratio = response_logprobs(tuned, batch) - response_logprobs(start, batch)
    out = ImplicitReward(0.05)(batch, models, 0.7, 2)
    assert out.token_rewards.shape == (*batch.input_ids.shape, 1)
    assert torch.allclose(out.token_rewards[..., 0], 0.05 * log_ratio, atol=1e-6)
    twice = ImplicitReward(0.05)(out, models, 0.7, 2)
    assert torch.allclose(twice.token_rewards, 2 * out.token_rewards)
    clipped = ImplicitReward(1.0, clip=0.05)(batch, models, 1.0, 8).token_rewards[..., 0]
    assert torch.allclose(clipped, log_ratio.clamp(-0.05, 0.05), atol=1e-5)
    assert (clipped[~batch.response_mask] == 0).all()


def test_implicit_reward_needs_two_models_and_positive_coefficients():
    batch, models = batch_of(*rows()), Models(policy=POLICY, frozen={"reference": POLICY})
    with pytest.raises(WiringError, match='frozen model "dpo" in this run; it has reference'):
        ImplicitReward()(batch, models, 1.0, 8)
    for arguments in ({"beta": 0.0}, {"clip": 0.0}):
        with pytest.raises(WiringError, match="must be above 0"):
            ImplicitReward(**arguments)
    same = ImplicitReward(tuned_role="reference")(batch, models, 1.0, 8)
    assert (same.token_rewards == 0).all()
