"""What a candidate is worth: its numbers go into the model, the model responds, responses are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.chance import generator
from paretune.credit.step import Metrics, State
from paretune.data.records import Sample
from paretune.learn import effort
from paretune.learn.clock import Clock
from paretune.learn.descend import World, collect
from paretune.learn.evolution import Evolution
from paretune.learn.guard import Guard
from paretune.models.measure import Reference
from paretune.models.singular import SingularLora


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of a candidate afterwards: plain numbers, since they may come from another process."""

    fitness: float
    means: tuple[float, ...]
    """Mean of each objective as scored; NaN where nothing was."""
    tokens: int
    """Response tokens sampled."""
    rows: int
    """Responses scored."""


@dataclass(frozen=True)
class Rollout:
    """The responses of a candidate, and what they were worth."""

    judged: Judged
    batch: Batch
    """With the signal that the fitness is the mean of."""
    samples: Sequence[Sample]
    worth: State
    """What the aggregation remembers after these responses."""
    metrics: Metrics
    """What it has to report."""
    error: float
    """Standard error of the fitness."""


@dataclass(frozen=True)
class Candidates:
    """One copy of the policy, on which candidates are tried one after the other."""

    evolution: Evolution
    world: World
    knobs: SingularLora
    seed: int
    clock: Clock = field(default_factory=Clock)
    """Where the seconds of the candidates that were tried here went."""

    @property
    def population(self) -> int:
        """Candidates of a generation."""
        return self.evolution.search.population

    @torch.inference_mode()
    def rollout(
        self, point: Float[Tensor, " N"], number: int, step: int, worth: State, *, measured: bool = False
    ) -> Rollout:
        """Let one candidate respond to the prompts of a step.

        Args:
            point: Offsets of the singular values.
            number: Of the candidate; the incumbent comes after all others.
            step: Of the run.
            worth: What the aggregation remembers of the steps before.
            measured: Whether the start is asked about the responses, even if the fitness has no use for it.

        Raises:
            TrainingGuard: A score is infinite, or no response has a signal.
        """
        e, world = self.evolution, self.world
        self.knobs.write(world.models.policy, point)
        turn = step if e.noise == "common" else step * (self.population + 1) + number
        batch, samples = collect(e, world, self.seed, turn, self.clock)
        guard = Guard.of(step, batch, samples)
        guard.sampled(batch)
        if e.kl or measured:
            with self.clock.phase("measure"):
                rows, ask = world.rows(batch), Reference()
                batch = ask(batch, world.models, e.source.temperature, rows)
                effort.measured(self.clock, [ask], world.models, batch)
        rng = generator(self.seed, step, "worth")
        after, memory, metrics = e.worth.advance(batch, worth, rng)
        guard.signal(after)
        each = priced(after, e.kl)
        judged = Judged(
            fitness=float(each.mean()),
            means=tuple(float(column.double().nanmean()) for column in batch.scores.T),
            tokens=int(batch.respond.sum()),
            rows=len(batch),
        )
        error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0
        return Rollout(judged, after, samples, memory, metrics, error)

    def __call__(
        self, points: Float[Tensor, "P N"], numbers: Sequence[int], step: int, worth: State
    ) -> list[Judged]:
        """What these candidates are worth."""
        return [self.rollout(points[i], number, step, worth).judged for i, number in enumerate(numbers)]


def priced(batch: Batch, kl: float) -> Float[Tensor, " M"]:
    """The signal of every response that has one, less the price of what it is likelier than under the start.

    f_b = signal_b - kl sum_t (log p(candidate) - log p(start))
    """
    known = ~batch.signal[:, 0].isnan()
    signal = batch.signal[:, 0].double()
    if kl:
        gap = (batch.need("sampler_logp") - batch.need("reference_logp")).double()
        signal = signal - kl * torch.where(batch.respond, gap, 0.0).sum(-1)
    return signal[known]
