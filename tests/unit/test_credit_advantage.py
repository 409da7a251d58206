import math

import pytest
import torch

from paretune.credit.advantage import BatchNormalise, GroupNormalise, LeaveOneOut, Spread, group_normalise
from paretune.credit.step import chain
from toy import advance, graded


@pytest.mark.parametrize("divide", ["std", "none"])
def test_a_flat_group_a_group_of_one_and_rounding_noise_get_exactly_zero(divide):
    batch = graded([0.1 + 0.2, 0.3, 0.3, 5.0], group=[0, 0, 0, 1])
    assert (GroupNormalise(divide).apply(batch).signal == 0).all()


def test_unscored_rows_stay_unscored_count_in_no_mean_and_teach_nothing():
    batch = graded([1.0, math.nan, 0.0], lengths=[1, 2, 2])
    out = chain(GroupNormalise("none"), Spread())
    batch, _ = advance(out, batch)
    assert batch.signal[1].isnan()
    assert batch.advantages[:, :, 0].tolist() == [[0, 0.5, 0], [0, 0, 0], [0, -0.5, -0.5]]


def test_objectives_are_normalised_apart():
    x = torch.tensor([[0.0, 10.0], [1.0, 10.0], [2.0, 40.0]])
    out = group_normalise(x, torch.zeros(3).long(), "std", eps=0.0)
    alone = torch.cat(
        [group_normalise(x[:, k : k + 1], torch.zeros(3).long(), "std", eps=0.0) for k in (0, 1)], 1
    )
    torch.testing.assert_close(out, alone)


@pytest.mark.parametrize(
    "step",
    [GroupNormalise("batch"), LeaveOneOut(), LeaveOneOut("std"), BatchNormalise(), BatchNormalise("removed")],
)
def test_every_baseline_says_zero_where_nothing_differs_and_leaves_the_unscored_alone(step):
    flat = step.apply(graded([0.1 + 0.2, 0.3, 0.3, 0.3])).signal
    assert (flat == 0).all()
    some = step.apply(graded([1.0, math.nan, 0.0, 0.5])).signal
    assert some.isnan().flatten().tolist() == [False, True, False, False]
    alone = step.apply(graded([0.7])).signal
    assert (alone == 0).all()


def test_a_group_of_one_keeps_its_raw_signal_where_that_is_asked_for():
    raw = GroupNormalise(eps=1e-6, alone="raw").apply(graded([2.0, 1.0, 0.0], group=[0, 1, 1])).signal
    assert raw.flatten().tolist() == pytest.approx([2.0 / (1 + 1e-6), 0.5**0.5, -(0.5**0.5)], rel=1e-5)


def test_the_floor_says_from_which_spread_on_a_group_is_flat():
    batch = graded([1.0, 1.001])
    assert (GroupNormalise(eps=0.0, floor=0.01).apply(batch).signal == 0).all()
    assert GroupNormalise(eps=0.0, floor=0.0).apply(batch).signal.abs().min() > 0.7


def test_scaling_the_batch_never_changes_a_sign():
    batch = graded([3.0, 0.5, 0.0, 2.0])
    kept = BatchNormalise().apply(batch).signal
    assert torch.equal(kept.sign(), batch.signal.sign())
    assert BatchNormalise("removed").apply(batch).signal.min() < 0
