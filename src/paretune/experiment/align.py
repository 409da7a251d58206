"""Alignment stage: trains the policy on the reward model with the recipe's algorithm."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paretune.config import Config
from paretune.config.rollout import importance_level
from paretune.config.rollout_schema import InProcessVllmSection, LocalRolloutSection
from paretune.core import ranks
from paretune.core.batch import Batch
from paretune.core.errors import ConfigError
from paretune.credit.base import Metrics
from paretune.data.records import Sample
from paretune.experiment.assemble import build_training_context
from paretune.experiment.constant_scores import report_constant_scores
from paretune.experiment.context import RunContext
from paretune.experiment.evolution import fit_adapter, run_evolution
from paretune.experiment.phases import run_phases
from paretune.experiment.planning import choose_fsdp
from paretune.experiment.reuse import total_usage
from paretune.experiment.settings import budget_of, lora_spec
from paretune.experiment.step_evaluation import describe_selection, remove_candidates, step_evaluations
from paretune.models.load import PolicyModel, load_policy, resolve_device, save_model
from paretune.models.sharding import ShardingMode, copy_to_first, shard_model
from paretune.report.formatting import format_signed
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.loop import TrainStepCallback, train
from paretune.rl.state import Budget
from paretune.rl.throughput import matmul_throughput
from paretune.rollout.synced import closing_sampler
from paretune.run.folder import MISMATCH_EVENT, NEGATIVE_SHARE_EVENT, read_json, read_jsonl

MAX_PROB_DIFF = 0.02
"""Largest difference in a token's probability between sampler and trainer that is not reported."""
MAX_PROB_DIFF_VLLM_HALF = 0.2
"""The same for vLLM in bfloat16, whose kernels round in other places than the trainer's: a tenth of a nat is
usual for single tokens."""

NEGATIVE_SHARE_PATIENCE = 5
"""Consecutive steps before a negative variance share is reported: a single batch may be an outlier."""
MIN_NEGATIVE_SHARE = 0.05
"""Smallest mean share, without its sign, that is reported. The share of an objective on which all responses
are nearly equal is negative by chance in every other step, and lowers nothing."""


def align(ctx: RunContext) -> str:
    """Train the policy from the last checkpoint on, and save it in `final/`."""
    config, spec = ctx.config, ctx.resolved.algorithm
    if not ctx.has("final", "config.json"):
        ctx.run.update_environment(matmul=matmul_throughput(resolve_device(ctx.device), config.policy.dtype))
        policy = _evolve_policy(ctx, spec) if spec.gradient_free else _train_policy(ctx, spec)
        save_model(policy.model, policy.tokenizer, ctx.path("final"))
    remove_candidates(ctx)
    lines = [line for line in read_jsonl(ctx.path("metrics.jsonl")) if line["stage"] == "align"]
    summary = alignment_summary(config.algorithm.name, lines, tuple(config.objectives))
    return summary + describe_selection(ctx)


def _train_policy(ctx: RunContext, spec: AlgorithmSpec) -> PolicyModel:
    """The policy after its last optimizer step, or that of the evaluated step that is kept."""
    config = ctx.config
    frozen_models = run_phases(ctx, spec)
    policy = load_policy(
        replace(ctx.initial_policy, lora=lora_spec(config.policy.lora)), seed=config.run.seed
    )
    context = build_training_context(ctx, spec, policy, frozen_models)
    mode = _sharding_mode(ctx)
    for model in context.all_models:
        shard_model(model, mode)
    initial = context.models.frozen["reference"]
    evaluator = step_evaluations(ctx, policy, initial, is_sharded=mode != "no_shard")
    num_done = int((read_json(ctx.path("run.json")) or {}).get("step", 0))
    ctx.console.progress(num_done, config.run.max_steps, "")  # the time left is estimated from here
    with closing_sampler(context.sampler):
        train(
            spec,
            context,
            max_steps=config.run.max_steps,
            seed=config.run.seed,
            run=ctx.run,
            save_steps=config.run.save_steps,
            save_total_limit=config.run.save_total_limit,
            budget=_remaining_budget(ctx),
            on_step=_step_callback(ctx),
            evaluator=evaluator,
        )
    if evaluator is not None:
        evaluator.finish(_steps_done(ctx))
    return policy if mode == "no_shard" else _gathered_policy(ctx, policy)


def _steps_done(ctx: RunContext) -> int:
    steps: int = ranks.on_first(lambda: int((read_json(ctx.path("run.json")) or {})["step"]), "run.json")
    return steps


def _sharding_mode(ctx: RunContext) -> ShardingMode:
    """How the ranks hold the weights of the policy, its critic and the frozen models."""
    if not ranks.is_distributed():
        return "no_shard"
    mode: ShardingMode
    if ctx.config.training.fsdp != "auto":
        mode = ctx.config.training.fsdp
    elif resolve_device(ctx.device).type == "cpu":
        mode = "no_shard"  # ranks on a CPU share its memory: divided weights would only be slower
    else:
        mode = choose_fsdp(ctx.config, ranks.world_size(), torch.cuda.get_device_properties().total_memory)
    ctx.console.log(f"{ranks.world_size()} ranks, training.fsdp: {mode}")
    return mode


def _gathered_policy(ctx: RunContext, sharded: PolicyModel) -> PolicyModel:
    """A policy whose weights are divided over the ranks, whole on the first one, which alone saves it."""
    policy = sharded
    with ranks.fail_together("loading of the policy"):
        if ranks.is_first():
            lora = lora_spec(ctx.config.policy.lora)
            initial = replace(ctx.initial_policy, lora=lora, device="cpu")
            policy = load_policy(initial, seed=ctx.config.run.seed)
    trained = {name: p.detach() for name, p in sharded.model.named_parameters() if p.requires_grad}
    copy_to_first(trained, dict(policy.model.named_parameters()))
    return policy


def _evolve_policy(ctx: RunContext, spec: EvolutionSpec) -> PolicyModel:
    """The policy after its last generation."""
    fit_adapter(ctx, spec)
    return run_evolution(ctx, spec, _remaining_budget(ctx), _step_callback(ctx))


def _remaining_budget(ctx: RunContext) -> Budget | None:
    """The run's budget minus the usage of the preceding phases.

    Raises:
        ConfigError: The phases used it up.
    """
    budget = ctx.config.run.budget
    if budget is None:
        return None
    used = total_usage(read_jsonl(ctx.path("timing.jsonl")), phases_only=True)[budget.resource]
    if used >= budget.limit:
        amount = f"{used:,} of {budget.limit:,} {budget.resource}"
        problem = f"{ctx.config.algorithm.name} used {amount} in its preceding phases"
        raise ConfigError(ctx.resolved.issue(("run", "budget"), problem, "raise it, or shorten the phases"))
    return budget_of(budget, used)


def _step_callback(ctx: RunContext) -> TrainStepCallback:
    """Shows the progress of every step and reports anomalies."""
    max_steps = ctx.config.run.max_steps
    negative_shares: list[Mapping[str, float]] = []

    def on_step(step: int, metrics: Metrics, batch: Batch, samples: Sequence[Sample]) -> None:
        budget_used = metrics.get("budget/used")
        note, values = step_values(metrics, batch.objectives)
        if budget_used is not None:
            values.insert(0, f"{budget_used:.0%} of the budget")
        total = _expected_steps(step + 1, max_steps, budget_used)
        ctx.console.progress(step + 1, total, note, values)
        report_constant_scores(ctx, step, len(samples))
        _warn_rollout_mismatch(ctx, step, metrics.get("rollout/prob_diff_max", 0.0))
        shares = {name: metrics.get(f"variance_share/{name}", 0.0) for name in batch.objectives}
        negative_shares.append({name: share for name, share in shares.items() if share < 0})
        _warn_negative_share(ctx, step, negative_shares[-NEGATIVE_SHARE_PATIENCE:])

    return on_step


def alignment_summary(algorithm: str, lines: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    """The algorithm, its steps and the change of the training rewards, on one line.

    Args:
        algorithm: Its name.
        lines: Lines of metrics.jsonl of the stage align.
        objectives: The objectives.
    """
    num_steps = lines[-1]["step"] + 1 if lines else 0  # below run.max_steps if the budget ended the training
    steps = f"{num_steps} step{'s' * (num_steps != 1)}"
    return f"{algorithm}, {steps}{_reward_trends(lines, objectives)}"


def step_values(metrics: Metrics, objectives: Sequence[str]) -> tuple[str, list[str]]:
    """What the progress line of a step shows: the KL, and the mean score of each objective."""
    kl = metrics.get("kl/k3")
    note = "" if kl is None else f"KL/token {kl:.3f}"
    return note, [f"{name} {_format_mean(metrics, name)}" for name in objectives]


def _format_mean(metrics: Metrics, objective: str) -> str:
    mean = metrics.get(f"score/{objective}/mean")
    return "unscored" if mean is None else f"{mean:.2f}"


def _expected_steps(steps_done: int, max_steps: int, budget_fraction: float | None) -> int:
    """Total number of steps; with a budget, extrapolated from the fraction of it that is used."""
    if not budget_fraction:
        return max_steps
    return min(max(round(steps_done / budget_fraction), steps_done), max_steps)


def _warn_negative_share(ctx: RunContext, step: int, recent: Sequence[Mapping[str, float]]) -> None:
    """Report, once per objective, that the reward has correlated negatively with it for several steps."""
    if len(recent) < NEGATIVE_SHARE_PATIENCE:
        return
    names = [name for name in recent[-1] if all(name in shares for shares in recent)]
    if not names:
        return
    # Read from the file, not from memory: a resumed run must not repeat a report.
    reported = {
        event["text"].partition(":")[0]
        for event in read_jsonl(ctx.path("events.jsonl"))
        if event["type"] == NEGATIVE_SHARE_EVENT
    }
    for name in names:
        mean = sum(shares[name] for shares in recent) / NEGATIVE_SHARE_PATIENCE
        if mean <= -MIN_NEGATIVE_SHARE and name not in reported:
            text = (
                f"the reward lowers this objective: its variance share was negative for "
                f"{NEGATIVE_SHARE_PATIENCE} steps ({mean:.2f})"
            )
            fix = "fix: raise its weight if it must not fall"
            ctx.run.log_event(NEGATIVE_SHARE_EVENT, f"{name}: {text} (step {step}); {fix}")
            ctx.console.log(f"warning: {name}: {text}; {fix}")


def _warn_rollout_mismatch(ctx: RunContext, step: int, prob_diff: float) -> None:
    """Report, once per run, that the sampler's probabilities are not those of the trained policy."""
    limit, fix = _mismatch_limit(ctx.config)
    is_stale = ctx.config.rollout.max_staleness and step > 0  # then the two have other weights
    if prob_diff <= limit or is_stale:
        return
    if any(event["type"] == MISMATCH_EVENT for event in read_jsonl(ctx.path("events.jsonl"))):
        return
    text = f"step {step}: sampler and trainer differ by {prob_diff:.3f} in the probability of a token"
    ctx.run.log_event(MISMATCH_EVENT, f"{text}; more than {limit} biases the training{fix}")
    ctx.console.log(f"warning: {text}{fix}")


def _mismatch_limit(config: Config) -> tuple[float, str]:
    """The largest difference in a token's probability that is not reported, and how to mend a larger one."""
    section = config.rollout
    if isinstance(section, LocalRolloutSection):
        return MAX_PROB_DIFF, ""
    own_dtype = section.dtype if isinstance(section, InProcessVllmSection) else None
    half = "bfloat16" in (config.policy.dtype, own_dtype)
    fix = "; fix: write rollout.importance_correction: token"
    return (
        MAX_PROB_DIFF_VLLM_HALF if half else MAX_PROB_DIFF,
        fix if importance_level(section) == "none" else "",
    )


def _reward_trends(lines: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    """Change of the training reward of each objective, from the first fifth of the steps to the last."""
    fifth = max(len(lines) // 5, 1)
    trends = []
    for name in objectives:
        values = [line[f"score/{name}/mean"] for line in lines if line.get(f"score/{name}/mean") is not None]
        if values:
            change = sum(values[-fifth:]) / len(values[-fifth:]) - sum(values[:fifth]) / len(values[:fifth])
            trends.append(f"{name} {format_signed(change)}")
    return "; training reward: " + " ".join(trends) if trends else ""
