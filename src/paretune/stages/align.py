"""Stage 4: the policy learns from the reward model, by the algorithm of the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paretune.batch import Batch
from paretune.config import written_at
from paretune.config.algorithm import recipe_of
from paretune.credit.step import Metrics
from paretune.data.records import Sample
from paretune.errors import ConfigError, complaint
from paretune.learn.descend import OnStep, descend
from paretune.learn.evolution import Evolution
from paretune.learn.machine import matrix_rate
from paretune.learn.progress import Budget
from paretune.learn.recipe import Recipe
from paretune.models.load import Language, device_named, load_policy, save_model
from paretune.rundir import read_jsonl
from paretune.stages.account import paid
from paretune.stages.assemble import assembled
from paretune.stages.before import made_before
from paretune.stages.search import fit_adapter, search
from paretune.stages.work import Work, lora

APART = 0.02
"""A difference between the probabilities of sampler and trainer that is told."""


DOWN = "pushed_down"
LASTING = 5
"""Steps in a row, so that one unlucky batch is not told."""


def align(work: Work) -> str:
    """Run the loop from its last checkpoint to its end, and save the policy in `final/`."""
    e = work.experiment
    if not work.folder("final", "config.json").exists():
        recipe = recipe_of(e)
        work.run.machine(matrix=matrix_rate(device_named(work.device), e.policy.dtype))
        language = _searched(work, recipe) if isinstance(recipe, Evolution) else _learnt(work, recipe)
        save_model(language.model, language.tokenizer, work.folder("final"))
    lines = [line for line in read_jsonl(work.folder("metrics.jsonl")) if line["stage"] == "align"]
    made = lines[-1]["step"] + 1 if lines else 0  # fewer than asked for where a budget ended them
    return f"{e.algorithm.name}, {made} steps" + _rises(lines, tuple(e.objectives))


def _learnt(work: Work, recipe: Recipe) -> Language:
    """The policy after its last step of gradients."""
    e = work.experiment
    frozen = made_before(work, recipe)
    language = load_policy(replace(work.start, lora=lora(e.policy.lora)), seed=e.run.seed)
    descend(
        recipe,
        assembled(work, recipe, language, frozen),
        steps=e.run.steps,
        seed=e.run.seed,
        run=work.run,
        checkpoint_every=e.run.checkpoint_every,
        keep=e.run.keep,
        budget=_budget(work),
        on_step=_shown(work),
    )
    return language


def _searched(work: Work, evolution: Evolution) -> Language:
    """The policy after its last generation."""
    fit_adapter(work, evolution)
    return search(work, evolution, _budget(work), _shown(work))


def _budget(work: Work) -> Budget | None:
    """What is left of the run's budget after the models that the recipe made beforehand.

    Raises:
        ConfigError: Nothing is.
    """
    given = work.experiment.run.budget
    if given is None:
        return None
    made = paid(read_jsonl(work.folder("timing.jsonl")), phases=True)[given.currency]
    if made >= given.amount:
        where, key = written_at(work.experiment, ("run", "budget")), "run.budget"
        wrong = (
            f"{work.experiment.algorithm.name} took {made:,} of {given.amount:,} {given.currency} beforehand"
        )
        raise ConfigError(complaint(where, None, None, key, wrong, fix="raise it, or shorten what is made"))
    return Budget(currency=given.currency, amount=given.amount - made)


def _shown(work: Work) -> OnStep:
    steps = work.experiment.run.steps
    downwards: list[Mapping[str, float]] = []

    def hear(step: int, metrics: Metrics, batch: Batch, samples: Sequence[Sample]) -> None:
        means = " ".join(
            f"{name[:8]} {metrics.get(f'score/{name}/mean', float('nan')):.2f}" for name in batch.objectives
        )
        share, kl = metrics.get("budget/spent"), metrics.get("kl/k3", float("nan"))
        spent = "" if share is None else f"  {share:.0%} spent"
        work.console.progress(step + 1, _last(step + 1, steps, share), f"{means}  KL/token {kl:.3f}{spent}")
        _warn(work, step, metrics.get("sampler/apart/max", 0.0))
        shares = {name: metrics.get(f"share/{name}", 0.0) for name in batch.objectives}
        downwards.append({name: share for name, share in shares.items() if share < 0})
        _warn_of_share(work, step, downwards[-LASTING:])

    return hear


def _last(done: int, steps: int, share: float | None) -> int:
    """How many steps there will be; with a budget, of which this share is spent, at the pace so far."""
    return min(max(round(done / share), done), steps) if share else steps


def _warn_of_share(work: Work, step: int, last: Sequence[Mapping[str, float]]) -> None:
    """Tell, once an objective, that the signal has pushed it down for some steps without a break."""
    if len(last) < LASTING:
        return
    found = [name for name in last[-1] if all(name in shares for shares in last)]
    if not found:
        return
    told = {e["text"].partition(":")[0] for e in read_jsonl(work.folder("events.jsonl")) if e["kind"] == DOWN}
    for name in found:
        if name not in told:
            mean = sum(shares[name] for shares in last) / LASTING
            text = f"the signal pushes it down: its share was negative for {LASTING} steps ({mean:.2f})"
            work.run.event(DOWN, f"{name}: {text} (step {step})")
            work.console.say(f"warning: {name}: {text}; give it more weight if it is not to fall")


def _warn(work: Work, step: int, apart: float) -> None:
    """Tell, once a run, that the sampler is not the policy that learns."""
    if apart <= APART or any(e["kind"] == "sampler_apart" for e in read_jsonl(work.folder("events.jsonl"))):
        return
    text = f"step {step}: sampler and trainer differ by {apart:.3f} in the probability of a token"
    work.run.event("sampler_apart", f"{text}; more than {APART} biases what is learnt")
    work.console.say(f"warning: {text}")


def _rises(lines: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    """What the training reward of each objective did, first fifth against last fifth."""
    fifth = max(len(lines) // 5, 1)
    parts = []
    for name in objectives:
        values = [line[f"score/{name}/mean"] for line in lines if line.get(f"score/{name}/mean") is not None]
        if values:
            rise = sum(values[-fifth:]) / len(values[-fifth:]) - sum(values[:fifth]) / len(values[:fifth])
            parts.append(f"{name} {rise:+.2f}")
    return "; training reward: " + " ".join(parts) if parts else ""
