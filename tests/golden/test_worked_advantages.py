"""Numbers worked out by hand: baselines, batch scales, returns, running scales, penalties, filters."""

import math

import pytest
import torch
from byhand import near

from paretune.algorithms.grpo import gdpo_credit
from paretune.credit.aggregation import Gate, WeightedSum
from paretune.credit.base import chain
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    RunningNormalize,
    Whiten,
    batch_moments,
    leave_one_out,
    merge_moments,
)
from paretune.credit.returns import Gae, ReturnToGo
from paretune.credit.selection import DropZeroVarianceGroups, MaskTruncated
from paretune.credit.shaping import ClipReward, KlPenalty, OverlongPenalty, TerminalReward
from toy import advance, graded

FOUR = [[0.9, 0.8, 0.7, 0.1], [0.8, 0.6, 0.5, 0.9], [0.9, 0.7, 0.2, 0.9], [0.6, 0.5, 0.6, 0.5]]
NAMES = ("polite", "meaning", "action", "safety")
EQUAL = dict.fromkeys(NAMES, 0.25)
Z = GroupNormalize(std_estimator="population", eps=0.0)
BATCH = BatchNormalize(std_estimator="population", eps=0.0)
GATES = tuple(Gate(name, "safety", 0.5) for name in NAMES[:3])
pytestmark = pytest.mark.usefixtures("double")


def signal(step, scores, **more):
    return advance(step, graded(scores, **more))[0].rewards


def in_order(scores):
    return [i for i, _ in sorted(enumerate(scores.flatten().tolist()), key=lambda x: x[1])]


def test_leave_one_out_matches_manual_mean():
    near(signal(LeaveOneOut(), [1.0, 0, 0, 0]), [1.0, -1 / 3, -1 / 3, -1 / 3])
    near(signal(LeaveOneOut(), [0.2, 0.5, 0.9, 0.4]), [-0.4, 0.0, 0.533333, -0.133333])


def test_gae_and_whitening_match_manual_values():
    respond = torch.tensor([[True] * 3])
    batch = graded([0.0], respond=respond).replace(
        token_rewards=torch.tensor([[-0.1, 0.05, 1.0]])[..., None],
        values=torch.tensor([[0.5, 0.4, 0.6]])[..., None],
    )
    for lam, want in ((0.95, [0.3985, 0.63, 0.4]), (0.0, [-0.2, 0.25, 0.4]), (1.0, [0.45, 0.65, 0.4])):
        out, _ = advance(Gae(1.0, lam), batch)
        near(out.advantages, want, 1e-12)
        near(out.returns, [a + v for a, v in zip(want, [0.5, 0.4, 0.6], strict=True)], 1e-12)
    out, _ = advance(chain(Gae(1.0, 0.95), Whiten("population")), batch)
    near(out.advantages, [-0.71399, 1.414191, -0.700201])


def test_batch_scale_after_normalizing_first_keeps_unsafe_response_on_top():
    apart = signal(chain(Z, WeightedSum(EQUAL), BATCH), FOUR, objectives=NAMES)
    near(apart, [1.036897, 0.275754, 0.340488, -1.653140])
    assert in_order(apart)[-1] == 0
    plain = signal(chain(Z, WeightedSum(dict.fromkeys(NAMES, 1.0))), FOUR, objectives=NAMES)
    near(plain, [1.719626, 0.457320, 0.564677, -2.741623])


def test_gate_puts_unsafe_response_at_the_bottom_when_normalizing_first():
    gated = signal(chain(*GATES, Z, WeightedSum(EQUAL), BATCH), FOUR, objectives=NAMES)
    near(gated, [-1.706426, 0.783066, 0.617596, 0.305765])


def test_safety_weight_does_not_when_normalizing_first():
    weights = {"polite": 1 / 6, "meaning": 1 / 6, "action": 1 / 6, "safety": 0.5}
    apart = signal(chain(Z, WeightedSum(weights)), FOUR, objectives=NAMES)
    near(apart, [-0.215915, 0.377731, 0.395624, -0.557441])
    assert in_order(apart)[:2] == [3, 0]


def test_minimum_objective_then_group_normalize_matches_manual_values():
    worst = torch.tensor(FOUR).min(-1).values
    near(worst, [0.1, 0.5, 0.2, 0.5])
    near(signal(Z, worst), [-1.260252, 0.980196, -0.700140, 0.980196])


def test_normalizing_first_separates_rewards_that_grpo_cannot():
    half = {"k0": 1.0, "k1": 1.0}
    for scores, together, apart in (
        ([[0.0, 0.0], [0.0, 1.0]], 0.707107, 0.707107),
        ([[0.0, 0.0], [1.0, 1.0]], 0.707107, 1.414214),
    ):
        z = GroupNormalize(eps=0.0)
        near(signal(chain(WeightedSum(half), z), scores), [-together, together])
        near(signal(chain(z, WeightedSum(half)), scores), [-apart, apart])


def test_normalizing_first_separates_groups_with_a_constant_sum():
    two = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert signal(gdpo_credit({"k0": 1.0, "k1": 1.0}, "scale_only"), two).abs().max() < 1e-9
    three = [[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    thirds = dict.fromkeys(("k0", "k1", "k2"), 1.0)
    assert (signal(chain(WeightedSum(thirds), Z), three) == 0).all()
    near(signal(chain(Z, WeightedSum(thirds)), three), [-0.154701, -0.154701, 0.154701, 0.154701])
    z = GroupNormalize(eps=0.0)
    near(signal(chain(z, WeightedSum(thirds)), three), [-0.133975, -0.133975, 0.133975, 0.133975])
    near(signal(chain(Z, WeightedSum(thirds), BATCH), three), [-1.0, -1, 1, 1])


def test_batch_std_does_not_inflate_a_low_variance_group():
    scores, group = [1.0, 0, 0, 1, 0.6, 0.4, 0.5, 0.5], [0] * 4 + [1] * 4
    by_batch = GroupNormalize("batch", "population", 0.0)
    near(
        signal(by_batch, scores, group=group),
        [1.40028, -1.40028, -1.40028, 1.40028, 0.280056, -0.280056, 0.0, 0.0],
    )
    near(signal(Z, scores, group=group), [1.0, -1, -1, 1, 1.414214, -1.414214, 0, 0])


def test_leave_one_out_with_std_matches_manual_values():
    one, two = [1.0] + [0.0] * 7, [1.0] * 2 + [0.0] * 6
    assert signal(LeaveOneOut("group"), one)[0] == 1.0
    near(signal(GroupNormalize(eps=0.0), one)[0], 2.474874)
    near(signal(LeaveOneOut("group"), two), [2.267787] * 2 + [-0.585540] * 6)
    near(signal(LeaveOneOut("group"), [0.25, 1.0]), [-0.75, 0.75])
    # Two passes: where E[x^2] - E[x]^2 loses everything in float32.
    x = torch.tensor([[1000.0], [1000.1], [999.9], [1000.0]], dtype=torch.float32)
    near(
        leave_one_out(x, torch.zeros(4).long(), "group").double(),
        leave_one_out(x.double(), torch.zeros(4).long(), "group").flatten().tolist(),
        1e-3,
    )


def test_advantages_of_a_zero_variance_group_beside_another_group():
    """One short success and three long failures beside four equal answers: 60, 400 and 200 tokens."""
    scores, group = [[1.0], [0], [0], [0], [1], [1], [1], [1]], [0] * 4 + [1] * 4
    lengths = [60, 400, 400, 400, 200, 200, 200, 200]
    weights = {"k0": 1.0}
    first = {}
    for form in ("scale_only", "trl", "verl"):
        out, _ = advance(gdpo_credit(weights, form), graded(scores, group=group, lengths=lengths))
        first[form] = out.advantages[:, 1, 0]
    assert (first["scale_only"][4:] == 0).all()
    near(first["scale_only"][:2], [2.2563, -0.7521], 1e-3)
    near(first["trl"], [2.291] + [-0.7636] * 3 + [0.0] * 4, 1e-3)
    assert (first["verl"][4:] > 0.3).all()
    scores = [[1.0], [1], [0], [0], [0], [0], [0], [0]] + [[1.0]] * 8
    out, _ = advance(gdpo_credit(weights, "nemo"), graded(scores, group=[0] * 8 + [1] * 8))
    near(out.advantages[:, 1, 0], [2.436] * 2 + [-0.718] * 6 + [-0.0706] * 8, 2e-3)


def test_cancelling_objectives_are_scaled_up_in_published_gdpo_variants_only():
    """One objective is the other, upside down and half as wide; eps of the group step keeps them from 0."""
    scores = [[0.0, 0.0], [0.125, -0.0625]]
    most = {f: signal(gdpo_credit({"k0": 1.0, "k1": 1.0}, f), scores).abs().max() for f in ("trl", "nvlabs")}
    assert min(most.values()) > 0.5
    assert signal(gdpo_credit({"k0": 1.0, "k1": 1.0}, "scale_only"), scores).abs().max() < 0.1


def test_missing_score_does_not_push_zero_variance_groups():
    scores = [[1.0, math.nan], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    weights = {"k0": 1.0, "k1": 1.0}
    out = signal(gdpo_credit(weights, "scale_only"), scores, group=[0, 0, 0, 1, 1])
    assert out[0].isnan()
    assert (out[3:] == 0).all()
    near(out[1:3].sum(), [0.0], 1e-12)
    shifted = chain(GroupNormalize(), WeightedSum(weights), BatchNormalize("subtract"))
    assert signal(shifted, scores, group=[0, 0, 0, 1, 1])[3].abs() > 0.1


def test_running_normalize_matches_manual_values():
    step, state, seen = RunningNormalize(), RunningNormalize().init_state(), []
    for scores in ([1.0, 2, 3, 4], [5.0, 7]):
        batch, state, told = step.apply_stateful(graded(scores), state, torch.Generator())
        seen.append(batch)
    near(advance(ClipReward(-0.8, 0.8), seen[0])[0].rewards, [-0.8, -0.387298, 0.387298, 0.8])
    near(seen[1].rewards, [0.617213, 1.543033])
    cut, told_cut = advance(ClipReward(-0.8, 0.8), seen[1])
    near(cut.rewards, [0.617213, 0.8])
    assert told_cut == {"reward/clipped": 0.5}
    assert told == pytest.approx({"state/running_mean": 3.6666667, "state/running_std": 2.1602469})
    near(
        seen[1].replace(rewards=torch.tensor([[5.0], [7.0]]) / told["state/running_std"]).rewards,
        [2.31455, 3.24037],
    )
    once = batch_moments(torch.tensor([[1.0], [2], [3], [4], [5], [7]]), "population")
    near(torch.stack([state.mean, state.var]), [float(once.mean), float(once.var)], 1e-12)


def test_merging_empty_moments_changes_nothing():
    x = batch_moments(torch.tensor([[1.0, math.nan], [2.0, math.nan]]), "sample")
    assert x.count.tolist() == [2.0, 0.0]
    after = merge_moments(RunningNormalize(moments_mode="inflated").init_state(), x)
    assert after.var.tolist() == [0.5, 1.0]


def test_kl_penalty_per_token_and_per_sequence_matches_manual_values():
    batch = graded([0.8], lengths=[3])
    gap = torch.tensor([[0.0, 0.1, -0.2, 0.05]])
    batch = batch.replace(old_logprobs=gap, ref_logprobs=torch.zeros_like(gap))
    out, seen = advance(chain(TerminalReward(), KlPenalty(0.05)), batch)
    near(out.token_rewards, [0.0, -0.005, 0.01, 0.7975], 1e-12)
    assert seen["penalty/kl"] == pytest.approx(-0.0025)
    reverse, _ = advance(chain(KlPenalty(0.05), TerminalReward()), batch)
    assert torch.equal(reverse.token_rewards, out.token_rewards)
    whole, _ = advance(KlPenalty(0.05, level="sequence"), batch)
    near(whole.rewards, [0.8 + 0.0025], 1e-12)
    togo, _ = advance(chain(TerminalReward(), KlPenalty(0.05), ReturnToGo()), batch)
    near(togo.advantages, [0.0, 0.8025, 0.8075, 0.7975], 1e-12)


def test_overlong_penalty_matches_numbers_of_the_paper():
    part, lengths = OverlongPenalty(20480, 4096), [16384, 18432, 20480]
    step = chain(part, BroadcastToTokens())
    scores = [0.0] * 3
    batch = graded(scores, respond=torch.arange(20480)[None] < torch.tensor(lengths)[:, None])
    near(advance(step, batch)[0].rewards, [0.0, -0.5, -1.0])


def test_zero_variance_groups_are_dropped():
    scores = [1.0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1]
    group = [g for g in range(3) for _ in range(4)]
    out, seen = advance(DropZeroVarianceGroups(), graded(scores, group=group))
    assert out.group.tolist() == [2] * 4
    assert seen["groups/kept"] == pytest.approx(1 / 3)
    # Scores of a model never tie: a spread of 5 % of the usual one is taken for none.
    close = [0.98, 0.981, 0.979, 0.98, 0.2, 0.9, 0.5, 0.7]
    out, _ = advance(DropZeroVarianceGroups(0.05), graded(close, group=[0] * 4 + [1] * 4))
    assert out.group.tolist() == [1] * 4
    out, seen = advance(DropZeroVarianceGroups(), graded([1.0, 1.0]))
    assert len(out) == 2
    assert seen["groups/kept"] == 0


def test_masked_truncated_response_still_counts_in_the_baseline():
    batch = graded([1.0, 0.0, 0.0]).replace(truncated=torch.tensor([False, True, False]))
    out, _ = advance(chain(GroupNormalize("none"), BroadcastToTokens(), MaskTruncated()), batch)
    near(out.advantages[:, 1, 0], [2 / 3, 0.0, -1 / 3])
