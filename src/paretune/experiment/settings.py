"""Conversions from sections of a recipe to the settings of the parts that they configure."""

from contextlib import AbstractContextManager

import torch

from paretune.config import Config
from paretune.config.data_schema import ColumnsSection, LoraSection, RatingSource, SupervisedTrainingSection
from paretune.config.schema import BudgetSection, TrainingSection
from paretune.core import ranks
from paretune.core.launch import requested_world_size
from paretune.data.columns import ColumnNames, LabelMapping
from paretune.models.load import resolve_device
from paretune.models.lora import LoraSpec
from paretune.rl.state import Budget
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import SupervisedConfig

MAX_TOKENS_PER_PASS_CPU, MAX_TOKENS_PER_PASS_CUDA = 1024, 16_384
"""Default tokens per forward pass. More gains nothing on a CPU, where the activations then exceed its caches;
an accelerator needs more to be busy."""


def joined_ranks(device: str) -> AbstractContextManager[None]:
    """Context of the processes that a launcher started for this run; see `core.ranks.joined`."""
    on_cuda = requested_world_size() > 1 and resolve_device(device).type == "cuda"
    return ranks.joined("cuda" if on_cuda else "cpu")


def set_num_threads(config: Config) -> None:
    """Set torch's number of CPU threads, if the recipe does; else torch's default remains."""
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)


def resolve_max_tokens_per_pass(configured: int | None, device: str) -> int:
    """Tokens per forward pass with gradients: the configured number, or the default of the device."""
    if configured is not None:
        return configured
    return MAX_TOKENS_PER_PASS_CPU if resolve_device(device).type == "cpu" else MAX_TOKENS_PER_PASS_CUDA


def column_names(section: ColumnsSection) -> ColumnNames:
    """Column names of a file."""
    return ColumnNames(**section.model_dump(exclude_defaults=True))


def label_mappings(source: RatingSource) -> dict[str, LabelMapping]:
    """Objective -> where its labels come from."""
    return {
        objective: LabelMapping(
            column=label.source,
            scale=label.scale,
            offset=label.offset,
            missing=label.missing,
            keep=label.keep,
            value_map=label.map,
        )
        for objective, label in source.labels.items()
    }


def lora_spec(section: LoraSection | None) -> LoraSpec | None:
    """The LoRA adapter of a section; None without one."""
    return None if section is None else LoraSpec(**section.model_dump())


def budget_of(section: BudgetSection, used: int = 0) -> Budget:
    """The budget of the alignment, of which some is used already."""
    return Budget(resource=section.resource, limit=section.limit - used)


def optimizer_config(section: TrainingSection | SupervisedTrainingSection) -> OptimizerConfig:
    """Optimizer, learning rate schedule and gradient clipping of a section of a resolved run."""
    # The check of the models reports a rate that could not be resolved.
    assert section.learning_rate is not None
    return OptimizerConfig(
        learning_rate=section.learning_rate,
        warmup_ratio=section.warmup_ratio,
        lr_scheduler_type=section.lr_scheduler_type,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim=section.optim if isinstance(section, TrainingSection) else "adamw_torch",
    )


def supervised_config(section: SupervisedTrainingSection, device: str) -> SupervisedConfig:
    """Supervised training as a section configures it."""
    return SupervisedConfig(
        num_train_epochs=section.num_train_epochs,
        batch_size=section.batch_size,
        max_tokens_per_pass=resolve_max_tokens_per_pass(section.max_tokens_per_pass, device),
        optim_config=optimizer_config(section),
    )
