"""Phases: models that the algorithm needs before it starts, trained once, saved in `phases/`, and frozen."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn

from paretune.config.validate import WORLD
from paretune.core.errors import ConfigError
from paretune.core.rng import derive_seed
from paretune.experiment.assemble import build_training_context, make_sampler
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import prompt_stream
from paretune.experiment.settings import lora_spec, resolve_max_tokens_per_pass
from paretune.experiment.sft import train_sft
from paretune.models.load import PolicyModel, load_policy, save_model
from paretune.models.lora import LoraSpec
from paretune.models.merge import logprob_drop, merge_models
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase, WeightAverage
from paretune.rl.loop import train
from paretune.rollout.sampler import OnPolicy
from paretune.rollout.synced import closing_sampler
from paretune.run.io import remove_folder
from paretune.training.microbatch import rows_per_no_grad_pass

MAX_MERGE_LOGPROB_DROP = 1.0
"""Nats per token by which the average may be worse than the initial policy on the latter's own responses."""


def run_phases(ctx: RunContext, spec: AlgorithmSpec) -> dict[str, nn.Module]:
    """The frozen models of the phases, by role; complete ones are only loaded."""
    models: dict[str, nn.Module] = {}
    for phase in spec.phases:
        model_dir = run_phase(ctx, phase, lora_spec(ctx.config.policy.lora))
        model = load_policy(replace(ctx.initial_policy, path=str(model_dir), revision=None)).model
        models[phase.role] = model.requires_grad_(False)
    return models


def run_phase(ctx: RunContext, phase: PretrainPhase | WeightAverage, adapter: LoraSpec | None) -> Path:
    """Run one phase with this adapter, unless it is complete; returns its folder."""
    model_dir = ctx.path("phases", phase.role)
    if not ctx.has("phases", phase.role, "config.json"):
        ctx.console.log(f"phase: {phase.role}")
        # Its log lines get its own stage: those of the alignment are discarded if the alignment restarts.
        stage, ctx.run.stage = ctx.run.stage, phase.role
        try:
            policy = (
                _train_phase(ctx, phase, adapter)
                if isinstance(phase, PretrainPhase)
                else _average_weights(ctx, phase)
            )
        finally:
            ctx.run.stage = stage
        save_model(policy.model, policy.tokenizer, model_dir)
    for name in (phase.role, _second_init_name(phase)):
        remove_folder(ctx.path("checkpoints", name))
    return model_dir


def _second_init_name(phase: PretrainPhase | WeightAverage) -> str:
    """Folder of the checkpoints of a weight average's second model."""
    return f"{phase.role}-second-init"


def _train_phase(ctx: RunContext, phase: PretrainPhase, adapter: LoraSpec | None) -> PolicyModel:
    """The initial policy, trained with the algorithm of the phase."""
    settings = ctx.config.run
    policy = load_policy(replace(ctx.initial_policy, lora=adapter), seed=settings.seed)
    context = build_training_context(ctx, phase.spec, policy)
    with closing_sampler(context.sampler):
        train(
            phase.spec,
            context,
            max_steps=phase.max_steps,
            seed=derive_seed(settings.seed, 0, f"phase {phase.role}"),
            run=ctx.run,
            checkpoint_dir=ctx.path("checkpoints", phase.role),
            save_steps=settings.save_steps,
            save_total_limit=settings.save_total_limit,
            on_step=lambda step, *_: ctx.console.progress(step + 1, phase.max_steps, phase.role),
        )
    return policy


def _average_weights(ctx: RunContext, average: WeightAverage) -> PolicyModel:
    """The weighted mean of the initial policy and a second model."""
    initial = load_policy(ctx.initial_policy)
    if average.other_path:
        second = load_policy(replace(ctx.initial_policy, path=average.other_path, revision=None))
    else:
        # The built-in world's policies of two seeds share no pretrained weights: their average would be no
        # language model. Its second model is therefore the first one, fine-tuned again.
        seed = derive_seed(ctx.config.run.seed, 0, "second start")
        from_initial_policy = ctx.config.policy.path == WORLD
        second = train_sft(ctx, _second_init_name(average), seed, from_initial_policy=from_initial_policy)
    weights = (1 - average.fraction, average.fraction)
    merged = replace(initial, model=merge_models((initial.model, second.model), weights))
    _check_mergeable(ctx, initial, merged)
    return merged


def _check_mergeable(ctx: RunContext, initial: PolicyModel, merged: PolicyModel) -> None:
    """Check that the average is still a language model, as it is if both models share pretrained weights.

    Raises:
        ConfigError: The initial policy's own responses are far less likely under the average.
    """
    config = ctx.config
    rollout = cast(OnPolicy, ctx.resolved.algorithm.rollout)  # algorithms with a weight average all sample
    prompts = prompt_stream(config, ctx.dataset.train_prompts)(0)
    seed = derive_seed(config.run.seed, 0, "soup")
    batch, _ = make_sampler(ctx, initial)(prompts, rollout, seed=seed, step=0)
    max_tokens = resolve_max_tokens_per_pass(config.training.max_tokens_per_pass, config.run.device)
    rows_per_pass = rows_per_no_grad_pass(batch, max_tokens)
    drop = logprob_drop(merged.model, initial.model, batch, rows_per_pass=rows_per_pass)
    # Negated, so that a NaN is an error too.
    if not drop <= MAX_MERGE_LOGPROB_DROP:
        problem = (
            f"the average of both models assigns {drop:.2f} nats per token less to the initial policy's "
            "responses: the models were not fine-tuned from the same pretrained weights"
        )
        fix = "name a model that was fine-tuned from the same pretrained one"
        raise ConfigError(ctx.resolved.issue(("algorithm", "other_path"), problem, fix))
