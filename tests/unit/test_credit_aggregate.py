import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import Gate, WeightedSum, variance_share
from paretune.credit.base import chain
from toy import advance, graded

NAN = math.nan


def test_an_unscored_objective_leaves_the_row_unscored_unless_it_has_no_weight():
    batch = graded([[1.0, NAN], [0.5, 2.0]])
    both, _ = advance(WeightedSum({"k0": 1.0, "k1": 1.0}), batch)
    assert both.rewards[0].isnan()
    assert both.rewards[1] == 2.5
    one, seen = advance(WeightedSum({"k0": 1.0}), batch)
    assert one.rewards.flatten().tolist() == [1.0, 0.5]
    assert set(seen) == {"weighted_score/k0/mean", "variance_share/k0"}


def test_scores_are_never_changed():
    batch = graded([[1.0, 2.0], [3.0, 4.0]])
    out, _ = advance(chain(Gate("k0", "k1", 3.0), WeightedSum({"k0": 1.0})), batch)
    assert torch.equal(out.scores, batch.scores)
    assert torch.equal(batch.rewards, batch.scores)
    assert out.rewards.flatten().tolist() == [0.0, 3.0]


def test_a_gate_shuts_by_the_score_and_knows_when_nobody_knows():
    batch = graded([[1.0, 0.4], [1.0, 0.5], [1.0, NAN], [NAN, 0.9], [NAN, 0.1]])
    out, _ = advance(Gate("k0", "k1", 0.5, -2.0), batch)
    want = torch.tensor([-2.0, 1.0, NAN, NAN, -2.0])
    assert torch.equal(out.rewards[:, 0].nan_to_num(9), want.nan_to_num(9))
    assert torch.equal(out.rewards[:, 1].nan_to_num(9), batch.scores[:, 1].nan_to_num(9))


def test_gates_read_scores_so_their_order_is_free():
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
            r'"k11", which is none of the objectives k0, k1; did you mean "k1"',
        ),
        (WeightedSum({"k0": NAN}), "must be a finite number"),
        (WeightedSum({"k0": 0.0}), "no objective has a weight"),
        (WeightedSum({}), "no objective has a weight"),
        (Gate("k0", "safety", 0.5), 'a gate names "safety"'),
        (chain(WeightedSum({"k0": 1.0}), Gate("k0", "k1", 0.5)), "put it before"),
        (chain(WeightedSum({"k0": 1.0}), WeightedSum({"k0": 1.0})), "no longer apart"),
    ],
)
def test_wrong_wiring_is_told(step, match):
    with pytest.raises(WiringError, match=match):
        advance(step, graded([[1.0, 2.0]]))


def test_shares_are_pooled_within_groups_and_blind_to_what_differs_between_them():
    parts = torch.tensor([[0.0, 0.0], [1.0, 0.0], [100.0, 0.0], [100.0, 1.0]])
    group = torch.tensor([0, 0, 1, 1])
    shares = variance_share(parts, parts.sum(-1, keepdim=True), group)
    assert shares.tolist() == pytest.approx([0.5, 0.5])


def test_shares_are_unknown_when_nothing_varies_and_leave_unscored_rows_out():
    flat = torch.full((4, 2), 0.3)
    assert variance_share(flat, flat.sum(-1, keepdim=True), torch.zeros(4).long()).isnan().all()
    x = torch.tensor([[0.0, 0.1], [1.0, 0.2], [0.5, NAN]])
    shares = variance_share(x, x.sum(-1, keepdim=True), torch.zeros(3).long())
    assert shares.tolist() == pytest.approx([1 / 1.1, 0.1 / 1.1], rel=1e-5)
