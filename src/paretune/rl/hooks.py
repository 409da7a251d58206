"""Hooks on the events of a training step: everything that observes the algorithm and is no part of it.

Usage, finite checks, FLOP counts and metrics are hooks; `StepHooks` calls them in order and holds the timer.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.credit.base import Metrics
from paretune.data.records import Sample
from paretune.loss.base import WeightedLoss
from paretune.models.model_passes import ModelPass
from paretune.reward.failures import scorer_metrics
from paretune.reward.scorers import thinking_metrics
from paretune.rl import throughput
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.metrics import (
    PhaseTimer,
    StepMetrics,
    advantage_metrics,
    failed_prompt_metrics,
    finite_metrics,
    reward_metrics,
    rollout_metrics,
    staleness_metrics,
)
from paretune.rl.state import GradientLearner, LearningRates, TrainState
from paretune.training.guards import FiniteCheck


class StepHook:
    """Observes a training step: each method is called when that part is complete, and changes nothing."""

    def on_sync(self, metrics: Metrics) -> None:
        """The trained weights were handed over to the sampler, if it has a copy of them."""

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """Responses were sampled or read, and scored."""

    def on_rewards(self, batch: Batch, metrics: Metrics) -> None:
        """The reward steps ran, with these metrics; rows may have been dropped."""

    def on_model_passes(self, batch: Batch, model_passes: Sequence[ModelPass]) -> None:
        """The forward passes without gradient ran."""

    def on_credit(self, batch: Batch, metrics: Metrics) -> None:
        """The credit steps ran, with these metrics."""

    def on_loss(
        self, out: Outputs, loss: Tensor, loss_values: Mapping[str, float], microbatch: Batch
    ) -> None:
        """The loss of a micro-batch was computed; its backward pass comes next."""

    def on_microbatch(
        self,
        losses: Sequence[WeightedLoss],
        out: Outputs,
        loss: Tensor,
        loss_values: Mapping[str, float],
        microbatch: Batch,
    ) -> None:
        """The backward pass of a micro-batch ran."""

    def on_auxiliary(self, loss: float, indices: Sequence[int]) -> None:
        """The gradient of the auxiliary loss on these demonstrations was added."""

    def on_gradients(self, grad_norm: float, minibatch: Batch) -> None:
        """The gradient of a minibatch is complete; the optimizer step comes next."""

    def on_update(self, grad_norm: float) -> None:
        """An optimizer step was made."""

    def on_step_end(self, rates: LearningRates) -> None:
        """All optimizer steps of the training step were made."""


class StepHooks(StepHook):
    """Hooks as one, in the order in which they are called, and the timer of the phases."""

    def __init__(self, hooks: Sequence[StepHook] = (), timer: PhaseTimer | None = None) -> None:
        self.hooks = tuple(hooks)
        self.timer = PhaseTimer() if timer is None else timer

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the seconds of a block for this phase."""
        return self.timer.phase(name)

    def on_sync(self, metrics: Metrics) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_sync(metrics)

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_rollout(batch, samples)

    def on_rewards(self, batch: Batch, metrics: Metrics) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_rewards(batch, metrics)

    def on_model_passes(self, batch: Batch, model_passes: Sequence[ModelPass]) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_model_passes(batch, model_passes)

    def on_credit(self, batch: Batch, metrics: Metrics) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_credit(batch, metrics)

    def on_loss(
        self, out: Outputs, loss: Tensor, loss_values: Mapping[str, float], microbatch: Batch
    ) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_loss(out, loss, loss_values, microbatch)

    def on_microbatch(
        self,
        losses: Sequence[WeightedLoss],
        out: Outputs,
        loss: Tensor,
        loss_values: Mapping[str, float],
        microbatch: Batch,
    ) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_microbatch(losses, out, loss, loss_values, microbatch)

    def on_auxiliary(self, loss: float, indices: Sequence[int]) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_auxiliary(loss, indices)

    def on_gradients(self, grad_norm: float, minibatch: Batch) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_gradients(grad_norm, minibatch)

    def on_update(self, grad_norm: float) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_update(grad_norm)

    def on_step_end(self, rates: LearningRates) -> None:
        """See `StepHook`."""
        for hook in self.hooks:
            hook.on_step_end(rates)


class UsageHook(StepHook):
    """Counts sampled and trained tokens and scored responses, which budgets limit."""

    def __init__(
        self, spec: AlgorithmSpec, context: TrainingContext, state: TrainState[GradientLearner]
    ) -> None:
        self.spec, self.context, self.state = spec, context, state

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """Sampled tokens and scored responses."""
        self.state.start_step_usage(tokens=int(batch.attention_mask.sum()))
        if self.spec.rollout.generates:
            self.state.consume("rollout_tokens", int(batch.response_mask.sum()))
            self.state.consume("reward_calls", len(batch))

    def on_auxiliary(self, loss: float, indices: Sequence[int]) -> None:
        """Tokens of demonstrations."""
        if self.context.auxiliary_data is not None:
            self.state.consume("trained_tokens", self.context.auxiliary_data.num_tokens(indices))

    def on_gradients(self, grad_norm: float, minibatch: Batch) -> None:
        """Tokens with gradients."""
        self.state.consume("trained_tokens", int(minibatch.attention_mask.sum()))


class FiniteCheckHook(StepHook):
    """Stops the run before a NaN or an infinity reaches the weights."""

    def __init__(self, step: int, last_checkpoint_step: int | None = None) -> None:
        self.check = FiniteCheck(step, {}, last_checkpoint_step)

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """Scores and the log-probabilities of the sampler."""
        self.check = FiniteCheck.from_batch(self.check.step, batch, samples, self.check.last_checkpoint_step)
        self.check.check_rollout(batch)

    def on_rewards(self, batch: Batch, metrics: Metrics) -> None:
        """Rewards."""
        self.check.check_rewards(batch)

    def on_model_passes(self, batch: Batch, model_passes: Sequence[ModelPass]) -> None:
        """Log-probabilities and values."""
        self.check.check_model_passes(batch)

    def on_credit(self, batch: Batch, metrics: Metrics) -> None:
        """Advantages and returns."""
        self.check.check_advantages(batch)

    def on_loss(
        self, out: Outputs, loss: Tensor, loss_values: Mapping[str, float], microbatch: Batch
    ) -> None:
        """Log-probabilities first: they name the cause of a loss that is not finite."""
        self.check.check_tokens("the policy's log-probability", out.logprobs, microbatch)
        self.check.check_loss(loss, loss_values, microbatch)

    def on_gradients(self, grad_norm: float, minibatch: Batch) -> None:
        """The gradient."""
        self.check.check_grad_norm(grad_norm, minibatch)


class RolloutCallbackHook(StepHook):
    """Passes the scored responses of a step on to the callback of the context, if it has one."""

    def __init__(self, context: TrainingContext, step: int) -> None:
        self.context, self.step = context, step

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """The responses, row by row as in the batch."""
        if self.context.on_rollout is not None:
            self.context.on_rollout(self.step, batch, samples)


class RolloutFlopsHook(StepHook):
    """Counts the floating-point operations of sampling, scoring and model passes."""

    def __init__(
        self, spec: AlgorithmSpec | EvolutionSpec, context: TrainingContext, timer: PhaseTimer
    ) -> None:
        self.spec, self.context, self.timer = spec, context, timer
        self.scoring_flops_before = throughput.scoring_flops(context.scorers)

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """Sampling and scoring; stored responses cost neither."""
        sampler = self.spec.rollout.sampler(self.context)
        if sampler is None:
            return
        throughput.record_rollout_flops(self.timer, sampler, self.context.models, batch)
        flops = throughput.scoring_flops(self.context.scorers) - self.scoring_flops_before
        self.timer.record_work("score", flops=flops)

    def on_model_passes(self, batch: Batch, model_passes: Sequence[ModelPass]) -> None:
        """Forward passes without gradient."""
        throughput.record_model_pass_flops(self.timer, model_passes, self.context.models, batch)


class UpdateFlopsHook(StepHook):
    """Counts the floating-point operations of forward and backward passes."""

    def __init__(self, spec: AlgorithmSpec, context: TrainingContext, step: int, timer: PhaseTimer) -> None:
        self.spec, self.context, self.step, self.timer = spec, context, step, timer

    def on_auxiliary(self, loss: float, indices: Sequence[int]) -> None:
        """The auxiliary loss."""
        if self.context.auxiliary_data is not None:
            throughput.record_auxiliary_flops(self.timer, self.context.auxiliary_data, indices)

    def on_gradients(self, grad_norm: float, minibatch: Batch) -> None:
        """The losses of a minibatch."""
        throughput.record_update_flops(self.timer, self.spec, self.context.models, minibatch, self.step)


class MetricsHook(StepHook):
    """Collects the metrics of a training step."""

    def __init__(self, spec: AlgorithmSpec, context: TrainingContext, step: int = 0) -> None:
        self.spec, self.has_critic = spec, context.models.critic is not None
        self.context, self.step = context, step
        self.scorers = context.scorers if spec.rollout.generates else ()
        self.step_metrics = StepMetrics()
        self._metrics: Metrics = {}

    def metrics(self) -> Metrics:
        """Everything that was collected and is finite."""
        return finite_metrics(self._metrics)

    def on_sync(self, metrics: Metrics) -> None:
        """What the hand-over of the weights reports, such as the gap of the probe."""
        self._metrics |= metrics

    def on_rollout(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """Scores and lengths."""
        self._metrics |= rollout_metrics(batch) | scorer_metrics(self.scorers)
        if self.spec.rollout.generates:
            num_prompts = len(self.context.prompts_for_step(self.step))
            self._metrics |= failed_prompt_metrics(batch, num_prompts)
        if self.context.max_staleness:
            self._metrics |= staleness_metrics(batch, self.step)
        if self.spec.scorer_view == "after_thinking":
            self._metrics |= thinking_metrics(samples)

    def on_rewards(self, batch: Batch, metrics: Metrics) -> None:
        """Rewards, and the metrics of the reward steps."""
        self._metrics |= reward_metrics(batch) | metrics

    def on_credit(self, batch: Batch, metrics: Metrics) -> None:
        """Advantages, and the metrics of the credit steps."""
        self._metrics |= advantage_metrics(batch) | metrics

    def on_microbatch(
        self,
        losses: Sequence[WeightedLoss],
        out: Outputs,
        loss: Tensor,
        loss_values: Mapping[str, float],
        microbatch: Batch,
    ) -> None:
        """Losses, ratios, entropy and KL."""
        self.step_metrics.add_forward_pass(losses, out, microbatch)
        self.step_metrics.add_losses(loss, loss_values)

    def on_auxiliary(self, loss: float, indices: Sequence[int]) -> None:
        """The auxiliary loss."""
        self.step_metrics.add_update_metric("loss/AuxiliaryLm", loss)

    def on_update(self, grad_norm: float) -> None:
        """The norm of the gradient."""
        self.step_metrics.finish_update(grad_norm)

    def on_step_end(self, rates: LearningRates) -> None:
        """Means over the updates, and the learning rates."""
        self._metrics |= self.step_metrics.metrics() | {"learning_rate": rates.policy}
        if self.has_critic:
            self._metrics["learning_rate/critic"] = self.spec.critic.lr_multiplier * rates.critic_base
