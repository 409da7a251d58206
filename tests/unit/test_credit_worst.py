import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import Lexicographic, WeightedSum, lexicographic_rank
from paretune.credit.base import chain
from paretune.credit.normalization import GroupNormalize
from paretune.credit.scalarization import Chebyshev, MinObjective, chebyshev, soft_minimum
from toy import advance, graded

NAN = math.nan
HALF = {"k0": 0.5, "k1": 0.5}


def same(x, want, tol=1e-6):
    assert x.flatten().tolist() == pytest.approx(want, abs=tol, nan_ok=True)


def test_minimum_objective_is_the_reward():
    batch = graded([[0.9, 0.8, 0.7, 0.1], [0.8, 0.6, 0.5, 0.9], [0.9, 0.7, 0.2, 0.9], [0.6, 0.5, 0.6, 0.5]])
    every = tuple(batch.objectives)
    out, seen = advance(MinObjective(every), batch)
    same(out.rewards, [0.1, 0.5, 0.2, 0.5])
    out = GroupNormalize(std_estimator="population", eps=0.0).apply(out)
    same(out.rewards, [-1.260252, 0.980196, -0.700140, 0.980196], 2e-6)
    assert [seen[f"active_objective/{name}"] for name in every] == [0.0, 0.25, 0.5, 0.5]  # of a tie both


def test_soft_minimum_is_between_mean_and_minimum():
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    same(soft_minimum(x, 1.0), [0.566219])
    same(soft_minimum(x, 1e-6), [1.0])
    same(soft_minimum(x, 200.0), [0.0], 0.01)
    out, _ = advance(MinObjective(("k0", "k1"), sharpness=1.0), graded([[0.0, 2.0], [NAN, 1.0]]))
    same(out.rewards, [0.566219, NAN])
    with pytest.raises(WiringError, match="sharpness"):
        MinObjective(("k0",), sharpness=0.0)


def test_chebyshev_can_reverse_the_order_of_the_weighted_sum():
    batch = graded([[0.9, 0.1], [0.5, 0.45]])
    linear, _ = advance(WeightedSum(HALF), batch)
    same(linear.rewards, [0.5, 0.475])
    far, seen = advance(Chebyshev(HALF, ideal_point={"k0": 1.0, "k1": 1.0}), batch)
    same(far.rewards, [-0.45, -0.275])
    assert seen["active_objective/k1"] == 1.0
    some, _ = advance(Chebyshev(HALF, ideal_point={"k0": 1.0, "k1": 1.0}, rho=0.1), batch)
    same(some.rewards, [-0.45 + 0.05, -0.275 + 0.0475])


def test_ideal_point_is_the_best_so_far_until_frozen():
    part = Chebyshev(HALF, freeze_ideal_after=2)
    state, rng, seen = part.init_state(), torch.Generator(), {}
    for best in (0.5, 0.7, 0.9):
        _, state, seen = part.apply_stateful(graded([[best, 0.2], [0.1, NAN]]), state, rng)
    assert seen["state/ideal/k0"] == pytest.approx(0.7)
    assert seen["state/ideal/k1"] == pytest.approx(0.2)


def test_policy_mean_uses_the_farthest_objective_for_all_responses():
    part = Chebyshev(HALF, distance_of="policy_mean", ideal_point={"k0": 1.0, "k1": 1.0}, ema_decay=0.5)
    state, rng = part.init_state(), torch.Generator()
    first, state, seen = part.apply_stateful(graded([[0.9, 0.0], [0.5, 0.4]]), state, rng)
    same(first.rewards, [0.0, 0.2])  # the mean of k1 is farther off
    assert seen["active_objective/k1"] == 1.0
    second, state, _ = part.apply_stateful(graded([[0.9, 0.9], [0.1, 0.9]]), state, rng)
    same(second.rewards, [0.45, 0.45])  # its running mean still is: 0.55 against 0.6
    third, state, _ = part.apply_stateful(graded([[0.9, 0.9], [0.1, 0.9]]), state, rng)
    same(third.rewards, [0.45, 0.05])
    assert state["running_mean"].tolist() == pytest.approx([0.55, 0.725])


def test_response_and_policy_mean_have_different_optima():
    batch = graded([[1.0, 0.0], [0.0, 1.0], [0.4, 0.4], [0.5, 0.2]])
    ideal = {"k0": 1.0, "k1": 1.0}
    one, _ = advance(Chebyshev(HALF, ideal_point=ideal), batch)
    other, _ = advance(Chebyshev(HALF, distance_of="policy_mean", ideal_point=ideal), batch)
    assert one.rewards.argmax() == 2
    assert other.rewards.argmax() == 1


def test_one_objective_has_the_advantages_of_the_weighted_sum():
    batch, normal = graded([[0.3], [0.9], [0.5]]), GroupNormalize()
    want, _ = advance(chain(WeightedSum({"k0": 1.0}), normal), batch)
    for part in (
        Chebyshev({"k0": 1.0}),
        Chebyshev({"k0": 1.0}, distance_of="policy_mean"),
        MinObjective(("k0",)),
    ):
        out, _ = advance(chain(part, normal), batch)
        torch.testing.assert_close(out.rewards, want.rewards)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: Chebyshev(HALF, ideal_point=HALF, freeze_ideal_after=3),
            "`ideal_point` and `freeze_ideal_after`",
        ),
        (lambda: Chebyshev({"k0": -1.0}), "below 0"),
        (lambda: Chebyshev(HALF, ideal_point={"k0": 1.0}), "no value for k1"),
        (lambda: advance(MinObjective(("k0", "safety")), graded([[1.0, 2.0]])), '"safety", which is none of'),
        (lambda: Lexicographic(()), "orders nothing"),
        (lambda: Lexicographic((("a", None), ("a", 1.0))), "each objective once"),
        (lambda: Lexicographic((("a", None),), resolution=-1.0), "resolution"),
    ],
)
def test_contradictory_settings_raise(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def test_chebyshev_accepts_any_rank():
    x = torch.rand(2, 3, 2)
    assert chebyshev(x, torch.ones(2), torch.ones(2)).shape == (2, 3, 1)


def test_lexicographic_rank_averages_ties():
    x = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 9.0], [1.0, 2.0], [5.0, 5.0], [NAN, 1.0]])
    group = torch.tensor([0, 0, 0, 0, 1, 0])
    same(lexicographic_rank(x, group), [1 / 3, 2.5 / 3, 0.0, 2.5 / 3, 0.5, NAN])


def test_second_objective_decides_above_the_threshold_of_the_first():
    batch = graded([[0.9, 0.1], [0.6, 0.8], [0.4, 1.0], [0.95, 0.5]])
    strict, seen = advance(Lexicographic((("k0", None), ("k1", None))), batch)
    assert strict.rewards.flatten().argsort().tolist() == [2, 1, 0, 3]
    assert seen == {"active_objective/k0": 1.0, "active_objective/k1": 0.0}
    enough, seen = advance(Lexicographic((("k0", 0.5), ("k1", None))), batch)
    assert enough.rewards.flatten().argsort().tolist() == [2, 0, 3, 1]
    assert seen == {"active_objective/k0": 0.5, "active_objective/k1": 0.5}
    coarse, _ = advance(Lexicographic((("k0", None), ("k1", None)), resolution=0.5), batch)
    assert coarse.rewards.flatten().tolist() == pytest.approx([1 / 3, 2.5 / 3, 0.0, 2.5 / 3])
