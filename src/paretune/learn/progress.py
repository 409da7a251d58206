"""Where a descent stands: all that changes from step to step, and how it is stored and found again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from paretune.credit.step import State
from paretune.errors import ConfigError
from paretune.learn.optim import AdamW, Optimizer
from paretune.learn.recipe import Recipe
from paretune.learn.resume import Checkpoint, load_latest, save_checkpoint
from paretune.models.measure import Models
from paretune.rundir import Run


@dataclass
class Progress:
    """What a checkpoint holds. `identity` must be equal for a checkpoint to be gone on from."""

    identity: Mapping[str, Any]
    weights: dict[str, Parameter]
    optimizer: Optimizer
    worth: State
    credit: State
    step: int = 0
    """The next one."""

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
        }
        folder = run.path / "checkpoints"
        save_checkpoint(folder, self.step, trees, dict(self.identity), offsets=run.offsets(), keep=keep)
        run.update(step=self.step)

    def load(self, found: Checkpoint, run: Run) -> None:
        """Go on from a checkpoint: weights, optimiser and states; the run's lines are cut back to it.

        Raises:
            ConfigError: The checkpoint is of another recipe, seed, number of steps or policy.
        """
        for key, value in self.identity.items():
            if found.numbers[key] != value:
                raise ConfigError(
                    f"{run.path}: {key}: the checkpoint was made with {found.numbers[key]}, "
                    f"this run has {value}; fix: choose another run.folder"
                )
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
        self.step = found.step
        run.cut_back(found.offsets)
        run.event("go_on", f"from the checkpoint of step {found.step}")


def begin(recipe: Recipe, models: Models, how: AdamW, run: Run, identity: Mapping[str, Any]) -> Progress:
    """The state before the first step, or that of the run's last good checkpoint."""
    weights = trainable(models)
    optimizer = Optimizer(how, weights.values())
    now = Progress(identity, weights, optimizer, recipe.worth.start(), recipe.credit.start())
    found = load_latest(run.path / "checkpoints", run.event)
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
