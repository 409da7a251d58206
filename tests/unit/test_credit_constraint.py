import json
import math

import pytest
import torch

from paretune.core.errors import DataError, WiringError
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.constraints import Constraint, Lagrangian, dual_ascent, dual_value_and_grad, solve_dual
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.training.checkpoint import deserialize_tree, serialize_tree
from toy import advance, graded

NAN = math.nan
R = {"reward": 1.0}
NAMES = ("reward", "safety")
SAFE = (Constraint("safety", 0.5),)


def rounds(part, *scores):
    state, rng, seen = part.start(), torch.Generator(), {}
    for rows in scores:
        batch, state, seen = part.advance(graded(rows, objectives=NAMES), state, rng)
    return batch, state, seen


def test_one_dual_step_by_hand():
    """Multiplier 1, broken by 0.5, rate 0.1: log 0.05, multiplier 1.051271, whichever form."""
    for form in ("mirror", "gradient"):
        log = dual_ascent(torch.zeros(1), torch.tensor([0.5]), 0.1, form, (0.0, 5.0))
        assert log.item() == pytest.approx(0.05)
        assert log.exp().item() == pytest.approx(1.051271, abs=1e-6)
    assert dual_ascent(torch.zeros(1), torch.tensor([NAN]), 0.1, "mirror", (0.0, 5.0)).item() == 0


def test_advantages_are_combined_over_one_plus_the_multipliers():
    """Their A_R = 1 and cost advantage 0.5 at multiplier 1 give 0.25; our objective is minus the cost."""
    batch = graded([[0.0, 0.0]], objectives=NAMES)
    each = torch.tensor([1.0, -0.5]).expand(1, 3, 2) * batch.response_mask[..., None]
    part = Lagrangian(R, SAFE, apply_to="advantages", dual_learning_rate=0.0)
    out, _ = advance(part, batch.replace(advantages=each))
    assert out.advantages[0, :, 0].tolist() == [0.0, 0.25, 0.25]
    with pytest.raises(WiringError, match="of 1 objectives and needs all 2"):
        advance(part, batch.replace(advantages=each[..., :1]))


def test_a_multiplier_rises_while_its_constraint_is_broken_and_falls_while_it_holds():
    part = Lagrangian(R, SAFE, dual_learning_rate=1.0, window_size=2)
    _, _, seen = rounds(part, [[0.0, 0.1], [0.0, 0.3]])
    assert seen["constraint_violation/safety"] == pytest.approx(0.3)
    assert seen["state/multiplier/safety"] == pytest.approx(math.exp(0.3))
    _, _, seen = rounds(part, [[0.0, 0.1], [0.0, 0.3]], [[0.0, 1.0], [0.0, 1.0]])
    assert seen["constraint_violation/safety"] == pytest.approx(-0.5)
    assert seen["state/multiplier/safety"] == pytest.approx(math.exp(-0.2))


def test_nothing_is_wound_up_while_the_level_is_out_of_reach():
    part = Lagrangian(R, SAFE, dual_learning_rate=5.0, max_multiplier=4.0, min_multiplier=0.25, window_size=2)
    broken, kept = [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
    _, _, seen = rounds(part, *[broken] * 50)
    assert seen["state/multiplier/safety"] == pytest.approx(4.0)
    _, _, seen = rounds(part, *[broken] * 50, kept)
    assert seen["state/multiplier/safety"] < 1.0  # one good step is enough to come down
    _, _, seen = rounds(part, *[kept] * 50, broken)
    assert seen["state/multiplier/safety"] > 1.0


def test_unscored_responses_move_no_multiplier():
    part = Lagrangian(R, SAFE, dual_learning_rate=1.0)
    batch, state, seen = rounds(part, [[1.0, NAN], [2.0, NAN]])
    assert state["log"].item() == 0
    assert math.isnan(seen["constraint_violation/safety"])
    assert batch.rewards.isnan().all()
    _, state, _ = rounds(part, [[1.0, NAN], [2.0, 0.5]])
    assert state["recent"].isnan().sum() == 255


def test_rate_and_quantile():
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
    assert seen["constraint/safety/rate"] == pytest.approx(0.4)
    assert seen["variance_share/reward"] + seen["variance_share/safety"] == pytest.approx(1.0)
    assert seen["weighted_score/safety/mean"] == pytest.approx(1.0 / 3)


def test_held_multipliers_are_fixed_weights_bit_for_bit():
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


def test_the_state_survives_a_checkpoint_bit_for_bit():
    part = Lagrangian(R, SAFE, dual_learning_rate=0.7, window_size=3, min_multiplier=0.0)
    _, state, _ = rounds(part, [[0.1, 0.2], [0.3, 0.7]], [[0.5, 0.1], [0.2, 0.9]])
    tree, tensors = serialize_tree(state)
    again = deserialize_tree(json.loads(json.dumps(tree)), tensors, part.init_state())
    batch, rng = graded([[0.1, 0.4], [0.2, 0.3]], objectives=NAMES), torch.Generator()
    one, two = (part.apply_stateful(batch, s, rng) for s in (state, again))
    assert torch.equal(one[0].rewards, two[0].rewards)
    assert torch.equal(one[1]["log"], two[1]["log"])
    assert one[2] == two[2]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Constraint("a", 0.5, statistic_arg=0.5), 'on "a" is on its mean, which takes no `at`'),
        (lambda: Constraint("a", 0.5, statistic="rate"), "needs `at`"),
        (lambda: Constraint("a", 1.5, statistic="rate", statistic_arg=0.5), "asks for at least 1.5"),
        (lambda: Constraint("a", NAN), "asks for at least nan"),
        (lambda: Constraint("a", 0.5, statistic="quantile", statistic_arg=1.0), "must lie between 0 and 1"),
        (
            lambda: Lagrangian(R, ()),
            "there is no constraint to keep; fix: give an objective a level by at_least",
        ),
        (lambda: Lagrangian(R, (*SAFE, *SAFE)), "one of them twice"),
        (lambda: Lagrangian(R, SAFE, initial_multiplier=20.0), "must lie between least"),
        (lambda: Lagrangian(R, SAFE, window_size=0), "window 0"),
        (
            lambda: Lagrangian(
                R, (Constraint("a", 0.5, statistic="rate", statistic_arg=0.5),), apply_to="advantages"
            ),
            "an advantage is of the score itself",
        ),
        (lambda: rounds(Lagrangian(R, (Constraint("b", 1.0),)), [[1.0, 1.0]]), 'no objective "b"'),
    ],
)
def test_contradictions_are_told(make, match):
    with pytest.raises(WiringError, match=match):
        make()


REWARD = torch.tensor([1.0, 0.0], dtype=torch.float64)
ONE = torch.zeros(2, dtype=torch.long)


def margins(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_best_multiplier_in_closed_form(beta):
    """Reward (1, 0), safety (-1, 1), reference (.5, .5): multiplier .5, and both responses are as likely."""
    found = solve_dual(REWARD, margins(-1.0, 1.0), ONE, beta)
    assert found.multipliers.item() == pytest.approx(0.5, abs=1e-9)
    assert found.slacks.item() == pytest.approx(0.0, abs=1e-9)
    assert found.dual_value == pytest.approx(0.5, abs=1e-9)
    _, slope = dual_value_and_grad(torch.zeros(1).double(), REWARD, margins(-1.0, 1.0), ONE, 1.0)
    assert slope.item() == pytest.approx(-0.462117, abs=1e-6)


def test_a_slack_constraint_costs_nothing_and_one_out_of_reach_goes_to_the_end():
    slack = solve_dual(REWARD, margins(0.2, 1.0), ONE, 1.0)
    assert slack.multipliers.item() == 0
    assert slack.slacks.item() > 0
    hopeless = solve_dual(REWARD, margins(-1.0, -2.0), ONE, 1.0, max_multiplier=7.0)
    assert hopeless.multipliers.item() == pytest.approx(7.0)
    assert hopeless.slacks.item() < 0


def test_several_constraints_over_several_prompts_meet_their_conditions():
    rng = torch.Generator().manual_seed(0)
    reward = torch.randn(200, generator=rng, dtype=torch.float64)
    margin = torch.randn(200, 2, generator=rng, dtype=torch.float64) - 0.8 * reward[:, None]
    group = torch.arange(200) // 20
    found = solve_dual(reward, margin, group, 0.7)
    assert (found.multipliers > 0).all()
    assert found.slacks.abs().max() < 1e-6
    step = 1e-6
    for c in range(2):
        moved = found.multipliers.clone()
        moved[c] += step
        value, _ = dual_value_and_grad(moved, reward, margin, group, 0.7)
        assert value >= found.dual_value - 1e-12


def test_the_slope_of_the_dual_against_finite_differences():
    at = torch.tensor([0.3], dtype=torch.float64)
    _, slope = dual_value_and_grad(at, REWARD, margins(-1.0, 1.0), ONE, 1.3)
    high, _ = dual_value_and_grad(at + 1e-6, REWARD, margins(-1.0, 1.0), ONE, 1.3)
    low, _ = dual_value_and_grad(at - 1e-6, REWARD, margins(-1.0, 1.0), ONE, 1.3)
    assert slope.item() == pytest.approx((high - low).item() / 2e-6, abs=1e-8)


def test_a_dual_over_unscored_responses_is_refused():
    with pytest.raises(DataError, match="leave out those that nobody could score"):
        solve_dual(torch.tensor([1.0, NAN]), margins(1.0, 1.0), ONE, 1.0)
