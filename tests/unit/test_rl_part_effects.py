"""The dry run refuses parts of the user's own that change what was sampled, or that cannot be repeated."""

import random

import numpy as np
import pytest
import torch

from paretune import algorithms
from paretune.core.errors import WiringError
from paretune.credit.base import CreditStep, chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize, LeaveOneOut
from paretune.credit.selection import MaskTruncated
from paretune.loss.base import Loss, WeightedLoss
from paretune.loss.policy import ClippedSurrogate
from paretune.models.model_passes import OldLogprobs
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import OnPolicy
from toy import OBJECTIVES, toy_recipe


class Step(CreditStep):
    """A step of one's own, from a function of the batch."""

    def __init__(self, function):
        self.function = function

    def apply(self, batch):
        return self.function(batch)


class OwnLoss(Loss):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, out, batch):
        per_token = out.logprobs * batch.require("advantages")[..., 0] * batch.require("loss_weights")
        return -self.factor() * per_token.sum()


def spec(*steps, num_generations=4, loss=None):
    return toy_recipe(kl_coef=0.0).replace(
        credit=chain(*steps),
        losses=(WeightedLoss(1.0, loss or ClippedSurrogate()),),
        model_passes=(OldLogprobs(),),
        rollout=OnPolicy(num_generations=num_generations, max_new_tokens=4),
    )


def with_step(function):
    return spec(Step(function), GroupNormalize(), BroadcastToTokens())


def rows(batch, *index):
    return batch.select(torch.tensor(index, dtype=torch.long))


def noisy(draw):
    return lambda batch: batch.replace(rewards=batch.rewards + draw())


CHANGES = {
    "response_mask": lambda batch: batch.response_mask & (batch.input_ids > 0),
    "attention_mask": lambda batch: batch.attention_mask & ~batch.response_mask,
    "input_ids": lambda batch: batch.input_ids.flip(1),
    "group": lambda batch: torch.zeros_like(batch.group),
}


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("field", CHANGES)
def test_what_was_sampled_does_not_change(field, select):
    def step(batch):
        batch = rows(batch, 1, 2, 5, 6) if select else batch
        return batch.replace(**{field: CHANGES[field](batch)})

    with pytest.raises(WiringError, match=rf"Step changes batch\.{field}, which was sampled; fix: write"):
        check_spec(with_step(step), OBJECTIVES)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (rows, "Step selects no rows; fix: return the batch as it was"),
        (lambda batch: batch.select(batch.group.new_zeros(0)), "Step selects no rows"),
        (lambda batch: batch.select((batch.rewards[:, 0] > 9).nonzero()[:, 0]), "Step selects no rows"),
        (
            lambda batch: rows(batch, 0, 1, 4, 5).replace(scores=rows(batch, 0, 1, 4, 5).scores + 1),
            "Step changes batch.scores",
        ),
        (
            lambda batch: batch.replace(rewards=batch.rewards.clone().requires_grad_()),
            r"Step writes batch.rewards with a gradient, which only losses have; fix: \.detach\(\)",
        ),
        (
            lambda batch: batch.replace(preference_weights=torch.ones_like(batch.scores, requires_grad=True)),
            "Step writes batch.preference_weights with a gradient",
        ),
    ],
)
def test_a_step_keeps_rows_and_returns_numbers_without_a_gradient(step, message):
    with pytest.raises(WiringError, match=message):
        check_spec(with_step(step), OBJECTIVES)


def global_states():
    # Not that of random: the type checks of the tests draw from it.
    return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002


DRAWS = {
    "torch": lambda: torch.rand(1),
    "numpy": np.random.rand,
    "random": random.random,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("in_loss", [False, True])
def test_parts_draw_from_no_global_generator_and_a_check_leaves_those_as_they_were(name, in_loss):
    draw = DRAWS[name]
    if in_loss:
        algorithm = spec(GroupNormalize(), BroadcastToTokens(), loss=OwnLoss(lambda: float(draw())))
    else:
        algorithm = with_step(noisy(lambda: float(draw())))
    before = global_states()
    part = "OwnLoss" if in_loss else "Step"
    with pytest.raises(WiringError, match=rf"{part} draws from the global generator of {name}, .*; fix: "):
        check_spec(algorithm, OBJECTIVES)
    assert global_states() == before


def test_steps_of_ones_own_may_select_rows_and_draw_from_their_generator():
    class Drawing(CreditStep):
        def apply_stateful(self, batch, state, rng):
            noise = torch.rand(batch.rewards.shape, generator=rng)
            return batch.replace(rewards=batch.rewards + noise), state, {}

    check_spec(spec(Drawing(), GroupNormalize(), BroadcastToTokens()), OBJECTIVES)
    check_spec(with_step(lambda batch: rows(batch, 6, 5, 5, 1, 2)), OBJECTIVES)
    copied = with_step(lambda batch: batch.replace(group=batch.group.clone(), rewards=2 * batch.rewards))
    check_spec(copied, OBJECTIVES)
    masked = spec(
        Step(lambda batch: batch.replace(rewards=2 * batch.rewards)),
        GroupNormalize(),
        BroadcastToTokens(),
        MaskTruncated(drop_tokens=True),
    )
    check_spec(masked, OBJECTIVES)


@pytest.mark.parametrize("step", [GroupNormalize(), GroupNormalize("none"), LeaveOneOut()])
def test_baselines_of_the_group_need_two_responses(step):
    message = f"{type(step).__name__} compares the responses to a prompt, and num_generations is 1; fix: 2 or"
    with pytest.raises(WiringError, match=message):
        check_spec(spec(step, BroadcastToTokens(), num_generations=1), OBJECTIVES)
    check_spec(spec(step, BroadcastToTokens(), num_generations=2), OBJECTIVES)


@pytest.mark.parametrize("name", ["grpo", "rloo", "mo_grpo", "gdpo", "dr_grpo", "trl_grpo", "dapo"])
def test_the_error_names_the_algorithm_that_was_asked_for(name):
    message = rf"algorithm.num_generations is 1, and {name} compares the responses"
    with pytest.raises(WiringError, match=message):
        getattr(algorithms, name)({"even": 1.0}, num_generations=1)
