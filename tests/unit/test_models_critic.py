"""A critic: its values where the actions are, its folder, its copy of a body, and who asks for it."""

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


def critic(kind="llama", heads=2, policy=None):
    made = critic_from_policy(policy or tiny_model(kind, VOCAB, initial=0.3), heads)
    weight = made.network.score.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return made


def test_a_new_critic_has_the_policys_body_and_expects_nothing():
    policy = tiny_model("llama", VOCAB, initial=0.3)
    fresh = critic_from_policy(policy, 3)
    tokens, attend, _ = rows()
    assert fresh.num_heads == 3
    assert (fresh(tokens, attend) == 0).all()
    ours, theirs = hidden_states(fresh.network, tokens, attend), hidden_states(policy, tokens, attend)
    assert torch.equal(ours[attend], theirs[attend])
    fresh.network.score.weight.data += 1
    assert torch.equal(hidden_states(policy, tokens, attend)[attend], theirs[attend])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_values_stand_where_the_actions_are(kind):
    made = critic(kind)
    tokens, attend, where = rows()
    values = compute_values(made, tokens, attend, where)
    assert (values[~where] == 0).all()
    for b, row in enumerate(tokens):
        for t in where[b].nonzero().squeeze(-1).tolist():
            alone = made(row[None, :t], torch.ones(1, t, dtype=torch.bool))[0, -1]
            torch.testing.assert_close(values[b, t], alone, atol=1e-5, rtol=0)


def test_its_folder_is_a_sequence_classifier(tmp_path):
    made = critic()
    made.network.save_pretrained(tmp_path)
    again = Critic(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    tokens, attend, _ = rows()
    assert torch.equal(made(tokens, attend), again(tokens, attend))
    assert again.num_heads == 2


def test_an_adapter_trains_the_heads_too():
    made = critic_from_policy(tiny_model("llama", VOCAB, initial=0.3), 1, lora=LoraSpec(r=2))
    learnt = {name for name, p in made.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in learnt)
    assert any("score" in name for name in learnt)
    assert made.num_heads == 1


def test_measure_and_forward_pass_ask_it():
    policy = tiny_model("llama", VOCAB, initial=0.3)
    made = critic(policy=policy)
    batch = batch_of(*rows())
    models = Models(policy=policy, critic=made)
    seen = CriticValues()(batch, models, 1.0, 2).values
    assert not seen.requires_grad
    out = compute_outputs(policy, batch, frozenset({"values", "entropy"}), critic=made)
    torch.testing.assert_close(out.values.detach(), seen, atol=1e-6, rtol=0)
    assert out.values.requires_grad
    entropy = PolicyEntropy()(batch, models, 1.0, 2).entropy
    torch.testing.assert_close(out.entropy.detach(), entropy, atol=1e-6, rtol=0)
    assert compute_outputs(policy, batch).values is None
    with pytest.raises(WiringError, match="no critic"):
        compute_outputs(policy, batch, frozenset({"values"}))
    with pytest.raises(WiringError, match="asks the critic"):
        CriticValues()(batch, Models(policy=policy), 1.0, 2)
    with pytest.raises(WiringError, match="at least one head"):
        critic_from_policy(policy, 0)


def critical(worth, value):
    """A recipe with a critic."""
    return toy_recipe().replace(
        reward_steps=worth,
        model_passes=(OldLogprobs(), CriticValues()),
        credit=chain(TerminalReward(), Gae()),
        losses=(WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(0.5, value)),
    )


@pytest.mark.parametrize("value", [SquaredValueLoss(), ClippedValueLoss(0.2)])
def test_the_dry_run_derives_the_heads(value):
    assert check_spec(critical(WeightedSum(WEIGHTS), value), NAMES).num_critic_heads == 1
    assert check_spec(toy_recipe(), NAMES).num_critic_heads == 0
    apart = critical(chain(), value).replace(losses=(WeightedLoss(1.0, value), WeightedLoss(1.0, Apart())))
    assert check_spec(apart, NAMES).num_critic_heads == 2


class Apart(ClippedSurrogate):
    """A policy loss of several objectives."""

    def __call__(self, out, batch):
        return (out.logprobs[..., None] * batch.advantages).sum()

    def watch(self, out, batch):
        return {}


def test_the_loop_trains_it_beside_the_policy(tmp_path):
    world, recipe = toy_world(), critical(WeightedSum(WEIGHTS), ClippedValueLoss(0.2))
    with pytest.raises(WiringError, match="asks a critic"):
        train(recipe, world, max_steps=1, seed=0, run=Run(tmp_path / "none"))
    for heads, match in ((2, "needs 1 heads"), (1, None)):
        models = replace(world.models, critic=critic_from_policy(world.models.policy, heads))
        now = replace(world, models=models)
        if match:
            with pytest.raises(WiringError, match=match):
                train(recipe, now, max_steps=1, seed=0, run=Run(tmp_path / "two"))
    before, run_folder = digest(now), Run(tmp_path / "one")
    train(recipe, now, max_steps=4, seed=0, run=run_folder)
    assert digest(now) != before
    assert (models.critic.network.score.weight != 0).any()
    assert "clip_fraction/value" in (tmp_path / "one" / "metrics.jsonl").read_text()
