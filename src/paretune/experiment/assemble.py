"""Builds the training context of an alignment: models by role, samplers, scorers, stored responses."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from paretune.config.scorers import reward_model_objectives
from paretune.core.types import PeftModel
from paretune.data.loader import ResponseGroupStream
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import prompt_stream
from paretune.experiment.reward import load_trained_reward_model, reward_scorer
from paretune.experiment.rollout_engine import make_vllm_sampler
from paretune.experiment.rollout_samples import rollout_logger
from paretune.experiment.scorers import scorer_builder
from paretune.experiment.settings import lora_spec, optimizer_config, resolve_max_tokens_per_pass
from paretune.models.critic import Critic, critic_from_classifier, critic_from_policy
from paretune.models.load import PolicyModel, load_policy
from paretune.models.lora import AdapterDisabledModel
from paretune.models.model_passes import Models
from paretune.reward.model import RewardModel
from paretune.reward.scorers import ObjectiveColumns, Scorer, with_thinking_scorer
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_spec
from paretune.rollout.probe import probe_sampler
from paretune.rollout.sampler import LocalSampler
from paretune.rollout.stored import StoredResponseReader
from paretune.training.supervised import AuxiliaryData, SftTask


def build_training_context(
    ctx: RunContext,
    spec: AlgorithmSpec | EvolutionSpec,
    policy: PolicyModel,
    frozen_models: Mapping[str, nn.Module] | None = None,
) -> TrainingContext:
    """The models, samplers, scorers and data to train this policy.

    Args:
        ctx: The run.
        spec: The algorithm, or that of a phase; only what it requires is loaded.
        policy: The policy to train.
        frozen_models: Further frozen models, by role.
    """
    config, training, objectives = ctx.config, ctx.config.training, tuple(ctx.config.objectives)
    requirements = check_spec(spec, objectives)
    initial = _initial_policy(ctx, policy)
    has_reward = config.reward is not None and requirements.scorers
    reward = load_trained_reward_model(ctx, "reward") if has_reward else None
    scorers = training_scorers(ctx, reward) if requirements.scorers else ()
    return TrainingContext(
        models=Models(
            policy=policy.model,
            critic=make_critic(ctx, spec, requirements.num_critic_heads, reward),
            frozen={"reference": initial.model, **(frozen_models or {})},
        ),
        sampler=make_vllm_sampler(ctx, policy) or make_sampler(ctx, policy),
        scorers=scorers,
        objectives=objectives,
        prompts_for_step=prompt_stream(config, ctx.dataset.train_prompts),
        optim_config=optimizer_config(training),
        max_tokens_per_pass=resolve_max_tokens_per_pass(training.max_tokens_per_pass, config.run.device),
        strict_token_limit=training.max_tokens_per_pass is not None,
        gradient_checkpointing=training.gradient_checkpointing,
        frozen_policy_sampler=make_sampler(ctx, initial) if requirements.initial_policy_sampler else None,
        stored_rollouts=_stored_response_reader(ctx, policy) if requirements.stored_responses else None,
        auxiliary_data=_auxiliary_lm_data(ctx, policy) if requirements.demonstrations else None,
        on_rollout=rollout_logger(ctx) if ctx.run.stage == "align" else None,
        max_staleness=config.rollout.max_staleness if requirements.sampler else 0,
    )


def training_scorers(ctx: RunContext, reward: RewardModel | None) -> tuple[Scorer, ...]:
    """The scorers of all objectives: the heads of the reward model, and those of the section `scorers`."""
    config = ctx.config
    scorers: list[Scorer] = []
    if reward is not None:
        thinking = config.thinking_objectives
        scorers += with_thinking_scorer(thinking, reward_scorer(ctx, "reward", reward))
        if config.scorers:
            own = reward_model_objectives(config)
            scorers = [
                ObjectiveColumns(scorer, {name: name for name in names})
                for scorer in scorers
                if (names := [name for name in scorer.names if name in own])
            ]
    return (*scorers, *scorer_builder(ctx).training_scorers())


def make_sampler(ctx: RunContext, policy: PolicyModel) -> LocalSampler:
    """A sampler of this policy, tried with a few tokens.

    Raises:
        WiringError: It disagrees with the model's own forward pass.
    """
    probe_sampler(policy)
    return LocalSampler(policy=policy, objectives=tuple(ctx.config.objectives))


def _initial_policy(ctx: RunContext, policy: PolicyModel) -> PolicyModel:
    """The frozen initial policy: the trained one with its adapter disabled, or a copy."""
    if isinstance(policy.model, PeftModel):
        return replace(policy, model=AdapterDisabledModel(policy.model))
    initial = load_policy(ctx.initial_policy, seed=ctx.config.run.seed)
    return replace(initial, model=initial.model.requires_grad_(False))


def make_critic(
    ctx: RunContext, spec: AlgorithmSpec | EvolutionSpec, num_heads: int, reward_model: RewardModel | None
) -> Critic | None:
    """The critic, initialized from the policy or from the reward model; None without value heads."""
    if not num_heads:
        return None
    config = ctx.config
    adapter, seed = lora_spec(config.policy.lora), config.run.seed
    if spec.critic_init_from == "policy":
        network = load_policy(ctx.initial_policy, seed=seed).model
        return critic_from_policy(network, num_heads, lora=adapter, seed=seed)
    reward_model = load_trained_reward_model(ctx, "reward") if reward_model is None else reward_model
    columns = [reward_model.objectives.index(o.scores_from or name) for name, o in config.objectives.items()]
    # A head that starts at the score of an objective, or minus it; none starts at the distance to a target.
    signs = [{"higher": 1.0, "lower": -1.0, "target": 0.0}[goal.kind] for goal in config.goals.values()]
    per_objective = torch.tensor(signs)[:, None] * torch.diag(torch.tensor(reward_model.slopes))[columns]
    weighted_sum = torch.tensor(list(config.initial_weights.values())) @ per_objective
    head_weights = weighted_sum[None] if num_heads == 1 else per_objective
    return critic_from_classifier(reward_model.network, head_weights, lora=adapter, seed=seed)


def _stored_response_reader(ctx: RunContext, policy: PolicyModel) -> StoredResponseReader:
    config = ctx.config
    stream = ResponseGroupStream(
        ctx.dataset.stored_responses, config.training.prompts_per_step, config.run.seed
    )
    return StoredResponseReader(policy, tuple(config.objectives), stream)


def _auxiliary_lm_data(ctx: RunContext, policy: PolicyModel) -> AuxiliaryData:
    """The demonstrations in `data.demonstrations`, or those of the SFT stage."""
    dataset = ctx.dataset
    return AuxiliaryData(SftTask(policy, dataset.auxiliary_demonstrations or dataset.sft_demonstrations))
