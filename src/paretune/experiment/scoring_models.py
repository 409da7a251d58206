"""Models that score the responses of a run: their sizes, what they read, and what a pass over it costs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from paretune.config.data_schema import RewardSection
from paretune.config.schema import Config
from paretune.config.scorer_schema import ClassifierScorerSection, RewardModelScorerSection
from paretune.config.scorers import scorer_sections
from paretune.config.validate import WORLD, reward_sections
from paretune.experiment.model_sizes import folder_model_size, world_model_size
from paretune.models.flops import ForwardShape
from paretune.models.model_size import ModelSize
from paretune.models.throughput import layer_throughput
from paretune.reward.classifier_inputs import Reads

PASS_TOKENS = 4096
"""Tokens per pass of a classifier or ready-made reward model."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean lengths in tokens."""

    prompt: float
    response: float
    """Of sampled responses: as those of the data, and no longer than the limit."""


@dataclass(frozen=True, kw_only=True)
class ScoringModel:
    """A reward model, judge or classifier."""

    in_training: bool
    """It scores the rollouts of the training; all score the responses of the evaluation."""
    size: ModelSize | None
    """None: of a family that is not counted."""
    weight_bytes: int
    """Of one parameter."""
    reads: Reads = "conversation"
    rate: float | None = None
    """Floating-point operations per second; None: that of the policy."""

    @property
    def num_bytes(self) -> float:
        """Memory of its weights; NaN if not known."""
        return float("nan") if self.size is None else float(self.size.num_params * self.weight_bytes)

    def seconds(self, num_prompts: int, num_rows: int, lengths: Lengths, rate: float) -> float:
        """Time of scoring responses; NaN if not known.

        Args:
            num_prompts: Different prompts.
            num_rows: Responses to them.
            lengths: Of both.
            rate: Floating-point operations per second of the policy.
        """
        if self.size is None:
            return float("nan")
        if self.reads == "response":
            shape = mean_shape(0, 0.0, num_rows, lengths.response, 0.0)
        elif self.size.is_causal:  # rows of one prompt read it once
            shape = mean_shape(num_prompts, lengths.prompt, num_rows, lengths.response, 0.0)
        else:
            shape = mean_shape(0, 0.0, num_rows, lengths.prompt + lengths.response, 0.0)
        return self.size.flops.forward(shape) / (self.rate or rate)


def scoring_models(config: Config, device: torch.device) -> Iterator[ScoringModel]:
    """Every model that scores responses, with its rate on this machine."""
    policy_bytes = _bytes_of(config.policy.dtype)
    for name, section in reward_sections(config):
        yield ScoringModel(
            in_training=name == "reward",
            size=model_size(config, section),
            weight_bytes=policy_bytes,
        )
    for path, _, typed in scorer_sections(config):
        if isinstance(typed, ClassifierScorerSection | RewardModelScorerSection):
            size = folder_model_size(typed.path, typed.revision, "SEQ_CLS")
            rate = None if size is None else layer_throughput(size.width, size.ffn_width, PASS_TOKENS, device)
            yield ScoringModel(
                in_training=path[0] == "scorers",
                size=size,
                weight_bytes=_bytes_of(typed.dtype),
                reads=typed.reads if isinstance(typed, ClassifierScorerSection) else "conversation",
                rate=rate,
            )


def model_size(config: Config, section: RewardSection | None) -> ModelSize | None:
    """Size of the policy, or of the model that a section makes its reward model from; None: not known."""
    path, revision = config.policy.path, config.policy.revision
    if section is not None and section.pretrained_model is not None:
        path, revision = section.pretrained_model[1], section.revision
    if path == WORLD:
        world = config.data.world
        return world_model_size(world.prompt_format if world is not None else "")
    return folder_model_size(path, revision)


def mean_shape(
    num_prefixes: int, prefix: float, num_rows: int, suffix: float, num_predictions: float
) -> ForwardShape:
    """Prompts of this mean length, each read once, and responses of this mean length after them."""
    prefixes, suffixes = np.full(num_prefixes, round(prefix)), np.full(num_rows, round(suffix))
    before = np.concatenate([np.zeros(num_prefixes, np.int64), np.full(num_rows, round(prefix))])
    sizes = np.concatenate([prefixes, suffixes]).astype(np.int64)
    return ForwardShape(before.astype(np.int64), sizes, round(num_predictions))


def _bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
