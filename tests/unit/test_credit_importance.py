"""Factors on the policy loss: what is inert is refused, what is cut is reported, and factors multiply."""

import pytest
import torch

from paretune.algorithms.ratio_variants import cispo, with_importance_correction
from paretune.core.errors import WiringError
from paretune.credit.base import chain
from paretune.credit.importance_sampling import (
    TopEntropyTokens,
    TruncatedImportanceSampling,
    high_entropy_mask,
)
from paretune.models.model_passes import OldLogprobs, PolicyEntropy, RefLogprobs
from paretune.rl.loop import train
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from paretune.run.metrics import find_metric
from toy import WEIGHTS, advance, digest, graded, toy_recipe, toy_world

NAMES = ("even", "high")


def measured():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    return batch.replace(
        rollout_logprobs=torch.zeros(2, 4),
        old_logprobs=torch.tensor([[0.0, 1.0, 9.0, 9.0], [0.0, -1.0, 0.0, 0.1]]),
        entropy=torch.tensor([[9.0, 0.5, 9.0, 9.0], [9.0, 0.1, 0.9, 0.2]]),
    )


def test_identical_logprobs_give_weight_one():
    batch = measured()
    same = batch.replace(old_logprobs=batch.rollout_logprobs.clone())
    for by in ("token", "sequence"):
        for beyond in ("truncate", "mask"):
            weighed, seen = advance(TruncatedImportanceSampling(by, beyond), same)
            assert (weighed.importance_weights == 1).all()
            assert seen["importance_weights/truncated"] == 0


def test_importance_weights_multiply_and_ignore_the_prompt():
    steps = chain(TruncatedImportanceSampling(max_ratio=2.0, min_ratio=0.5), TopEntropyTokens(0.5))
    batch, seen = advance(steps, measured())
    want = torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(batch.importance_weights * batch.response_mask, want)
    assert seen["importance_weights/truncated"] == 0.5
    assert seen["top_entropy_tokens/kept"] == 0.5
    assert all(find_metric(key) for key in seen)


def test_high_entropy_mask_uses_all_tokens_of_the_step():
    batch = measured()
    assert high_entropy_mask(batch.entropy, batch.response_mask, 1.0).equal(batch.response_mask)
    assert high_entropy_mask(batch.entropy, batch.response_mask, 0.01).sum() == 1
    nothing = torch.zeros_like(batch.response_mask)
    assert high_entropy_mask(batch.entropy, nothing, 0.5).equal(nothing)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TruncatedImportanceSampling(max_ratio=0.9), "1 must lie between"),
        (lambda: TruncatedImportanceSampling(min_ratio=1.1), "1 must lie between"),
        (lambda: TopEntropyTokens(0.0), "must be in"),
    ],
)
def test_invalid_settings_raise(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def test_check_spec_refuses_importance_weights_that_are_all_one():
    recipe = toy_recipe()
    inert = recipe.replace(credit=chain(TruncatedImportanceSampling(), recipe.credit))
    with pytest.raises(
        WiringError, match=r'TruncatedImportanceSampling .* OldLogprobs\(source="rollout"\) .*; fix:'
    ):
        check_spec(inert, NAMES)
    assert (
        check_spec(with_importance_correction(recipe, TruncatedImportanceSampling()), NAMES).num_selected_rows
        == 16
    )
    with pytest.raises(WiringError, match=r"batch\.entropy"):
        check_spec(recipe.replace(credit=chain(TopEntropyTokens(), recipe.credit)), NAMES)


def test_both_steps_train_and_log_their_metrics(tmp_path):
    base = cispo(WEIGHTS, max_new_tokens=6)
    recipe = with_importance_correction(base, TruncatedImportanceSampling("sequence", "mask", 3.0))
    recipe = recipe.replace(
        model_passes=(OldLogprobs("policy"), RefLogprobs(), PolicyEntropy()),
        credit=chain(recipe.credit, TopEntropyTokens(0.5)),
    )
    world = toy_world()
    before = digest(world)
    train(recipe, world, max_steps=2, seed=0, run=Run(tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert digest(world) != before
    assert all(f"importance_weights/{key}" in lines for key in ("mean", "max", "min", "truncated"))
    assert "top_entropy_tokens/kept" in lines
