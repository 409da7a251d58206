"""The gradient loop. Read this file first."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paretune.batch import Batch
from paretune.chance import generator
from paretune.credit.step import Metrics
from paretune.data.records import Prompt, Sample
from paretune.errors import WiringError
from paretune.learn import effort
from paretune.learn.aside import Stream, nudge
from paretune.learn.check import check
from paretune.learn.clock import Clock
from paretune.learn.diagnose import Seen, collected, credited, known, peaks, weighed
from paretune.learn.evolution import Evolution
from paretune.learn.guard import Guard
from paretune.learn.microbatch import passes, rows_unkept
from paretune.learn.optim import AdamW, Optimizer
from paretune.learn.progress import Budget, Progress, begin
from paretune.learn.recipe import Recipe
from paretune.learn.refuse import refuse_models
from paretune.learn.stop import StopRequest
from paretune.loss.term import total
from paretune.models.activations import Activations, layers_of, saving
from paretune.models.adapt import inside
from paretune.models.critic import Critic
from paretune.models.forward import run as forward
from paretune.models.measure import Models
from paretune.objectives.confidence import StatedConfidence
from paretune.objectives.score import Scorer, owners, score
from paretune.objectives.trace import spoken
from paretune.rollout.sample import FromStart, Offline, Online, Sampler
from paretune.rundir import Run

OnStep = Callable[[int, Metrics, Batch, Sequence[Sample]], None]
Rollout = tuple[Batch, Sequence[Sample]]


@dataclass(frozen=True, kw_only=True)
class World:
    """The heavy things a recipe is run on."""

    models: Models
    sampler: Sampler
    scorers: Sequence[Scorer]
    objectives: tuple[str, ...]
    """What is scored, in the order of the columns; each by one scorer."""
    prompts: Callable[[int], Sequence[Prompt]]
    """The prompts of a step, a function of the step alone."""
    optim: AdamW = field(default_factory=AdamW)
    micro_tokens: int = 8192
    """Tokens of a forward pass with gradients, shared prompts once; changes memory and speed only."""
    strict: bool = False
    """Never more than `micro_tokens`, even if a long prompt is then read again for each of its responses."""
    activations: Activations = "keep"
    """What a forward pass keeps for its gradient; changes memory and speed only."""
    start: Sampler | None = None
    """Samples from the policy as it was before the first update."""
    stored: Callable[[int], Rollout] | None = None
    """Responses of a data set for a step, with what they are worth."""
    aside: Stream | None = None
    """Demonstrations to be remembered."""

    def rows(self, batch: Batch) -> int:
        """How many rows of a batch are read in one forward pass without gradients, which keeps far less."""
        return rows_unkept(batch, self.micro_tokens)


def descend(
    recipe: Recipe,
    world: World,
    *,
    steps: int,
    seed: int,
    run: Run,
    folder: Path | None = None,
    checkpoint_every: int = 10,
    keep: int = 2,
    budget: Budget | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Collect, weigh up, measure, credit, learn; repeat. Goes on where the run folder's last checkpoint ends.

    The policy of `world` is changed in place. Everything random is drawn from (seed, step, purpose), so a
    resumed run draws what the unbroken one drew.

    Args:
        recipe: The algorithm.
        world: Models, sampler, scorers and prompts.
        steps: Training steps in all.
        seed: Of the run.
        run: Where metrics, events and checkpoints go.
        folder: Of the checkpoints; None: `checkpoints` in the run's.
        checkpoint_every: Steps from one checkpoint to the next; there is always one at the end.
        keep: Checkpoints that are kept.
        budget: Stop, even before `steps`, after the step that comes nearest to it; the rate then follows the
            share of it that is spent, not that of the steps.
        on_step: Hears of every step after it was written down.

    Raises:
        WiringError: The recipe does not fit together, or not with the world.
        ConfigError: The folder's checkpoint is of another recipe, seed or number of steps.
        TrainingGuard: A number was not finite; the update did not reach the weights.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    _fit(recipe, world)
    identity = {"recipe": repr(recipe), "seed": seed, "steps": steps}
    now = begin(recipe, world.models, world.optim, run, identity, folder or run.path / "checkpoints")
    with StopRequest() as stop:
        while now.step < steps and not now.spent(budget):
            step, clock = now.step, time.perf_counter()
            metrics, batch, samples = train_step(recipe, world, now, steps, seed, budget)
            run.write(step, metrics)
            seconds = time.perf_counter() - clock
            run.timing(step, seconds=seconds, **now.clock.reading(seconds), **now.cost, **peaks())
            if on_step is not None:
                on_step(step, metrics, batch, samples)
            last = now.step == steps or now.spent(budget)
            if now.step % checkpoint_every == 0 or last or stop.requested:
                with now.clock.phase("save"):
                    now.save(run, keep)
            stop.obey(f"step {now.step} of {steps}")


def train_step(
    recipe: Recipe, world: World, now: Progress, steps: int, seed: int, budget: Budget | None = None
) -> tuple[Metrics, Batch, Sequence[Sample]]:
    """One turn of the loop; `now` moves on by a step, the weights by at least one update."""
    step, temperature = now.step, recipe.temperature()
    batch, samples = collect(recipe, world, seed, step, now.clock)
    now.pay(batch, sampled=not isinstance(recipe.source, Offline))
    guard = Guard.of(step, batch, samples, now.saved)
    guard.sampled(batch)
    metrics = collected(batch) | (spoken(samples) if recipe.view == "after_thinking" else {})
    batch, now.worth, seen = recipe.worth.advance(batch, now.worth, generator(seed, step, "worth"))
    guard.signal(batch)
    metrics |= weighed(batch) | seen
    with now.clock.phase("measure"):
        for measure in recipe.measure:  # only the rows that are left cost a forward pass
            batch = measure(batch, world.models, temperature, world.rows(batch))
        effort.measured(now.clock, recipe.measure, world.models, batch)
    guard.measured(batch)
    batch, now.credit, seen = recipe.credit.advance(batch, now.credit, generator(seed, step, "credit"))
    guard.credited(batch)
    metrics |= credited(batch) | seen
    rates = now.rates(world.optim, steps, budget, recipe.epochs)
    with now.clock.phase("learn"):
        metrics |= learn(recipe, world, batch, now, rates, seed, guard)
    now.step += 1
    if budget is not None:
        metrics["budget/spent"] = now.paid[budget.currency] / budget.amount
    metrics["lr"], own = rates
    if world.models.critic is not None:
        metrics["lr/critic"] = recipe.critic.rate * own
    return known(metrics), batch, samples


def collect(
    recipe: Recipe | Evolution, world: World, seed: int, step: int, clock: Clock | None = None
) -> Rollout:
    """Sample responses to the prompts of the step, and score them; or read both. NaN = unscored."""
    clock = clock or Clock()
    if isinstance(recipe.source, Offline):
        assert world.stored is not None
        with clock.phase("sample"):
            return world.stored(step)
    sampler = world.start if isinstance(recipe.source, FromStart) else world.sampler
    assert sampler is not None
    with clock.phase("sample"):
        batch, samples = sampler(world.prompts(step), recipe.source, seed=seed, step=step, prompt_index=None)
        effort.drawn(clock, sampler, world.models, batch)
    if isinstance(recipe.source, FromStart):
        batch = batch.set(sampler_logp=None)  # not of the policy that learns
    objectives = recipe.scored(world.objectives)
    own = () if objectives == world.objectives else (StatedConfidence(),)
    scorers = (*world.scorers, *own)
    with clock.phase("score"):
        before = effort.scorings(scorers)
        batch = score(batch.set(objectives=objectives), samples, scorers, recipe.view)
        clock.did("score", flops=effort.scorings(scorers) - before)
    return batch, samples


def learn(
    recipe: Recipe,
    world: World,
    batch: Batch,
    now: Progress,
    rates: tuple[float, float],
    seed: int,
    guard: Guard,
) -> Metrics:
    """Epochs times minibatches: one optimiser step each, at the rates of policy and critic."""
    seen, optimizer = Seen(), now.optimizer
    for epoch in range(recipe.epochs):
        rng = generator(seed, guard.step, "minibatches", epoch)
        size = recipe.minibatch or len(batch)
        for place, part in enumerate(batch.minibatches(size, by_group=recipe.by_group(), rng=rng)):
            gradient(recipe, world, part, optimizer, guard, seen)
            now.charge("trained_tokens", int(part.attend.sum()))
            effort.learnt(now.clock, recipe, world.models, part, guard.step)
            if recipe.aside and world.aside and guard.step >= recipe.critic.alone:
                units = world.aside.units(recipe.aside.rows, seed, guard.step, epoch, place)
                with saving(world.activations):
                    loss = nudge(world.aside, units, recipe.aside.coefficient, world.micro_tokens)
                seen.add("loss/Aside", loss)
                now.charge("trained_tokens", world.aside.tokens(units))
                effort.remembered(now.clock, world.aside, units)
            norm = optimizer.norm()
            guard.norm(norm, part)
            optimizer.step(rates[0], norm, rates[1])
            seen.update(norm)
    return seen.metrics()


def gradient(
    recipe: Recipe, world: World, part: Batch, optimizer: Optimizer, guard: Guard, seen: Seen
) -> None:
    """Gradient of the losses on these rows, the same for every cut into micro-batches.

    The weights of all tokens are fixed over the whole part first; each micro-batch then adds its share.
    """
    optimizer.zero()
    part = part.set(weight=recipe.weigh(part.respond))
    losses, temperature = recipe.losses_at(guard.step), recipe.temperature()
    wants = recipe.wants() | {"entropy"}
    asked = [m for m in (world.models.policy, world.models.critic) if m is not None]
    for rows in passes(part, world.micro_tokens, asked, by_group=recipe.by_group(), strict=world.strict):
        micro = part.rows(torch.tensor(rows))
        with saving(world.activations):
            out = forward(
                world.models.policy,
                micro,
                wants,
                temperature=temperature,
                references=world.models.frozen,
                critic=world.models.critic,
            )
        guard.tokens("the policy's log-probability", out.logp, micro)
        loss, terms = total(losses, out, micro)
        guard.loss(loss, terms, micro)
        loss.backward()
        seen.forward(losses, out, micro)
        seen.loss(loss, terms)


def _fit(recipe: Recipe, world: World) -> None:
    """Do the recipe's parts fit together, and with this world? For callers who built it by hand."""
    plan = check(recipe, world.objectives)
    if isinstance(recipe.source, Online):
        owners(world.objectives, world.scorers)
    lacks = {
        "a sampler of the start": isinstance(recipe.source, FromStart) and world.start is None,
        "stored responses": isinstance(recipe.source, Offline) and world.stored is None,
        "demonstrations": recipe.aside is not None and world.aside is None,
    }
    for what in (what for what, lacking in lacks.items() if lacking):
        raise WiringError(f'recipe "{recipe.name}" needs {what}, and the run has none')
    missing = [role for role in plan.frozen_roles if role not in world.models.frozen]
    if missing:
        raise WiringError(
            f'recipe "{recipe.name}" asks frozen models that are not there: {", ".join(missing)}'
        )
    refuse_models(plan.frozen_roles, world.models.frozen)
    if world.activations == "recompute":
        layers_of(inside(world.models.policy))
    critic, needs = world.models.critic, plan.critic_heads
    if needs and critic is None:
        raise WiringError(
            f'recipe "{recipe.name}" asks a critic, and there is none: give one of {needs} heads'
        )
    if isinstance(critic, Critic) and critic.heads != needs:
        raise WiringError(f'recipe "{recipe.name}" needs {needs} heads of a critic; it has {critic.heads}')
