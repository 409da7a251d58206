"""The guard: a NaN or an infinity stops the run before it reaches the weights, and is told by its source."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from paretune.batch import Batch
from paretune.data.records import Sample
from paretune.errors import TrainingGuard


@dataclass(frozen=True)
class Guard:
    """Looks at the numbers of one training step.

    Every method raises a TrainingGuard that names the step, the quantity, and the prompts it came from.
    """

    step: int
    prompts: Mapping[int, str]
    """Group number to the name of its prompt."""

    @classmethod
    def of(cls, step: int, batch: Batch, samples: Sequence[Sample]) -> "Guard":
        """A guard that knows the prompts of this batch."""
        groups = batch.group.tolist()
        names = {g: s.prompt.id for g, s in zip(groups, samples, strict=True) if s.prompt.id}
        return cls(step, {g: names.get(g, f"number {g} of the step") for g in groups})

    def sampled(self, batch: Batch) -> None:
        """Scores may be NaN (nobody could say) and never infinite; the sampler's answers must be numbers."""
        self._fields(batch, "sampler_logp")
        for k, name in enumerate(batch.objectives):
            bad = batch.scores[:, k].isinf()
            if bad.any():
                self.stop(f'the score "{name}" is infinite', batch.rows(bad.nonzero().squeeze(-1)))

    def signal(self, batch: Batch) -> None:
        """Some response must have a signal, and none an infinite one."""
        bad = batch.signal.isinf().any(-1)
        if bad.any():
            self.stop("the signal is infinite", batch.rows(bad.nonzero().squeeze(-1)))
        if batch.signal.isnan().all():
            unscored = [n for k, n in enumerate(batch.objectives) if batch.scores[:, k].isnan().all()]
            which = ": no response has a score for " + ", ".join(unscored) if unscored else ""
            self.stop(f"the signal of every response is NaN{which}", batch)

    def measured(self, batch: Batch) -> None:
        """What models said of the batch."""
        self._fields(batch, "behaviour_logp", "reference_logp", "values", "token_reward")

    def credited(self, batch: Batch) -> None:
        """What the losses will read."""
        self._fields(batch, "advantages", "returns")

    def tokens(self, what: str, x: Tensor, batch: Batch) -> None:
        """A quantity per token is finite on the responses."""
        wrong = ~x.isfinite()
        bad = (wrong if wrong.ndim == 2 else wrong.any(-1)) & batch.respond
        if bad.any():
            self.stop(f"{what} is not finite", batch.rows(bad.any(-1).nonzero().squeeze(-1)))

    def loss(self, value: Tensor, terms: Mapping[str, float], batch: Batch) -> None:
        """The loss of a micro-batch is finite."""
        if not math.isfinite(float(value.detach())):
            each = ", ".join(f"{name} {term:g}" for name, term in terms.items())
            self.stop(f"the loss is {float(value.detach())} ({each})", batch)

    def norm(self, value: float, batch: Batch) -> None:
        """The norm of the gradient is finite."""
        if not math.isfinite(value):
            self.stop(f"the norm of the gradient is {value}", batch)

    def _fields(self, batch: Batch, *names: str) -> None:
        for name in names:
            x = getattr(batch, name)
            if x is not None:
                self.tokens(f"batch.{name}", x, batch)

    def stop(self, what: str, batch: Batch) -> None:
        """Give up.

        Raises:
            TrainingGuard: Always.
        """
        names = list(dict.fromkeys(self.prompts.get(g, f"number {g}") for g in batch.group.tolist()))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise TrainingGuard(
            f"step {self.step}: {what}, on responses to the prompts {', '.join(names[:5])}{more}; "
            "nothing of it reached the weights, and the last checkpoint is intact; "
            "fix: look at these prompts and their scores, or lower learn.lr"
        )
