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


def test_the_worst_objective_decides():
    batch = graded([[0.9, 0.8, 0.7, 0.1], [0.8, 0.6, 0.5, 0.9], [0.9, 0.7, 0.2, 0.9], [0.6, 0.5, 0.6, 0.5]])
    every = tuple(batch.objectives)
    out, seen = advance(MinObjective(every), batch)
    same(out.rewards, [0.1, 0.5, 0.2, 0.5])
    out = GroupNormalize(std_estimator="population", eps=0.0).apply(out)
    same(out.rewards, [-1.260252, 0.980196, -0.700140, 0.980196], 2e-6)
    assert [seen[f"active_objective/{name}"] for name in every] == [0.0, 0.25, 0.5, 0.5]  # of a tie both


def test_the_soft_minimum_lies_between_mean_and_smallest():
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    same(soft_minimum(x, 1.0), [0.566219])
    same(soft_minimum(x, 1e-6), [1.0])
    same(soft_minimum(x, 200.0), [0.0], 0.01)
    out, _ = advance(MinObjective(("k0", "k1"), sharpness=1.0), graded([[0.0, 2.0], [NAN, 1.0]]))
    same(out.rewards, [0.566219, NAN])
    with pytest.raises(WiringError, match="sharpness"):
        MinObjective(("k0",), sharpness=0.0)


def test_chebyshev_turns_the_order_of_the_weighted_sum():
    batch = graded([[0.9, 0.1], [0.5, 0.45]])
    linear, _ = advance(WeightedSum(HALF), batch)
    same(linear.rewards, [0.5, 0.475])
    far, seen = advance(Chebyshev(HALF, ideal_point={"k0": 1.0, "k1": 1.0}), batch)
    same(far.rewards, [-0.45, -0.275])
    assert seen["active_objective/k1"] == 1.0
    some, _ = advance(Chebyshev(HALF, ideal_point={"k0": 1.0, "k1": 1.0}, rho=0.1), batch)
    same(some.rewards, [-0.45 + 0.05, -0.275 + 0.0475])


def test_the_ideal_point_is_the_best_seen_until_it_is_frozen():
    part = Chebyshev(HALF, freeze_ideal_after=2)
    state, rng, seen = part.init_state(), torch.Generator(), {}
    for best in (0.5, 0.7, 0.9):
        _, state, seen = part.apply_stateful(graded([[best, 0.2], [0.1, NAN]]), state, rng)
    assert seen["state/ideal/k0"] == pytest.approx(0.7)
    assert seen["state/ideal/k1"] == pytest.approx(0.2)


def test_of_the_mean_every_response_follows_the_objective_that_is_behind():
    part = Chebyshev(HALF, distance_of="mean", ideal_point={"k0": 1.0, "k1": 1.0}, ema_decay=0.5)
    state, rng = part.init_state(), torch.Generator()
    first, state, seen = part.apply_stateful(graded([[0.9, 0.0], [0.5, 0.4]]), state, rng)
    same(first.rewards, [0.0, 0.2])  # the mean of k1 is farther off
    assert seen["active_objective/k1"] == 1.0
    second, state, _ = part.apply_stateful(graded([[0.9, 0.9], [0.1, 0.9]]), state, rng)
    same(second.rewards, [0.45, 0.45])  # its running mean still is: 0.55 against 0.6
    third, state, _ = part.apply_stateful(graded([[0.9, 0.9], [0.1, 0.9]]), state, rng)
    same(third.rewards, [0.45, 0.05])
    assert state["mean"].tolist() == pytest.approx([0.55, 0.725])


def test_of_the_response_and_of_the_mean_are_different_aims():
    batch = graded([[1.0, 0.0], [0.0, 1.0], [0.4, 0.4], [0.5, 0.2]])
    ideal = {"k0": 1.0, "k1": 1.0}
    one, _ = advance(Chebyshev(HALF, ideal_point=ideal), batch)
    other, _ = advance(Chebyshev(HALF, distance_of="mean", ideal_point=ideal), batch)
    assert one.rewards.argmax() == 2
    assert other.rewards.argmax() == 1


def test_one_objective_is_the_weighted_sum_in_credit():
    batch, normal = graded([[0.3], [0.9], [0.5]]), GroupNormalize()
    want, _ = advance(chain(WeightedSum({"k0": 1.0}), normal), batch)
    for part in (Chebyshev({"k0": 1.0}), Chebyshev({"k0": 1.0}, distance_of="mean"), MinObjective(("k0",))):
        out, _ = advance(chain(part, normal), batch)
        torch.testing.assert_close(out.rewards, want.rewards)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Chebyshev(HALF, ideal_point=HALF, freeze_ideal_after=3), "`ideal` and `freeze_after`"),
        (lambda: Chebyshev({"k0": -1.0}), "below 0"),
        (lambda: Chebyshev(HALF, ideal_point={"k0": 1.0}), "no value for k1"),
        (lambda: advance(MinObjective(("k0", "safety")), graded([[1.0, 2.0]])), '"safety", which is none of'),
        (lambda: Lexicographic(()), "orders nothing"),
        (lambda: Lexicographic((("a", None), ("a", 1.0))), "each objective once"),
        (lambda: Lexicographic((("a", None),), resolution=-1.0), "grain"),
    ],
)
def test_contradictions_are_told(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def test_chebyshev_of_any_rank():
    x = torch.rand(2, 3, 2)
    assert chebyshev(x, torch.ones(2), torch.ones(2)).shape == (2, 3, 1)


def test_places_in_the_group_with_shared_middles():
    x = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 9.0], [1.0, 2.0], [5.0, 5.0], [NAN, 1.0]])
    group = torch.tensor([0, 0, 0, 0, 1, 0])
    same(lexicographic_rank(x, group), [1 / 3, 2.5 / 3, 0.0, 2.5 / 3, 0.5, NAN])


def test_the_second_objective_decides_once_the_first_is_good_enough():
    batch = graded([[0.9, 0.1], [0.6, 0.8], [0.4, 1.0], [0.95, 0.5]])
    strict, seen = advance(Lexicographic((("k0", None), ("k1", None))), batch)
    assert strict.rewards.flatten().argsort().tolist() == [2, 1, 0, 3]
    assert seen == {"active_objective/k0": 1.0, "active_objective/k1": 0.0}
    enough, seen = advance(Lexicographic((("k0", 0.5), ("k1", None))), batch)
    assert enough.rewards.flatten().argsort().tolist() == [2, 0, 3, 1]
    assert seen == {"active_objective/k0": 0.5, "active_objective/k1": 0.5}
    coarse, _ = advance(Lexicographic((("k0", None), ("k1", None)), resolution=0.5), batch)
    assert coarse.rewards.flatten().tolist() == pytest.approx([1 / 3, 2.5 / 3, 0.0, 2.5 / 3])
