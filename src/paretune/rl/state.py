"""Where a descent stands: all that changes from step to step, and how it is stored and found again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from paretune.core.batch import Batch
from paretune.core.errors import ConfigError
from paretune.credit.base import State
from paretune.models.model_passes import Models
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.metrics import PhaseTimer
from paretune.run.folder import Run
from paretune.training.checkpoint import Checkpoint, load_latest_checkpoint, save_checkpoint
from paretune.training.optimizer import Optimizer, OptimizerConfig

BUDGET_RESOURCES = ("rollout_tokens", "trained_tokens", "reward_calls")
"""What a step takes beside time: response tokens sampled, tokens that had a gradient, responses scored."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a descent may spend, in one currency."""

    resource: Literal["rollout_tokens", "trained_tokens", "reward_calls"]
    limit: int


@dataclass
class TrainState:
    """What a checkpoint holds. `identity` must be equal for a checkpoint to be gone on from."""

    identity: Mapping[str, Any]
    weights: dict[str, Parameter]
    optimizer: Optimizer
    reward_state: State
    credit_state: State
    checkpoint_dir: Path
    """Of the checkpoints."""
    step: int = 0
    """The next one."""
    last_checkpoint_step: int | None = None
    """Of the last checkpoint, the steps that it holds; None: there is none yet."""
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BUDGET_RESOURCES, 0))
    """What all steps so far took, in each currency; the step under way as far as it has come."""
    step_usage: dict[str, int] = field(default_factory=dict)
    """What the step under way took: tokens sampled and trained on, and responses scored."""
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    """Where the seconds of the step under way went."""
    critic_warmup_steps: int = 0
    """Steps at the beginning in which only the critic learns."""
    usage_at_policy_start: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BUDGET_RESOURCES, 0))
    """What those steps took, once the policy learns too."""

    def start_step_usage(self, batch: Batch, *, sampled: bool) -> None:
        """Open the account of a step that begins with this batch."""
        if self.step == self.critic_warmup_steps:
            self.usage_at_policy_start = dict(self.usage)
        self.step_usage = {"tokens": int(batch.attention_mask.sum()), **dict.fromkeys(BUDGET_RESOURCES, 0)}
        self.consume("rollout_tokens", int(batch.response_mask.sum()) if sampled else 0)
        self.consume("reward_calls", len(batch) if sampled else 0)

    def consume(self, resource: str, amount: int) -> None:
        """Add to the account of the step under way, and to that of the whole descent."""
        self.step_usage[resource] += amount
        self.usage[resource] += amount

    def budget_exhausted(self, budget: Budget | None) -> bool:
        """Would another step of the mean size end further from the amount than the last one did?"""
        return budget_exhausted(budget, self.usage, self.step)

    def learning_rates(
        self, optim_config: OptimizerConfig, max_steps: int, budget: Budget | None, num_iterations: int
    ) -> tuple[float, float]:
        """Learning rates of the step under way, once it is paid for; with a budget, by what is spent of it.

        That of the policy, which warms up when it begins to learn and is 0 before; and that which the
        critic's is a multiple of.
        """
        both = self._learning_rate(
            optim_config, max_steps, budget, num_iterations, 0, dict.fromkeys(BUDGET_RESOURCES, 0)
        )
        if self.step < self.critic_warmup_steps:
            return 0.0, both
        return self._learning_rate(
            optim_config,
            max_steps,
            budget,
            num_iterations,
            self.critic_warmup_steps,
            self.usage_at_policy_start,
        ), both

    def _learning_rate(
        self,
        optim_config: OptimizerConfig,
        max_steps: int,
        budget: Budget | None,
        num_iterations: int,
        start_step: int,
        usage_at_start: Mapping[str, int],
    ) -> float:
        """The rate of who learns from the step `start_step` on, before which this much had been paid."""
        if budget is None:
            return optim_config.learning_rate_at_step(self.step - start_step, max_steps - start_step)
        before = usage_at_start[budget.resource]
        paid, step = self.usage[budget.resource] - before, self.step_usage[budget.resource]
        # A step's own trained tokens are not known yet: every token of it, once an epoch, is a fair guess.
        ahead = num_iterations * self.step_usage["tokens"] if budget.resource == "trained_tokens" else 0
        left = budget.limit - before
        return optim_config.learning_rate_at_fraction((paid - step) / left, (paid + ahead) / left)

    def save(self, run: Run, save_total_limit: int) -> None:
        """Write a checkpoint of the run.

        Raises:
            ResourceError: The disk is full; earlier checkpoints are untouched.
        """
        trees = {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "worth": self.reward_state,
            "credit": self.credit_state,
            "paid": self.usage,
            "begun": self.usage_at_policy_start,
        }
        save_checkpoint(
            self.checkpoint_dir,
            self.step,
            trees,
            dict(self.identity),
            log_offsets=run.log_offsets(),
            save_total_limit=save_total_limit,
        )
        self.last_checkpoint_step = self.step
        run.update_state(step=self.step)

    def load(self, checkpoint: Checkpoint, run: Run) -> None:
        """Go on from a checkpoint: weights, optimiser and states; the run's lines are cut back to it.

        Raises:
            ConfigError: The checkpoint is of another recipe, seed, number of steps or policy, or was made
                before a policy whose critic learns alone first had a warm-up of its own.
        """
        require_same_run(checkpoint, self.identity, run)
        stored = checkpoint.load_tree("weights")
        if _shapes_and_dtypes(stored) != _shapes_and_dtypes(self.weights):
            raise ConfigError(
                f"{run.path}: the checkpoint holds other weights than this policy learns; "
                "fix: choose another run.output_dir"
            )
        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(stored[name])
        self.optimizer.load_state_dict(checkpoint.load_tree("optimizer"))
        self.reward_state = checkpoint.load_tree("worth", self.reward_state)
        self.credit_state = checkpoint.load_tree("credit", self.credit_state)
        self.usage = checkpoint.load_tree("paid")
        if "begun" in checkpoint.trees:
            self.usage_at_policy_start = checkpoint.load_tree("begun")
        elif 0 < self.critic_warmup_steps < checkpoint.step:
            raise ConfigError(
                f"{run.path}: the checkpoint is of a version in which the critic's steps alone used up the "
                "policy's warm-up; fix: choose another run.output_dir"
            )
        self.step = self.last_checkpoint_step = checkpoint.step
        run.truncate_logs(checkpoint.log_offsets)
        run.log_event("go_on", f"from the checkpoint of step {checkpoint.step}")


def budget_exhausted(budget: Budget | None, usage: Mapping[str, int], num_steps: int) -> bool:
    """Would another step of the mean size end further from the amount than the last of these did?"""
    if budget is None or num_steps == 0:
        return False
    return budget.limit - usage[budget.resource] < usage[budget.resource] / (2 * num_steps)


def require_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any], run: Run) -> None:
    """Refuse a checkpoint that was not made by this very run.

    Raises:
        ConfigError: It has another recipe, seed or number of steps.
    """
    for key, value in identity.items():
        if checkpoint.metadata[key] != value:
            raise ConfigError(
                f"{run.path}: {key}: the checkpoint was made with {checkpoint.metadata[key]}, "
                f"this run has {value}; fix: choose another run.output_dir"
            )


def start_or_resume(
    spec: AlgorithmSpec,
    models: Models,
    optim_config: OptimizerConfig,
    run: Run,
    identity: Mapping[str, Any],
    checkpoint_dir: Path,
) -> TrainState:
    """The state before the first step, or that of the run's last good checkpoint."""
    weights = trainable_parameters(models)
    critic = [weight for name, weight in weights.items() if name.startswith("critic.")]
    policy = [weight for name, weight in weights.items() if not name.startswith("critic.")]
    optimizer = Optimizer(optim_config, policy, critic, spec.critic.lr_multiplier)
    now = TrainState(
        identity, weights, optimizer, spec.reward_steps.init_state(), spec.credit.init_state(), checkpoint_dir
    )
    now.critic_warmup_steps = spec.critic.warmup_steps
    found = load_latest_checkpoint(checkpoint_dir, run.log_event)
    if found is None:
        run.discard_stage(run.stage)
    else:
        now.load(found, run)
    run.update_state(step=now.step)
    return now


def trainable_parameters(models: Models) -> dict[str, Parameter]:
    """Every weight that is learnt, by name; a tied one once."""
    networks = {"policy": models.policy, "critic": models.critic}
    return {
        f"{role}.{name}": parameter
        for role, network in networks.items()
        if network is not None
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def _shapes_and_dtypes(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
