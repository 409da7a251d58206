import json

import pytest
import torch

from paretune.batch import Outputs
from paretune.errors import WiringError
from paretune.loss.policy import LIMIT, Clipped, KlToReference, bounded, k1, k2, k3, k3_k2
from paretune.loss.term import Loss, Term, total, wanted
from paretune.reduce import token_weights
from shared import shared
from toy import graded


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ready(advantage=1.0, objectives=1):
    batch = graded([1.0, 0.0], lengths=[2, 3])
    spread = torch.full((2, 4, objectives), advantage) * batch.respond[..., None]
    zero = torch.zeros(2, 4)
    weight = token_weights(batch.respond, "sequence")
    return batch.set(advantages=spread, behaviour_logp=zero, reference_logp=zero, weight=weight)


def test_the_prompt_and_the_padding_get_no_gradient():
    batch = ready()
    logp = torch.zeros(2, 4, requires_grad=True)
    loss, _ = total((Term(1.0, Clipped()), Term(1.0, KlToReference())), Outputs(logp=logp), batch)
    loss.backward()
    assert (logp.grad[~batch.respond] == 0).all()
    assert (logp.grad[batch.respond] != 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_k2"])
def test_the_coefficient_of_every_estimator_reaches_the_gradient(estimator):
    batch = ready(0.0)
    logp = torch.where(batch.respond, 0.3, 0.0).requires_grad_()
    KlToReference(estimator)(Outputs(logp=logp), batch).backward()
    assert (logp.grad[batch.respond] > 0).all()


def test_cut_log_ratios_are_finite_counted_and_still_pull():
    batch = ready(0.0)
    logp = torch.where(batch.respond, -100.0, 0.0).requires_grad_()
    out = Outputs(logp=logp)
    loss = KlToReference("k3")(out, batch)
    loss.backward()
    assert loss.isfinite()
    assert (logp.grad[batch.respond] < 0).all()
    assert KlToReference().watch(out, batch)["ratio/clamped"].sum() == 5
    x = torch.tensor([25.0], requires_grad=True)
    assert bounded(x) == LIMIT
    bounded(x).sum().backward()
    assert x.grad == 1


def test_on_the_policy_that_sampled_the_bounds_do_not_matter():
    batch = ready(-1.5)
    slopes = []
    for bound in (0.0, 0.2, 0.9):
        logp = torch.zeros(2, 4, requires_grad=True)
        loss = Clipped(bound, bound)(Outputs(logp=logp), batch)
        assert loss.item() == pytest.approx(1.5)
        if bound:
            slopes.append(torch.autograd.grad(loss, logp)[0])
    assert torch.equal(*slopes)


def test_wrong_wiring_is_told():
    out = Outputs(logp=torch.zeros(2, 4))
    with pytest.raises(WiringError, match="of 2 objectives and must be of 1: add an aggregator"):
        Clipped()(out, ready(objectives=2))
    with pytest.raises(WiringError, match="reference_logp"):
        KlToReference()(out, ready().set(reference_logp=None))
    with pytest.raises(WiringError, match="no losses"):
        total((), out, ready())
    with pytest.raises(WiringError, match="does not say"):
        Loss()(out, ready())
    with pytest.raises(WiringError, match="clip bounds"):
        Clipped(-0.1, 0.2)
    assert wanted((Term(1.0, Clipped()),)) == frozenset()


def test_published_kl_estimators():
    kinds = {"k1": k1, "k2": k2, "k3": k3, "k3+": k3_k2}
    seen = 0
    for case in json.loads(shared("golden", "kl_estimators.json").read_text())["cases"]:
        if case["params"]["kind"] not in kinds or "extreme" in case["name"]:
            continue
        logp, reference, coef = (
            torch.tensor(case["inputs"][k], dtype=torch.float64) for k in ("logprob", "ref_logprob", "coef")
        )
        logp.requires_grad_()
        x = kinds[case["params"]["kind"]](logp - reference)
        (slope,) = torch.autograd.grad((x * coef).sum(), logp)
        want = torch.tensor(case["expected"]["estimate"], dtype=torch.float64)
        grad = torch.tensor(case["grad"]["logprob"], dtype=torch.float64)
        x = (
            x.detach().clamp(max=10) if "k3" in case["params"]["kind"] else x.detach()
        )  # they cut the value too
        torch.testing.assert_close(x, want, atol=1e-8, rtol=1e-7, msg=case["name"])
        torch.testing.assert_close(slope, grad, atol=1e-8, rtol=1e-7, msg=case["name"])
        seen += 1
    assert seen >= 4


def published_grpo():
    """Cases of the published loss whose options exist here."""
    plain = {"level": "token", "delta": None, "top_entropy": 1.0, "off_policy_mask": None, "ga": 1}
    plain["entropy_coef"] = 0.0
    for case in json.loads(shared("golden", "trl_grpo_losses.json").read_text())["cases"]:
        p = case["params"]
        known = p["loss_type"] in {"grpo", "bnpo", "dapo"} and (p["beta"] == 0 or not p["bias_kl"])
        if known and all(p[k] == v for k, v in plain.items()):
            yield case


def test_published_losses_and_gradients(double):
    seen = 0
    for case in published_grpo():
        x = {k: torch.tensor(v, dtype=torch.float64) for k, v in case["inputs"].items()}
        p, mask = case["params"], x["mask"].bool()
        logp = torch.where(mask, x["logps"], 0.0).requires_grad_()
        old = logp.detach() if p["on_policy"] else torch.where(mask, x["old"], 0.0)
        batch = graded(torch.zeros(len(mask)), lengths=[mask.shape[1] - 1] * len(mask), respond=mask).set(
            advantages=x["advantages"][:, None, None] * mask[..., None],
            behaviour_logp=old,
            reference_logp=torch.where(mask, x["ref"], 0.0),
            weight=token_weights(mask, "sequence" if p["loss_type"] == "grpo" else "token"),
        )
        high = p["eps"] if p["eps_high"] is None else p["eps_high"]
        terms = (Term(1.0, Clipped(p["eps"], high)), Term(p["beta"], KlToReference("k3")))
        loss, _ = total(terms, Outputs(logp=logp), batch)
        (slope,) = torch.autograd.grad(loss, logp)
        want = torch.tensor(case["grad"]["logps"])
        scale = max(want.abs().max().item(), 1e-3)
        assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-6, abs=1e-8), case["name"]
        assert (slope - torch.where(mask, want, 0.0)).abs().max() <= 1e-6 * scale, case["name"]
        seen += 1
    assert seen >= 10
