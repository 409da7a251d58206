"""The context that is passed to every stage: resolved run, run folder, dataset, console and stop request."""

from dataclasses import dataclass, replace
from pathlib import Path

from paretune.config import Config
from paretune.core import ranks
from paretune.experiment.console import Console
from paretune.experiment.data import Dataset
from paretune.experiment.resolved import ResolvedRun
from paretune.models.load import ModelSpec
from paretune.run.folder import Run
from paretune.training.guards import StopRequest
from paretune.training.supervised import CheckpointConfig, FitStepCallback


@dataclass(kw_only=True)
class RunContext:
    """A run in progress."""

    resolved: ResolvedRun
    run: Run
    console: Console
    dataset: Dataset
    stop: StopRequest
    """Handles a signal outside the training loops, as soon as the current unit of work is complete."""

    @property
    def config(self) -> Config:
        """The recipe."""
        return self.resolved.config

    def path(self, *parts: str) -> Path:
        """A path below the run folder."""
        return self.run.path.joinpath(*parts)

    def has(self, *parts: str) -> bool:
        """Whether a file or folder is in the run folder, as the first rank sees it."""
        present: bool = ranks.on_first(self.path(*parts).exists, "run folder")
        return present

    @property
    def initial_policy(self) -> ModelSpec:
        """The policy that the alignment starts from and is compared with, without an adapter."""
        policy = self.config.policy
        if policy.sft is not None:
            return ModelSpec(path=str(self.path("sft")), dtype=policy.dtype, device=self.device)
        return self.base_policy

    @property
    def trained_policy(self) -> ModelSpec:
        """The aligned policy, bit for bit: an adapter is applied to its base, not merged and rounded."""
        adapter = self.path("final", "adapter")
        if adapter.exists():
            return replace(self.initial_policy, adapter_path=str(adapter))
        return replace(self.initial_policy, path=str(self.path("final")), revision=None)

    @property
    def base_policy(self) -> ModelSpec:
        """The policy that the recipe names, before any training."""
        policy = self.config.policy
        return ModelSpec(
            path=policy.path,
            dtype=policy.dtype,
            revision=policy.revision,
            device=self.device,
            chat_template_kwargs=policy.chat_template_kwargs,
        )

    @property
    def device(self) -> str:
        """The device of all models of the run."""
        return self.config.run.device

    def progress_callback(self) -> FitStepCallback:
        """A callback that shows every step of supervised training."""

        def show_progress(step: int, steps: int, metrics: dict[str, float]) -> None:
            self.console.progress(step + 1, steps, f"loss {metrics['fit/loss']:.3f}")

        return show_progress

    def checkpoint_config(self, name: str) -> CheckpointConfig:
        """Checkpoints of the supervised training of this name, until its model is saved."""
        settings = self.config.run
        return CheckpointConfig(
            run=self.run,
            checkpoint_dir=self.path("checkpoints", name),
            save_steps=settings.save_steps,
            save_total_limit=settings.save_total_limit,
        )
