"""Losses on pairs as the DPO, TDPO and MODPO repositories and TRL compute them: values and gradients."""

import pytest
import torch
from cases import Case, cases
from groupbatch import evenly, pairs_of, read

from paretune.data.loader import collate
from paretune.loss.listwise import per_response
from paretune.loss.pairwise import Dpo, ModpoMargin, Tdpo, pair_loss

pytestmark = pytest.mark.usefixtures("double")


def reduction(p):
    return "mean" if p["average"] else "sum"


@pytest.mark.parametrize("case", cases("dpo_batch_logps"))
def test_response_logprobs_match_dpo(case: Case):
    logits, labels = case.input("logits").requires_grad_(), case.input("labels")
    out, batch = read(logits, labels)
    logp, expected = (
        per_response(out.logprobs, batch.response_mask, reduction(case.params)),
        case.expected["logps"],
    )
    # A mean over no token: they say NaN, we 0.
    empty = ~batch.response_mask.any(-1)
    assert (logp[empty] == 0).all()
    case.check(logp, [0.0 if x == "NaN" and none else x for x, none in zip(expected, empty, strict=True)])
    if "logits" in case.grad:
        (slope,) = torch.autograd.grad((case.input("coef") * logp).sum(), logits)
        case.check(slope, case.grad["logits"])


@pytest.mark.parametrize("case", cases("dpo_concatenated_inputs"))
def test_concatenated_pairs_match_dpo(case: Case):
    """Our rows of a pair stand where theirs do; the mask says what their -100 says."""
    asked, answers = [], []
    for side in ("chosen", "rejected"):
        for ids, labels in zip(case.inputs[f"{side}_input_ids"], case.inputs[f"{side}_labels"], strict=True):
            begin = labels.count(-100)
            asked.append(ids[:begin])
            answers.append(ids[begin:])
    num = len(asked)
    batch = collate(asked, answers, [i % (num // 2) for i in range(num)], [False] * num, ("any",), 0)
    case.check(batch.input_ids, case.expected["concatenated_input_ids"])
    case.check(batch.attention_mask, case.expected["concatenated_attention_mask"])
    case.check(torch.where(batch.response_mask, batch.input_ids, -100), case.expected["concatenated_labels"])


def published(case, *names):
    """Log-probabilities in the order chosen, rejected, and the reference's."""
    return [case.input(name).requires_grad_(not name.startswith("ref")) for name in names]


REPOSITORY = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)
LIBRARY = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@pytest.mark.parametrize("case", cases("dpo_loss"))
def test_dpo_and_ipo_losses_match_dpo(case: Case):
    p, names = case.params, REPOSITORY
    sides = published(case, *names)
    out, batch = pairs_of(*sides)
    form = "ipo" if p["ipo"] else "sigmoid"
    plain = Dpo(p["beta"], form)
    rewards = plain.implicit_rewards(out, batch, plain.make_pairs(batch))
    losses = pair_loss(*rewards, form, p["beta"], p["label_smoothing"])
    case.check(rewards[0], case.expected["chosen_rewards"])
    case.check(rewards[1], case.expected["rejected_rewards"])
    case.check(losses, case.expected["losses"])
    # Labels that are wrong half of the time or more are refused by the part.
    part = Dpo(p["beta"], form, p["label_smoothing"]) if p["label_smoothing"] < 0.5 else None
    whole = losses.mean() if part is None else part(out, batch)
    for name, slope in zip(names[:2], torch.autograd.grad(whole, sides[:2]), strict=True):
        case.check(slope, case.grad[name])


FORMS = cases(
    "trl_dpo_losses",
    *("a/s", "a/h", "a/i", "a/e", "a/n", "a/r", "a/b", "a/apo", "a/d"),
    *("b_tie/s", "b_tie/h", "b_tie/i", "b_tie/e", "b_tie/n", "b_tie/r", "b_tie/b", "b_tie/apo", "b_tie/d"),
    *("c_extreme/s", "c_extreme/h", "c_extreme/i", "c_extreme/e", "c_extreme/n", "c_extreme/r"),
    *("c_extreme/b", "c_extreme/apo", "c_extreme/d"),
)


@pytest.mark.parametrize("case", FORMS)
def test_dpo_loss_types_match_trl(case: Case):
    p = case.params
    form, tokens = p["loss_type"], "sum"
    if form in {"ipo", "sigmoid_norm"}:
        form, tokens = form.removesuffix("_norm"), "mean"
    sides = published(case, *LIBRARY)
    out, batch = pairs_of(*sides, length=p["completion_len"])
    loss = Dpo(p["beta"], form, p["label_smoothing"], tokens)(out, batch)
    case.check(loss, case.expected["loss"])
    for name, slope in zip(LIBRARY[:2], torch.autograd.grad(loss, sides[:2]), strict=True):
        case.check(slope, case.grad[name])


@pytest.mark.parametrize("case", cases("modpo_loss"))
def test_margin_loss_matches_modpo(case: Case):
    p, names = case.params, REPOSITORY
    sides = published(case, *names)
    others = torch.cat([case.input("chosen_margin_reward"), case.input("rejected_margin_reward")])
    out, batch = pairs_of(*sides, others=others)
    weights = dict(zip(batch.objectives, case.inputs["w"], strict=True))
    part = Dpo(p["beta"], p["loss_type"], margin=ModpoMargin("preferred", weights))
    rewards = part.implicit_rewards(out, batch, part.make_pairs(batch))
    case.check(rewards[0], case.expected["chosen_rewards"])
    case.check(rewards[1], case.expected["rejected_rewards"])
    case.check(part.per_pair_loss(*rewards), case.expected["losses"])
    for name, slope in zip(names[:2], torch.autograd.grad(part(out, batch), sides[:2]), strict=True):
        case.check(slope, case.grad[name])


@pytest.mark.parametrize("case", cases("tdpo_logps_kl"))
def test_log_ratios_and_kl_match_tdpo(case: Case):
    logits, reference, labels = (case.input(name) for name in ("logits", "reference_logits", "labels"))
    out, batch = read(logits.requires_grad_(), labels, reference)
    quantities = (out.logprobs - batch.ref_logprobs, out.ref_policy_kl, out.logprobs)
    margin, drift, logp = (per_response(x, batch.response_mask, reduction(case.params)) for x in quantities)
    case.check(margin, case.expected["logps_margin"])
    case.check(drift, case.expected["position_kl"])
    case.check(logp, case.expected["logps"])
    coef = case.input("coef")
    (slope,) = torch.autograd.grad((coef[:, 0] * margin + coef[:, 1] * drift).sum(), logits)
    case.check(slope, case.grad["logits"])
    everywhere = (torch.arange(labels.shape[1]) > 0).expand(labels.shape)
    each, _ = read(logits, labels, reference, everywhere)
    case.check(each.ref_policy_kl[:, 1:], case.expected["per_position_kl"])


@pytest.mark.parametrize("case", cases("tdpo_loss"))
def test_losses_match_tdpo(case: Case):
    p = case.params
    logits, labels = case.input("logits").requires_grad_(), case.input("labels")
    out, batch = read(logits, labels, case.input("reference_logits"))
    num = len(labels) // 2
    signal = torch.arange(2).repeat_interleave(num).neg()[:, None].double()
    batch = evenly(batch.replace(group=torch.arange(num).repeat(2), rewards=signal))
    part = Tdpo(2, p["beta"], p["alpha"]) if p["if_tdpo2"] else Tdpo(1, p["beta"])
    pairs = part.make_pairs(batch)
    case.check(part.per_pair_loss(*part.implicit_rewards(out, batch, pairs)), case.expected["losses"])
    margin = per_response(out.logprobs - batch.ref_logprobs, batch.response_mask, "sum")
    drift = per_response(out.ref_policy_kl, batch.response_mask, "sum")
    case.check(margin, case.expected["logps_margin"])
    case.check(drift, case.expected["position_kl"])
    # Their logged rewards are those of form 1, whatever the form.
    for name, reward in zip(
        ("chosen_rewards", "rejected_rewards"),
        Tdpo(1, p["beta"]).implicit_rewards(out, batch, pairs),
        strict=True,
    ):
        case.check(reward, case.expected[name])
    (slope,) = torch.autograd.grad(part(out, batch), logits)
    case.check(slope, case.grad["logits"])
