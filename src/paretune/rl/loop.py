"""The gradient loop. Read this file first."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.rng import torch_generator
from paretune.credit.base import Metrics
from paretune.data.records import Prompt, Sample
from paretune.loss.base import total_loss
from paretune.models.critic import Critic
from paretune.models.forward.checkpointing import (
    GradientCheckpointing,
    checkpointable_layers,
    use_gradient_checkpointing,
)
from paretune.models.forward.logprobs import compute_outputs as forward
from paretune.models.lora import unwrap_model
from paretune.models.model_passes import Models
from paretune.reward.scorers import (
    Scorer,
    StatedConfidenceScorer,
    resolve_scorers,
    score_batch,
    thinking_length,
)
from paretune.rl import throughput
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.metrics import (
    PhaseTimer,
    StepMetrics,
    advantage_metrics,
    finite_metrics,
    peak_memory_bytes,
    reward_metrics,
    rollout_metrics,
)
from paretune.rl.state import Budget, TrainState, start_or_resume
from paretune.rl.validate import check_frozen_models, check_spec
from paretune.rollout.sampler import FrozenPolicy, OnPolicy, Sampler, StoredResponses
from paretune.run.folder import Run
from paretune.training.guards import FiniteCheck, StopRequest
from paretune.training.microbatch import microbatch_indices, rows_per_no_grad_pass
from paretune.training.optimizer import Optimizer, OptimizerConfig
from paretune.training.supervised import AuxiliaryData, add_auxiliary_gradient

TrainStepCallback = Callable[[int, Metrics, Batch, Sequence[Sample]], None]
Rollout = tuple[Batch, Sequence[Sample]]


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """The heavy things a recipe is run on."""

    models: Models
    sampler: Sampler
    scorers: Sequence[Scorer]
    objectives: tuple[str, ...]
    """What is scored, in the order of the columns; each by one scorer."""
    prompts_for_step: Callable[[int], Sequence[Prompt]]
    """The prompts of a step, a function of the step alone."""
    optim_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_tokens_per_pass: int = 8192
    """Tokens of a forward pass with gradients, shared prompts once; changes memory and speed only."""
    strict_token_limit: bool = False
    """Never more than `max_tokens_per_pass`, even if a long prompt is then read again for each of its responses."""
    gradient_checkpointing: GradientCheckpointing = "keep"
    """What a forward pass keeps for its gradient; changes memory and speed only."""
    frozen_policy_sampler: Sampler | None = None
    """Samples from the policy as it was before the first update."""
    stored_rollouts: Callable[[int], Rollout] | None = None
    """Responses of a data set for a step, with what they are worth."""
    auxiliary_data: AuxiliaryData | None = None
    """Demonstrations to be remembered."""

    def no_grad_rows(self, batch: Batch) -> int:
        """How many rows of a batch are read in one forward pass without gradients, which keeps far less."""
        return rows_per_no_grad_pass(batch, self.max_tokens_per_pass)


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
) -> None:
    """Collect, weigh up, measure, credit, learn; repeat. Goes on where the run folder's last checkpoint ends.

    The policy of `context` is changed in place. Everything random is drawn from (seed, step, purpose), so a
    resumed run draws what the unbroken one drew.

    Args:
        spec: The algorithm.
        context: Models, sampler, scorers and prompts.
        max_steps: Training steps in all.
        seed: Of the run.
        run: Where metrics, events and checkpoints go.
        checkpoint_dir: Of the checkpoints; None: `checkpoints` in the run's.
        save_steps: Steps from one checkpoint to the next; there is always one at the end.
        save_total_limit: Checkpoints that are kept.
        budget: Stop, even before `max_steps`, after the step that comes nearest to it; the rate then follows the
            share of it that is spent, not that of the steps.
        on_step: Hears of every step after it was written down.

    Raises:
        WiringError: The recipe does not fit together, or not with the world.
        ConfigError: The folder's checkpoint is of another recipe, seed or number of steps.
        TrainingGuard: A number was not finite; the update did not reach the weights.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    _check_context(spec, context)
    identity = {"recipe": repr(spec), "seed": seed, "steps": max_steps}
    now = start_or_resume(
        spec, context.models, context.optim_config, run, identity, checkpoint_dir or run.path / "checkpoints"
    )
    with StopRequest() as stop:
        while now.step < max_steps and not now.budget_exhausted(budget):
            step, clock = now.step, time.perf_counter()
            metrics, batch, samples = train_step(spec, context, now, max_steps, seed, budget)
            run.log_metrics(step, metrics)
            seconds = time.perf_counter() - clock
            run.log_timing(
                step,
                seconds=seconds,
                **now.timer.read_and_reset(seconds),
                **now.step_usage,
                **peak_memory_bytes(),
            )
            if on_step is not None:
                on_step(step, metrics, batch, samples)
            last = now.step == max_steps or now.budget_exhausted(budget)
            if now.step % save_steps == 0 or last or stop.requested:
                with now.timer.phase("save"):
                    now.save(run, save_total_limit)
            stop.raise_if_stopped(f"step {now.step} of {max_steps}")


def train_step(
    spec: AlgorithmSpec,
    context: TrainingContext,
    state: TrainState,
    max_steps: int,
    seed: int,
    budget: Budget | None = None,
) -> tuple[Metrics, Batch, Sequence[Sample]]:
    """One turn of the loop; `state` moves on by a step, the weights by at least one update."""
    step, temperature = state.step, spec.temperature()
    batch, samples = rollout_and_score(spec, context, seed, step, state.timer)
    state.start_step_usage(batch, sampled=not isinstance(spec.rollout, StoredResponses))
    guard = FiniteCheck.from_batch(step, batch, samples, state.last_checkpoint_step)
    guard.check_rollout(batch)
    metrics = rollout_metrics(batch) | (
        thinking_length(samples) if spec.scorer_view == "after_thinking" else {}
    )
    batch, state.reward_state, seen = spec.reward_steps.apply_stateful(
        batch, state.reward_state, torch_generator(seed, step, "worth")
    )
    guard.check_rewards(batch)
    metrics |= reward_metrics(batch) | seen
    with state.timer.phase("measure"):
        for measure in spec.model_passes:  # only the rows that are left cost a forward pass
            batch = measure(batch, context.models, temperature, context.no_grad_rows(batch))
        throughput.record_model_pass_flops(state.timer, spec.model_passes, context.models, batch)
    guard.check_model_passes(batch)
    batch, state.credit_state, seen = spec.credit.apply_stateful(
        batch, state.credit_state, torch_generator(seed, step, "credit")
    )
    guard.check_advantages(batch)
    metrics |= advantage_metrics(batch) | seen
    rates = state.learning_rates(context.optim_config, max_steps, budget, spec.num_iterations)
    with state.timer.phase("learn"):
        metrics |= update_models(spec, context, batch, state, rates, seed, guard)
    state.step += 1
    if budget is not None:
        metrics["budget/used"] = state.usage[budget.resource] / budget.limit
    metrics["lr"], own = rates
    if context.models.critic is not None:
        metrics["learning_rate/critic"] = spec.critic.lr_multiplier * own
    return finite_metrics(metrics), batch, samples


def rollout_and_score(
    spec: AlgorithmSpec | EvolutionSpec,
    context: TrainingContext,
    seed: int,
    step: int,
    timer: PhaseTimer | None = None,
) -> Rollout:
    """Sample responses to the prompts of the step, and score them; or read both. NaN = unscored."""
    timer = timer or PhaseTimer()
    if isinstance(spec.rollout, StoredResponses):
        assert context.stored_rollouts is not None
        with timer.phase("sample"):
            return context.stored_rollouts(step)
    sampler = context.frozen_policy_sampler if isinstance(spec.rollout, FrozenPolicy) else context.sampler
    assert sampler is not None
    with timer.phase("sample"):
        batch, samples = sampler(
            context.prompts_for_step(step), spec.rollout, seed=seed, step=step, prompt_index=None
        )
        throughput.record_rollout_flops(timer, sampler, context.models, batch)
    if isinstance(spec.rollout, FrozenPolicy):
        batch = batch.replace(rollout_logprobs=None)  # not of the policy that learns
    objectives = spec.scored_objectives(context.objectives)
    own = () if objectives == context.objectives else (StatedConfidenceScorer(),)
    scorers = (*context.scorers, *own)
    with timer.phase("score"):
        before = throughput.scoring_flops(scorers)
        batch = score_batch(batch.replace(objectives=objectives), samples, scorers, spec.scorer_view)
        timer.record_work("score", flops=throughput.scoring_flops(scorers) - before)
    return batch, samples


def update_models(
    spec: AlgorithmSpec,
    context: TrainingContext,
    batch: Batch,
    state: TrainState,
    learning_rates: tuple[float, float],
    seed: int,
    finite_check: FiniteCheck,
) -> Metrics:
    """Epochs times minibatches: one optimiser step each, at the rates of policy and critic."""
    seen, optimizer = StepMetrics(), state.optimizer
    for epoch in range(spec.num_iterations):
        rng = torch_generator(seed, finite_check.step, "minibatches", epoch)
        size = spec.minibatch_size or len(batch)
        for place, part in enumerate(batch.minibatches(size, by_group=spec.requires_full_groups(), rng=rng)):
            accumulate_gradients(spec, context, part, optimizer, finite_check, seen)
            state.consume("trained_tokens", int(part.attention_mask.sum()))
            throughput.record_update_flops(state.timer, spec, context.models, part, finite_check.step)
            if spec.auxiliary_lm and context.auxiliary_data and finite_check.step >= spec.critic.warmup_steps:
                units = context.auxiliary_data.sample_indices(
                    spec.auxiliary_lm.batch_size, seed, finite_check.step, epoch, place
                )
                with use_gradient_checkpointing(context.gradient_checkpointing):
                    loss = add_auxiliary_gradient(
                        context.auxiliary_data,
                        units,
                        spec.auxiliary_lm.coefficient,
                        context.max_tokens_per_pass,
                    )
                seen.add_update_metric("loss/Aside", loss)
                state.consume("trained_tokens", context.auxiliary_data.num_tokens(units))
                throughput.record_auxiliary_flops(state.timer, context.auxiliary_data, units)
            norm = optimizer.grad_norm()
            finite_check.check_grad_norm(norm, part)
            optimizer.step(learning_rates[0], norm, learning_rates[1])
            seen.finish_update(norm)
    return seen.metrics()


def accumulate_gradients(
    spec: AlgorithmSpec,
    context: TrainingContext,
    minibatch: Batch,
    optimizer: Optimizer,
    finite_check: FiniteCheck,
    step_metrics: StepMetrics,
) -> None:
    """Gradient of the losses on these rows, the same for every cut into micro-batches.

    The weights of all tokens are fixed over the whole part first; each micro-batch then adds its share.
    """
    optimizer.zero_grad()
    minibatch = minibatch.replace(loss_weights=spec.loss_aggregation(minibatch.response_mask))
    losses, temperature = spec.losses_at(finite_check.step), spec.temperature()
    wants = spec.requires() | {"entropy"}
    asked = [m for m in (context.models.policy, context.models.critic) if m is not None]
    for rows in microbatch_indices(
        minibatch,
        context.max_tokens_per_pass,
        asked,
        by_group=spec.requires_full_groups(),
        strict_token_limit=context.strict_token_limit,
    ):
        micro = minibatch.select(torch.tensor(rows))
        with use_gradient_checkpointing(context.gradient_checkpointing):
            out = forward(
                context.models.policy,
                micro,
                wants,
                temperature=temperature,
                references=context.models.frozen,
                critic=context.models.critic,
            )
        finite_check.check_tokens("the policy's log-probability", out.logprobs, micro)
        loss, terms = total_loss(losses, out, micro)
        finite_check.check_loss(loss, terms, micro)
        loss.backward()
        step_metrics.add_forward_pass(losses, out, micro)
        step_metrics.add_losses(loss, terms)


def _check_context(spec: AlgorithmSpec, context: TrainingContext) -> None:
    """Do the recipe's parts fit together, and with this world? For callers who built it by hand."""
    plan = check_spec(spec, context.objectives)
    if isinstance(spec.rollout, OnPolicy):
        resolve_scorers(context.objectives, context.scorers)
    lacks = {
        "a sampler of the start": isinstance(spec.rollout, FrozenPolicy)
        and context.frozen_policy_sampler is None,
        "stored responses": isinstance(spec.rollout, StoredResponses) and context.stored_rollouts is None,
        "demonstrations": spec.auxiliary_lm is not None and context.auxiliary_data is None,
    }
    for what in (what for what, lacking in lacks.items() if lacking):
        raise WiringError(f'recipe "{spec.name}" needs {what}, and the run has none')
    missing = [role for role in plan.frozen_roles if role not in context.models.frozen]
    if missing:
        raise WiringError(f'recipe "{spec.name}" asks frozen models that are not there: {", ".join(missing)}')
    check_frozen_models(plan.frozen_roles, context.models.frozen)
    if context.gradient_checkpointing == "recompute":
        checkpointable_layers(unwrap_model(context.models.policy))
    critic, needs = context.models.critic, plan.num_critic_heads
    if needs and critic is None:
        raise WiringError(f'recipe "{spec.name}" asks a critic, and there is none: give one of {needs} heads')
    if isinstance(critic, Critic) and critic.num_heads != needs:
        raise WiringError(f'recipe "{spec.name}" needs {needs} heads of a critic; it has {critic.num_heads}')
