"""Where a descent stands: all that changes from step to step, and how it is stored and found again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from paretune.batch import Batch
from paretune.credit.step import State
from paretune.errors import ConfigError
from paretune.learn.clock import Clock
from paretune.learn.optim import AdamW, Optimizer
from paretune.learn.recipe import Recipe
from paretune.learn.resume import Checkpoint, load_latest, save_checkpoint
from paretune.models.measure import Models
from paretune.rundir import Run

CURRENCIES = ("rollout_tokens", "trained_tokens", "reward_calls")
"""What a step takes beside time: response tokens sampled, tokens that had a gradient, responses scored."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a descent may spend, in one currency."""

    currency: Literal["rollout_tokens", "trained_tokens", "reward_calls"]
    amount: int


@dataclass
class Progress:
    """What a checkpoint holds. `identity` must be equal for a checkpoint to be gone on from."""

    identity: Mapping[str, Any]
    weights: dict[str, Parameter]
    optimizer: Optimizer
    worth: State
    credit: State
    folder: Path
    """Of the checkpoints."""
    step: int = 0
    """The next one."""
    saved: int | None = None
    """Of the last checkpoint, the steps that it holds; None: there is none yet."""
    paid: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CURRENCIES, 0))
    """What all steps so far took, in each currency; the step under way as far as it has come."""
    cost: dict[str, int] = field(default_factory=dict)
    """What the step under way took: tokens sampled and trained on, and responses scored."""
    clock: Clock = field(default_factory=Clock)
    """Where the seconds of the step under way went."""
    alone: int = 0
    """Steps at the beginning in which only the critic learns."""
    begun: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CURRENCIES, 0))
    """What those steps took, once the policy learns too."""

    def pay(self, batch: Batch, *, sampled: bool) -> None:
        """Open the account of a step that begins with this batch."""
        if self.step == self.alone:
            self.begun = dict(self.paid)
        self.cost = {"tokens": int(batch.attend.sum()), **dict.fromkeys(CURRENCIES, 0)}
        self.charge("rollout_tokens", int(batch.respond.sum()) if sampled else 0)
        self.charge("reward_calls", len(batch) if sampled else 0)

    def charge(self, currency: str, more: int) -> None:
        """Add to the account of the step under way, and to that of the whole descent."""
        self.cost[currency] += more
        self.paid[currency] += more

    def spent(self, budget: Budget | None) -> bool:
        """Would another step of the mean size end further from the amount than the last one did?"""
        return spent(budget, self.paid, self.step)

    def rates(self, how: AdamW, steps: int, budget: Budget | None, epochs: int) -> tuple[float, float]:
        """Learning rates of the step under way, once it is paid for; with a budget, by what is spent of it.

        That of the policy, which warms up when it begins to learn and is 0 before; and that which the
        critic's is a multiple of.
        """
        both = self._rate(how, steps, budget, epochs, 0, dict.fromkeys(CURRENCIES, 0))
        if self.step < self.alone:
            return 0.0, both
        return self._rate(how, steps, budget, epochs, self.alone, self.begun), both

    def _rate(
        self, how: AdamW, steps: int, budget: Budget | None, epochs: int, first: int, begun: Mapping[str, int]
    ) -> float:
        """The rate of who learns from the step `first` on, before which this much had been paid."""
        if budget is None:
            return how.rate(self.step - first, steps - first)
        before = begun[budget.currency]
        paid, step = self.paid[budget.currency] - before, self.cost[budget.currency]
        # A step's own trained tokens are not known yet: every token of it, once an epoch, is a fair guess.
        ahead = epochs * self.cost["tokens"] if budget.currency == "trained_tokens" else 0
        left = budget.amount - before
        return how.rate_at((paid - step) / left, (paid + ahead) / left)

    def save(self, run: Run, keep: int) -> None:
        """Write a checkpoint of the run.

        Raises:
            ResourceError: The disk is full; earlier checkpoints are untouched.
        """
        trees = {
            "weights": self.weights,
            "optimizer": self.optimizer.state(),
            "worth": self.worth,
            "credit": self.credit,
            "paid": self.paid,
            "begun": self.begun,
        }
        save_checkpoint(self.folder, self.step, trees, dict(self.identity), offsets=run.offsets(), keep=keep)
        self.saved = self.step
        run.update(step=self.step)

    def load(self, found: Checkpoint, run: Run) -> None:
        """Go on from a checkpoint: weights, optimiser and states; the run's lines are cut back to it.

        Raises:
            ConfigError: The checkpoint is of another recipe, seed, number of steps or policy, or was made
                before a policy whose critic learns alone first had a warm-up of its own.
        """
        refuse_other(found, self.identity, run)
        stored = found.tree("weights")
        if _shapes(stored) != _shapes(self.weights):
            raise ConfigError(
                f"{run.path}: the checkpoint holds other weights than this policy learns; "
                "fix: choose another run.folder"
            )
        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(stored[name])
        self.optimizer.load(found.tree("optimizer"))
        self.worth = found.tree("worth", self.worth)
        self.credit = found.tree("credit", self.credit)
        self.paid = found.tree("paid")
        if "begun" in found.trees:
            self.begun = found.tree("begun")
        elif 0 < self.alone < found.step:
            raise ConfigError(
                f"{run.path}: the checkpoint is of a version in which the critic's steps alone used up the "
                "policy's warm-up; fix: choose another run.folder"
            )
        self.step = self.saved = found.step
        run.cut_back(found.offsets)
        run.event("go_on", f"from the checkpoint of step {found.step}")


def spent(budget: Budget | None, paid: Mapping[str, int], steps: int) -> bool:
    """Would another step of the mean size end further from the amount than the last of these did?"""
    if budget is None or steps == 0:
        return False
    return budget.amount - paid[budget.currency] < paid[budget.currency] / (2 * steps)


def refuse_other(found: Checkpoint, identity: Mapping[str, Any], run: Run) -> None:
    """Refuse a checkpoint that was not made by this very run.

    Raises:
        ConfigError: It has another recipe, seed or number of steps.
    """
    for key, value in identity.items():
        if found.numbers[key] != value:
            raise ConfigError(
                f"{run.path}: {key}: the checkpoint was made with {found.numbers[key]}, "
                f"this run has {value}; fix: choose another run.folder"
            )


def begin(
    recipe: Recipe, models: Models, how: AdamW, run: Run, identity: Mapping[str, Any], folder: Path
) -> Progress:
    """The state before the first step, or that of the run's last good checkpoint."""
    weights = trainable(models)
    critic = [weight for name, weight in weights.items() if name.startswith("critic.")]
    policy = [weight for name, weight in weights.items() if not name.startswith("critic.")]
    optimizer = Optimizer(how, policy, critic, recipe.critic.rate)
    now = Progress(identity, weights, optimizer, recipe.worth.start(), recipe.credit.start(), folder)
    now.alone = recipe.critic.alone
    found = load_latest(folder, run.event)
    if found is None:
        run.restart(run.stage)
    else:
        now.load(found, run)
    run.update(step=now.step)
    return now


def trainable(models: Models) -> dict[str, Parameter]:
    """Every weight that is learnt, by name; a tied one once."""
    networks = {"policy": models.policy, "critic": models.critic}
    return {
        f"{role}.{name}": parameter
        for role, network in networks.items()
        if network is not None
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
