"""Verbalized confidence against published code: parsing, reward adjustment, calibration error."""

import math

import numpy as np
import pytest
import torch
from cases import Case, cases

from paretune.credit.shaping import ConfidenceCalibratedReward
from paretune.data.prompt_formats import parse_confidence, strip_confidence
from paretune.evaluate.confidence import bin_indices, ece, overconfidence
from toy import graded

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("case", cases("ppoc_reward_adjustment"))
def test_confidence_adjusted_rewards_match_ppo_c(case: Case) -> None:
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
def test_confidence_parsing_matches_ppo_c(case: Case) -> None:
    """Ours reads a response without its end token, and no match is NaN, which counts as 5 of 10 later."""
    response = case.inputs["text"].removesuffix("</s>").rstrip()
    said, want = 10 * parse_confidence(response), case.expected["confidence"]
    left = case.expected["text_without_confidence"].removesuffix("</s>").rstrip()
    if "85%" in response:  # theirs takes 85 % for 10 of 10 and leaves the sign behind
        assert (want, left) == (10.0, "%")
        want, left = 8.5, ""
    case.check(5.0 if math.isnan(said) else said, want)
    assert strip_confidence(response) == left


@pytest.mark.parametrize("case", cases("ece"))
def test_calibration_errors_match_reference(case: Case) -> None:
    confidence, right = (np.array(case.inputs[key]) for key in ("y_confs", "y_true"))
    case.check(ece(confidence, right, case.params["n_bins"]), case.expected["ece"])
    assert bin_indices(confidence, case.params["n_bins"]).tolist() == case.expected["bin_index"]
    case.check(overconfidence(confidence, right), case.expected["mpce"])
