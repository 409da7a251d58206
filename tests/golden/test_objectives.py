"""Fronts, multipliers and reward-model losses against the numbers of published code."""

import math

import numpy as np
import pytest
import torch
from cases import Case, cases

from paretune.core.pareto import hypervolume, nondominated
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.reward.evaluation import pair_metrics
from paretune.reward.losses import BradleyTerryLoss, RegressionLoss, weighted_loss_sum
from toy import graded

pytestmark = pytest.mark.usefixtures("double")


def table(case: Case, key: str) -> np.ndarray:
    return np.array(case.inputs[key])


@pytest.mark.parametrize("case", cases("mo_hypervolume"))
def test_hypervolume_matches_reference(case: Case) -> None:
    points, ref_point = table(case, "points"), table(case, "ref")
    case.check(hypervolume(points, ref_point), case.expected["hypervolume"])


@pytest.mark.parametrize("case", cases("mo_nondominated_sort"))
def test_nondominated_matches_reference(case: Case) -> None:
    points, expected = table(case, "points"), case.expected
    assert nondominated(points, "first").tolist() == expected["nondominated"]
    assert nondominated(points).tolist() == expected["nondominated_keep"]


@pytest.mark.parametrize("case", cases("safe_rlhf_lambda"))
def test_lagrange_multiplier_matches_safe_rlhf(case: Case) -> None:
    """Their cost is to stay below a threshold; ours is its negative, which is to stay above."""
    p = case.params
    part = Lagrangian(
        {"reward": 1.0},
        (Constraint("safety", -p["threshold"]),),
        dual_learning_rate=p["lambda_lr"],
        update_rule="gradient",
        initial_multiplier=p["lambda_init"],
        min_multiplier=0.0,
        max_multiplier=p["lambda_max"] or 1e300,
        window_size=p["window"],
        update_delay_steps=p["delay"],
    )
    state = part.init_state()
    steps = []
    for costs in case.inputs["episode_costs_per_step"]:
        batch = graded([[0.0, -cost] for cost in costs], objectives=("reward", "safety"))
        _, state, seen = part.apply_stateful(batch, state, torch.Generator())
        cost = p["threshold"] + seen["constraint_violation/safety"]
        steps.append((math.exp(float(state["log_multipliers"][0])), cost))
        assert seen["state/multiplier/safety"] == steps[-1][0]
    for key, column in (("lambda", 0), ("episode_cost", 1)):
        case.check([step[column] for step in steps], [step[key] for step in case.expected["steps"]])


def pair_loss(case: Case, x: torch.Tensor, label: float) -> torch.Tensor:
    """Their fifth column judges the pair; a label of 0 counts as a preference for the second row."""
    mode, size = case.params["mode"], abs(label)
    chosen, rejected = (x[0, 4], x[1, 4]) if label < 0 else (x[1, 4], x[0, 4])
    each = BradleyTerryLoss(margin=size if mode == "margin_bt" else 0.0)(chosen, rejected)
    return weighted_loss_sum(each, torch.tensor(size if mode == "scaled_bt" else 1.0))


@pytest.mark.parametrize("case", cases("regression_reward_loss"))
def test_regression_and_scaled_pair_losses_match_nemo(case: Case) -> None:
    """Their mean is over all labels; ours gives each objective the same share, so weigh as they do."""
    x, label = case.input("pred").requires_grad_(), case.input("labels")
    if case.params["mode"] == "regression":
        known = label != -100
        label = torch.where(known, label, torch.nan)
        loss = weighted_loss_sum(RegressionLoss()(x, label), known / known.sum())
    else:
        loss = pair_loss(case, x, float(label[0, 0]))
    loss.backward()
    case.check(loss, case.expected["loss"])
    case.check(x.grad, case.grad["pred"])


@pytest.mark.parametrize("case", cases("trl_reward_bt"))
def test_bradley_terry_with_margin_and_centering_matches_trl(case: Case) -> None:
    chosen, rejected = (case.input(key).requires_grad_() for key in ("chosen", "rejected"))
    margin = case.input("margin") if "margin" in case.inputs else torch.zeros(len(chosen))
    part = BradleyTerryLoss(center_rewards_coefficient=case.params["center_rewards_coefficient"] or 0.0)
    pairs = [
        BradleyTerryLoss(margin=m, center_rewards_coefficient=part.center_rewards_coefficient)(c, r)
        for c, r, m in zip(chosen, rejected, margin.tolist(), strict=True)
    ]
    loss = torch.stack(pairs).mean()
    loss.backward()
    case.check(loss, case.expected["loss"])
    gap, expected = (chosen - rejected).detach(), case.expected["metrics"]
    ties = float((gap == 0).double().mean())
    # A tie is half right for us, and wrong for them.
    case.check(pair_metrics(gap.numpy())["pair_accuracy"] - ties / 2, expected["accuracy"])
    case.check(chosen.grad, case.grad["chosen"])
    case.check(rejected.grad, case.grad["rejected"])
