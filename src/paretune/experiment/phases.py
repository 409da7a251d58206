"""Models that a recipe needs before its own loop begins: made once, kept in `phases/`, and frozen."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from torch import nn

from paretune.config import location_of
from paretune.config.build import build_spec
from paretune.config.validate import WORLD
from paretune.core.errors import ConfigError, format_issue
from paretune.core.rng import derive_seed
from paretune.experiment.assemble import build_training_context, make_sampler
from paretune.experiment.context import RunContext, lora_config, resolve_max_tokens_per_pass
from paretune.experiment.dataset import prompt_stream
from paretune.experiment.sft import train_sft
from paretune.models.load import PolicyModel, load_policy, save_model
from paretune.models.lora import LoraSpec
from paretune.models.merge import logprob_drop, merge_models
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase, WeightAverage
from paretune.rl.loop import train
from paretune.rollout.sampler import OnPolicy
from paretune.training.microbatch import rows_per_no_grad_pass

MAX_MERGE_LOGPROB_DROP = 1.0
"""Nats a token by which the start's own responses may be less likely under an average than under itself."""


def run_phases(ctx: RunContext, spec: AlgorithmSpec) -> dict[str, nn.Module]:
    """The frozen models of the recipe's phases, by role; those that are complete are only read."""
    found: dict[str, nn.Module] = {}
    for made in spec.phases:
        folder = run_phase(ctx, made, lora_config(ctx.config.policy.lora))
        model = load_policy(replace(ctx.initial_policy, path=str(folder), revision=None)).model
        found[made.role] = model.requires_grad_(False)
    return found


def run_phase(ctx: RunContext, phase: PretrainPhase | WeightAverage, adapter: LoraSpec | None) -> Path:
    """The folder of one of them; it is made with this adapter, unless it is complete."""
    folder = ctx.path("phases", phase.role)
    if not (folder / "config.json").exists():
        ctx.console.log(f"before it: {phase.role}")
        # Its lines bear its name: those of the alignment go when that begins anew.
        stage, ctx.run.stage = ctx.run.stage, phase.role
        try:
            language = (
                _train_phase(ctx, phase, adapter)
                if isinstance(phase, PretrainPhase)
                else _average_weights(ctx, phase)
            )
        finally:
            ctx.run.stage = stage
        save_model(language.model, language.tokenizer, folder)
    for name in (phase.role, f"{phase.role}-second"):
        rmtree(ctx.path("checkpoints", name), ignore_errors=True)
    return folder


def _train_phase(ctx: RunContext, phase: PretrainPhase, adapter: LoraSpec | None) -> PolicyModel:
    """The start, after the phase's own recipe."""
    e = ctx.config
    language = load_policy(replace(ctx.initial_policy, lora=adapter), seed=e.run.seed)
    train(
        phase.spec,
        build_training_context(ctx, phase.spec, language),
        max_steps=phase.max_steps,
        seed=derive_seed(e.run.seed, 0, f"phase {phase.role}"),
        run=ctx.run,
        checkpoint_dir=ctx.path("checkpoints", phase.role),
        save_steps=e.run.save_steps,
        save_total_limit=e.run.save_total_limit,
        on_step=lambda step, *_: ctx.console.progress(step + 1, phase.max_steps, phase.role),
    )
    return language


def _average_weights(ctx: RunContext, average: WeightAverage) -> PolicyModel:
    """The mean of the start and of one more model."""
    first = load_policy(ctx.initial_policy)
    if average.other_path:
        second = load_policy(replace(ctx.initial_policy, path=average.other_path, revision=None))
    else:
        # The built-in world's policy shares no pretrained weights with one of another seed: no average of
        # the two would be a language model. So its second start is the first one, taught once more.
        seed = derive_seed(ctx.config.run.seed, 0, "second start")
        again = ctx.config.policy.path == WORLD
        second = train_sft(ctx, f"{average.role}-second", seed, from_initial_policy=again)
    weights = (1 - average.fraction, average.fraction)
    mixed = replace(first, model=merge_models((first.model, second.model), weights))
    _check_mergeable(ctx, first, mixed)
    return mixed


def _check_mergeable(ctx: RunContext, initial: PolicyModel, merged: PolicyModel) -> None:
    """Is the average a model of language still? It is where both grew from the same weights.

    Raises:
        ConfigError: What the start says is far less likely under it than under the start.
    """
    e = ctx.config
    source = build_spec(e).rollout
    assert isinstance(source, OnPolicy)
    prompts = prompt_stream(e, ctx.dataset.train_prompts)(0)
    batch, _ = make_sampler(ctx, initial)(prompts, source, seed=derive_seed(e.run.seed, 0, "soup"), step=0)
    most = resolve_max_tokens_per_pass(e.training.max_tokens_per_pass, e.run.device)
    short = logprob_drop(merged.model, initial.model, batch, rows_per_pass=rows_per_no_grad_pass(batch, most))
    if not short <= MAX_MERGE_LOGPROB_DROP:
        where, key = location_of(e, ("algorithm", "other_path")), "algorithm.other_path"
        wrong = (
            f"a token of the start's responses has {short:.2f} nats less under the average of both starts "
            "than under the start: they did not grow from the same weights"
        )
        fix = "name a model that was fitted from the same pretrained one"
        raise ConfigError(format_issue(where, None, None, key, wrong, fix=fix))
