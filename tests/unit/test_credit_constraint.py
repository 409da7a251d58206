import json
import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.constraints import Constraint, Lagrangian, dual_ascent
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.training.checkpoint import deserialize_tree, serialize_tree
from toy import advance, graded

NAN = math.nan
R = {"reward": 1.0}
NAMES = ("reward", "safety")
SAFE = (Constraint("safety", 0.5),)


def rounds(part, *scores):
    state, rng, seen = part.init_state(), torch.Generator(), {}
    for rows in scores:
        batch, state, seen = part.apply_stateful(graded(rows, objectives=NAMES), state, rng)
    return batch, state, seen


def test_dual_ascent_matches_manual_value():
    """Multiplier 1, broken by 0.5, rate 0.1: log 0.05, multiplier 1.051271, whichever form."""
    for form in ("mirror", "gradient"):
        log = dual_ascent(torch.zeros(1), torch.tensor([0.5]), 0.1, form, (0.0, 5.0))
        assert log.item() == pytest.approx(0.05)
        assert log.exp().item() == pytest.approx(1.051271, abs=1e-6)
    assert dual_ascent(torch.zeros(1), torch.tensor([NAN]), 0.1, "mirror", (0.0, 5.0)).item() == 0


def test_advantages_are_divided_by_one_plus_multipliers():
    """Their A_R = 1 and cost advantage 0.5 at multiplier 1 give 0.25; our objective is minus the cost."""
    batch = graded([[0.0, 0.0]], objectives=NAMES)
    each = torch.tensor([1.0, -0.5]).expand(1, 3, 2) * batch.response_mask[..., None]
    part = Lagrangian(R, SAFE, apply_to="advantages", dual_learning_rate=0.0)
    out, _ = advance(part, batch.replace(advantages=each))
    assert out.advantages[0, :, 0].tolist() == [0.0, 0.25, 0.25]
    with pytest.raises(WiringError, match="of 1 objectives and needs all 2"):
        advance(part, batch.replace(advantages=each[..., :1]))


def test_multiplier_grows_while_violated_and_falls_while_satisfied():
    part = Lagrangian(R, SAFE, dual_learning_rate=1.0, window_size=2)
    _, _, seen = rounds(part, [[0.0, 0.1], [0.0, 0.3]])
    assert seen["constraint_violation/safety"] == pytest.approx(0.3)
    assert seen["state/multiplier/safety"] == pytest.approx(math.exp(0.3))
    _, _, seen = rounds(part, [[0.0, 0.1], [0.0, 0.3]], [[0.0, 1.0], [0.0, 1.0]])
    assert seen["constraint_violation/safety"] == pytest.approx(-0.5)
    assert seen["state/multiplier/safety"] == pytest.approx(math.exp(-0.2))


def test_bounds_prevent_multiplier_windup():
    part = Lagrangian(R, SAFE, dual_learning_rate=5.0, max_multiplier=4.0, min_multiplier=0.25, window_size=2)
    broken, kept = [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
    _, _, seen = rounds(part, *[broken] * 50)
    assert seen["state/multiplier/safety"] == pytest.approx(4.0)
    _, _, seen = rounds(part, *[broken] * 50, kept)
    assert seen["state/multiplier/safety"] < 1.0  # one good step is enough to come down
    _, _, seen = rounds(part, *[kept] * 50, broken)
    assert seen["state/multiplier/safety"] > 1.0


def test_unscored_responses_do_not_update_multipliers():
    part = Lagrangian(R, SAFE, dual_learning_rate=1.0)
    batch, state, seen = rounds(part, [[1.0, NAN], [2.0, NAN]])
    assert state["log_multipliers"].item() == 0
    assert math.isnan(seen["constraint_violation/safety"])
    assert batch.rewards.isnan().all()
    _, state, _ = rounds(part, [[1.0, NAN], [2.0, 0.5]])
    assert state["recent_scores"].isnan().sum() == 255


def test_rate_and_quantile_constraints():
    scores = torch.tensor([0.1, 0.4, 0.6, 0.8, NAN])
    rate = Constraint("safety", 0.9, statistic="rate", statistic_arg=0.5)
    assert rate.statistic_value(scores).item() == pytest.approx(0.5)
    assert rate.passes(scores).tolist() == pytest.approx([0, 0, 1, 1, NAN], nan_ok=True)
    quantile = Constraint("safety", 0.5, statistic="quantile", statistic_arg=0.25)
    assert quantile.statistic_value(scores).item() == pytest.approx(0.325)
    assert quantile.passes(scores).tolist() == pytest.approx([0, 0, 1, 1, NAN], nan_ok=True)
    part = Lagrangian(R, (rate, Constraint("safety", 0.5)), dual_learning_rate=0.0)
    batch, _, seen = rounds(part, [[1.0, 0.4], [1.0, 0.6]])
    assert batch.rewards.flatten().tolist() == pytest.approx([1.4 / 3, 2.6 / 3])
    assert seen["constraint_violation/safety/rate"] == pytest.approx(0.4)
    assert seen["variance_share/reward"] + seen["variance_share/safety"] == pytest.approx(1.0)
    assert seen["weighted_score/safety/mean"] == pytest.approx(1.0 / 3)


def test_fixed_multipliers_equal_fixed_weights_bit_for_bit():
    batch = graded(torch.rand(8, 2).tolist(), objectives=NAMES)
    held, _ = advance(Lagrangian(R, SAFE, dual_learning_rate=0.0), batch)
    fixed, _ = advance(WeightedSum({"reward": 0.5, "safety": 0.5}), batch)
    assert torch.equal(held.rewards, fixed.rewards)
    credit = chain(
        GroupNormalize(),
        BroadcastToTokens(),
        Lagrangian(R, SAFE, apply_to="advantages", dual_learning_rate=0.0),
    )
    apart, seen = advance(credit, batch)
    want, _ = advance(chain(GroupNormalize(), BroadcastToTokens()), batch)
    torch.testing.assert_close(apart.advantages, want.advantages.mean(-1, keepdim=True))
    assert seen["variance_share/reward"] + seen["variance_share/safety"] == pytest.approx(1.0)


def test_state_survives_a_checkpoint_bit_for_bit():
    part = Lagrangian(R, SAFE, dual_learning_rate=0.7, window_size=3, min_multiplier=0.0)
    _, state, _ = rounds(part, [[0.1, 0.2], [0.3, 0.7]], [[0.5, 0.1], [0.2, 0.9]])
    tree, tensors = serialize_tree(state)
    again = deserialize_tree(json.loads(json.dumps(tree)), tensors, part.init_state())
    batch, rng = graded([[0.1, 0.4], [0.2, 0.3]], objectives=NAMES), torch.Generator()
    one, two = (part.apply_stateful(batch, s, rng) for s in (state, again))
    assert torch.equal(one[0].rewards, two[0].rewards)
    assert torch.equal(one[1]["log_multipliers"], two[1]["log_multipliers"])
    assert one[2] == two[2]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: Constraint("a", 0.5, statistic_arg=0.5),
            'on "a" is on its mean, which takes no `constraint_param`',
        ),
        (lambda: Constraint("a", 0.5, statistic="rate"), "needs `constraint_param`"),
        (lambda: Constraint("a", 1.5, statistic="rate", statistic_arg=0.5), "asks for at least 1.5"),
        (lambda: Constraint("a", NAN), "asks for at least nan"),
        (lambda: Constraint("a", 0.5, statistic="quantile", statistic_arg=1.0), "must lie between 0 and 1"),
        (
            lambda: Lagrangian(R, ()),
            "there is no constraint .*; fix: .*at_least",
        ),
        (lambda: Lagrangian(R, (*SAFE, *SAFE)), "one of them twice"),
        (lambda: Lagrangian(R, SAFE, initial_multiplier=20.0), "must lie between min_multiplier"),
        (lambda: Lagrangian(R, SAFE, window_size=0), "window_size 0"),
        (
            lambda: Lagrangian(
                R, (Constraint("a", 0.5, statistic="rate", statistic_arg=0.5),), apply_to="advantages"
            ),
            "an advantage is of the score itself",
        ),
        (lambda: rounds(Lagrangian(R, (Constraint("b", 1.0),)), [[1.0, 1.0]]), 'no objective "b"'),
    ],
)
def test_contradictory_settings_raise(make, match):
    with pytest.raises(WiringError, match=match):
        make()
