"""The loop without a gradient: ask for candidates, let each respond, tell what they were worth; repeat."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.chance import generator
from paretune.credit.step import Metrics, State
from paretune.errors import ConfigError, WiringError
from paretune.learn.candidates import Candidates, Judged, Rollout
from paretune.learn.check import check
from paretune.learn.descend import OnStep, World
from paretune.learn.diagnose import collected, diverged, known, peaks, weighed
from paretune.learn.evolution import Evolution
from paretune.learn.progress import CURRENCIES, Budget, refuse_other, spent
from paretune.learn.resume import Checkpoint, load_latest, save_checkpoint
from paretune.learn.search import Seeker
from paretune.learn.spread import Hire, Spread
from paretune.learn.stop import StopRequest
from paretune.models.singular import SingularLora
from paretune.objectives.score import owners
from paretune.rundir import Run

GUESS = 0.05
"""Where the calibration of the first step size begins, in mean singular values."""
TRIALS, DOUBLINGS = 4, 4
"""Directions that it tries at each size, and how often the size is doubled or halved at most."""


@dataclass
class Found:
    """Where an evolution stands: all that changes from generation to generation."""

    knobs: SingularLora
    seeker: Seeker
    worth: State
    step: int = 0
    """The next one."""
    paid: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CURRENCIES, 0))
    """What all steps so far took, in each currency."""
    cost: dict[str, int] = field(default_factory=dict)
    """What the step under way took; the first one pays for what was tried before it."""
    owed: list[Judged] = field(default_factory=list)
    """Candidates that nobody paid for yet."""

    @property
    def offsets(self) -> Float[Tensor, " N"]:
        """The incumbent: the mean of the search, and not its luckiest candidate."""
        return self.seeker.mean

    def pay(self, judged: list[Judged]) -> None:
        """Open the account of a step, in which these candidates were tried."""
        judged, self.owed = [*self.owed, *judged], []
        tokens, rows = sum(j.tokens for j in judged), sum(j.rows for j in judged)
        self.cost = dict.fromkeys(CURRENCIES, 0) | {"rollout_tokens": tokens, "reward_calls": rows}
        self.paid = {currency: amount + self.cost[currency] for currency, amount in self.paid.items()}

    def save(self, folder: Path, identity: Mapping[str, Any], run: Run, keep: int) -> None:
        """Write a checkpoint of the run.

        Raises:
            ResourceError: The disk is full; earlier checkpoints are untouched.
        """
        trees = {
            "search": self.seeker.state(),
            "singular": self.knobs.tensors(),
            "worth": self.worth,
            "paid": self.paid,
        }
        numbers = {**identity, "order": list(self.knobs.factors)}
        save_checkpoint(folder, self.step, trees, numbers, offsets=run.offsets(), keep=keep)
        run.update(step=self.step)


def evolve(
    evolution: Evolution,
    world: World,
    *,
    steps: int,
    seed: int,
    run: Run,
    hire: Hire | None = None,
    workers: int = 1,
    folder: Path | None = None,
    checkpoint_every: int = 10,
    keep: int = 2,
    budget: Budget | None = None,
    on_step: OnStep | None = None,
) -> Found:
    """Search the singular values of the policy's adapter, and leave those of the incumbent in it.

    Goes on where the run folder's last checkpoint ends. Nothing has a gradient. Everything random is drawn
    from (seed, step, purpose), so that a resumed run tries the candidates that the unbroken one tried.

    Args:
        evolution: The algorithm.
        world: A policy with an adapter that was fitted, sampler, scorers and prompts.
        steps: Generations in all.
        seed: Of the run.
        run: Where metrics, events and checkpoints go.
        hire: Makes the candidates of further processes.
        workers: Processes that try candidates, this one included; changes speed only.
        folder: Of the checkpoints; None: `checkpoints` in the run's.
        checkpoint_every: Generations from one checkpoint to the next; there is always one at the end.
        keep: Checkpoints that are kept.
        budget: Stop, even before `steps`, after the generation that comes nearest to it.
        on_step: Hears of every generation after it was written down; batch and samples are the incumbent's.

    Raises:
        WiringError: The parts do not fit together, or the adapter was never trained.
        ConfigError: The folder's checkpoint is of another recipe, seed or number of steps.
        MissingExtra: The package of the search is not installed.
        TrainingGuard: A score was infinite, or no response of a candidate was scored.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    check(evolution, world.objectives)
    owners(world.objectives, world.scorers)
    folder = folder or run.path / "checkpoints"
    identity = {"recipe": repr(evolution), "seed": seed, "steps": steps}
    now = _begin(evolution, world, run, identity, folder, seed)
    own = Candidates(evolution, world, now.knobs, seed)
    with StopRequest() as stop, Spread(own, hire, workers) as tried:
        while now.step < steps and not spent(budget, now.paid, now.step):
            _turn(evolution, now, tried, seed, run, budget, on_step)
            last = now.step == steps or spent(budget, now.paid, now.step)
            if now.step % checkpoint_every == 0 or last or stop.requested:
                with own.clock.phase("save"):
                    now.save(folder, identity, run, keep)
            stop.obey(f"step {now.step} of {steps}")
    now.knobs.write(world.models.policy, now.offsets)
    return now


def _turn(
    evolution: Evolution,
    now: Found,
    tried: Spread,
    seed: int,
    run: Run,
    budget: Budget | None,
    on_step: OnStep | None,
) -> None:
    """A generation, written down. Its phases are those of this process: waiting for others is idle."""
    step, clock = now.step, time.perf_counter()
    metrics, seen = generation(evolution, now, tried, seed)
    if budget is not None:
        metrics["budget/spent"] = now.paid[budget.currency] / budget.amount
    run.write(step, metrics)
    seconds = time.perf_counter() - clock
    run.timing(step, seconds=seconds, **tried.own.clock.reading(seconds), **now.cost, **peaks())
    if on_step is not None:
        on_step(step, metrics, seen.batch, seen.samples)


def generation(evolution: Evolution, now: Found, tried: Spread, seed: int) -> tuple[Metrics, Rollout]:
    """One turn of the loop: the incumbent responds, then every candidate; the search moves on."""
    size, step = evolution.search.population, now.step
    seen = tried.own.rollout(now.offsets, size, step, now.worth, measured=True)
    judged = tried(now.seeker.ask(seed, step), step, now.worth)
    fitness = torch.tensor([j.fitness for j in judged], dtype=torch.float64)
    now.seeker.tell(fitness)
    now.pay([*judged, seen.judged])
    now.worth = seen.worth
    now.step += 1
    metrics = collected(seen.batch) | weighed(seen.batch) | diverged(seen.batch) | seen.metrics
    metrics.pop("groups/flat", None)  # the responses to one prompt are not compared here
    for k, name in enumerate(seen.batch.objectives):
        metrics[f"candidates/{name}/mean"] = float(torch.tensor([j.means[k] for j in judged]).nanmean())
    return known(metrics | _compared(fitness, seen.judged.fitness) | _moved(now)), seen


def _compared(fitness: Float[Tensor, " P"], incumbent: float) -> Metrics:
    """What the candidates of a generation were worth beside each other, and beside the incumbent."""
    _, counts = fitness.unique(return_counts=True)
    return {
        "fitness/mean": float(fitness.mean()),
        "fitness/best": float(fitness.max()),
        "fitness/std": float(fitness.std()),
        "fitness/incumbent": incumbent,
        "fitness/ties": float(counts[counts > 1].sum()) / len(fitness),
    }


def _moved(now: Found) -> Metrics:
    """Where the search stands after the generation."""
    return {
        "search/sigma": now.seeker.sigma,
        "search/moved": float(now.offsets.norm()),
        "search/flipped": float(now.knobs.flipped(now.offsets)),
    }


def _begin(
    evolution: Evolution, world: World, run: Run, identity: Mapping[str, Any], folder: Path, seed: int
) -> Found:
    """The state before the first generation, or that of the run's last good checkpoint."""
    found = load_latest(folder, run.event)
    if found is None:
        run.restart(run.stage)
        knobs = SingularLora.of(world.models.policy, evolution.share)
        sigma, owed = calibrated(Candidates(evolution, world, knobs, seed), run)
        now = Found(knobs, evolution.search.begin(knobs.size, sigma), evolution.worth.start(), owed=owed)
    else:
        now = _resumed(evolution, world, run, identity, found, seed)
    run.update(step=now.step)
    return now


def _resumed(
    evolution: Evolution, world: World, run: Run, identity: Mapping[str, Any], found: Checkpoint, seed: int
) -> Found:
    refuse_other(found, identity, run)
    knobs = SingularLora.from_tensors(found.tree("singular"), tuple(found.numbers["order"]))
    weights = dict(world.models.policy.named_parameters())
    for name, factor in knobs.factors.items():
        if name not in weights or weights[name].shape != (len(factor.u), factor.vh.shape[1]):
            raise ConfigError(
                f"{run.path}: the checkpoint holds singular values of {name}, which this policy does not "
                "have; fix: choose another run.folder"
            )
    now = Found(
        knobs,
        evolution.search.resume(found.tree("search"), seed),
        found.tree("worth", evolution.worth.start()),
        step=found.step,
        paid=found.tree("paid"),
    )
    run.cut_back(found.offsets)
    run.event("go_on", f"from the checkpoint of step {found.step}")
    return now


def calibrated(own: Candidates, run: Run) -> tuple[float, list[Judged]]:
    """The first step size: as given, or such that candidates differ from the start by about a standard error.

    Begins at `GUESS` mean singular values, and is doubled while the root mean square of the change in fitness
    stays below the standard error of the start's own, or halved while it stays above.

    Returns:
        The step size in units of the singular values, and the candidates that were tried.

    Raises:
        WiringError: The search would begin without a step: every singular value is 0.
    """
    e, scale = own.evolution, own.knobs.scale
    if not scale > 0:
        raise WiringError("every singular value of the adapter is 0; fix: fit it for more steps")
    if e.sigma is not None:
        return e.sigma * scale, []
    worth, size, ways = e.worth.start(), own.knobs.size, []
    for way in range(TRIALS):
        rng = generator(own.seed, 0, "calibration", way)
        ways.append(torch.randn(size, generator=rng, dtype=torch.float64))
    start = own.rollout(torch.zeros(size, dtype=torch.float64), own.population, 0, worth)
    tried = [start.judged]

    def quiet(sigma: float) -> bool:
        """Does the fitness change by less than a standard error?"""
        tried.extend(own(sigma * torch.stack(ways), range(TRIALS), 0, worth))
        gains = torch.tensor([j.fitness for j in tried[-TRIALS:]], dtype=torch.float64) - start.judged.fitness
        return float(gains.square().mean().sqrt()) < start.error

    sigma = GUESS * scale
    factor = 2.0 if quiet(sigma) else 0.5
    for _ in range(DOUBLINGS):
        if quiet(sigma * factor) != (factor > 1):
            break
        sigma *= factor
    run.event("calibrated", f"first step size {sigma:.4g}, {sigma / scale:.3g} mean singular values")
    return sigma, tried
