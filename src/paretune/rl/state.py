"""The state of a training loop: everything that changes from step to step, saved and loaded with checkpoints.

`TrainState` is common to the gradient loop and to evolution; its `learner` holds what is specific to one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from paretune.core.batch import Batch
from paretune.core.errors import ConfigError
from paretune.credit.base import CreditStep, State
from paretune.data.records import Prompt, Sample
from paretune.models.model_passes import Models
from paretune.models.sharding import copy_full
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.metrics import PhaseTimer
from paretune.rollout.sampler import Rollout
from paretune.run.folder import Run
from paretune.training.checkpoint import Checkpoint, load_latest_checkpoint, save_checkpoint
from paretune.training.optimizer import Optimizer, OptimizerConfig

BudgetResource = Literal["rollout_tokens", "trained_tokens", "reward_calls"]
BUDGET_RESOURCES: tuple[BudgetResource, ...] = ("rollout_tokens", "trained_tokens", "reward_calls")
"""Resources besides time: sampled response tokens, tokens with a gradient, scored responses."""
TEXT_FIELDS = ("response", "truncated", "original_response")
"""What a checkpoint holds of a sample besides its token ids; its prompt is that of the step."""
ROLLOUT_FIELDS = ("tensors", "names", "responses", "response_ids", "num_ids")
"""What a checkpoint holds of a rollout; seconds differ between two identical runs."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limit on one resource for a whole training."""

    resource: BudgetResource
    limit: int


class LearningRates(NamedTuple):
    """Learning rates of one training step."""

    policy: float
    """0 during the critic's warm-up."""
    critic_base: float
    """The critic's learning rate is this times `CriticConfig.lr_multiplier`."""


@runtime_checkable
class Learner(Protocol):
    """What a loop trains: saved as trees of tensors and numbers."""

    def trees(self) -> dict[str, Any]:
        """The trees of a checkpoint, by name."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Entries of the checkpoint's metadata besides the identity of the run."""
        ...


LearnerT = TypeVar("LearnerT", bound=Learner)


def no_usage() -> dict[str, int]:
    """Zero of every resource."""
    return dict.fromkeys(BUDGET_RESOURCES, 0)


@dataclass
class TrainState(Generic[LearnerT]):
    """The state of a training loop between two steps."""

    identity: Mapping[str, Any]
    """Algorithm, seed and number of steps: equal in a checkpoint that may be resumed."""
    checkpoint_dir: Path
    learner: LearnerT
    reward_state: State
    """State of the reward steps."""
    step: int = 0
    """The next step."""
    last_checkpoint_step: int | None = None
    """Steps in the last checkpoint; None: there is none yet."""
    usage: dict[str, int] = field(default_factory=no_usage)
    """Usage of all steps so far, per resource, including the current step as far as it has come."""
    step_usage: dict[str, int] = field(default_factory=dict)
    """Usage of the current step, and its tokens."""
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    """Seconds per phase of the current step."""

    def start_step_usage(self, **counts: int) -> None:
        """Begin counting the usage of a step; `counts` are logged with it and limited by no budget."""
        self.step_usage = {**counts, **no_usage()}

    def consume(self, resource: BudgetResource, amount: int) -> None:
        """Add to the usage of the current step and of the whole training."""
        self.step_usage[resource] += amount
        self.usage[resource] += amount

    def budget_exhausted(self, budget: Budget | None) -> bool:
        """Another step of mean size would end further from the limit than the last one did."""
        if budget is None or self.step == 0:
            return False
        used = self.usage[budget.resource]
        # Half a mean step: ending here is then nearer to the limit than ending after one more step.
        return budget.limit - used < used / (2 * self.step)

    def save(self, run: Run, save_total_limit: int) -> None:
        """Write a checkpoint of the run.

        Raises:
            ResourceError: The disk is full; earlier checkpoints are untouched.
        """
        save_checkpoint(
            self.checkpoint_dir,
            self.step,
            {**self.learner.trees(), "reward_state": self.reward_state, "usage": self.usage},
            {**self.identity, **self.learner.metadata()},
            log_offsets=run.log_offsets(),
            save_total_limit=save_total_limit,
        )
        self.last_checkpoint_step = self.step
        run.update_state(step=self.step)


def start_or_resume(
    run: Run,
    identity: Mapping[str, Any],
    checkpoint_dir: Path,
    reward_steps: CreditStep,
    *,
    start: Callable[[], LearnerT],
    resume: Callable[[Checkpoint], LearnerT],
) -> TrainState[LearnerT]:
    """The state before the first step, or that of the last good checkpoint.

    Args:
        run: Logs are truncated to the checkpoint, or those of the stage are discarded.
        identity: Must be equal in the checkpoint.
        checkpoint_dir: Folder of the checkpoints.
        reward_steps: Give the initial state of the reward steps.
        start: Makes the learner if there is no checkpoint.
        resume: Makes the learner of a checkpoint.

    Raises:
        ConfigError: The checkpoint was made by a different run.
    """
    reward_state = reward_steps.init_state()
    checkpoint = load_latest_checkpoint(checkpoint_dir, run.log_event)
    if checkpoint is None:
        run.discard_stage(run.stage)
        state = TrainState(identity, checkpoint_dir, start(), reward_state)
    else:
        require_same_run(checkpoint, identity, run)
        state = TrainState(
            identity,
            checkpoint_dir,
            resume(checkpoint),
            checkpoint.load_tree("reward_state", reward_state),
            step=checkpoint.step,
            last_checkpoint_step=checkpoint.step,
            usage=checkpoint.load_tree("usage"),
        )
        run.truncate_logs(checkpoint.log_offsets)
        run.log_event("resumed_from_checkpoint", f"step {checkpoint.step}")
    run.update_state(step=state.step)
    return state


def require_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any], run: Run) -> None:
    """Refuse a checkpoint that was made by a different run.

    Raises:
        ConfigError: It has another algorithm, seed or number of steps.
    """
    for key, value in identity.items():
        stored = checkpoint.metadata.get(key, 0)  # checkpoints without max_staleness are on-policy
        if stored != value:
            raise ConfigError(
                f"{run.path}: cannot resume: {key}: the checkpoint was made with "
                f"{stored}, this run has {value}; fix: set a new run.output_dir"
            )


@dataclass(frozen=True, kw_only=True)
class NextRollout:
    """The responses of the next step, sampled before its time: what a checkpoint holds of them."""

    tensors: Mapping[str, Tensor]
    """Fields of the batch by name."""
    names: Mapping[str, list[str]]
    """Fields of the batch that are tuples of names."""
    responses: Mapping[str, list[Any]]
    """Texts of the samples by name of the field, as scorers get them."""
    response_ids: Tensor
    """Token ids of all samples, one after the other."""
    num_ids: Tensor
    """Token ids of each sample."""
    seconds: float = 0.0
    """Seconds that the sampling took; 0: unknown, as after a resume."""

    @classmethod
    def of(cls, batch: Batch, samples: Sequence[Sample], seconds: float = 0.0) -> "NextRollout":
        """The responses of a batch that is not scored yet."""
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        ids = [torch.tensor(sample.response_ids, dtype=torch.long) for sample in samples]
        return cls(
            tensors={name: x for name, x in values.items() if isinstance(x, Tensor)},
            names={name: list(x) for name, x in values.items() if isinstance(x, tuple)},
            responses={name: [getattr(sample, name) for sample in samples] for name in TEXT_FIELDS},
            response_ids=torch.cat(ids),
            num_ids=torch.tensor([len(x) for x in ids]),
            seconds=seconds,
        )

    def rollout(self, prompts: Sequence[Prompt]) -> Rollout:
        """The batch and its samples.

        Args:
            prompts: Those of the step; `group` counts them.
        """
        names = {name: tuple(values) for name, values in self.names.items()}
        batch = Batch(**cast(Any, {**self.tensors, **names}))
        ids = self.response_ids.split(self.num_ids.tolist())
        columns = [
            dict(zip(self.responses, row, strict=True)) for row in zip(*self.responses.values(), strict=True)
        ]
        return batch, tuple(
            Sample(prompt=prompts[group], response_ids=tuple(x.tolist()), **texts)
            for group, x, texts in zip(batch.group.tolist(), ids, columns, strict=True)
        )

    def tree(self) -> dict[str, Any]:
        """The tree of a checkpoint."""
        return {name: getattr(self, name) for name in ROLLOUT_FIELDS}


@dataclass
class GradientLearner:
    """Weights, optimizer and credit state of the gradient loop."""

    weights: dict[str, Parameter]
    optimizer: Optimizer
    credit_state: State
    critic_warmup_steps: int = 0
    """Steps at the beginning that train only the critic."""
    usage_at_policy_start: dict[str, int] = field(default_factory=no_usage)
    """Usage of those steps, once the policy is trained too."""
    next_rollout: NextRollout | None = None
    """With `TrainingContext.max_staleness`, the responses of the next step."""

    @classmethod
    def initial(cls, spec: AlgorithmSpec, models: Models, optim_config: OptimizerConfig) -> "GradientLearner":
        """The learner before the first step."""
        weights = trainable_parameters(models)
        critic = [weight for name, weight in weights.items() if name.startswith("critic.")]
        policy = [weight for name, weight in weights.items() if not name.startswith("critic.")]
        optimizer = Optimizer(optim_config, policy, critic, spec.critic.lr_multiplier)
        return cls(weights, optimizer, spec.credit.init_state(), spec.critic.warmup_steps)

    def load(self, checkpoint: Checkpoint, path: Path) -> "GradientLearner":
        """Load weights, optimizer and credit state in place.

        Raises:
            ConfigError: The checkpoint has other weights than are trained here.
        """
        stored = checkpoint.load_tree("weights", self.weights)
        if _shapes_and_dtypes(stored) != _shapes_and_dtypes(self.weights):
            raise ConfigError(
                f"{path}: cannot resume: the checkpoint holds other weights than this policy trains; "
                "fix: set a new run.output_dir"
            )
        copy_full(stored, self.weights)
        self.optimizer.load_state_dict(checkpoint.load_tree("optimizer", self.optimizer.state_layout()))
        self.credit_state = checkpoint.load_tree("credit_state", self.credit_state)
        self.usage_at_policy_start = checkpoint.load_tree("usage_at_policy_start")
        if "next_rollout" in checkpoint.trees:
            self.next_rollout = NextRollout(**checkpoint.load_tree("next_rollout"))
        return self

    def trees(self) -> dict[str, Any]:
        """See `Learner`."""
        ahead = {} if self.next_rollout is None else {"next_rollout": self.next_rollout.tree()}
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "credit_state": self.credit_state,
            "usage_at_policy_start": self.usage_at_policy_start,
            **ahead,
        }

    def metadata(self) -> dict[str, Any]:
        """See `Learner`."""
        return {}

    def start_step(self, step: int, usage: Mapping[str, int]) -> None:
        """Remember the usage at the first step that trains the policy."""
        if step == self.critic_warmup_steps:
            self.usage_at_policy_start = dict(usage)


def learning_rates(
    state: TrainState[GradientLearner],
    optim_config: OptimizerConfig,
    max_steps: int,
    budget: Budget | None,
    num_iterations: int,
) -> LearningRates:
    """Learning rates of the current step; with a budget, by the fraction of it that is used.

    The policy warms up when its training begins, after the critic's warm-up.

    Args:
        state: The usage of the current step includes its rollouts.
        optim_config: Learning rate and schedule.
        max_steps: Training steps in all.
        budget: Replaces the steps as the measure of progress.
        num_iterations: Passes over the rollouts of a step.
    """
    learner, warmup = state.learner, state.learner.critic_warmup_steps

    def rate(start_step: int, usage_at_start: Mapping[str, int]) -> float:
        if budget is None:
            return optim_config.learning_rate_at_step(state.step - start_step, max_steps - start_step)
        before, in_step = usage_at_start[budget.resource], state.step_usage[budget.resource]
        used, available = state.usage[budget.resource] - before, budget.limit - before
        # The trained tokens of this step are not known yet: every token once per iteration is the estimate.
        ahead = num_iterations * state.step_usage["tokens"] if budget.resource == "trained_tokens" else 0
        return optim_config.learning_rate_at_fraction(
            (used - in_step) / available, (used + ahead) / available
        )

    critic_base = rate(0, no_usage())
    policy = rate(warmup, learner.usage_at_policy_start) if state.step >= warmup else 0.0
    return LearningRates(policy, critic_base)


def trainable_parameters(models: Models) -> dict[str, Parameter]:
    """Every trainable weight by name; a tied one once."""
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
