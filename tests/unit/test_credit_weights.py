import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import (
    PerCategoryWeightedSum,
    PreferenceWeightedSum,
    ScheduledWeightedSum,
    WeightedSum,
    interpolate_weights,
)
from paretune.credit.base import chain
from paretune.credit.score_transforms import HandleMissingScores, OrientScores, Threshold
from toy import advance, graded

NAN = math.nan


def same(x, want):
    assert x.flatten().tolist() == pytest.approx(want, nan_ok=True)


def test_schedule_is_interpolated_linearly():
    points = ((2, {"a": 1.0}), (6, {"a": 3.0, "b": 2.0}))
    assert [interpolate_weights(points, step)["a"] for step in (0, 2, 3, 6, 99)] == [1.0, 1.0, 1.5, 3.0, 3.0]
    assert [interpolate_weights(points, step)["b"] for step in (0, 2, 3, 6)] == [0.0, 0.0, 0.5, 2.0]


def test_scheduled_sum_counts_steps():
    part = ScheduledWeightedSum(((0, {"k0": 1.0}), (2, {"k0": 3.0})))
    state, rng, sums = part.init_state(), torch.Generator(), []
    for _ in range(4):
        batch, state, seen = part.apply_stateful(graded([[1.0], [2.0]]), state, rng)
        sums.append(batch.rewards[0, 0].item())
    assert sums == [1.0, 2.0, 3.0, 3.0]
    assert state == 4
    assert seen["state/weight/k0"] == 3.0
    assert seen["weighted_score/k0/mean"] == 4.5


def test_schedule_of_one_point_equals_weighted_sum_bit_for_bit():
    batch, weights = graded(torch.rand(8, 5).tolist()), {"k0": 0.3, "k3": 0.7}
    one, seen = advance(ScheduledWeightedSum(((0, weights),)), batch)
    other, seen_too = advance(WeightedSum(weights), batch)
    assert torch.equal(one.rewards, other.rewards)
    assert seen.items() >= seen_too.items()


@pytest.mark.parametrize("points", [(), ((1, {"a": 1.0}), (1, {"a": 2.0})), ((2, {}), (1, {}))])
def test_invalid_schedules_raise(points):
    with pytest.raises(WiringError, match="each later than the one before"):
        ScheduledWeightedSum(points)


def test_each_category_has_its_weights():
    batch = graded([[1.0, 10.0], [1.0, NAN], [2.0, 10.0]], group=[0, 0, 1])
    batch = batch.replace(categories=("harmful", "benign"), category=torch.tensor([0, 0, 1]))
    part = PerCategoryWeightedSum({"harmful": {"k1": 1.0}}, {"k0": 2.0})
    out, seen = advance(part, batch)
    same(out.rewards, [10.0, NAN, 4.0])
    assert set(seen) == {
        "weighted_score/k0/mean",
        "variance_share/k0",
        "weighted_score/k1/mean",
        "variance_share/k1",
    }
    with pytest.raises(WiringError, match='no weights for the category "benign", only for harmful'):
        advance(PerCategoryWeightedSum({"harmful": {"k1": 1.0}}), batch)
    with pytest.raises(WiringError, match=r"batch\.category"):
        advance(part, graded([[1.0, 1.0]]).replace(categories=("harmful",)))


def test_each_row_has_its_preference_weights():
    batch = graded([[1.0, 10.0], [1.0, NAN], [2.0, 10.0]])
    asked = torch.tensor([[0.0, 0.5], [1.0, 0.0], [NAN, NAN]])
    out, _ = advance(PreferenceWeightedSum(), batch.replace(preference_weights=asked))
    same(out.rewards, [5.0, 1.0, NAN])
    with pytest.raises(WiringError, match="give each prompt `preference_weights`"):
        advance(PreferenceWeightedSum(), batch)


def test_equal_preference_weights_equal_weighted_sum_bit_for_bit():
    batch = graded(torch.rand(8, 6).tolist())
    weights = torch.tensor([0.3, 0.0, 0.1, 0.7, 0.0, 0.2])
    one, _ = advance(PreferenceWeightedSum(), batch.replace(preference_weights=weights.expand(8, 6)))
    other, _ = advance(WeightedSum({f"k{k}": w for k, w in enumerate(weights.tolist())}), batch)
    assert torch.equal(one.rewards, other.rewards)


def test_threshold_and_distance_to_target():
    batch = graded([[0.2, 0.2, 0.2], [0.5, 0.5, 0.5], [0.9, 0.9, 0.9], [NAN, NAN, NAN]])
    parts = chain(OrientScores(targets={"k2": 0.5}), Threshold("k0", 0.5), Threshold("k1", 0.5, "binary"))
    out, _ = advance(parts, batch)
    same(out.rewards[:, 0], [0.2, 0.5, 0.5, NAN])
    same(out.rewards[:, 1], [0.0, 1.0, 1.0, NAN])
    same(out.rewards[:, 2], [-0.3, 0.0, -0.4, NAN])
    assert torch.equal(batch.rewards.nan_to_num(9), batch.scores.nan_to_num(9))


@pytest.mark.parametrize("part", [Threshold("k9", 1.0), OrientScores(targets={"k9": 1.0})])
def test_unknown_objectives_raise(part):
    with pytest.raises(WiringError, match='names the objective "k9", which is none of k0, k1'):
        advance(part, graded([[1.0, 2.0]]))
    with pytest.raises(WiringError, match="after another aggregator"):
        advance(chain(WeightedSum({"k0": 1.0}), part), graded([[1.0, 2.0]]))


TWO, W = [[1.0, NAN, NAN], [0.5, 2.0, 1.0], [NAN, NAN, 1.0], [0.0, 4.0, NAN]], {"k0": 1.0, "k1": 3.0}


def test_missing_scores_stay_missing_by_default():
    out, _ = advance(WeightedSum(W), graded(TWO))
    same(out.rewards, [NAN, 6.5, NAN, 12.0])


def test_drop_removes_rows_with_missing_scores():
    out, seen = advance(chain(HandleMissingScores("drop", W), WeightedSum(W)), graded(TWO))
    same(out.rewards, [6.5, 12.0])
    assert seen["missing_scores/dropped"] == 0.5


def test_renormalize_scales_up_known_weights():
    out, seen = advance(chain(HandleMissingScores("renormalize", W), WeightedSum(W)), graded(TWO))
    same(out.rewards, [1.0 * (4 / 1), 6.5, NAN, 12.0])
    assert seen["missing_scores/filled"] == 1 / 8


def test_group_mean_fills_in_missing_scores():
    batch = graded(TWO, group=[0, 0, 1, 0])
    out, seen = advance(chain(HandleMissingScores("group_mean", W), WeightedSum(W)), batch)
    same(out.rewards, [1.0 + 3 * 3.0, 6.5, NAN, 12.0])
    assert seen["missing_scores/filled"] == 1 / 8


@pytest.mark.parametrize("policy", ["drop", "renormalize", "group_mean"])
def test_unweighted_objectives_are_not_filled_in(policy):
    out, _ = advance(HandleMissingScores(policy, {"k0": 1.0}), graded([[1.0, NAN], [2.0, 3.0]]))
    same(out.rewards, [1.0, NAN, 2.0, 3.0])
