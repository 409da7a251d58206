from dataclasses import replace

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import ClippedSurrogate
from paretune.models.forward.logprobs import compute_logprobs, compute_outputs
from paretune.models.model_passes import OldLogprobs, RefLogprobs
from paretune.rl.dummy_models import PROMPT_LENGTH, DummyModel, fake_batch
from paretune.rl.loop import train
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from toy import toy_recipe, toy_world

NAMES = ("even", "high")


def test_requirements_of_a_valid_spec():
    recipe = toy_recipe()
    requirements = check_spec(recipe, NAMES)
    assert requirements.frozen_roles == ("reference",)
    assert requirements.num_critic_heads == 0
    assert requirements.num_selected_rows == 16
    assert check_spec(
        recipe.replace(model_passes=(OldLogprobs(), RefLogprobs("soup"))), NAMES
    ).frozen_roles == ("soup",)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"reward_steps": chain()},
            r'algorithm "grpo": the advantages are of 2 objectives and must be of 1; fix: add an agg',
        ),
        (
            {"model_passes": (OldLogprobs(),)},
            "KlToReference reads batch.ref_logprobs, and no part before it writes it; fix: put Ref",
        ),
        ({"model_passes": (RefLogprobs(),)}, "ClippedSurrogate reads batch.old_logprobs"),
        (
            {"credit": chain()},
            "ClippedSurrogate reads batch.advantages, and no part .* fix: put BroadcastToTokens",
        ),
        ({"losses": ()}, "no losses"),
    ],
)
def test_wiring_errors_are_found_by_the_dry_run(change, match):
    with pytest.raises(WiringError, match=match):
        check_spec(toy_recipe().replace(**change), NAMES)


def test_dry_run_leaves_global_generator():
    before = torch.get_rng_state()
    check_spec(toy_recipe(), NAMES)
    assert torch.equal(torch.get_rng_state(), before)


def test_dummy_model_is_causal():
    model, batch = DummyModel(1), fake_batch(NAMES, 2)
    out = compute_outputs(
        model, batch, frozenset({"entropy", "ref_policy_kl"}), references={"reference": DummyModel(2)}
    )
    assert (out.logprobs[batch.response_mask] < 0).all()
    assert (out.ref_policy_kl[batch.response_mask] > 0).all()
    assert (out.entropy[batch.response_mask] > 0).all()
    out.logprobs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    later = batch.input_ids.clone()
    later[:, PROMPT_LENGTH + 1 :] = (later[:, PROMPT_LENGTH + 1 :] + 1) % 8
    first = batch.response_mask.clone()
    first[:, PROMPT_LENGTH + 1 :] = False
    logprobs = (
        compute_logprobs(model, tokens, batch.attention_mask, first) for tokens in (batch.input_ids, later)
    )
    assert torch.equal(*logprobs)
    padded = (
        torch.zeros_like(batch.input_ids),
        torch.zeros_like(batch.attention_mask),
        torch.zeros_like(batch.response_mask),
    )
    wide = (
        torch.cat(both, 1)
        for both in zip(padded, (batch.input_ids, batch.attention_mask, batch.response_mask), strict=True)
    )
    shifted = compute_logprobs(model, *wide)[:, batch.input_ids.shape[1] :]
    assert torch.allclose(shifted, out.logprobs, atol=1e-6)


def test_unknown_objective_suggests_the_nearest_name():
    with pytest.raises(
        WiringError, match=r'the objective "even", which .* evens, high; did you mean "evens"'
    ):
        check_spec(toy_recipe(), ("evens", "high"))
    with pytest.raises(WiringError, match="there are no objectives"):
        check_spec(toy_recipe(), ())
    with pytest.raises(WiringError, match=r"algorithm\.num_generations is 1"):
        toy_recipe(num_generations=1)
    with pytest.raises(WiringError, match="minibatch"):
        toy_recipe(minibatch_size=0)


def test_spec_with_gates_and_without_kl():
    recipe = toy_recipe(gates=[("even", "high", 0.5, 0.0)], kl_coef=0.0)
    assert [term.loss for term in recipe.losses] == [ClippedSurrogate()]
    assert check_spec(recipe, NAMES).frozen_roles == ("reference",)
    assert repr(recipe.reward_steps).startswith(
        "Chain(steps=(Gate(objective='even', condition_objective='high', threshold=0.5"
    )


def test_train_refuses_a_context_without_requirements(tmp_path):
    world = toy_world()
    bare = world.models.__class__(policy=world.models.policy)
    recipe, run = toy_recipe(), Run(tmp_path)
    with pytest.raises(WiringError, match="needs the frozen models reference"):
        train(recipe, replace(world, models=bare), max_steps=1, seed=0, run=run)
    with pytest.raises(WiringError, match='no scorer for the objective "safety"'):
        train(recipe, replace(world, objectives=("even", "high", "safety")), max_steps=1, seed=0, run=run)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_loss_without_policy_gradient_is_refused():
    idle = toy_recipe().replace(losses=(WeightedLoss(1.0, Idle()),), credit=chain(BroadcastToTokens()))
    with pytest.raises(WiringError, match="nothing would be trained"):
        check_spec(idle, NAMES)


class Idle(KlToReference):
    def __call__(self, out, batch):
        return batch.scores.sum()
