import math

import pytest
import torch

from paretune.batch import Outputs
from paretune.learn.diagnose import Seen, collected, credited, known, weighed
from paretune.loss.kl import KlToReference
from paretune.loss.policy import Clipped
from paretune.loss.term import Term
from paretune.reduce import token_weights
from toy import graded


def test_what_was_collected():
    batch = graded([[1.0, math.nan], [0.0, math.nan], [0.5, 2.0]], group=[0, 0, 1], lengths=[1, 2, 3])
    batch = batch.set(truncated=torch.tensor([True, False, False]))
    seen = collected(batch)
    assert seen == pytest.approx(
        {
            "score/k0/unscored": 0.0,
            "score/k0/mean": 0.5,
            "score/k0/std": 0.5,
            "score/k1/unscored": 2 / 3,
            "score/k1/mean": 2.0,
            "length": 2.0,
            "truncated": 1 / 3,
        }
    )


def test_flat_groups_are_counted_by_prompt():
    batch = graded([1.0, 1.0, 1.0, 0.0, 1.0, math.nan], group=[0, 0, 0, 1, 1, 2])
    seen = weighed(batch)
    assert seen["groups/flat"] == pytest.approx(2 / 3)
    assert seen["signal/mean"] == pytest.approx(0.8)
    assert credited(batch) == {}
    assert credited(
        batch.set(advantages=torch.tensor([-3.0, 1.0]).repeat(3)[:, None, None].expand(6, 3, 1))
    ) == {"advantage/max": 3.0}


def test_nothing_is_said_of_groups_where_every_prompt_has_one_response():
    seen = weighed(graded([1.0, 0.0, 0.5], group=[0, 1, 2]))
    assert "groups/flat" not in seen, "one response differs from no other: no prompt teaches less for it"
    assert seen["signal/mean"] == pytest.approx(0.5)


def test_tokens_are_averaged_over_micro_batches_and_updates():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    mask = batch.respond.float()
    batch = batch.set(
        advantages=mask[..., None],
        behaviour_logp=torch.zeros_like(mask),
        reference_logp=-0.2 * mask,
        sampler_logp=0.1 * mask,
        weight=token_weights(batch.respond, "token"),
    )
    out = Outputs(logp=torch.zeros_like(mask), entropy=torch.tensor([[2.0], [4.0]]) * mask)
    terms = (Term(1.0, Clipped()), Term(1.0, KlToReference()))
    seen = Seen()
    for rows in (torch.tensor([0]), torch.tensor([1])):
        part = Outputs(logp=out.logp[rows], entropy=out.entropy[rows])
        seen.forward(terms, part, batch.rows(rows))
        seen.loss(torch.tensor(0.25), {"Clipped": 0.5})
    seen.update(3.0)
    numbers = seen.metrics()
    assert numbers["entropy"] == pytest.approx(3.5)
    assert numbers["kl/k1"] == pytest.approx(0.2)
    assert numbers["kl/k3"] == pytest.approx(0.0187308, abs=1e-6)
    assert numbers["kl/sampler"] == pytest.approx(math.exp(-0.1) + 0.1 - 1, abs=1e-6)
    assert (numbers["loss/total"], numbers["loss/Clipped"], numbers["grad_norm"]) == (0.5, 1.0, 3.0)
    assert (numbers["ratio/max"], numbers["ratio/clamped"]) == (1.0, 0.0)


def test_what_nobody_knows_is_left_out():
    assert known({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0}


def test_the_gap_of_sampler_and_trainer_is_the_largest_of_the_first_update():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    logp = torch.tensor([0.5, 0.25]).log()[:, None] * batch.respond
    batch = batch.set(sampler_logp=logp)
    seen = Seen()
    wrong = torch.where(batch.respond, torch.tensor([0.45, 0.32]).log()[:, None], torch.tensor(-9.0))
    for rows in (torch.tensor([1]), torch.tensor([0])):
        seen.forward((), Outputs(logp=wrong[rows]), batch.rows(rows))
    seen.update(1.0)
    seen.forward((), Outputs(logp=-9 * batch.respond.float()), batch)
    assert seen.metrics()["sampler/apart/max"] == pytest.approx(0.07)
