"""Stated confidence against the numbers of published code: parsed, paid for, and held against the truth."""

import math

import numpy as np
import pytest
import torch
from cases import Case, cases

from paretune.credit.shaping import ConfidenceCalibratedReward
from paretune.data.chat import parse_confidence, strip_confidence
from paretune.evaluate.confidence import bin_indices, ece, impute_most_common, overconfidence, to_unit_scale
from paretune.reward.losses import BradleyTerryLoss, ConfidenceCalibrationLoss
from toy import graded

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("case", cases("ppoc_reward_adjustment"))
def test_rewards_adjusted_by_confidence(case: Case) -> None:
    p = case.params
    form = "spread" if p["avg_type"] == "std" else p["adjustment_type"]
    part = ConfidenceCalibratedReward(
        adjustment_type=form,
        confidence_coef=p["w"],
        ema_decay=1 - p["alpha"],
        initial_baseline=p["initial_avg"],
    )
    state = part.init_state()
    for given, want in zip(case.inputs["batches"], case.expected["steps"], strict=True):
        stated = [[c / 10] for c in given["confidence"]]
        batch = graded(stated, objectives=("confidence",))
        batch = batch.replace(rewards=torch.tensor(given["rewards"])[:, None])
        batch, state, seen = part.apply_stateful(batch, state, torch.Generator())
        case.check(batch.rewards[:, 0], want["adjusted"])
        case.check(state, want["reward_avg"])
        assert seen == {"state/reward_level": float(state)}


@pytest.mark.parametrize("case", cases("ppoc_confidence_parse"))
def test_confidence_read_from_text(case: Case) -> None:
    """Ours reads a response without its end token, and no match is NaN, which counts as 5 of 10 later."""
    response = case.inputs["text"].removesuffix("</s>").rstrip()
    said, want = 10 * parse_confidence(response), case.expected["confidence"]
    left = case.expected["text_without_confidence"].removesuffix("</s>").rstrip()
    if "85%" in response:  # theirs takes 85 % for 10 of 10 and leaves the sign behind
        assert (want, left) == (10.0, "%")
        want, left = 8.5, ""
    case.check(5.0 if math.isnan(said) else said, want)
    assert strip_confidence(response) == left


@pytest.mark.parametrize("case", cases("ppom_calibrated_reward_loss"))
def test_reward_models_calibrated_by_confidence(case: Case) -> None:
    names = ("chosen", "reject", "cwh", "cwl", "rwh", "rwl")
    x = {name: case.input(name).requires_grad_() for name in names}
    mode = case.params["loss"]
    kind = {"kwise": "ranking", "variant": "crossed"}.get(mode, "pairs")
    margins = case.inputs.get("margin", [0.0] * len(x["cwh"])) if kind != "ranking" else [0.0] * len(x["cwh"])
    each = []
    for i, margin in enumerate(margins):
        four = (x[name][i] for name in ("cwh", "cwl", "rwl", "rwh"))
        each.append(ConfidenceCalibrationLoss(loss_type=kind, margin=margin)(*four))
        if mode == "combined":
            each[-1] = each[-1] + BradleyTerryLoss(margin=margin)(x["chosen"][i], x["reject"][i])
    loss = torch.stack(each).mean()
    loss.backward()
    case.check(loss, case.expected["loss"])
    for name in names:
        slope = x[name].grad
        case.check(torch.zeros_like(x[name]) if slope is None else slope, case.grad[name])


@pytest.mark.parametrize("case", cases("ece"))
def test_calibration_error(case: Case) -> None:
    confidence, right = (np.array(case.inputs[key]) for key in ("y_confs", "y_true"))
    case.check(ece(confidence, right, case.params["n_bins"]), case.expected["ece"])
    assert bin_indices(confidence, case.params["n_bins"]).tolist() == case.expected["bin_index"]
    case.check(overconfidence(confidence, right), case.expected["mpce"])


@pytest.mark.parametrize("case", cases("ece_confidence_scaling"))
def test_confidence_put_on_one_scale(case: Case) -> None:
    raw = [math.nan if c is None else float(c) for c in case.inputs["confidence"]]
    # Theirs divides the most common number by 10 even where it is in percent.
    want = [0.85 if score == 8.5 else score for score in case.expected["scores"]]
    case.check(impute_most_common(to_unit_scale(raw)).tolist(), want)
