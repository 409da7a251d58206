from dataclasses import replace

import pytest
import torch

from paretune.credit.advantage import Spread
from paretune.credit.step import chain
from paretune.errors import WiringError
from paretune.learn.check import PROMPT, StandInModel, check, fake_batch
from paretune.learn.descend import descend
from paretune.loss.kl import KlToReference
from paretune.loss.policy import Clipped
from paretune.loss.term import Term
from paretune.models.forward import run, token_logp
from paretune.models.measure import Behaviour, Reference
from paretune.rundir import Run
from toy import toy_recipe, toy_world

NAMES = ("even", "high")


def test_a_sound_recipe_says_what_it_needs():
    recipe = toy_recipe()
    plan = check(recipe, NAMES)
    assert plan.frozen_roles == ("reference",)
    assert plan.critic_heads == 0
    assert plan.rows_kept == 16
    assert check(recipe.but(measure=(Behaviour(), Reference("soup"))), NAMES).frozen_roles == ("soup",)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"worth": chain()},
            r'recipe "grpo": the advantages are of 2 objectives and must be of 1: add an agg',
        ),
        ({"measure": (Behaviour(),)}, "batch.reference_logp, but no earlier part"),
        ({"measure": (Reference(),)}, "batch.behaviour_logp"),
        ({"credit": chain()}, "batch.advantages"),
        ({"losses": ()}, "no losses"),
    ],
)
def test_wrong_wiring_is_told_at_the_door(change, match):
    with pytest.raises(WiringError, match=match):
        check(toy_recipe().but(**change), NAMES)


def test_the_dry_run_moves_nobody_elses_chance():
    before = torch.get_rng_state()
    check(toy_recipe(), NAMES)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stand_in_is_a_causal_model():
    model, batch = StandInModel(1), fake_batch(NAMES, 2)
    out = run(
        model, batch, frozenset({"entropy", "kl_reference_policy"}), references={"reference": StandInModel(2)}
    )
    assert (out.logp[batch.respond] < 0).all()
    assert (out.kl_reference_policy[batch.respond] > 0).all()
    assert (out.entropy[batch.respond] > 0).all()
    out.logp.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    later = batch.tokens.clone()
    later[:, PROMPT + 1 :] = (later[:, PROMPT + 1 :] + 1) % 8
    first = batch.respond.clone()
    first[:, PROMPT + 1 :] = False
    asked = (token_logp(model, tokens, batch.attend, first) for tokens in (batch.tokens, later))
    assert torch.equal(*asked)
    padded = torch.zeros_like(batch.tokens), torch.zeros_like(batch.attend), torch.zeros_like(batch.respond)
    wide = (
        torch.cat(both, 1) for both in zip(padded, (batch.tokens, batch.attend, batch.respond), strict=True)
    )
    shifted = token_logp(model, *wide)[:, batch.tokens.shape[1] :]
    assert torch.allclose(shifted, out.logp, atol=1e-6)


def test_unknown_objectives_are_told_with_the_nearest_name():
    with pytest.raises(WiringError, match=r'weights name "even", which .* evens, high; did you mean "evens"'):
        check(toy_recipe(), ("evens", "high"))
    with pytest.raises(WiringError, match="there are no objectives"):
        check(toy_recipe(), ())
    with pytest.raises(WiringError, match=r"algorithm\.n is 1"):
        toy_recipe(n=1)
    with pytest.raises(WiringError, match="minibatch"):
        toy_recipe(minibatch=0)


def test_a_recipe_with_gates_and_without_kl():
    recipe = toy_recipe(gates=[("even", "high", 0.5, 0.0)], kl=0.0)
    assert [term.loss for term in recipe.losses] == [Clipped()]
    assert check(recipe, NAMES).frozen_roles == ("reference",)
    assert repr(recipe.worth).startswith("Chain(steps=(Gate(objective='even', on='high', at_least=0.5")


def test_the_loop_asks_the_world_too(tmp_path):
    world = toy_world()
    bare = world.models.__class__(policy=world.models.policy)
    recipe, run = toy_recipe(), Run(tmp_path)
    with pytest.raises(WiringError, match="frozen models that are not there: reference"):
        descend(recipe, replace(world, models=bare), steps=1, seed=0, run=run)
    with pytest.raises(WiringError, match='no scorer gives the objective "safety"'):
        descend(recipe, replace(world, objectives=("even", "high", "safety")), steps=1, seed=0, run=run)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_loss_that_does_not_touch_the_policy_is_told():
    idle = toy_recipe().but(losses=(Term(1.0, Idle()),), credit=chain(Spread()))
    with pytest.raises(WiringError, match="nothing would be learnt"):
        check(idle, NAMES)


class Idle(KlToReference):
    def __call__(self, out, batch):
        return batch.scores.sum()
