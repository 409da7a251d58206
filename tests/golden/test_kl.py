"""Estimators of the divergence from the reference, and TRL's small functions."""

import math

import pytest
import torch
from cases import Case, cases, numbers
from lossbatch import asked, batch_of, outputs

from paretune.core.reductions import group_std
from paretune.loss.kl import KlToReference
from paretune.loss.policy import gamma_weight

pytestmark = pytest.mark.usefixtures("double")


NAMES = {
    "k1": "k1",
    "k2": "k2",
    "k3": "k3_clamped",
    "abs": "abs",
    "k1+": "k1_value_k2_grad",
    "k3+": "k3_clamped_value_k2_grad",
}
"""verl's names; its k3 is cut."""


@pytest.mark.parametrize("case", cases("kl_estimators"))
def test_kl_estimators_match_verl(case: Case):
    logp = torch.atleast_2d(case.input("logprob")).requires_grad_()
    reference, coefficient = (torch.atleast_2d(case.input(key)) for key in ("ref_logprob", "coef"))
    mask = torch.ones_like(reference)
    part = KlToReference(NAMES[case.params["kind"]])

    def loss(weight):
        batch = batch_of(mask, weight=weight, ref_logprobs=reference)
        return part(outputs(logp, mask), batch)

    each = torch.tensor([[float(loss(one.reshape(mask.shape)).detach()) for one in torch.eye(mask.numel())]])
    (slope,) = torch.autograd.grad(loss(coefficient), logp)
    case.check(each.reshape(numbers(case.expected["estimate"]).shape), case.expected["estimate"])
    case.check(slope.reshape(numbers(case.grad["logprob"]).shape), case.grad["logprob"])


@pytest.mark.parametrize("case", cases("trl_helpers", "log_softmax_entropy"))
def test_logprobs_and_entropy_match_trl(case: Case):
    logits = case.input("logits").requires_grad_()
    index = case.input("index").long()
    # One hidden state more than there are tokens to ask about: nobody asks what follows the last one.
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 1))
    tokens = torch.nn.functional.pad(index, (1, 0))
    respond = torch.ones_like(tokens, dtype=torch.bool)
    respond[:, 0] = False
    logp = asked(padded, tokens, respond, case.params["temperature"]).logprobs
    entropy = asked(padded, tokens, respond).entropy  # theirs is that at temperature 1 whatever T is
    for name, x in (("selective_log_softmax", logp[:, 1:]), ("entropy", entropy[:, 1:])):
        case.check(x, case.expected[name])
        (slope,) = torch.autograd.grad(x.sum(), logits, retain_graph=True)
        if case.grad:
            case.check(slope, case.grad[f"sum_{name}/logits"])


@pytest.mark.parametrize("case", cases("trl_helpers", "gamma_weights"))
def test_gamma_weights_match_trl(case: Case):
    gap, mask = case.input("log_ratio"), case.input("mask").bool()
    advantage = case.input("advantages")[:, None].expand(gap.shape)
    weight = gamma_weight(gap, advantage, mask, (2.0, 3.0), (3.0, 2.0))
    assert torch.equal(weight, weight[:, :1].expand(weight.shape))
    case.check(weight[:, :1], case.expected["gamma_weights"])


@pytest.mark.parametrize("case", cases("trl_helpers", "nanstd"))
def test_group_std_with_missing_values_matches_trl(case: Case):
    """Where a single value leaves the spread undefined (NaN), ours says 0, that is: nothing to learn here."""
    rows = case.input("values").float()
    want = [0.0 if x == "NaN" else x for x in case.expected["nanstd"]]
    group = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
    std = group_std(rows.reshape(-1, 1), group).reshape(rows.shape)[:, 0]
    singles = (~rows.isnan()).sum(-1) == 1
    assert [math.isnan(float(x)) for x in case.expected["nanstd"]] == singles.tolist()
    case.check(std, want)
