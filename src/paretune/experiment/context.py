"""What every stage is handed: the recipe, the run folder, the records, and somebody to tell."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from paretune.config import Config
from paretune.config.data_schema import LoraSection as LoraSection
from paretune.config.data_schema import SupervisedTrainingSection
from paretune.experiment.console import Console
from paretune.experiment.data import Dataset
from paretune.models.load import ModelSpec, resolve_device
from paretune.models.lora import LoraSpec
from paretune.run.folder import Run
from paretune.training.guards import StopRequest
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import CheckpointConfig, FitStepCallback, SupervisedConfig


@dataclass(kw_only=True)
class RunContext:
    """One experiment under way."""

    config: Config
    run: Run
    console: Console
    dataset: Dataset
    stop: StopRequest
    """A signal that came where no loop listens; obeyed when something is complete."""

    def path(self, *parts: str) -> Path:
        """A path below the run folder."""
        return self.run.path.joinpath(*parts)

    @property
    def initial_policy(self) -> ModelSpec:
        """The policy that the alignment starts from and is compared with, without an adapter."""
        policy = self.config.policy
        if policy.sft is not None:
            return ModelSpec(path=str(self.path("policy")), dtype=policy.dtype, device=self.device)
        return self.base_policy

    @property
    def trained_policy(self) -> ModelSpec:
        """The very policy that came out: an adapter is put on its base again, not merged and rounded."""
        adapter = self.path("final", "adapter")
        if adapter.exists():
            return replace(self.initial_policy, adapter_path=str(adapter))
        return replace(self.initial_policy, path=str(self.path("final")), revision=None)

    @property
    def base_policy(self) -> ModelSpec:
        """The policy as the recipe names it, before any fit."""
        policy = self.config.policy
        return ModelSpec(path=policy.path, dtype=policy.dtype, revision=policy.revision, device=self.device)

    @property
    def device(self) -> str:
        """Where every model of the run is put."""
        return self.config.run.device

    def progress_callback(self) -> FitStepCallback:
        """Shows every step of a fit."""

        def hear(step: int, steps: int, metrics: dict[str, float]) -> None:
            self.console.progress(step + 1, steps, f"loss {metrics['fit/loss']:.3f}")

        return hear

    def checkpoint_config(self, name: str) -> CheckpointConfig:
        """Where the fit of this name keeps its checkpoints until its model is saved."""
        run = self.config.run
        folder = self.path("checkpoints", name)
        return CheckpointConfig(
            run=self.run,
            checkpoint_dir=folder,
            save_steps=5 * run.save_steps,
            save_total_limit=run.save_total_limit,
        )


def set_num_threads(config: Config) -> None:
    """Let torch take as many CPU threads as the recipe says; where it says nothing, as many as it does."""
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)


def resolve_max_tokens_per_pass(configured: int | None, device: str) -> int:
    """Tokens of a forward pass with gradients: what a recipe says, or what suits the device."""
    if configured is not None:
        return configured
    # More gains nothing on a CPU, whose caches it leaves; an accelerator needs it to be busy.
    return 1024 if resolve_device(device).type == "cpu" else 16_384


def supervised_config(section: SupervisedTrainingSection, device: str) -> SupervisedConfig:
    """The fit that a section of a recipe describes."""
    optimizer = OptimizerConfig(
        learning_rate=section.learning_rate,
        warmup_ratio=section.warmup_ratio,
        lr_scheduler_type=section.lr_scheduler_type,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
    )
    return SupervisedConfig(
        num_train_epochs=section.num_train_epochs,
        batch_size=section.batch_size,
        max_tokens_per_pass=resolve_max_tokens_per_pass(section.max_tokens_per_pass, device),
        optim_config=optimizer,
    )


def lora_config(section: LoraSection | None) -> LoraSpec | None:
    """The adapter that a section of a recipe describes."""
    return None if section is None else LoraSpec(**section.model_dump())
