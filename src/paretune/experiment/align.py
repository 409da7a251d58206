"""Stage 4: the policy learns from the reward model, by the algorithm of the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paretune.config import location_of
from paretune.config.build import build_spec
from paretune.core.batch import Batch
from paretune.core.errors import ConfigError, format_issue
from paretune.credit.base import Metrics
from paretune.data.records import Sample
from paretune.experiment.assemble import build_training_context
from paretune.experiment.context import RunContext, lora_config
from paretune.experiment.evolution import fit_adapter, run_evolution
from paretune.experiment.phases import run_phases
from paretune.experiment.reuse import total_usage
from paretune.models.load import PolicyModel, load_policy, resolve_device, save_model
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.loop import TrainStepCallback, train
from paretune.rl.state import Budget
from paretune.rl.throughput import matmul_throughput
from paretune.run.folder import read_jsonl

MAX_PROB_DIFF = 0.02
"""A difference between the probabilities of sampler and trainer that is told."""


NEGATIVE_SHARE_EVENT = "pushed_down"
NEGATIVE_SHARE_PATIENCE = 5
"""Steps in a row, so that one unlucky batch is not told."""


def align(ctx: RunContext) -> str:
    """Run the loop from its last checkpoint to its end, and save the policy in `final/`."""
    e = ctx.config
    if not ctx.path("final", "config.json").exists():
        recipe = build_spec(e)
        ctx.run.update_environment(matrix=matmul_throughput(resolve_device(ctx.device), e.policy.dtype))
        language = (
            _evolve_policy(ctx, recipe) if isinstance(recipe, EvolutionSpec) else _train_policy(ctx, recipe)
        )
        save_model(language.model, language.tokenizer, ctx.path("final"))
    lines = [line for line in read_jsonl(ctx.path("metrics.jsonl")) if line["stage"] == "align"]
    made = lines[-1]["step"] + 1 if lines else 0  # fewer than asked for where a budget ended them
    return f"{e.algorithm.name}, {made} steps" + _reward_trends(lines, tuple(e.objectives))


def _train_policy(ctx: RunContext, spec: AlgorithmSpec) -> PolicyModel:
    """The policy after its last step of gradients."""
    e = ctx.config
    frozen = run_phases(ctx, spec)
    language = load_policy(replace(ctx.initial_policy, lora=lora_config(e.policy.lora)), seed=e.run.seed)
    train(
        spec,
        build_training_context(ctx, spec, language, frozen),
        max_steps=e.run.max_steps,
        seed=e.run.seed,
        run=ctx.run,
        save_steps=e.run.save_steps,
        save_total_limit=e.run.save_total_limit,
        budget=_remaining_budget(ctx),
        on_step=_step_callback(ctx),
    )
    return language


def _evolve_policy(ctx: RunContext, spec: EvolutionSpec) -> PolicyModel:
    """The policy after its last generation."""
    fit_adapter(ctx, spec)
    return run_evolution(ctx, spec, _remaining_budget(ctx), _step_callback(ctx))


def _remaining_budget(ctx: RunContext) -> Budget | None:
    """What is left of the run's budget after the models that the recipe made beforehand.

    Raises:
        ConfigError: Nothing is.
    """
    given = ctx.config.run.budget
    if given is None:
        return None
    made = total_usage(read_jsonl(ctx.path("timing.jsonl")), phases_only=True)[given.resource]
    if made >= given.limit:
        where, key = location_of(ctx.config, ("run", "budget")), "run.budget"
        wrong = f"{ctx.config.algorithm.name} took {made:,} of {given.limit:,} {given.resource} beforehand"
        raise ConfigError(
            format_issue(where, None, None, key, wrong, fix="raise it, or shorten what is made")
        )
    return Budget(resource=given.resource, limit=given.limit - made)


def _step_callback(ctx: RunContext) -> TrainStepCallback:
    steps = ctx.config.run.max_steps
    downwards: list[Mapping[str, float]] = []

    def hear(step: int, metrics: Metrics, batch: Batch, samples: Sequence[Sample]) -> None:
        means = " ".join(
            f"{name[:8]} {metrics.get(f'score/{name}/mean', float('nan')):.2f}" for name in batch.objectives
        )
        share, kl = metrics.get("budget/used"), metrics.get("kl/k3", float("nan"))
        spent = "" if share is None else f"  {share:.0%} spent"
        ctx.console.progress(
            step + 1, _expected_steps(step + 1, steps, share), f"{means}  KL/token {kl:.3f}{spent}"
        )
        _warn_rollout_mismatch(ctx, step, metrics.get("rollout/prob_diff_max", 0.0))
        shares = {name: metrics.get(f"variance_share/{name}", 0.0) for name in batch.objectives}
        downwards.append({name: share for name, share in shares.items() if share < 0})
        _warn_negative_share(ctx, step, downwards[-NEGATIVE_SHARE_PATIENCE:])

    return hear


def _expected_steps(steps_done: int, max_steps: int, budget_fraction: float | None) -> int:
    """How many steps there will be; with a budget, of which this share is spent, at the pace so far."""
    return (
        min(max(round(steps_done / budget_fraction), steps_done), max_steps) if budget_fraction else max_steps
    )


def _warn_negative_share(ctx: RunContext, step: int, recent: Sequence[Mapping[str, float]]) -> None:
    """Tell, once an objective, that the signal has pushed it down for some steps without a break."""
    if len(recent) < NEGATIVE_SHARE_PATIENCE:
        return
    found = [name for name in recent[-1] if all(name in shares for shares in recent)]
    if not found:
        return
    told = {
        e["text"].partition(":")[0]
        for e in read_jsonl(ctx.path("events.jsonl"))
        if e["kind"] == NEGATIVE_SHARE_EVENT
    }
    for name in found:
        if name not in told:
            mean = sum(shares[name] for shares in recent) / NEGATIVE_SHARE_PATIENCE
            text = f"the signal pushes it down: its share was negative for {NEGATIVE_SHARE_PATIENCE} steps ({mean:.2f})"
            ctx.run.log_event(NEGATIVE_SHARE_EVENT, f"{name}: {text} (step {step})")
            ctx.console.log(f"warning: {name}: {text}; give it more weight if it is not to fall")


def _warn_rollout_mismatch(ctx: RunContext, step: int, prob_diff: float) -> None:
    """Tell, once a run, that the sampler is not the policy that learns."""
    if prob_diff <= MAX_PROB_DIFF or any(
        e["kind"] == "sampler_apart" for e in read_jsonl(ctx.path("events.jsonl"))
    ):
        return
    text = f"step {step}: sampler and trainer differ by {prob_diff:.3f} in the probability of a token"
    ctx.run.log_event("sampler_apart", f"{text}; more than {MAX_PROB_DIFF} biases what is learnt")
    ctx.console.log(f"warning: {text}")


def _reward_trends(lines: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    """What the training reward of each objective did, first fifth against last fifth."""
    fifth = max(len(lines) // 5, 1)
    parts = []
    for name in objectives:
        values = [line[f"score/{name}/mean"] for line in lines if line.get(f"score/{name}/mean") is not None]
        if values:
            rise = sum(values[-fifth:]) / len(values[-fifth:]) - sum(values[:fifth]) / len(values[:fifth])
            parts.append(f"{name} {rise:+.2f}")
    return "; training reward: " + " ".join(parts) if parts else ""
