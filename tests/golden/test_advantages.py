"""Advantages of published code: GRPO, RLOO, GDPO in four forms, REINFORCE++ with a baseline, Dr. GRPO."""

import pytest
import torch
from cases import cases, numbers

from paretune.algorithms.grpo import gdpo_credit
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    Whiten,
)
from paretune.credit.score_transforms import MissingAsZero
from paretune.credit.shaping import ClipReward
from toy import advance, graded

pytestmark = pytest.mark.usefixtures("double")


def weights_of(values):
    return {f"k{k}": float(w) for k, w in enumerate(values)}


def groups(rows, n):
    return [i // n for i in range(rows)]


def advantages(credit, scores, group, respond=None):
    """[B, T] with a mask of response tokens, [B] without."""
    batch = graded(scores, group=group, respond=respond)
    a = advance(chain(credit, BroadcastToTokens()) if respond is None else credit, batch)[0].advantages[
        ..., 0
    ]
    return a if respond is not None else a[:, 1]


@pytest.mark.parametrize("case", cases("trl_grpo_advantages"))
def test_group_advantages_match_trl(case):
    rewards, p = case.input("rewards"), case.params
    weights, group = weights_of(case.inputs["weights"]), groups(len(rewards), p["num_generations"])
    if p["aggregation"] == "normalize_then_sum":
        credit = gdpo_credit(weights, "trl")
    else:
        divide = p["scale_rewards"]
        credit = chain(MissingAsZero(), WeightedSum(weights), GroupNormalize(divide))
    case.check(advantages(credit, rewards, group), case.expected["advantages"])
    # What TRL logs: the weighted raw sum over the rows that have a score, and its spread over the batch.
    total, seen = advance(chain(MissingAsZero(), WeightedSum(weights)), graded(rewards, group=group))
    known = total.rewards[~total.rewards.isnan()]
    case.check(known.mean(), case.expected["reward"])
    assert sum(seen[f"weighted_score/{k}/mean"] for k in weights) == pytest.approx(float(known.mean()))
    # Of equal rewards theirs is the noise of float32, ours 0.
    want = case.expected["reward_std"]
    case.check(known.std(), want if want > 1e-7 else 0.0)


@pytest.mark.parametrize("case", cases("trl_rloo_advantages"))
def test_rloo_advantages_match_trl(case):
    rewards, p = case.input("rewards"), case.params
    steps = [MissingAsZero(), WeightedSum(weights_of([1.0] * rewards.shape[1]))]
    if p["reward_clip_range"]:
        steps.append(ClipReward(*p["reward_clip_range"]))
    steps.append(LeaveOneOut())
    if p["normalize_advantages"]:
        steps.append(BatchNormalize("subtract"))
    group = groups(len(rewards), p["num_generations"])
    case.check(advantages(chain(*steps), rewards, group), case.expected["advantages"])


@pytest.mark.parametrize("case", cases("gdpo_advantage_nvlabs_trl"))
def test_gdpo_matches_trl_fork_of_authors(case):
    rewards, p = case.input("rewards"), case.params
    weights, group = weights_of(case.inputs["weights"]), groups(len(rewards), p["num_generations"])
    credit = gdpo_credit(weights, "nvlabs")
    if not p["apply_gdpo"]:
        divide = "group" if p["scale_rewards"] else "none"
        credit = chain(MissingAsZero("all"), WeightedSum(weights), GroupNormalize(divide))
    case.check(advantages(credit, rewards, group), case.expected["advantages"])


def verl(estimator, scores, weights, group, respond):
    """The estimators of verl, on scores [B, K]."""
    raw = {"eps": 1e-6, "zero_std_rtol": 0.0, "singleton": "raw"}
    credit = {
        "gdpo": gdpo_credit(weights, "verl"),
        "grpo": chain(WeightedSum(weights), GroupNormalize(**raw), BroadcastToTokens()),
        "grpo_no_std": chain(WeightedSum(weights), GroupNormalize("none", **raw), BroadcastToTokens()),
        "rpp": chain(WeightedSum(weights), GroupNormalize("none"), BroadcastToTokens(), Whiten()),
    }[estimator]
    return advantages(credit, scores, group, respond)


@pytest.mark.parametrize("case", cases("gdpo_advantage_nvlabs_verl"))
def test_gdpo_matches_verl_fork_of_authors(case):
    scores = torch.stack([case.input("scores_correctness"), case.input("scores_format")], 1)
    estimator = case.params["estimator"]
    weights = {"k0": 1.0} if estimator != "gdpo" else {"k0": 1.0, "k1": 1.0}
    got = verl(estimator, scores, weights, case.inputs["group"], case.input("response_mask").bool())
    case.check(got, case.expected["advantages"])


@pytest.mark.parametrize("case", cases("verl_group_advantages"))
def test_group_advantages_match_verl(case):
    estimator = case.params["estimator"]
    scores = case.input("scores_k").T if estimator == "gdpo" else case.input("scores")[:, None]
    weights = weights_of(case.inputs.get("weights", [1.0]))
    got = verl(estimator, scores, weights, case.inputs["group"], case.input("response_mask").bool())
    case.check(got, case.expected["advantages"])


@pytest.mark.parametrize("case", cases("drgrpo"))
def test_advantages_match_dr_grpo(case):
    p = case.params
    rewards = case.input("rewards").sum(1, keepdim=True)
    divide = {"grpo": "group", "drgrpo": "none"}[p["critic_type"]]
    got = advantages(GroupNormalize(divide, eps=1e-8), rewards, groups(len(rewards), p["num_samples"]))
    case.check(got, case.expected["advantages"])


def test_numbers_reads_nan_infinity_and_null():
    assert numbers(["NaN", None, "-Infinity", 1]).tolist()[2:] == [-torch.inf, 1.0]
