import pytest
import torch

from paretune.batch import Outputs
from paretune.errors import WiringError
from paretune.loss.entropy import EntropyBonus
from paretune.loss.kl import ESTIMATORS, KlToReference
from paretune.loss.policy import Clipped, DropStale, PolicyLoss
from paretune.loss.ratio import LIMIT, bounded
from paretune.loss.term import Loss, Term, total, wanted
from paretune.loss.unclipped import CappedRatio, GammaWeighted, SoftGate
from paretune.loss.value import ValueClipped, ValueSquared
from paretune.metrics import metric
from paretune.reduce import token_weights
from toy import graded


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


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Clipped(0.2, 0.5, most=1.4), r"largest ratio, 1\.4, lies inside the clip bound 1 \+ 0\.5"),
        (lambda: CappedRatio(0.5), "1 must lie between"),
        (lambda: CappedRatio(5.0, 1.5), "1 must lie between"),
        (lambda: SoftGate(0.0), "both must be > 0"),
        (lambda: ValueClipped(0.0), "must be > 0"),
        (lambda: KlToReference("k3_k2", "token"), 'ratio="token" adds once more'),
        (lambda: KlToReference("k1_k2", "sequence"), 'ratio="sequence" adds once more'),
    ],
)
def test_settings_without_a_meaning_are_refused(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def test_what_the_forward_pass_did_not_give_is_told():
    out, batch = Outputs(logp=torch.zeros(2, 4)), ready()
    for loss, match in (
        (EntropyBonus(), "entropy"),
        (ValueSquared(), "had no critic"),
        (PolicyLoss(), "loss of a token"),
    ):
        with pytest.raises(WiringError, match=match):
            loss(out, batch)
    terms = (Term(1.0, EntropyBonus()), Term(1.0, ValueClipped()), Term(1.0, Clipped()))
    assert wanted(terms) == {"entropy", "values"}
    with pytest.raises(WiringError, match="behaviour_logp"):
        KlToReference("k3", "token")(out, batch.set(behaviour_logp=None))


def test_bad_answers_the_policy_left_behind_teach_nothing():
    """Row 0 fell by 1 nat a token, row 1 rose; only bad rows that fell are left out."""
    batch = graded([1.0, 0.0], lengths=[2, 3])
    fell = torch.tensor([[-1.0], [1.0]]) * batch.respond
    left = []
    for sign in (-1.0, 1.0):
        now = batch.set(
            advantages=sign * batch.respond[..., None].float(),
            behaviour_logp=torch.zeros(2, 4),
            weight=token_weights(batch.respond, "token"),
        )
        logp = fell.clone().requires_grad_()
        part, out = DropStale(SoftGate(), 0.5), Outputs(logp=logp)
        (slope,) = torch.autograd.grad(part(out, now), logp)
        left.append(part.watch(out, now)["clip/stale"].sum(-1).tolist())
        assert (slope[1][batch.respond[1]] != 0).all()
        assert bool((slope[0] == 0).all()) is (sign < 0)
    assert left == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    "loss",
    [
        Clipped(most=2.0, level="sequence"),
        DropStale(Clipped()),
        CappedRatio(),
        SoftGate(),
        GammaWeighted(),
        *(KlToReference(e) for e in ESTIMATORS),
    ],
    ids=repr,
)
def test_everything_watched_is_in_the_dictionary(loss):
    seen = loss.watch(Outputs(logp=torch.full((2, 4), -0.5)), ready())
    assert seen
    assert all(metric(key) for key in seen)
    assert all(x.shape == (2, 4) for x in seen.values())
