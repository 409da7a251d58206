"""What one training step computes, in numbers alone: models, rows, lengths and precision."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from paretune.models.flops import ForwardShape
from paretune.models.model_size import ModelSize
from paretune.models.sharding import ShardingMode

SAMPLER_ROWS = 256
"""Responses that the sampler decodes at one time."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training step of all ranks together."""

    policy: ModelSize
    """With what is trained: all weights, or an adapter."""
    lora: bool
    weight_bytes: int
    """4 for float32, 2 for bfloat16."""
    moment_bytes: int
    """Both moments of AdamW, per weight."""
    references: int
    """Frozen models beside the policy that have weights of their own."""
    scorers: tuple[ModelSize, ...]
    """Reward models and classifiers that run in this process."""
    scorer_bytes: float
    """Their weights, which every rank has whole."""
    critic: bool
    prompts: int
    generations: int
    prompt_tokens: int
    response_tokens: int
    max_tokens_per_pass: int
    gradient_checkpointing: str
    model_passes: int
    """Forward passes without gradients."""
    iterations: int
    """Passes over the responses with gradients."""
    generates: bool
    fsdp: ShardingMode | None = None
    """The only way to hold the weights; None: any that fits."""
    engine: Literal["local", "in_process", "server"] = "local"
    """Who samples: this package, vLLM in the same process, or vLLM elsewhere."""
    engine_fraction: float = 0.0
    """Share of the device's memory that vLLM in the same process takes."""
    overlaps: bool = False
    """The servers sample the next step's responses while this step trains."""

    def per_rank(self, num_ranks: int) -> "Workload":
        """The part of the rank with the most prompts; groups stay whole."""
        return replace(self, prompts=-(-self.prompts // num_ranks))

    @property
    def rows(self) -> int:
        """Responses."""
        return self.prompts * self.generations

    @property
    def rows_at_once(self) -> int:
        """Responses that are decoded at one time."""
        return min(self.rows, SAMPLER_ROWS) if self.engine == "local" else self.rows

    @property
    def group_tokens(self) -> int:
        """Tokens of a prompt and all its responses, the prompt once."""
        return self.prompt_tokens + self.generations * self.response_tokens

    def tokens_of_pass(self, limit: int) -> tuple[int, int]:
        """Tokens and rows of the largest pass with at most `limit` tokens; a prompt counts once for its rows.

        A pass has at least one row.
        """
        groups = min(limit // self.group_tokens, self.prompts)
        rows, tokens = groups * self.generations, groups * self.group_tokens
        room = (limit - tokens - self.prompt_tokens) // self.response_tokens
        if groups < self.prompts and (room > 0 or not groups):
            extra = min(max(room, 1), self.generations)
            rows, tokens = rows + extra, tokens + self.prompt_tokens + extra * self.response_tokens
        return tokens, rows

    def shape(self) -> ForwardShape:
        """Segments of a pass over all rows, each prompt once."""
        zeros = np.zeros(self.prompts, np.int64)
        before = np.concatenate([zeros, np.full(self.rows, self.prompt_tokens, np.int64)])
        sizes = np.concatenate(
            [zeros + self.prompt_tokens, np.full(self.rows, self.response_tokens, np.int64)]
        )
        return ForwardShape(before, sizes, self.rows * self.response_tokens)
