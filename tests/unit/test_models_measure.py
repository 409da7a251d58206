"""What models say of a batch: aligned, without gradient, in any order and cut of rows."""

import pytest
import torch

from paretune.errors import WiringError
from paretune.models.forward import token_logp
from paretune.models.measure import Behaviour, ImplicitReward, Measure, Models, Reference, response_logp
from paretune.models.tiny import tiny_model
from tinyrows import VOCAB, batch_of, rows

POLICY = tiny_model("llama", VOCAB, initial=0.3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_cut_into_rows_gives_the_same(count):
    tokens, attend, respond = rows((3, 9, 6, 9, 2), (1, 4, 2, 8, 1))
    batch = batch_of(tokens, attend, respond)
    out = response_logp(POLICY, batch, temperature=0.5, rows=count)
    assert not out.requires_grad
    whole = token_logp(POLICY, tokens, attend, respond, temperature=0.5).detach()
    assert torch.allclose(out, whole, atol=1e-6)
    assert (out[~respond] == 0).all()


def test_behaviour_is_the_samplers_word_or_the_trainers():
    batch = batch_of(*rows())
    models = Models(policy=POLICY)
    with pytest.raises(WiringError, match=r"batch\.sampler_logp"):
        Behaviour()(batch, models, 1.0, 8)
    word = torch.full(batch.tokens.shape, -1.0)
    assert Behaviour()(batch.set(sampler_logp=word), models, 1.0, 8).behaviour_logp is word
    asked = Behaviour(by="trainer")(batch, models, 2.0, 8).need("behaviour_logp")
    assert torch.equal(asked, response_logp(POLICY, batch, temperature=2.0))


def test_reference_asks_the_model_of_its_role():
    batch = batch_of(*rows())
    frozen = tiny_model("gpt2", VOCAB, initial=0.3)
    out = Reference("start")(batch, Models(policy=POLICY, frozen={"start": frozen}), 1.0, 2)
    assert torch.allclose(out.need("reference_logp"), response_logp(frozen, batch), atol=1e-6)
    with pytest.raises(WiringError, match='frozen model "start"; the run has none'):
        Reference("start")(batch, Models(policy=POLICY), 1.0, 2)


def test_parts_are_measures():
    assert isinstance(Behaviour(), Measure)
    assert isinstance(Reference(), Measure)
    assert repr(Behaviour("trainer")) == "Behaviour(by='trainer')"


def test_an_implicit_reward_is_the_gain_of_the_tuned_model_at_temperature_one():
    batch = batch_of(*rows())
    tuned, start = (tiny_model("llama", VOCAB, initial=0.3, seed=seed) for seed in (1, 2))
    models = Models(policy=POLICY, frozen={"dpo": tuned, "reference": start})
    gap = response_logp(tuned, batch) - response_logp(start, batch)
    out = ImplicitReward(0.05)(batch, models, 0.7, 2)
    assert out.token_reward.shape == (*batch.tokens.shape, 1)
    assert torch.allclose(out.token_reward[..., 0], 0.05 * gap, atol=1e-6)
    twice = ImplicitReward(0.05)(out, models, 0.7, 2)
    assert torch.allclose(twice.token_reward, 2 * out.token_reward)
    cut = ImplicitReward(1.0, clip=0.05)(batch, models, 1.0, 8).token_reward[..., 0]
    assert torch.allclose(cut, gap.clamp(-0.05, 0.05), atol=1e-5)
    assert (cut[~batch.respond] == 0).all()


def test_an_implicit_reward_needs_two_models_and_a_scale():
    batch, models = batch_of(*rows()), Models(policy=POLICY, frozen={"reference": POLICY})
    with pytest.raises(WiringError, match='frozen model "dpo"; the run has reference'):
        ImplicitReward()(batch, models, 1.0, 8)
    for wrong in ({"beta": 0.0}, {"clip": 0.0}):
        with pytest.raises(WiringError, match="must be above 0"):
            ImplicitReward(**wrong)
    same = ImplicitReward(tuned="reference")(batch, models, 1.0, 8)
    assert (same.token_reward == 0).all()
