"""The models, samplers, scorers and prompts that a training loop works with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.requirements import ANY_NUMBER, Requirements
from paretune.data.records import Prompt, Sample
from paretune.models.critic import Critic
from paretune.models.forward.checkpointing import GradientCheckpointing, checkpointable_layers
from paretune.models.lora import unwrap_model
from paretune.models.model_passes import Models
from paretune.reward.distributed import distributed_scorer
from paretune.reward.scorers import Scorer, resolve_scorers
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_frozen_models, check_spec
from paretune.rollout.distributed import DistributedSampler
from paretune.rollout.sampler import Rollout, Sampler
from paretune.training.microbatch import rows_per_no_grad_pass
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import AuxiliaryData

MAX_STALENESS = 1
"""Responses are sampled one step ahead at most: a checkpoint then holds one rollout."""


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """Everything that an algorithm is run on."""

    models: Models
    sampler: Sampler
    scorers: Sequence[Scorer]
    objectives: tuple[str, ...]
    """Scored objectives in the order of the columns; each is given by one scorer."""
    prompts_for_step: Callable[[int], Sequence[Prompt]]
    """The prompts of a step, a function of the step alone."""
    optim_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_tokens_per_pass: int = 8192
    """Tokens per forward pass with gradients, shared prompts once; changes memory and speed only."""
    strict_token_limit: bool = False
    """Never exceed `max_tokens_per_pass`, even if a long prompt is then computed again for each response."""
    gradient_checkpointing: GradientCheckpointing = "none"
    """Activations that a forward pass keeps for the backward pass; changes memory and speed only."""
    frozen_policy_sampler: Sampler | None = None
    """Samples from the policy as it was before the first update."""
    stored_rollouts: Callable[[int], Rollout] | None = None
    """Stored responses of a step, with scores."""
    auxiliary_data: AuxiliaryData | None = None
    """Demonstrations for the auxiliary language-modeling loss."""
    on_rollout: Callable[[int, Batch, Sequence[Sample]], None] | None = None
    """Called with the step and its scored responses, before the reward steps select among them."""
    max_staleness: int = 0
    """Training steps by which the weights that sample may be older than those that are trained, 0 or 1; see
    `rl/rollout.py`."""

    def no_grad_rows(self, batch: Batch) -> int:
        """Rows of a batch per forward pass without gradients, which needs far less memory."""
        return rows_per_no_grad_pass(batch, self.max_tokens_per_pass)

    @property
    def trained_models(self) -> list[nn.Module]:
        """The models with gradients."""
        return [model for model in (self.models.policy, self.models.critic) if model is not None]

    @property
    def all_models(self) -> list[nn.Module]:
        """The trained models, then the frozen ones."""
        return [*self.trained_models, *self.models.frozen.values()]

    def distributed(self) -> "TrainingContext":
        """The same context, whose samplers and scorers divide their work over the ranks."""
        frozen = self.frozen_policy_sampler
        return replace(
            self,
            sampler=DistributedSampler(self.sampler),
            frozen_policy_sampler=None if frozen is None else DistributedSampler(frozen),
            scorers=tuple(distributed_scorer(scorer) for scorer in self.scorers),
        )

    def available(self) -> Requirements:
        """The requirements that this context meets."""
        critic = self.models.critic
        heads = critic.num_heads if isinstance(critic, Critic) else ANY_NUMBER
        return Requirements(
            sampler=True,
            initial_policy_sampler=self.frozen_policy_sampler is not None,
            stored_responses=self.stored_rollouts is not None,
            scorers=True,  # `resolve_scorers` checks them one by one
            demonstrations=self.auxiliary_data is not None,
            frozen_roles=tuple(self.models.frozen),
            num_critic_heads=0 if critic is None else heads,
        )


def check_context(spec: AlgorithmSpec | EvolutionSpec, context: TrainingContext) -> None:
    """Check that the parts of a spec fit together, and that the context has what they require.

    Raises:
        WiringError: They do not, or it has not.
    """
    requirements = check_spec(spec, context.objectives)
    if requirements.scorers:
        resolve_scorers(context.objectives, context.scorers)
    missing = requirements.missing(context.available())
    if missing:
        raise WiringError(
            f'algorithm "{spec.name}" needs {"; ".join(map(str, missing))}; '
            "fix: give them in the TrainingContext, or choose another algorithm"
        )
    if context.max_staleness not in (0, MAX_STALENESS):
        raise WiringError(f"max_staleness is {context.max_staleness}; it must be 0 or {MAX_STALENESS}")
    if context.max_staleness and (spec.gradient_free or not requirements.sampler):
        raise WiringError(
            f'max_staleness has no effect: algorithm "{spec.name}" does not sample from the trained policy; '
            "fix: leave it out"
        )
    check_frozen_models(requirements.frozen_roles, context.models.frozen)
    if context.gradient_checkpointing == "recompute":
        checkpointable_layers(unwrap_model(context.models.policy))
