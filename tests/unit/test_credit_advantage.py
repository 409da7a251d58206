import math

import pytest
import torch

from paretune.credit.base import chain
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    group_normalize,
)
from toy import advance, graded


@pytest.mark.parametrize("divide", ["group", "none"])
def test_zero_variance_singleton_and_rounding_noise_get_exactly_zero(divide):
    batch = graded([0.1 + 0.2, 0.3, 0.3, 5.0], group=[0, 0, 0, 1])
    assert (GroupNormalize(divide).apply(batch).rewards == 0).all()


def test_unscored_rows_enter_no_mean_and_get_advantage_0():
    batch = graded([1.0, math.nan, 0.0], lengths=[1, 2, 2])
    out = chain(GroupNormalize("none"), BroadcastToTokens())
    batch, _ = advance(out, batch)
    assert batch.rewards[1].isnan()
    assert batch.advantages[:, :, 0].tolist() == [[0, 0.5, 0], [0, 0, 0], [0, -0.5, -0.5]]


def test_objectives_are_normalized_separately():
    x = torch.tensor([[0.0, 10.0], [1.0, 10.0], [2.0, 40.0]])
    out = group_normalize(x, torch.zeros(3).long(), "group", eps=0.0)
    alone = torch.cat(
        [group_normalize(x[:, k : k + 1], torch.zeros(3).long(), "group", eps=0.0) for k in (0, 1)], 1
    )
    torch.testing.assert_close(out, alone)


@pytest.mark.parametrize(
    "step",
    [
        GroupNormalize("batch"),
        LeaveOneOut(),
        LeaveOneOut("group"),
        BatchNormalize(),
        BatchNormalize("subtract"),
    ],
)
def test_baselines_give_zero_for_equal_rewards_and_keep_nan(step):
    flat = step.apply(graded([0.1 + 0.2, 0.3, 0.3, 0.3])).rewards
    assert (flat == 0).all()
    some = step.apply(graded([1.0, math.nan, 0.0, 0.5])).rewards
    assert some.isnan().flatten().tolist() == [False, True, False, False]
    alone = step.apply(graded([0.7])).rewards
    assert (alone == 0).all()


def test_singleton_raw_keeps_the_reward():
    raw = GroupNormalize(eps=1e-6, singleton="raw").apply(graded([2.0, 1.0, 0.0], group=[0, 1, 1])).rewards
    assert raw.flatten().tolist() == pytest.approx([2.0 / (1 + 1e-6), 0.5**0.5, -(0.5**0.5)], rel=1e-5)


def test_zero_std_rtol_is_the_zero_variance_threshold():
    batch = graded([1.0, 1.001])
    assert (GroupNormalize(eps=0.0, zero_std_rtol=0.01).apply(batch).rewards == 0).all()
    assert GroupNormalize(eps=0.0, zero_std_rtol=0.0).apply(batch).rewards.abs().min() > 0.7


def test_batch_normalize_without_shift_keeps_signs():
    batch = graded([3.0, 0.5, 0.0, 2.0])
    kept = BatchNormalize().apply(batch).rewards
    assert torch.equal(kept.sign(), batch.rewards.sign())
    assert BatchNormalize("subtract").apply(batch).rewards.min() < 0
