"""Each way of using the ratio is GRPO where its setting is neutral."""

import pytest
import torch

from paretune.algorithms.grpo import grpo
from paretune.algorithms.ratio_variants import cispo, dapo, gspo, sapo, with_importance_correction
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.models.model_passes import OldLogprobs, RefLogprobs
from toy import WEIGHTS, digest, toy_world, trained

ONE = {"n": 6, "max_new": 1, "minibatch": 12, "epochs": 2}
"""Responses of one token: a ratio of a response is that of its token, and all means are one."""
SAME = {"clip": 0.05, "clip_high": 0.05}


def weights(folder, recipe):
    """The trained weights, and their digest."""
    world = toy_world()
    made, _ = trained(folder, world, recipe, steps=3)
    assert made == digest(world)
    flat = [p.detach().flatten() for p in world.models.policy.parameters()]
    return made, torch.cat(flat)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    start = digest(toy_world())
    made = weights(folder, grpo(WEIGHTS, kl_coef=0.0, clip_range=0.05, **ONE))
    assert made[0] != start
    return made


@pytest.mark.parametrize(
    "recipe",
    [
        dapo(WEIGHTS, min_std_ratio=0.0, overlong_buffer_fraction=0.0, **SAME, **ONE),
        gspo(WEIGHTS, **SAME, **ONE),
    ],
    ids=lambda recipe: recipe.name,
)
def test_equal_to_grpo_bit_for_bit(tmp_path, parent, recipe):
    assert weights(tmp_path, recipe)[0] == parent[0]


ON_POLICY = {"n": 6, "max_new": 4}
TRAINER = (OldLogprobs("trainer"), RefLogprobs())
"""With one update a step and the trainer's own record, every ratio is 1."""


@pytest.mark.parametrize(
    "recipe",
    [cispo(WEIGHTS, **ON_POLICY), sapo(WEIGHTS, tau_neg=1.0, **ON_POLICY), sapo(WEIGHTS, **ON_POLICY)],
    ids=["cispo", "sapo", "sapo-uneven"],
)
def test_on_policy_they_take_the_step_of_grpo(tmp_path, recipe):
    same = {"weigh": recipe.weigh, "measure": TRAINER}
    base = grpo(WEIGHTS, kl_coef=0.0, **ON_POLICY).replace(**same)
    _, ours = weights(tmp_path / "ours", recipe.but(**same))
    _, theirs = weights(tmp_path / "theirs", base)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_a_sampler_that_is_the_trainer_needs_no_correction(tmp_path):
    base = grpo(WEIGHTS, kl_coef=0.0, **ON_POLICY).replace(model_passes=TRAINER)
    _, plain = weights(tmp_path / "plain", base)
    _, ours = weights(tmp_path / "ours", with_importance_correction(base, TruncatedImportanceSampling()))
    torch.testing.assert_close(ours, plain, atol=2e-3, rtol=0)
