"""The critic: alignment of values, initialization, saving, and its use in passes and training."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from paretune.core.errors import WiringError
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.returns import Gae
from paretune.credit.shaping import TerminalReward
from paretune.loss.auxiliary import ClippedValueLoss, SquaredValueLoss
from paretune.loss.base import WeightedLoss
from paretune.loss.policy import ClippedSurrogate
from paretune.models.critic import Critic, critic_from_policy
from paretune.models.forward.logprobs import compute_outputs, compute_values, hidden_states
from paretune.models.lora import LoraSpec
from paretune.models.model_passes import CriticValues, Models, OldLogprobs, PolicyEntropy
from paretune.rl.loop import train
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from support.tiny_models import tiny_model
from tinyrows import VOCAB, batch_of, rows
from toy import WEIGHTS, digest, toy_recipe, toy_world

NAMES = ("even", "high")


def random_critic(kind="llama", heads=2, policy=None):
    critic = critic_from_policy(policy or tiny_model(kind, VOCAB, initial=0.3), heads)
    weight = critic.network.score.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return critic


def test_a_new_critic_has_a_copy_of_the_policys_body_and_zero_values():
    policy = tiny_model("llama", VOCAB, initial=0.3)
    new_critic = critic_from_policy(policy, 3)
    input_ids, attention_mask, _ = rows()
    assert new_critic.num_heads == 3
    assert (new_critic(input_ids, attention_mask) == 0).all()
    ours = hidden_states(new_critic.network, input_ids, attention_mask)
    expected = hidden_states(policy, input_ids, attention_mask)
    assert torch.equal(ours[attention_mask], expected[attention_mask])
    new_critic.network.score.weight.data += 1
    assert torch.equal(
        hidden_states(policy, input_ids, attention_mask)[attention_mask], expected[attention_mask]
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_value_at_a_token_is_that_of_the_state_before_it(kind):
    critic = random_critic(kind)
    input_ids, attention_mask, response_mask = rows()
    values = compute_values(critic, input_ids, attention_mask, response_mask)
    assert (values[~response_mask] == 0).all()
    for b, row in enumerate(input_ids):
        for t in response_mask[b].nonzero().squeeze(-1).tolist():
            alone = critic(row[None, :t], torch.ones(1, t, dtype=torch.bool))[0, -1]
            torch.testing.assert_close(values[b, t], alone, atol=1e-5, rtol=0)


def test_a_saved_critic_loads_as_a_sequence_classifier(tmp_path):
    critic = random_critic()
    critic.network.save_pretrained(tmp_path)
    loaded = Critic(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    input_ids, attention_mask, _ = rows()
    assert torch.equal(critic(input_ids, attention_mask), loaded(input_ids, attention_mask))
    assert loaded.num_heads == 2


def test_lora_critics_train_adapter_and_heads():
    critic = critic_from_policy(tiny_model("llama", VOCAB, initial=0.3), 1, lora=LoraSpec(r=2))
    trainable = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in trainable)
    assert any("score" in name for name in trainable)
    assert critic.num_heads == 1


def test_values_of_model_pass_and_loss_are_equal():
    policy = tiny_model("llama", VOCAB, initial=0.3)
    critic = random_critic(policy=policy)
    batch = batch_of(*rows())
    models = Models(policy=policy, critic=critic)
    values = CriticValues()(batch, models, 1.0, 2).values
    assert not values.requires_grad
    out = compute_outputs(policy, batch, frozenset({"values", "entropy"}), critic=critic)
    torch.testing.assert_close(out.values.detach(), values, atol=1e-6, rtol=0)
    assert out.values.requires_grad
    entropy = PolicyEntropy()(batch, models, 1.0, 2).entropy
    torch.testing.assert_close(out.entropy.detach(), entropy, atol=1e-6, rtol=0)
    assert compute_outputs(policy, batch).values is None
    with pytest.raises(WiringError, match="no critic"):
        compute_outputs(policy, batch, frozenset({"values"}))
    with pytest.raises(WiringError, match="needs a critic"):
        CriticValues()(batch, Models(policy=policy), 1.0, 2)
    with pytest.raises(WiringError, match="at least one head"):
        critic_from_policy(policy, 0)


def spec_with_critic(reward_steps, value_loss):
    return toy_recipe().replace(
        reward_steps=reward_steps,
        model_passes=(OldLogprobs(), CriticValues()),
        credit=chain(TerminalReward(), Gae()),
        losses=(WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(0.5, value_loss)),
    )


@pytest.mark.parametrize("value_loss", [SquaredValueLoss(), ClippedValueLoss(0.2)])
def test_the_dry_run_derives_the_number_of_heads(value_loss):
    assert check_spec(spec_with_critic(WeightedSum(WEIGHTS), value_loss), NAMES).num_critic_heads == 1
    assert check_spec(toy_recipe(), NAMES).num_critic_heads == 0
    per_objective = spec_with_critic(chain(), value_loss).replace(
        losses=(WeightedLoss(1.0, value_loss), WeightedLoss(1.0, PerObjectiveLoss()))
    )
    assert check_spec(per_objective, NAMES).num_critic_heads == 2


class PerObjectiveLoss(ClippedSurrogate):
    """A policy loss of several objectives."""

    def __call__(self, out, batch):
        return (out.logprobs[..., None] * batch.advantages).sum()

    def metrics(self, out, batch):
        return {}


def test_training_updates_policy_and_critic(tmp_path):
    context, spec = toy_world(), spec_with_critic(WeightedSum(WEIGHTS), ClippedValueLoss(0.2))
    with pytest.raises(WiringError, match="needs a critic"):
        train(spec, context, max_steps=1, seed=0, run=Run(tmp_path / "none"))
    for heads, match in ((2, "1 head"), (1, None)):
        models = replace(context.models, critic=critic_from_policy(context.models.policy, heads))
        context_with_critic = replace(context, models=models)
        if match:
            with pytest.raises(WiringError, match=match):
                train(spec, context_with_critic, max_steps=1, seed=0, run=Run(tmp_path / "two"))
    before, run_folder = digest(context_with_critic), Run(tmp_path / "one")
    train(spec, context_with_critic, max_steps=4, seed=0, run=run_folder)
    assert digest(context_with_critic) != before
    assert (models.critic.network.score.weight != 0).any()
    assert "clip_fraction/value" in (tmp_path / "one" / "metrics.jsonl").read_text()
