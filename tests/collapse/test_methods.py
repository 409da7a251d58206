"""Methods with a critic, on pairs, on lists and with selection equal their parents at neutral settings."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from battery import language, recipe_of, weights_of, world_of
from paretune.algorithms.ppo import ppo, ppo_max
from paretune.core.batch import Outputs
from paretune.core.reductions import token_weights
from paretune.credit.base import chain, flatten_steps
from paretune.credit.constraints import Constraint
from paretune.credit.normalization import Whiten
from paretune.credit.returns import Gae, ReturnToGo
from paretune.credit.selection import ResampleByRank
from paretune.credit.shaping import TerminalReward
from paretune.loss.auxiliary import SftLoss
from paretune.loss.base import WeightedLoss
from paretune.loss.listwise import PreferenceRanking
from paretune.rl.algorithm_spec import LossAggregation
from paretune.rollout.sampler import OnPolicy
from toy import WEIGHTS, advance, algorithm, graded, trained

STEPS = {"steps": 2, "every": 2}


def final_weights(folder, recipe, frozen=None):
    """The policy's weights after two steps; `frozen` replaces models that phases would train."""
    world = world_of(recipe.replace(phases=()) if frozen else recipe, folder)
    if frozen:
        world = replace(world, models=replace(world.models, frozen={**world.models.frozen, **frozen}))
    trained(folder / "run", world, recipe.replace(phases=()), **STEPS)
    return weights_of(world.models.policy)


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def plain(tmp_path):
    return final_weights(tmp_path / "ppo", recipe_of("ppo"))


def test_salsa_with_fraction_0_equals_ppo(tmp_path, plain):
    same(final_weights(tmp_path / "salsa", recipe_of("salsa", other_fraction=0.0)), plain)
    other = final_weights(tmp_path / "mixed", recipe_of("salsa", other_fraction=0.5))
    assert any(not torch.equal(other[key], plain[key]) for key in plain)


def test_rto_whose_dpo_policy_is_the_initial_policy_equals_ppo(tmp_path):
    recipe = recipe_of("rto", kl_coef=0.05)
    start = language().model.requires_grad_(False)
    parent = final_weights(tmp_path / "ppo", recipe_of("ppo", kl_coef=0.05))
    same(final_weights(tmp_path / "rto", recipe, {"dpo": start}), parent)
    tuned = language(7).model.requires_grad_(False)
    other = final_weights(tmp_path / "tuned", recipe, {"dpo": tuned})
    assert any(not torch.equal(other[key], parent[key]) for key in parent)


def test_ppo_max_without_scale_and_clip_equals_ppo(tmp_path):
    how = {
        "num_generations": 4,
        "max_new_tokens": 6,
        "num_iterations": 2,
        "critic_warmup_steps": 0,
        "critic_lr_multiplier": 1.0,
        "vf_coef": 0.1,
    }
    recipe = ppo_max(WEIGHTS, reward_clip=None, advantage_normalization="whiten", **how)
    total, scale = flatten_steps(recipe.reward_steps)
    parent = ppo(WEIGHTS, **how)
    same(
        final_weights(tmp_path / "max", recipe.replace(reward_steps=chain(total))),
        final_weights(tmp_path / "ppo", parent),
    )
    assert recipe.replace(name="ppo", reward_steps=parent.reward_steps) == parent
    assert type(scale).__name__ == "RunningNormalize"


def test_critic_warmup_does_not_change_the_policy(tmp_path):
    recipe = recipe_of("ppo_max", critic_warmup_steps=2)
    world = world_of(recipe, tmp_path)
    start, critic = weights_of(world.models.policy), weights_of(world.models.critic)
    trained(tmp_path / "run", world, recipe, **STEPS)
    same(weights_of(world.models.policy), start)
    assert any(not torch.equal(value, critic[key]) for key, value in weights_of(world.models.critic).items())


def test_ppo_with_zero_values_is_whitened_reinforce():
    batch = graded([0.9, 0.1, 0.4, 0.7], group=[0, 1, 2, 3], lengths=[2, 3, 1, 2])
    batch = batch.replace(values=torch.zeros(*batch.input_ids.shape, 1))
    ours, _ = advance(chain(TerminalReward(), Gae(1.0, 1.0), Whiten()), batch)
    parent, _ = advance(chain(TerminalReward(), ReturnToGo(1.0), Whiten()), batch)
    torch.testing.assert_close(ours.advantages, parent.advantages)


def test_safe_rlhf_with_multiplier_0_has_the_advantages_of_its_first_head():
    batch = graded([[0.9, 0.1], [0.2, 0.8], [0.5, 0.4]], group=[0, 1, 2], objectives=("even", "high"))
    zero = torch.zeros(batch.input_ids.shape)
    batch = batch.replace(old_logprobs=zero, ref_logprobs=zero - 0.1 * batch.response_mask)
    values = torch.rand(*batch.input_ids.shape, 2, generator=torch.Generator().manual_seed(0))
    constraint = (Constraint("high", 0.5),)
    held = algorithm("safe_rlhf", constraints=constraint, multiplier_init=1e-30, multiplier_lr=0.0)
    first = {"even": 1.0, "high": 0.0}
    held = held.replace(
        credit=chain(
            *(
                replace(step, weights=first) if hasattr(step, "weights") else step
                for step in flatten_steps(held.credit)
            )
        )
    )
    ours, _ = advance(chain(held.reward_steps, held.credit), batch.replace(values=values))
    parent = ppo(first, kl_coef=0.01)
    want, _ = advance(chain(parent.reward_steps, parent.credit), batch.replace(values=values[..., :1]))
    torch.testing.assert_close(ours.advantages, want.advantages)


def test_tdpo_with_alpha_0_equals_dpo(tmp_path):
    ours = final_weights(tmp_path / "tdpo", recipe_of("tdpo", variant=2, alpha=0.0))
    same(ours, final_weights(tmp_path / "dpo", recipe_of("dpo")))


def test_pro_of_two_responses_is_a_scaled_logistic_loss():
    batch = graded([0.9, 0.4, 0.1, 0.8], group=[0, 0, 1, 1], lengths=[2, 3, 1, 2])
    batch = batch.replace(loss_weights=token_weights(batch.response_mask, "seq_mean_token_mean"))
    logp = torch.where(
        batch.response_mask, -torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(1)), 0
    )
    score = logp.sum(-1) / batch.response_mask.sum(-1)
    margins = torch.stack([0.5 * (score[0] - score[1]), 0.7 * (score[3] - score[2])])
    torch.testing.assert_close(
        PreferenceRanking()(Outputs(logprobs=logp), batch), -F.logsigmoid(margins).mean()
    )


def test_superhf_of_one_without_kl_is_sft_on_own_samples(tmp_path):
    one = OnPolicy(num_generations=1, max_new_tokens=6)
    ours = recipe_of("superhf", kl_coef=0.0).replace(rollout=one)
    parent = recipe_of("grpo", num_generations=2).replace(
        rollout=one,
        reward_steps=chain(),
        credit=chain(),
        losses=(WeightedLoss(1.0, SftLoss()),),
        loss_aggregation=LossAggregation("token_mean"),
    )
    same(final_weights(tmp_path / "superhf", ours), final_weights(tmp_path / "sft", parent))


def test_pf_ppo_with_equal_probabilities_samples_uniformly():
    batch = graded([0.9, 0.1, 0.4, 0.7], group=[0, 0, 0, 0])
    step = ResampleByRank("power", num_samples=4, exponent=0.0)
    drawn = torch.zeros(4)
    for seed in range(400):
        left, _ = advance(step, batch, seed)
        drawn += torch.stack([(left.scores[:, 0] == score).sum() for score in batch.scores[:, 0]])
    torch.testing.assert_close(drawn / drawn.sum(), torch.full((4,), 0.25), atol=0.03, rtol=0)
