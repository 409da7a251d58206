import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import WeightedSum
from paretune.credit.scalarization import (
    CorrelationTargetWeightedSum,
    HypervolumeGuidedWeighting,
    growth_factor,
    within_group_correlation,
)
from toy import advance, graded

NAN = math.nan


def test_the_factor_is_a_half_at_rest_and_two_at_most():
    assert growth_factor(0.0) == 0.5
    assert growth_factor(-3.0) == 0.5
    assert growth_factor(math.inf) == 2.0


def test_a_step_that_pushes_the_front_out_counts_more():
    part = HypervolumeGuidedWeighting(("k0", "k1"))
    state, rng, factors = part.init_state(), torch.Generator(), []
    points = ([0.2, 0.2], [0.4, 0.4], [0.3, 0.3], [0.6, 0.3], [NAN, 0.9], [0.1, 0.9])
    for point in points:
        batch, state, seen = part.apply_stateful(graded([point, point]), state, rng)
        factors.append(seen.get("state/growth_factor"))
        assert batch.rewards[0, 1].item() == pytest.approx(point[1] * (factors[-1] or 1.0))
    first, leap, inside, wider, unknown, outside = factors
    assert (first, leap, inside, unknown, outside) == (0.5, 2.0, 0.5, None, 0.5)
    assert wider == pytest.approx(0.5 + 1.5 * math.tanh(0.02 / 0.04))
    assert seen["state/hypervolume"] == pytest.approx(0.06)
    assert sorted(state["front"].tolist()) == [pytest.approx(p) for p in ([0.1, 0.9], [0.4, 0.4], [0.6, 0.3])]


def test_growth_may_be_absolute():
    part = HypervolumeGuidedWeighting(("k0",), growth_mode="absolute")
    state, rng = part.init_state(), torch.Generator()
    for mean in (0.0, 0.3):
        _, state, seen = part.apply_stateful(graded([[mean]]), state, rng)
    assert seen["state/growth_factor"] == pytest.approx(0.5 + 1.5 * math.tanh(0.3), rel=1e-6)


def test_correlation_is_within_groups():
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [10.0, 0.0], [9.0, 0.0], [NAN, 5.0]])
    whole = torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0]])
    group = torch.tensor([0, 0, 1, 1, 1])
    assert within_group_correlation(x[:4], whole[:4], group[:4]).tolist() == pytest.approx(
        [0.0, NAN], nan_ok=True
    )
    assert within_group_correlation(x[[0, 1, 4]], whole[[0, 1, 4]], group[:3]).tolist()[0] == pytest.approx(
        1.0
    )


def test_an_objective_that_the_sum_leaves_behind_gains_weight():
    batch = graded([[0.0, 1.0], [1.0, 0.0], [2.0, 0.5], [3.0, 0.2]])
    weights = {"k0": 1.0, "k1": 1.0}
    part = CorrelationTargetWeightedSum(weights, {"k0": 0.5, "k1": 0.5}, step_size=0.2)
    state, rng = part.init_state(), torch.Generator()
    first, state, seen = part.apply_stateful(batch, state, rng)
    want, _ = advance(WeightedSum(weights), batch)
    assert torch.equal(first.rewards, want.rewards)
    behind = seen["state/correlation/k1"]
    assert behind < 0
    _, state, seen = part.apply_stateful(batch, state, rng)
    assert seen["state/weight/k0"] == 1.0
    assert seen["state/weight/k1"] == pytest.approx(math.exp(0.2 * (0.5 - behind)))
    enough = CorrelationTargetWeightedSum(weights, {"k1": 0.5}, sufficient_scores={"k1": 0.4}, step_size=0.2)
    _, state, _ = enough.apply_stateful(batch, enough.init_state(), rng)
    assert state["raised"].tolist() == [0.0, 0.0]  # its mean of 0.425 is good enough


def test_a_target_without_a_weight_is_told():
    with pytest.raises(WiringError, match='target for "k1" and no weight'):
        CorrelationTargetWeightedSum({"k0": 1.0}, {"k1": 0.5})
