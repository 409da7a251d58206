"""The rollout of a training step and its scores; with `max_staleness: 1`, rollouts one step ahead.

Then the responses of step t+1 are sampled while step t trains, from the weights that step t started from;
those of the first step are on-policy. A sampler on other devices works in a thread, any other one before the
training. The next hand-over of weights waits for the last response, so that no rollout mixes two versions.
Between two steps nothing is in flight: the rollout of the next step is part of the state and of checkpoints.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from paretune.reward.scorers import StatedConfidenceScorer, score_batch
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.hooks import StepHooks
from paretune.rl.state import GradientLearner, NextRollout, TrainState
from paretune.rollout.pending import PendingRollout, start_sampler
from paretune.rollout.sampler import OnPolicy, Rollout, with_weight_version
from paretune.rollout.synced import sleep_sampler, sync_sampler


def rollout_and_score(
    spec: AlgorithmSpec | EvolutionSpec,
    context: TrainingContext,
    seed: int,
    step: int,
    hooks: StepHooks | None = None,
) -> Rollout:
    """Sample responses to the prompts of the step and score them, or read both. NaN = not scored.

    Args:
        spec: Its rollout source and scorer view.
        context: Samplers, stored responses, prompts and scorers.
        seed: Seed of the run.
        step: Training step.
        hooks: Called when the scores are there.
    """
    hooks = hooks or StepHooks()
    return score_rollout(spec, context, _sample_or_read(spec, context, seed, step, hooks), hooks)


@contextmanager
def step_rollout(
    spec: AlgorithmSpec,
    context: TrainingContext,
    state: TrainState[GradientLearner],
    max_steps: int,
    seed: int,
    hooks: StepHooks,
) -> Iterator[Rollout]:
    """The responses of a training step, which is the block; with `max_staleness`, also those of the next one.

    Args:
        spec: Its rollout source.
        context: Samplers, stored responses and prompts.
        state: Before the step; gets the rollout of the next step at the end of the block.
        max_steps: Training steps in all; nothing is sampled beyond them.
        seed: Seed of the run.
        hooks: Phases and metrics.
    """
    if not context.max_staleness:
        yield _sample_or_read(spec, context, seed, state.step, hooks)
        return
    step, learner, sampler = state.step, state.learner, context.sampler
    pending: PendingRollout | None = None
    with hooks.phase("rollout"):
        if learner.next_rollout is None:
            hooks.on_sync(sync_sampler(sampler, step))
            rollout = spec.rollout.rollout(context, seed=seed, step=step)
        else:
            rollout = learner.next_rollout.rollout(context.prompts_for_step(step))
            hooks.timer.record_work_seconds("rollout", learner.next_rollout.seconds)
        if step + 1 < max_steps:
            hooks.on_sync(sync_sampler(sampler, step))
            on_policy, prompts = cast(OnPolicy, spec.rollout), context.prompts_for_step(step + 1)
            pending = start_sampler(sampler, prompts, on_policy, seed=seed, step=step + 1)
        sleep_sampler(sampler)
    try:
        yield rollout
        learner.next_rollout = None
        if pending is not None:
            with hooks.phase("rollout"):
                batch, samples = pending.result()
            learner.next_rollout = NextRollout.of(with_weight_version(batch, step), samples, pending.seconds)
            hooks.timer.record_sampling(pending.seconds)
    finally:
        if pending is not None:
            pending.cancel()


def _sample_or_read(
    spec: AlgorithmSpec | EvolutionSpec, context: TrainingContext, seed: int, step: int, hooks: StepHooks
) -> Rollout:
    sampler = spec.rollout.sampler(context)
    with hooks.phase("rollout"):
        if sampler is not None:
            hooks.on_sync(sync_sampler(sampler, step))
        rollout = spec.rollout.rollout(context, seed=seed, step=step)
        if sampler is not None:
            sleep_sampler(sampler)
    return rollout


def score_rollout(
    spec: AlgorithmSpec | EvolutionSpec, context: TrainingContext, rollout: Rollout, hooks: StepHooks
) -> Rollout:
    """Score the responses of a rollout, if they were sampled."""
    batch, samples = rollout
    if spec.rollout.generates:  # stored responses come with their scores
        objectives, scorers = spec.scored_objectives(context.objectives), context.scorers
        if objectives != context.objectives:
            scorers = (*scorers, StatedConfidenceScorer())
        with hooks.phase("score"):
            batch = score_batch(batch.replace(objectives=objectives), samples, scorers, spec.scorer_view)
    hooks.on_rollout(batch, samples)
    return batch, samples
