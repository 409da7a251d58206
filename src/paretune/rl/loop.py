"""The gradient loop. Read this file first."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from paretune.core import ranks
from paretune.core.batch import Batch
from paretune.core.rng import torch_generator
from paretune.credit.base import Metrics
from paretune.data.records import Sample
from paretune.loss.base import total_loss
from paretune.models import sharding
from paretune.models.forward.checkpointing import use_gradient_checkpointing
from paretune.models.forward.logprobs import compute_outputs
from paretune.reward.failures import set_progress
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext, check_context
from paretune.rl.hooks import (
    FiniteCheckHook,
    MetricsHook,
    RolloutCallbackHook,
    RolloutFlopsHook,
    StepHooks,
    UpdateFlopsHook,
    UsageHook,
)
from paretune.rl.metrics import peak_memory_bytes
from paretune.rl.rollout import score_rollout, step_rollout
from paretune.rl.state import (
    Budget,
    BudgetResource,
    GradientLearner,
    LearnerT,
    TrainState,
    learning_rates,
    start_or_resume,
)
from paretune.rl.user_parts import apply_model_pass, apply_steps, call_with_user_parts
from paretune.run.folder import Run
from paretune.training.guards import StopRequest
from paretune.training.microbatch import microbatch_indices
from paretune.training.supervised import add_auxiliary_gradient

MIN_RANK_TIMEOUT = 30.0
"""Seconds that a rank waits for the others beyond twice the longest step: a step's own work may vary."""

StepResult = tuple[Metrics, Batch, Sequence[Sample]]
"""Metrics of a step, its batch with advantages, and the texts of all its rollouts."""
TrainStepCallback = Callable[[int, Metrics, Batch, Sequence[Sample]], None]
"""Called with the step and its result after the metrics have been written."""


@runtime_checkable
class StepEvaluator(Protocol):
    """Evaluates the policy during a training, and may end it; a resumed run must get the same answers."""

    def evaluates_after(self, step: int, is_last: bool) -> bool:
        """Whether the policy is to be evaluated after so many steps."""
        ...

    def evaluate(self, step: int) -> tuple[Metrics, Mapping[BudgetResource, int]]:
        """Metrics of the policy after so many steps, and what the evaluation used."""
        ...

    def ends_training(self, step: int) -> bool:
        """Whether the evaluations up to this step end the training."""
        ...


class LoopConfig(NamedTuple):
    """Length, checkpoints and callbacks of a training loop; see `train`."""

    max_steps: int
    save_steps: int
    save_total_limit: int
    budget: Budget | None
    on_step: TrainStepCallback | None
    evaluator: StepEvaluator | None = None

    def is_over(self, state: TrainState[Any]) -> bool:
        """Whether the training ends after the steps so far."""
        if state.step >= self.max_steps or state.budget_exhausted(self.budget):
            return True
        return self.evaluator is not None and self.evaluator.ends_training(state.step)


def train(
    spec: AlgorithmSpec,
    context: TrainingContext,
    *,
    max_steps: int,
    seed: int,
    run: Run,
    checkpoint_dir: Path | None = None,
    save_steps: int = 10,
    save_total_limit: int = 2,
    budget: Budget | None = None,
    on_step: TrainStepCallback | None = None,
    evaluator: StepEvaluator | None = None,
) -> None:
    """Train the policy of `context` in place; resumes from the run's last checkpoint.

    Every random draw depends on (seed, step, purpose) alone, so that a resumed run is bit-identical to an
    uninterrupted one.

    Args:
        spec: The algorithm.
        context: Models, samplers, scorers and prompts.
        max_steps: Training steps in all.
        seed: Seed of the run.
        run: Receives metrics, events and checkpoints.
        checkpoint_dir: Folder of the checkpoints; None: `checkpoints` in the run's folder.
        save_steps: Steps between checkpoints; the last step always has one.
        save_total_limit: Checkpoints that are kept.
        budget: Stops the training, even before `max_steps`, after the step that ends nearest to its limit;
            the learning rate then follows the used fraction of the budget instead of the steps.
        on_step: Called after each step's metrics have been written.
        evaluator: Evaluates the policy after some of the steps, as a part of them.

    Raises:
        WiringError: The parts of the spec do not fit together, the context lacks a requirement, or a part of
            the user's own failed on a batch.
        ConfigError: The checkpoint was made with another algorithm, seed or number of steps.
        NonFiniteError: A number was not finite; the update did not reach the weights.
        RunInterrupted: SIGTERM came; a checkpoint was written first.
    """
    check_context(spec, context)
    if ranks.is_distributed():
        context = context.distributed()
    state = init_train_state(
        spec,
        context,
        run,
        checkpoint_dir or run.path / "checkpoints",
        {
            "algorithm": repr(spec),
            "seed": seed,
            "max_steps": max_steps,
            "max_staleness": context.max_staleness,
        },
    )
    loop = LoopConfig(max_steps, save_steps, save_total_limit, budget, on_step, evaluator)
    with StopRequest() as stop:
        step = partial(train_step, spec, context, state, max_steps, seed, budget)
        run_steps(state, lambda: call_with_user_parts(spec, step, state.step), run, loop, stop)


def init_train_state(
    spec: AlgorithmSpec,
    context: TrainingContext,
    run: Run,
    checkpoint_dir: Path,
    identity: dict[str, object],
) -> TrainState[GradientLearner]:
    """The state before the first step, or that of the last good checkpoint.

    Raises:
        ConfigError: The checkpoint was made by a different run.
    """

    def start() -> GradientLearner:
        return GradientLearner.initial(spec, context.models, context.optim_config)

    return start_or_resume(
        run,
        identity,
        checkpoint_dir,
        spec.reward_steps,
        start=start,
        resume=lambda checkpoint: start().load(checkpoint, run.path),
    )


def run_steps(
    state: TrainState[LearnerT],
    take_step: Callable[[], StepResult],
    run: Run,
    loop: LoopConfig,
    stop: StopRequest,
) -> None:
    """Take steps until the last one or the end of the budget; log each one and write checkpoints.

    Args:
        state: Changed by `take_step`.
        take_step: One step of a loop; it increments `state.step`.
        run: Receives metrics, timing and checkpoints.
        loop: Number of steps, checkpoints, budget and callback.
        stop: A request ends the loop after the current step, with a checkpoint.
    """
    max_steps, budget = loop.max_steps, loop.budget
    state.timer.on_phase = lambda phase: run.write_heartbeat(state.step, phase)
    longest = 0.0
    while not loop.is_over(state):
        step, start = state.step, time.perf_counter()
        metrics, batch, samples = take_step()
        metrics |= _evaluate_step(state, loop)
        if budget is not None:
            metrics["budget/used"] = state.usage[budget.resource] / budget.limit
        run.log_metrics(step, metrics)
        seconds = time.perf_counter() - start
        phases = state.timer.read_and_reset(seconds)
        run.log_timing(step, seconds=seconds, **phases, **state.step_usage, **peak_memory_bytes())
        longest = max(longest, seconds)
        ranks.set_timeout(2 * longest + MIN_RANK_TIMEOUT)
        stop.share()
        if loop.on_step is not None:
            loop.on_step(step, metrics, batch, samples)
        # After `on_step`: a callback that fails must not leave a checkpoint that skips it on resume.
        if state.step % loop.save_steps == 0 or loop.is_over(state) or stop.requested:
            with state.timer.phase("checkpoint"), ranks.timeout():
                state.save(run, loop.save_total_limit)
        stop.raise_if_stopped(f"step {state.step} of {max_steps}")
    ranks.set_timeout()


def _evaluate_step(state: TrainState[LearnerT], loop: LoopConfig) -> Metrics:
    """Metrics of the evaluation after the current step, which counts its usage; empty if none is due."""
    evaluator = loop.evaluator
    if evaluator is None or not evaluator.evaluates_after(state.step, is_last=loop.is_over(state)):
        return {}
    with state.timer.phase("evaluate"), ranks.timeout():
        metrics, usage = evaluator.evaluate(state.step)
    for resource, amount in usage.items():
        state.consume(resource, amount)
    return metrics


def train_step(
    spec: AlgorithmSpec,
    context: TrainingContext,
    state: TrainState[GradientLearner],
    max_steps: int,
    seed: int,
    budget: Budget | None = None,
) -> StepResult:
    """One training step: rollout, scores, reward steps, model passes, credit, optimizer steps.

    Everything that only observes the step is a hook (`rl/hooks.py`).
    """
    step, learner, metrics_hook = state.step, state.learner, MetricsHook(spec, context, state.step)
    hooks = _train_hooks(spec, context, state, metrics_hook)
    learner.start_step(step, state.usage)

    sharding.gather_weights(context.all_models)
    set_progress(context.scorers, step, max_steps)
    with step_rollout(spec, context, state, max_steps, seed, hooks) as rollout:
        batch, samples = score_rollout(spec, context, rollout, hooks)

        # "worth" and "credit" select the random streams: another word would change every result.
        rng = torch_generator(seed, step, "worth")
        batch, state.reward_state, metrics = apply_steps(spec.reward_steps, batch, state.reward_state, rng)
        hooks.on_rewards(batch, metrics)

        with hooks.phase("model_passes"):  # after the reward steps: only selected rows cost a forward pass
            for model_pass in spec.model_passes:
                rows_per_pass = context.no_grad_rows(batch)
                batch = apply_model_pass(model_pass, batch, context.models, spec.temperature, rows_per_pass)
        hooks.on_model_passes(batch, spec.model_passes)

        rng = torch_generator(seed, step, "credit")
        batch, learner.credit_state, metrics = apply_steps(spec.credit, batch, learner.credit_state, rng)
        hooks.on_credit(batch, metrics)

        rates = learning_rates(state, context.optim_config, max_steps, budget, spec.num_iterations)
        sharding.free_weights(context.all_models)
        with hooks.phase("update"):
            for iteration, index, minibatch in minibatches(spec, batch, seed, step):
                learner.optimizer.zero_grad()
                accumulate_gradients(spec, context, minibatch, step, hooks)
                add_auxiliary_loss(spec, context, seed, step, iteration, index, hooks)
                learner.optimizer.sum_gradients()
                grad_norm = learner.optimizer.grad_norm()
                hooks.on_gradients(grad_norm, minibatch)
                learner.optimizer.step(rates.policy, grad_norm, rates.critic_base)
                hooks.on_update(grad_norm)
    state.step += 1
    hooks.on_step_end(rates)
    return metrics_hook.metrics(), batch, samples


def _train_hooks(
    spec: AlgorithmSpec,
    context: TrainingContext,
    state: TrainState[GradientLearner],
    metrics_hook: MetricsHook,
) -> StepHooks:
    # Finite checks come before FLOP counts and metrics: their error names the prompts.
    hooks = (
        UsageHook(spec, context, state),
        FiniteCheckHook(state.step, state.last_checkpoint_step),
        RolloutCallbackHook(context, state.step),
        RolloutFlopsHook(spec, context, state.timer),
        UpdateFlopsHook(spec, context, state.step, state.timer),
        metrics_hook,
    )
    return StepHooks(hooks, state.timer)


def minibatches(spec: AlgorithmSpec, batch: Batch, seed: int, step: int) -> Iterator[tuple[int, int, Batch]]:
    """The minibatches of a step, each for one optimizer step: (iteration, index, rows).

    The order of the rows is a new permutation in every iteration.
    """
    for iteration in range(spec.num_iterations):
        rng = torch_generator(seed, step, "minibatches", iteration)
        size = spec.minibatch_size or len(batch)
        parts = batch.minibatches(size, by_group=spec.requires_full_groups(), rng=rng)
        for index, minibatch in enumerate(parts):
            yield iteration, index, minibatch


def accumulate_gradients(
    spec: AlgorithmSpec, context: TrainingContext, minibatch: Batch, step: int, hooks: StepHooks
) -> None:
    """Add the gradient of the losses on a minibatch; it is the same for every cut into micro-batches.

    The weights of all tokens are computed over the whole minibatch first; each micro-batch adds its share.
    Each rank adds the gradient of its own rows.
    """
    minibatch = minibatch.replace(loss_weights=spec.loss_aggregation(minibatch.response_mask))
    models, losses = context.models, spec.losses_at(step)
    with ranks.fail_together("gradients"):
        for microbatch, factor in local_microbatches(spec, context, minibatch):
            with use_gradient_checkpointing(context.gradient_checkpointing):
                out = compute_outputs(
                    models.policy,
                    microbatch,
                    spec.requires() | {"entropy"},  # for the metrics
                    temperature=spec.temperature,
                    references=models.frozen,
                    critic=models.critic,
                )
            loss, loss_values = total_loss(losses, out, microbatch)
            if not factor:
                (0.0 * loss).backward()
                continue
            hooks.on_loss(out, loss, loss_values, microbatch)  # before `backward`: it may stop the run
            loss.backward()  # frees the graph, so the metrics below add nothing to the peak memory
            hooks.on_microbatch(losses, out, loss, loss_values, microbatch)


def local_microbatches(
    spec: AlgorithmSpec, context: TrainingContext, minibatch: Batch
) -> Iterator[tuple[Batch, float]]:
    """The micro-batches of this rank, each with the factor of its loss.

    The factor is 1, or 0 for a pass that is only made since other ranks make one: where weights are divided,
    they gather layers and add up gradients together.
    """
    models = context.trained_models
    rows = ranks.local_part(ranks.partition_rows(minibatch))
    own = minibatch.select(torch.tensor(rows)) if rows and ranks.is_distributed() else minibatch
    parts = (
        microbatch_indices(
            own,
            context.max_tokens_per_pass,
            models,
            by_group=spec.requires_full_groups(),
            strict_token_limit=context.strict_token_limit,
        )
        if rows
        else []
    )
    for index, factor in sharding.passes(parts, models):
        yield own.select(torch.tensor(index)), factor


def add_auxiliary_loss(
    spec: AlgorithmSpec,
    context: TrainingContext,
    seed: int,
    step: int,
    iteration: int,
    minibatch_index: int,
    hooks: StepHooks,
) -> None:
    """Add the gradient of the auxiliary language-modeling loss, if there is one and the policy is trained."""
    config, data = spec.auxiliary_lm, context.auxiliary_data
    if config is None or data is None or step < spec.critic.warmup_steps:
        return
    indices = data.sample_indices(config.batch_size, seed, step, iteration, minibatch_index)
    with use_gradient_checkpointing(context.gradient_checkpointing):
        loss = add_auxiliary_gradient(data, indices, config.coefficient, context.max_tokens_per_pass)
    hooks.on_auxiliary(loss, indices)
