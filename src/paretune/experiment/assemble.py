"""The heavy things that an alignment runs on: models in their roles, writers of responses, what is stored."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from paretune.core.types import PeftModel
from paretune.data.loader import ResponseGroupStream
from paretune.experiment.context import RunContext, lora_config, resolve_max_tokens_per_pass
from paretune.experiment.dataset import prompt_stream
from paretune.experiment.reward import load_trained_reward_model
from paretune.models.critic import Critic, critic_from_classifier, critic_from_policy
from paretune.models.load import PolicyModel, load_policy
from paretune.models.lora import AdapterDisabledModel
from paretune.models.model_passes import Models
from paretune.reward.model import RewardModel, RewardModelScorer
from paretune.reward.scorers import with_thinking_scorer
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.loop import TrainingContext
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import FrozenPolicy, LocalSampler, OnPolicy, StoredResponses
from paretune.rollout.stored import StoredResponseReader
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import AuxiliaryData, SftTask


def build_training_context(
    ctx: RunContext,
    spec: AlgorithmSpec | EvolutionSpec,
    policy: PolicyModel,
    frozen_models: Mapping[str, nn.Module] | None = None,
) -> TrainingContext:
    """What the recipe runs on, with this policy.

    Args:
        ctx: The experiment.
        spec: Decides what is needed; nothing else is loaded.
        policy: The policy that learns.
        frozen_models: Further frozen models, by role.
    """
    e, learn = ctx.config, ctx.config.training
    objectives, online = tuple(e.objectives), isinstance(spec.rollout, OnPolicy)
    roles = check_spec(spec, objectives)
    start = _initial_policy(ctx, policy)
    reward = load_trained_reward_model(ctx, "reward") if online else None
    return TrainingContext(
        models=Models(
            policy=policy.model,
            critic=_make_critic(ctx, spec, roles.num_critic_heads, reward)
            if isinstance(spec, AlgorithmSpec)
            else None,
            frozen={"reference": start.model, **(frozen_models or {})},
        ),
        sampler=make_sampler(ctx, policy),
        scorers=()
        if reward is None
        else with_thinking_scorer(e.thinking_objectives, RewardModelScorer(reward)),
        objectives=objectives,
        prompts_for_step=prompt_stream(e, ctx.dataset.train_prompts),
        optim_config=OptimizerConfig(
            learning_rate=learn.learning_rate,
            warmup_ratio=learn.warmup_ratio,
            lr_scheduler_type=learn.lr_scheduler_type,
            weight_decay=learn.weight_decay,
            max_grad_norm=learn.max_grad_norm,
            optim=learn.optim,
        ),
        max_tokens_per_pass=resolve_max_tokens_per_pass(learn.max_tokens_per_pass, e.run.device),
        strict_token_limit=learn.max_tokens_per_pass is not None,
        gradient_checkpointing=learn.gradient_checkpointing,
        frozen_policy_sampler=make_sampler(ctx, start) if isinstance(spec.rollout, FrozenPolicy) else None,
        stored_rollouts=_stored_response_reader(ctx, policy)
        if isinstance(spec.rollout, StoredResponses)
        else None,
        auxiliary_data=_auxiliary_lm_data(ctx, policy)
        if isinstance(spec, AlgorithmSpec) and spec.auxiliary_lm
        else None,
    )


def make_sampler(ctx: RunContext, policy: PolicyModel) -> LocalSampler:
    """Samples from this policy."""
    return LocalSampler(policy=policy, objectives=tuple(ctx.config.objectives))


def _initial_policy(ctx: RunContext, policy: PolicyModel) -> PolicyModel:
    """The policy as it was before the first update: the one that is learnt without its adapter, or a copy."""
    if isinstance(policy.model, PeftModel):
        return replace(policy, model=AdapterDisabledModel(policy.model))
    start = load_policy(ctx.initial_policy, seed=ctx.config.run.seed)
    return replace(start, model=start.model.requires_grad_(False))


def _make_critic(
    ctx: RunContext, spec: AlgorithmSpec, num_heads: int, reward_model: RewardModel | None
) -> Critic | None:
    """A critic that starts as the recipe says, perhaps from the reward model; none where no part asks it."""
    if not num_heads:
        return None
    e = ctx.config
    how = lora_config(e.policy.lora)
    if spec.critic.init_from == "policy":
        return critic_from_policy(
            load_policy(ctx.initial_policy, seed=e.run.seed).model, num_heads, lora=how, seed=e.run.seed
        )
    reward_model = load_trained_reward_model(ctx, "reward") if reward_model is None else reward_model
    columns = [reward_model.objectives.index(o.scores_from or name) for name, o in e.objectives.items()]
    apart = torch.diag(torch.tensor(reward_model.scale))[columns]
    mixed = torch.tensor(list(e.initial_weights.values())) @ apart
    return critic_from_classifier(
        reward_model.network, mixed[None] if num_heads == 1 else apart, lora=how, seed=e.run.seed
    )


def _stored_response_reader(ctx: RunContext, policy: PolicyModel) -> StoredResponseReader:
    e = ctx.config
    stream = ResponseGroupStream(ctx.dataset.stored_responses, e.training.prompts_per_step, e.run.seed)
    return StoredResponseReader(policy, tuple(e.objectives), stream)


def _auxiliary_lm_data(ctx: RunContext, policy: PolicyModel) -> AuxiliaryData:
    """Demonstrations of their own, or those that the starting policy learnt from."""
    found = ctx.dataset
    return AuxiliaryData(SftTask(policy, found.auxiliary_demonstrations or found.sft_demonstrations))
