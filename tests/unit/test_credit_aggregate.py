import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import Gate, WeightedSum, variance_share
from paretune.credit.base import chain
from toy import advance, graded

NAN = math.nan


def test_missing_score_of_a_weighted_objective_makes_the_row_unscored():
    batch = graded([[1.0, NAN], [0.5, 2.0]])
    both, _ = advance(WeightedSum({"k0": 1.0, "k1": 1.0}), batch)
    assert both.rewards[0].isnan()
    assert both.rewards[1] == 2.5
    one, seen = advance(WeightedSum({"k0": 1.0}), batch)
    assert one.rewards.flatten().tolist() == [1.0, 0.5]
    assert set(seen) == {"weighted_score/k0/mean", "variance_share/k0"}


def test_scores_are_not_modified():
    batch = graded([[1.0, 2.0], [3.0, 4.0]])
    out, _ = advance(chain(Gate("k0", "k1", 3.0), WeightedSum({"k0": 1.0})), batch)
    assert torch.equal(out.scores, batch.scores)
    assert torch.equal(batch.rewards, batch.scores)
    assert out.rewards.flatten().tolist() == [0.0, 3.0]


def test_gate_uses_threshold_and_propagates_missing_condition():
    batch = graded([[1.0, 0.4], [1.0, 0.5], [1.0, NAN], [NAN, 0.9], [NAN, 0.1]])
    out, _ = advance(Gate("k0", "k1", 0.5, -2.0), batch)
    want = torch.tensor([-2.0, 1.0, NAN, NAN, -2.0])
    assert torch.equal(out.rewards[:, 0].nan_to_num(9), want.nan_to_num(9))
    assert torch.equal(out.rewards[:, 1].nan_to_num(9), batch.scores[:, 1].nan_to_num(9))


def test_order_of_gates_does_not_matter():
    batch = graded([[0.9, 0.8, 0.2], [0.9, 0.1, 0.9]])
    gates = (Gate("k0", "k1", 0.5), Gate("k1", "k2", 0.5))
    one, _ = advance(chain(*gates), batch)
    other, _ = advance(chain(*reversed(gates)), batch)
    assert torch.equal(one.rewards, other.rewards)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (
            WeightedSum({"k0": 1.0, "k11": 1.0}),
            r'"k11", which is none of k0, k1; did you mean "k1"',
        ),
        (WeightedSum({"k0": NAN}), "must be a finite number"),
        (WeightedSum({"k0": 0.0}), "no objective has a weight"),
        (WeightedSum({}), "no objective has a weight"),
        (Gate("k0", "safety", 0.5), 'a gate names the objective "safety"'),
        (chain(WeightedSum({"k0": 1.0}), Gate("k0", "k1", 0.5)), "put it before"),
        (chain(WeightedSum({"k0": 1.0}), WeightedSum({"k0": 1.0})), "after another aggregator"),
    ],
)
def test_invalid_wiring_raises(step, match):
    with pytest.raises(WiringError, match=match):
        advance(step, graded([[1.0, 2.0]]))


def test_variance_shares_ignore_variance_between_groups():
    parts = torch.tensor([[0.0, 0.0], [1.0, 0.0], [100.0, 0.0], [100.0, 1.0]])
    group = torch.tensor([0, 0, 1, 1])
    shares = variance_share(parts, parts.sum(-1, keepdim=True), group)
    assert shares.tolist() == pytest.approx([0.5, 0.5])


def test_variance_shares_are_nan_without_variance_and_skip_unscored_rows():
    flat = torch.full((4, 2), 0.3)
    assert variance_share(flat, flat.sum(-1, keepdim=True), torch.zeros(4).long()).isnan().all()
    x = torch.tensor([[0.0, 0.1], [1.0, 0.2], [0.5, NAN]])
    shares = variance_share(x, x.sum(-1, keepdim=True), torch.zeros(3).long())
    assert shares.tolist() == pytest.approx([1 / 1.1, 0.1 / 1.1], rel=1e-5)
