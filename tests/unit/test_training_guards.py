"""Finite checks: NaN and infinity inserted at every point, and the weights that they must not reach."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from paretune.core.errors import NonFiniteError
from paretune.credit.normalization import BroadcastToTokens
from paretune.loss.base import WeightedLoss
from paretune.loss.policy import ClippedSurrogate
from paretune.models.model_passes import OldLogprobs, RefLogprobs
from paretune.rl.state import trainable_parameters
from paretune.run.io import read_jsonl
from support.toy import ToyScorer, toy_prompts
from toy import Cut, digest, stop_after, toy_recipe, toy_world, trained


class Scores(ToyScorer):
    """True scores, except for a value inserted at one step."""

    def __init__(self, value, at=2, column=slice(None)):
        self.value, self.at, self.column, self.calls = value, at, column, 0

    def __call__(self, samples):
        scores = super().__call__(samples)
        if self.calls == self.at:
            scores[:, self.column] = self.value
        self.calls += 1
        return scores


ARMED = []
"""Not empty once a training samples: the dry run before it refuses parts that always make NaN."""


@pytest.fixture(autouse=True)
def disarmed():
    ARMED.clear()


def arming_world():
    """The toy task, whose first prompts arm the parts below."""

    def prompts(step):
        ARMED.append(step)
        return toy_prompts(step, 6)

    return toy_world(prompts=prompts)


@dataclass(frozen=True)
class Poisoned(ClippedSurrogate):
    """A loss whose value or gradient is not finite."""

    where: str = "value"
    value: float = math.nan

    def __call__(self, out, batch):
        loss = super().__call__(out, batch)
        if not ARMED:
            return loss
        if self.where == "value":
            return loss + self.value
        return loss + Slope.apply(out.logprobs, self.value)


class Slope(torch.autograd.Function):
    """0, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value, ctx.shape = value, x.shape
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return torch.full(ctx.shape, ctx.value), None


def stopped(folder, world, recipe, match):
    """The run stops with a NonFiniteError; the weights are those of the last complete step."""
    with pytest.raises(NonFiniteError, match=match) as caught:
        trained(folder, world, recipe, steps=4, every=1)
    assert caught.value.exit_code == 4
    done = len(read_jsonl(folder / "metrics.jsonl"))
    clean = toy_world()
    if done:
        train_steps(folder / "clean", clean, done)
    assert digest(world) == digest(clean)
    text = str(caught.value)
    assert (f"the checkpoint after {done} steps is intact" if done else "there is no checkpoint yet") in text
    assert done or "training.learning_rate" not in text, (
        "before the first update the learning rate is not the cause"
    )
    return text


def train_steps(folder, world, steps):
    """The same run without the bad value, interrupted after so many of its four steps."""
    with pytest.raises(Cut):
        trained(folder, world, steps=4, on_step=stop_after(steps))


@pytest.mark.parametrize(
    ("value", "column", "match"),
    [
        (math.nan, slice(None), "step 2: the reward of every response is NaN: no .* a score for even, high"),
        (math.nan, slice(0, 1), "NaN: no response has a score for even"),
        (math.inf, slice(1, 2), 'step 2: the score "high" is infinite'),
        (-math.inf, slice(0, 1), 'the score "even" is infinite'),
    ],
)
def test_non_finite_scores_stop_the_run(tmp_path, value, column, match):
    world = toy_world(scorers=(Scores(value, column=column),))
    text = stopped(tmp_path, world, toy_recipe(), match)
    assert "on responses to the prompts toy-2-0, toy-2-1" in text
    assert "and 1 more" in text
    assert "fix:" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("where", "match"), [("value", r"step 0: the loss is .* \(Poisoned"), ("slope", "the gradient norm is")]
)
def test_non_finite_loss_or_gradient_stops_the_run(tmp_path, where, value, match):
    recipe = toy_recipe().replace(losses=(WeightedLoss(1.0, Poisoned(where=where, value=value)),))
    stopped(tmp_path, arming_world(), recipe, match)


WRITERS = {
    "old_logprobs": (OldLogprobs, "__call__"),
    "ref_logprobs": (RefLogprobs, "__call__"),
    "advantages": (BroadcastToTokens, "apply"),
}
"""Field -> the part and its method that write it."""


@pytest.mark.parametrize("field", ["rollout_logprobs", "old_logprobs", "ref_logprobs", "advantages"])
def test_any_other_non_finite_field_stops_the_run(tmp_path, field, monkeypatch):
    def spoil(batch):
        if not ARMED:
            return batch.replace(**{field: batch.require(field).clone()})
        x = batch.require(field).clone()
        x[3, int(batch.response_mask[3].nonzero()[0])] = math.nan
        return batch.replace(**{field: x})

    recipe, world = toy_recipe(), arming_world()
    if field == "rollout_logprobs":
        inner = world.sampler

        def sampler(prompts, rollout, *, seed, step, prompt_index=None):
            batch, samples = inner(prompts, rollout, seed=seed, step=step, prompt_index=prompt_index)
            return spoil(batch), samples

        world = replace(world, sampler=sampler)
    else:
        # Parts of the package, as a model with NaN in its outputs makes them write it.
        part, method = WRITERS[field]
        write = getattr(part, method)
        monkeypatch.setattr(part, method, lambda self, *rest: spoil(write(self, *rest)))
    text = stopped(tmp_path, world, recipe, f"batch.{field} is not finite")
    assert "prompts toy-0-0;" in text


def test_later_failure_suggests_a_lower_learning_rate(tmp_path):
    broken = []

    class Later(ClippedSurrogate):
        def __call__(self, out, batch):
            return super().__call__(out, batch) + (math.nan if broken else 0.0)

    recipe = toy_recipe().replace(losses=(WeightedLoss(1.0, Later()),))
    message = "step 1: the loss is nan.* there is no checkpoint yet; fix: .* or lower training.learning_rate"
    with pytest.raises(NonFiniteError, match=message):
        trained(tmp_path, toy_world(), recipe, steps=4, every=4, on_step=lambda step, *rest: broken.append(1))


def test_nan_policy_stops_the_run(tmp_path):
    world = toy_world()
    with torch.no_grad():
        next(iter(trainable_parameters(world.models).values())).fill_(math.nan)
    before = digest(world)
    with pytest.raises(NonFiniteError, match="not finite"):
        trained(tmp_path, world)
    assert digest(world) == before


def test_some_unscored_responses_do_not_stop_the_run(tmp_path):
    class Half(ToyScorer):
        def __call__(self, samples):
            scores = super().__call__(samples)
            scores[::2] = math.nan
            return scores

    trained(tmp_path, toy_world(scorers=(Half(),)), steps=2)
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["score/even/unscored_fraction"] == 0.5
