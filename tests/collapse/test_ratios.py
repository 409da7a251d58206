"""DAPO, GSPO, CISPO and SAPO equal GRPO at neutral settings."""

import pytest
import torch

from paretune.algorithms.grpo import grpo
from paretune.algorithms.ratio_variants import cispo, dapo, gspo, sapo, with_importance_correction
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.models.model_passes import OldLogprobs, RefLogprobs
from toy import WEIGHTS, digest, toy_world, trained

ONE = {"num_generations": 6, "max_new_tokens": 1, "minibatch_size": 12, "num_iterations": 2}
"""Responses of one token: sequence ratios are token ratios, and all loss aggregations are the same."""
SAME = {"clip_low": 0.05, "clip_high": 0.05}


def weights(folder, recipe):
    """Digest of the trained weights, and the weights."""
    world = toy_world()
    sha, _ = trained(folder, world, recipe, steps=3)
    assert sha == digest(world)
    flat = [p.detach().flatten() for p in world.models.policy.parameters()]
    return sha, torch.cat(flat)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    start = digest(toy_world())
    trained_weights = weights(folder, grpo(WEIGHTS, kl_coef=0.0, clip_range=0.05, **ONE))
    assert trained_weights[0] != start
    return trained_weights


@pytest.mark.parametrize(
    "recipe",
    [
        dapo(WEIGHTS, min_std_ratio=0.0, overlong_buffer_fraction=0.0, **SAME, **ONE),
        gspo(WEIGHTS, **SAME, **ONE),
    ],
    ids=lambda recipe: recipe.name,
)
def test_neutral_ratio_variants_equal_grpo_bit_for_bit(tmp_path, parent, recipe):
    assert weights(tmp_path, recipe)[0] == parent[0]


ON_POLICY = {"num_generations": 6, "max_new_tokens": 4}
TRAINER = (OldLogprobs("policy"), RefLogprobs())
"""With one update per step and the trainer's log-probabilities, every ratio is 1."""


@pytest.mark.parametrize(
    "recipe",
    [cispo(WEIGHTS, **ON_POLICY), sapo(WEIGHTS, tau_neg=1.0, **ON_POLICY), sapo(WEIGHTS, **ON_POLICY)],
    ids=["cispo", "sapo", "sapo-uneven"],
)
def test_on_policy_ratio_variants_take_the_step_of_grpo(tmp_path, recipe):
    same = {"loss_aggregation": recipe.loss_aggregation, "model_passes": TRAINER}
    base = grpo(WEIGHTS, kl_coef=0.0, **ON_POLICY).replace(**same)
    _, ours = weights(tmp_path / "ours", recipe.replace(**same))
    _, theirs = weights(tmp_path / "theirs", base)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_importance_correction_is_neutral_for_the_local_sampler(tmp_path):
    base = grpo(WEIGHTS, kl_coef=0.0, **ON_POLICY).replace(model_passes=TRAINER)
    _, plain = weights(tmp_path / "plain", base)
    _, ours = weights(tmp_path / "ours", with_importance_correction(base, TruncatedImportanceSampling()))
    torch.testing.assert_close(ours, plain, atol=2e-3, rtol=0)
