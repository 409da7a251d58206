"""Factors on the policy loss: what is inert is refused, what is cut is reported, and factors multiply."""

import pytest
import torch

from paretune.algorithms.ratios import cispo, corrected
from paretune.credit.importance import KeepUncertain, TruncatedImportance, most_uncertain
from paretune.credit.step import chain
from paretune.errors import WiringError
from paretune.learn.check import check
from paretune.learn.descend import descend
from paretune.metrics import metric
from paretune.models.measure import Behaviour, Reference, Undecided
from paretune.rundir import Run
from toy import WEIGHTS, advance, digest, graded, toy_recipe, toy_world

NAMES = ("even", "high")


def measured():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    return batch.set(
        sampler_logp=torch.zeros(2, 4),
        behaviour_logp=torch.tensor([[0.0, 1.0, 9.0, 9.0], [0.0, -1.0, 0.0, 0.1]]),
        entropy=torch.tensor([[9.0, 0.5, 9.0, 9.0], [9.0, 0.1, 0.9, 0.2]]),
    )


def test_identical_engines_change_nothing():
    batch = measured()
    same = batch.set(behaviour_logp=batch.sampler_logp.clone())
    for by in ("token", "sequence"):
        for beyond in ("truncate", "mask"):
            weighed, seen = advance(TruncatedImportance(by, beyond), same)
            assert (weighed.importance == 1).all()
            assert seen["importance/cut"] == 0


def test_only_the_response_counts_and_factors_multiply():
    steps = chain(TruncatedImportance(most=2.0, least=0.5), KeepUncertain(0.5))
    batch, seen = advance(steps, measured())
    want = torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(batch.importance * batch.respond, want)
    assert seen["importance/cut"] == 0.5
    assert seen["importance/uncertain"] == 0.5
    assert all(metric(key) for key in seen)


def test_the_most_uncertain_tokens_of_the_whole_step():
    batch = measured()
    assert most_uncertain(batch.entropy, batch.respond, 1.0).equal(batch.respond)
    assert most_uncertain(batch.entropy, batch.respond, 0.01).sum() == 1
    nothing = torch.zeros_like(batch.respond)
    assert most_uncertain(batch.entropy, nothing, 0.5).equal(nothing)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TruncatedImportance(most=0.9), "1 must lie between"),
        (lambda: TruncatedImportance(least=1.1), "1 must lie between"),
        (lambda: KeepUncertain(0.0), "must be in"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def test_weights_that_would_all_be_one_are_refused_at_the_door():
    recipe = toy_recipe()
    inert = recipe.but(credit=chain(TruncatedImportance(), recipe.credit))
    with pytest.raises(WiringError, match=r'TruncatedImportance .* Behaviour\(by="sampler"\) .*; fix:'):
        check(inert, NAMES)
    assert check(corrected(recipe, TruncatedImportance()), NAMES).rows_kept == 16
    with pytest.raises(WiringError, match=r"batch\.entropy"):
        check(recipe.but(credit=chain(KeepUncertain(), recipe.credit)), NAMES)


def test_both_parts_train_and_say_what_they_did(tmp_path):
    base = cispo(WEIGHTS, max_new=6)
    recipe = corrected(base, TruncatedImportance("sequence", "mask", 3.0))
    recipe = recipe.but(
        measure=(Behaviour("trainer"), Reference(), Undecided()),
        credit=chain(recipe.credit, KeepUncertain(0.5)),
    )
    world = toy_world()
    before = digest(world)
    descend(recipe, world, steps=2, seed=0, run=Run(tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert digest(world) != before
    assert all(f"importance/{key}" in lines for key in ("mean", "max", "min", "cut", "uncertain"))
