"""The gradient loop. Read this file first."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from paretune.batch import Batch
from paretune.chance import generator
from paretune.credit.step import Metrics
from paretune.data.records import Prompt, Sample
from paretune.errors import WiringError
from paretune.learn.check import check
from paretune.learn.diagnose import Seen, collected, credited, known, weighed
from paretune.learn.guard import Guard
from paretune.learn.microbatch import cuts
from paretune.learn.optim import AdamW, Optimizer
from paretune.learn.progress import Progress, begin
from paretune.learn.recipe import Recipe
from paretune.learn.refuse import refuse_models
from paretune.learn.stop import StopRequest
from paretune.loss.term import total
from paretune.models.critic import Critic
from paretune.models.forward import run as forward
from paretune.models.measure import Models
from paretune.objectives.score import Scorer, owners, score
from paretune.rollout.sample import Online, Sampler
from paretune.rundir import Run

OnStep = Callable[[int, Metrics, Batch, Sequence[Sample]], None]


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
    """Tokens of one forward pass with gradients; changes memory and speed only."""


def descend(
    recipe: Recipe,
    world: World,
    *,
    steps: int,
    seed: int,
    run: Run,
    checkpoint_every: int = 10,
    keep: int = 2,
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
        checkpoint_every: Steps from one checkpoint to the next; there is always one at the end.
        keep: Checkpoints that are kept.
        on_step: Hears of every step after it was written down.

    Raises:
        WiringError: The recipe does not fit together, or not with the world.
        ConfigError: The folder's checkpoint is of another recipe, seed or number of steps.
        TrainingGuard: A number was not finite; the update did not reach the weights.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    _fit(recipe, world)
    identity = {"recipe": repr(recipe), "seed": seed, "steps": steps}
    now = begin(recipe, world.models, world.optim, run, identity)
    with StopRequest() as stop:
        while now.step < steps:
            step, clock = now.step, time.perf_counter()
            metrics, batch, samples = train_step(recipe, world, now, steps, seed)
            run.write(step, metrics)
            run.timing(step, seconds=time.perf_counter() - clock, tokens=int(batch.attend.sum()))
            if on_step is not None:
                on_step(step, metrics, batch, samples)
            if now.step % checkpoint_every == 0 or now.step == steps or stop.requested:
                now.save(run, keep)
            stop.obey(f"step {now.step} of {steps}")


def train_step(
    recipe: Recipe, world: World, now: Progress, steps: int, seed: int
) -> tuple[Metrics, Batch, Sequence[Sample]]:
    """One turn of the loop; `now` moves on by a step, the weights by at least one update."""
    step, temperature = now.step, recipe.temperature()
    batch, samples = collect(recipe, world, seed, step)
    guard = Guard.of(step, batch, samples)
    guard.sampled(batch)
    metrics = collected(batch)
    batch, now.worth, seen = recipe.worth.advance(batch, now.worth, generator(seed, step, "worth"))
    guard.signal(batch)
    metrics |= weighed(batch) | seen
    for measure in recipe.measure:  # only the rows that are left cost a forward pass
        batch = measure(batch, world.models, temperature, _rows(world, batch))
    guard.measured(batch)
    batch, now.credit, seen = recipe.credit.advance(batch, now.credit, generator(seed, step, "credit"))
    guard.credited(batch)
    metrics |= credited(batch) | seen
    lr = world.optim.rate(step, steps)
    metrics |= learn(recipe, world, batch, now.optimizer, lr, seed, guard)
    now.step += 1
    return known(metrics | {"lr": lr}), batch, samples


def collect(recipe: Recipe, world: World, seed: int, step: int) -> tuple[Batch, Sequence[Sample]]:
    """Sample responses to the prompts of the step, and score them; NaN = unscored."""
    assert isinstance(recipe.source, Online)
    batch, samples = world.sampler(
        world.prompts(step), recipe.source, seed=seed, step=step, prompt_index=None
    )
    return score(batch.set(objectives=world.objectives), samples, world.scorers), samples


def learn(
    recipe: Recipe, world: World, batch: Batch, optimizer: Optimizer, lr: float, seed: int, guard: Guard
) -> Metrics:
    """Epochs times minibatches: one optimiser step each."""
    seen = Seen()
    for epoch in range(recipe.epochs):
        rng = generator(seed, guard.step, "minibatches", epoch)
        size = recipe.minibatch or len(batch)
        for part in batch.minibatches(size, by_group=recipe.by_group(), rng=rng):
            gradient(recipe, world, part, optimizer, guard, seen)
            norm = optimizer.norm()
            guard.norm(norm, part)
            optimizer.step(lr, norm)
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
    lengths, group = part.attend.sum(-1).tolist(), part.group.tolist() if recipe.by_group() else None
    wants, temperature = recipe.wants() | {"entropy"}, recipe.temperature()
    for rows in cuts(lengths, world.micro_tokens, group):
        micro = part.rows(torch.tensor(rows))
        out = forward(
            world.models.policy,
            micro,
            wants,
            temperature=temperature,
            references=world.models.frozen,
            critic=world.models.critic,
        )
        guard.tokens("the policy's log-probability", out.logp, micro)
        loss, terms = total(recipe.losses, out, micro)
        guard.loss(loss, terms, micro)
        loss.backward()
        seen.forward(recipe.losses, out, micro)
        seen.loss(loss, terms)


def _fit(recipe: Recipe, world: World) -> None:
    """Do the recipe's parts fit together, and with this world? For callers who built it by hand."""
    if not isinstance(recipe.source, Online):
        raise WiringError(f'recipe "{recipe.name}" reads stored responses, and this loop samples its own')
    plan = check(recipe, world.objectives)
    owners(world.objectives, world.scorers)
    missing = [role for role in plan.frozen_roles if role not in world.models.frozen]
    if missing:
        raise WiringError(
            f'recipe "{recipe.name}" asks frozen models that are not there: {", ".join(missing)}'
        )
    refuse_models(plan.frozen_roles, world.models.frozen)
    critic, needs = world.models.critic, plan.critic_heads
    if needs and critic is None:
        raise WiringError(
            f'recipe "{recipe.name}" asks a critic, and there is none: give one of {needs} heads'
        )
    if isinstance(critic, Critic) and critic.heads != needs:
        raise WiringError(f'recipe "{recipe.name}" needs {needs} heads of a critic; it has {critic.heads}')


def _rows(world: World, batch: Batch) -> int:
    return max(1, world.micro_tokens // batch.tokens.shape[1])
