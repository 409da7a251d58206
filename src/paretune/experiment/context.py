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
        return initial_policy(self.config, self.run.path, self.device)

    @property
    def trained_policy(self) -> ModelSpec:
        """The aligned policy, bit for bit: an adapter is applied to its base, not merged and rounded."""
        return trained_policy(self.config, self.run.path, self.device)

    @property
    def base_policy(self) -> ModelSpec:
        """The policy that the recipe names, before any training."""
        return base_policy(self.config, self.device)

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


def base_policy(config: Config, device: str) -> ModelSpec:
    """See `RunContext.base_policy`."""
    policy = config.policy
    return ModelSpec(
        path=policy.path,
        dtype=policy.dtype,
        revision=policy.revision,
        device=device,
        chat_template_kwargs=policy.chat_template_kwargs,
    )


def initial_policy(config: Config, run_dir: Path, device: str) -> ModelSpec:
    """See `RunContext.initial_policy`."""
    policy = config.policy
    if policy.sft is None:
        return base_policy(config, device)
    return ModelSpec(path=str(run_dir / "sft"), dtype=policy.dtype, device=device)


def trained_policy(config: Config, run_dir: Path, device: str) -> ModelSpec:
    """See `RunContext.trained_policy`."""
    initial, adapter = initial_policy(config, run_dir, device), run_dir / "final" / "adapter"
    if adapter.exists():
        return replace(initial, adapter_path=str(adapter))
    return replace(initial, path=str(run_dir / "final"), revision=None)
