"""Methods with a critic, of pairs, of lists and of selections are their parents at neutral settings."""

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


def learnt(folder, recipe, frozen=None):
    """The policy's weights after two steps; `frozen` takes the place of models that phases would make."""
    world = world_of(recipe.but(phases=()) if frozen else recipe, folder)
    if frozen:
        world = replace(world, models=replace(world.models, frozen={**world.models.frozen, **frozen}))
    trained(folder / "run", world, recipe.but(phases=()), **STEPS)
    return weights_of(world.models.policy)


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def plain(tmp_path):
    return learnt(tmp_path / "ppo", recipe_of("ppo"))


def test_salsa_with_a_soup_of_one_is_ppo(tmp_path, plain):
    same(learnt(tmp_path / "salsa", recipe_of("salsa", share=0.0)), plain)
    other = learnt(tmp_path / "mixed", recipe_of("salsa", share=0.5))
    assert any(not torch.equal(other[key], plain[key]) for key in plain)


def test_rto_whose_tuned_policy_is_the_start_is_ppo(tmp_path):
    recipe = recipe_of("rto", kl=0.05)
    start = language().model.requires_grad_(False)
    parent = learnt(tmp_path / "ppo", recipe_of("ppo", kl=0.05))
    same(learnt(tmp_path / "rto", recipe, {"dpo": start}), parent)
    tuned = language(7).model.requires_grad_(False)
    other = learnt(tmp_path / "tuned", recipe, {"dpo": tuned})
    assert any(not torch.equal(other[key], parent[key]) for key in parent)


def test_ppo_max_without_its_scale_and_clip_is_ppo(tmp_path):
    how = {"n": 4, "max_new": 6, "epochs": 2, "critic_alone": 0, "critic_rate": 1.0, "value_weight": 0.1}
    recipe = ppo_max(WEIGHTS, reward_clip=None, advantage_normalization="whitened", **how)
    total, scale = flatten_steps(recipe.reward_steps)
    parent = ppo(WEIGHTS, **how)
    same(
        learnt(tmp_path / "max", recipe.replace(reward_steps=chain(total))), learnt(tmp_path / "ppo", parent)
    )
    assert recipe.replace(name="ppo", reward_steps=parent.reward_steps) == parent
    assert type(scale).__name__ == "RunningScale"


def test_a_critic_that_learns_alone_leaves_the_policy(tmp_path):
    recipe = recipe_of("ppo_max", critic_alone=2)
    world = world_of(recipe, tmp_path)
    start, critic = weights_of(world.models.policy), weights_of(world.models.critic)
    trained(tmp_path / "run", world, recipe, **STEPS)
    same(weights_of(world.models.policy), start)
    assert any(not torch.equal(value, critic[key]) for key, value in weights_of(world.models.critic).items())


def test_ppo_with_values_of_nothing_is_reinforce_with_whitening():
    batch = graded([0.9, 0.1, 0.4, 0.7], group=[0, 1, 2, 3], lengths=[2, 3, 1, 2])
    batch = batch.replace(values=torch.zeros(*batch.input_ids.shape, 1))
    ours, _ = advance(chain(TerminalReward(), Gae(1.0, 1.0), Whiten()), batch)
    parent, _ = advance(chain(TerminalReward(), ReturnToGo(1.0), Whiten()), batch)
    torch.testing.assert_close(ours.advantages, parent.advantages)


def test_safe_rlhf_whose_constraint_weighs_nothing_has_the_advantages_of_its_first_head():
    batch = graded([[0.9, 0.1], [0.2, 0.8], [0.5, 0.4]], group=[0, 1, 2], objectives=("even", "high"))
    zero = torch.zeros(batch.input_ids.shape)
    batch = batch.replace(old_logprobs=zero, ref_logprobs=zero - 0.1 * batch.response_mask)
    values = torch.rand(*batch.input_ids.shape, 2, generator=torch.Generator().manual_seed(0))
    constraint = (Constraint("high", 0.5),)
    held = algorithm("safe_rlhf", constraints=constraint, start_at=1e-30, rate=0.0)
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


def test_tdpo_without_the_drift_is_dpo(tmp_path):
    ours = learnt(tmp_path / "tdpo", recipe_of("tdpo", form=2, alpha=0.0))
    same(ours, learnt(tmp_path / "dpo", recipe_of("dpo")))


def test_pro_of_two_is_a_logistic_loss_of_the_margin_times_the_gap():
    batch = graded([0.9, 0.4, 0.1, 0.8], group=[0, 0, 1, 1], lengths=[2, 3, 1, 2])
    batch = batch.replace(loss_weights=token_weights(batch.response_mask, "sequence"))
    logp = torch.where(
        batch.response_mask, -torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(1)), 0
    )
    score = logp.sum(-1) / batch.response_mask.sum(-1)
    margins = torch.stack([0.5 * (score[0] - score[1]), 0.7 * (score[3] - score[2])])
    torch.testing.assert_close(
        PreferenceRanking()(Outputs(logprobs=logp), batch), -F.logsigmoid(margins).mean()
    )


def test_superhf_of_one_without_a_price_is_fine_tuning_on_own_samples(tmp_path):
    one = OnPolicy(num_generations=1, max_new_tokens=6)
    ours = recipe_of("superhf", kl=0.0).replace(rollout=one)
    parent = recipe_of("grpo", n=2).replace(
        rollout=one,
        credit=chain(),
        losses=(WeightedLoss(1.0, SftLoss()),),
        loss_aggregation=LossAggregation("token"),
    )
    same(learnt(tmp_path / "superhf", ours), learnt(tmp_path / "sft", parent))


def test_pf_ppo_with_equal_odds_draws_every_response_alike():
    batch = graded([0.9, 0.1, 0.4, 0.7], group=[0, 0, 0, 0])
    step = ResampleByRank("power", num_samples=4, exponent=0.0)
    drawn = torch.zeros(4)
    for seed in range(400):
        left, _ = advance(step, batch, seed)
        drawn += torch.stack([(left.scores[:, 0] == score).sum() for score in batch.scores[:, 0]])
    torch.testing.assert_close(drawn / drawn.sum(), torch.full((4,), 0.25), atol=0.03, rtol=0)
