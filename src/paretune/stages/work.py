"""What every stage is handed: the recipe, the run folder, the records, and somebody to tell."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from paretune.config import Experiment
from paretune.config.sources import Fit
from paretune.config.sources import Lora as LoraSection
from paretune.learn.fit import Fitting, Keeping, OnStep
from paretune.learn.optim import AdamW
from paretune.learn.stop import StopRequest
from paretune.models.adapt import Lora
from paretune.models.load import ModelSpec, device_named
from paretune.rundir import Run
from paretune.stages.console import Console
from paretune.stages.gather import Material


@dataclass(kw_only=True)
class Work:
    """One experiment under way."""

    experiment: Experiment
    run: Run
    console: Console
    material: Material
    stop: StopRequest
    """A signal that came where no loop listens; obeyed when something is complete."""

    def folder(self, *parts: str) -> Path:
        """A path below the run folder."""
        return self.run.path.joinpath(*parts)

    @property
    def start(self) -> ModelSpec:
        """The policy that the alignment starts from and is compared with, without an adapter."""
        policy = self.experiment.policy
        if policy.sft is not None:
            return ModelSpec(path=str(self.folder("policy")), dtype=policy.dtype, device=self.device)
        return self.given

    @property
    def trained(self) -> ModelSpec:
        """The very policy that came out: an adapter is put on its base again, not merged and rounded."""
        adapter = self.folder("final", "adapter")
        if adapter.exists():
            return replace(self.start, adapter=str(adapter))
        return replace(self.start, path=str(self.folder("final")), revision=None)

    @property
    def given(self) -> ModelSpec:
        """The policy as the recipe names it, before any fit."""
        policy = self.experiment.policy
        return ModelSpec(path=policy.path, dtype=policy.dtype, revision=policy.revision, device=self.device)

    @property
    def device(self) -> str:
        """Where every model of the run is put."""
        return self.experiment.run.device

    def told(self) -> OnStep:
        """Shows every step of a fit."""

        def hear(step: int, steps: int, metrics: dict[str, float]) -> None:
            self.console.progress(step + 1, steps, f"loss {metrics['fit/loss']:.3f}")

        return hear

    def keeping(self, name: str) -> Keeping:
        """Where the fit of this name keeps its checkpoints until its model is saved."""
        run = self.experiment.run
        folder = self.folder("checkpoints", name)
        return Keeping(run=self.run, folder=folder, every=5 * run.checkpoint_every, keep=run.keep)


def take_threads(e: Experiment) -> None:
    """Let torch take as many CPU threads as the recipe says; where it says nothing, as many as it does."""
    if e.run.threads is not None:
        torch.set_num_threads(e.run.threads)


def micro_tokens(said: int | None, device: str) -> int:
    """Tokens of a forward pass with gradients: what a recipe says, or what suits the device."""
    if said is not None:
        return said
    # More gains nothing on a CPU, whose caches it leaves; an accelerator needs it to be busy.
    return 1024 if device_named(device).type == "cpu" else 16_384


def fitting(how: Fit, device: str) -> Fitting:
    """The fit that a section of a recipe describes."""
    optimizer = AdamW(
        lr=how.lr, warmup=how.warmup, schedule=how.schedule, weight_decay=how.weight_decay, clip=how.clip
    )
    return Fitting(
        epochs=how.epochs,
        batch=how.batch,
        micro_tokens=micro_tokens(how.micro_tokens, device),
        optim=optimizer,
    )


def lora(section: LoraSection | None) -> Lora | None:
    """The adapter that a section of a recipe describes."""
    return None if section is None else Lora(**section.model_dump())
