"""Each baseline is its parent where its setting is neutral."""

import pytest
import torch

from paretune.algorithms.grpo import dr_grpo, gdpo, gdpo_credit, grpo, mo_grpo, reinforce_pp, rloo
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.rl.algorithm_spec import LossAggregation
from toy import WEIGHTS, advance, graded, toy_world, trained

SMALL = {"num_generations": 4, "max_new_tokens": 4}
SCORES = [[0.9, 0.1], [0.3, 0.4], [0.2, 0.8], [0.5, 0.5], [1.0, 0.0], [0.7, 0.7]]
GROUP = [0, 0, 0, 1, 1, 1]


def credit(recipe, scores=SCORES):
    names = ("even", "high")[: len(scores[0])]
    zero = torch.zeros(len(scores), 3)
    batch = graded(scores, group=GROUP, objectives=names).replace(old_logprobs=zero, ref_logprobs=zero)
    return advance(chain(recipe.reward_steps, recipe.credit), batch)[0].advantages


def test_dr_grpo_with_std_and_sequence_mean_equals_grpo_bit_for_bit(tmp_path):
    recipe = dr_grpo(WEIGHTS, kl_coef=0.04, **SMALL).replace(
        credit=chain(GroupNormalize("group"), BroadcastToTokens()),
        loss_aggregation=LossAggregation("seq_mean_token_mean"),
    )
    ours = trained(tmp_path / "ours", toy_world(), recipe, steps=2)
    parent = trained(tmp_path / "parent", toy_world(), grpo(WEIGHTS, **SMALL), steps=2)
    assert ours == parent


def test_mo_grpo_with_one_objective_equals_grpo_bit_for_bit(tmp_path):
    ours = trained(tmp_path / "ours", toy_world(), mo_grpo({"even": 1.0}, **SMALL), steps=2)
    parent = trained(tmp_path / "parent", toy_world(), grpo({"even": 1.0}, **SMALL), steps=2)
    assert ours[0] == parent[0]


def test_rloo_advantages_are_those_of_dr_grpo_times_n_over_n_minus_one():
    torch.testing.assert_close(credit(rloo(WEIGHTS)), credit(dr_grpo(WEIGHTS)) * 3 / 2)
    assert torch.equal(credit(rloo(WEIGHTS)), credit(rloo(WEIGHTS, kl_coef=0.0)))


def test_gdpo_advantages_are_those_of_mo_grpo_up_to_one_factor():
    ours, parent = credit(gdpo(WEIGHTS)), credit(mo_grpo(WEIGHTS))
    torch.testing.assert_close(ours * parent.norm(), parent * ours.norm())
    one = {"even": 1.0}
    scores = [row[:1] for row in SCORES]
    ours, parent = credit(gdpo(one), scores), credit(grpo(one), scores)
    torch.testing.assert_close(ours * parent.norm(), parent * ours.norm())


def test_nvlabs_gdpo_of_one_objective_equals_grpo():
    batch = graded([row[:1] for row in SCORES], group=GROUP, objectives=("even",))
    ours, _ = advance(gdpo_credit({"even": 2.0}, "nvlabs"), batch)
    parent, _ = advance(chain(WeightedSum({"even": 2.0}), GroupNormalize(), BroadcastToTokens()), batch)
    assert torch.equal(ours.advantages, parent.advantages)


def test_reinforce_pp_with_group_baseline_is_dr_grpo_up_to_one_factor():
    """Of responses of equal length: then whitening over tokens shifts nothing."""
    ours, parent = credit(reinforce_pp(WEIGHTS, baseline="group")), credit(dr_grpo(WEIGHTS))
    torch.testing.assert_close(ours * parent.norm(), parent * ours.norm())


def test_reinforce_pp_without_baseline_needs_no_group():
    recipe = reinforce_pp(WEIGHTS, num_generations=1)
    assert recipe.rollout.num_generations == 1
    every = credit(recipe)
    renumbered = graded(SCORES, objectives=("even", "high"), group=list(range(6)))
    zero = torch.zeros(6, 3)
    alone, _ = advance(
        chain(recipe.reward_steps, recipe.credit), renumbered.replace(old_logprobs=zero, ref_logprobs=zero)
    )
    assert torch.equal(every, alone.advantages)


@pytest.mark.parametrize("make", [dr_grpo, rloo, gdpo, mo_grpo])
def test_group_baselines_refuse_a_single_response(make):
    with pytest.raises(Exception, match=r"algorithm.num_generations is 1"):
        make(WEIGHTS, num_generations=1)
