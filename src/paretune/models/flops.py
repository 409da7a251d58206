"""Floating-point operations (FLOPs) that a forward or backward pass needs, computed from shapes alone.

Counted is what the mathematics requires, not what an implementation happens to execute: no padding, no
repeated computation of a prefix that several rows share, no recomputed activations in the backward pass, no
masked query-key pairs. The resulting utilization is therefore comparable between implementations and is never
inflated by wasted work.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paretune.core.batch import Batch
from paretune.models.forward.logprobs import supports_packing
from paretune.models.forward.prefix_sharing import compact_rows
from paretune.models.lora import AdapterDisabledModel, unwrap_model
from paretune.models.quantize import Int8Linear


@dataclass(frozen=True, slots=True)
class ForwardShape:
    """Segments of rows that the body has to process, and the number of predicted tokens."""

    prefix_lengths: NDArray[np.int64]
    """Tokens of the row before each segment."""
    segment_lengths: NDArray[np.int64]
    """Tokens of each segment."""
    num_predictions: int
    """Positions at which the LM head is applied."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the body processes."""
        return int(self.segment_lengths.sum())

    def attention_pairs(self, window: int | None) -> int:
        """Unmasked query-key pairs: each token attends to itself and to earlier tokens within the window."""
        return int(
            (
                _num_visible_keys(self.prefix_lengths + self.segment_lengths, window)
                - _num_visible_keys(self.prefix_lengths, window)
            ).sum()
        )


def _num_visible_keys(lengths: NDArray[np.int64], window: int | None) -> NDArray[np.int64]:
    """Query-key pairs of the first `lengths` tokens of a row: sum of min(i, window)."""
    within_window = lengths if window is None else np.minimum(lengths, window)
    return within_window * (within_window + 1) // 2 + (lengths - within_window) * within_window


def generation_shape(batch: Batch) -> ForwardShape:
    """Shape of sampling these responses: each prompt once, each response without its last token."""
    row_lengths = batch.attention_mask.sum(-1).numpy()
    response_lengths = batch.response_mask.sum(-1).numpy()
    _, first_row = np.unique(batch.group.numpy(), return_index=True)
    prompt_lengths = row_lengths - response_lengths
    prefix_lengths = np.concatenate([np.zeros(len(first_row), np.int64), prompt_lengths])
    # The last token of a response is sampled but never read.
    segment_lengths = np.concatenate([prompt_lengths[first_row], np.maximum(response_lengths - 1, 0)])
    return ForwardShape(prefix_lengths, segment_lengths, int(response_lengths.sum()))


def response_shape(batch: Batch) -> ForwardShape:
    """Shape of predicting the tokens of `response_mask`: shared prefixes once, last tokens never."""
    rows, _ = compact_rows(batch.input_ids, batch.attention_mask)
    needed = ((batch.attention_mask.cumsum(-1) * batch.response_mask).amax(-1) - 1).clamp(min=0).numpy()
    order = sorted(range(len(rows)), key=lambda i: rows[i, : needed[i]].tobytes())
    rows, needed = rows[order], needed[order]
    # In sorted order a row shares with its predecessor the longest prefix it shares with any earlier row.
    differs = rows[1:] != rows[:-1]
    common = np.where(differs.any(1), differs.argmax(1), rows.shape[1])
    prefix_lengths = np.concatenate([[0], np.minimum(common, np.minimum(needed[1:], needed[:-1]))])
    return ForwardShape(prefix_lengths, needed - prefix_lengths, int(batch.response_mask.sum()))


def shared_prefix_shape(prefix_lengths: list[int], rows: list[tuple[int, int]]) -> ForwardShape:
    """Shape of one prediction at the end of each row, as a reward model makes it.

    Args:
        prefix_lengths: Tokens of each shared prefix (prompt), which is processed once.
        rows: Of each row, the tokens of its prefix and the tokens after it.
    """
    before = [*[0] * len(prefix_lengths), *[prefix for prefix, _ in rows]]
    size = [*prefix_lengths, *[suffix for _, suffix in rows]]
    return ForwardShape(np.array(before, np.int64), np.array(size, np.int64), len(rows))


def independent_rows_shape(lengths: list[int], num_predictions: int) -> ForwardShape:
    """Shape of rows without shared prefixes, with `num_predictions` predicted tokens at their ends."""
    size = np.array(lengths, np.int64) - 1
    return ForwardShape(np.zeros_like(size), size, num_predictions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """Multiply-adds of a causal model, or of a sequence classifier that is evaluated at several tokens.

    A multiply-add is two operations. Softmax, normalization, rotary embeddings and activation functions are
    left out, as is usual.
    """

    trainable_params: int
    """Weights of the body's linear layers that are trained, LoRA layers included: multiply-adds per token."""
    frozen_params: int
    """Weights of all other linear layers of the body: multiply-adds per token."""
    attention_width: int
    """Number of heads times head dimension: multiply-adds per query-key pair, and again per value."""
    layers_by_window: Mapping[int | None, int]
    """Number of layers by sliding window; None is full attention."""
    head_params: int
    """Weights of the output head: multiply-adds per predicted token. A tied embedding is counted here only,
    since a lookup costs nothing."""
    head_trainable: bool

    @classmethod
    def from_model(cls, model: nn.Module) -> "ModelFlops | None":
        """Counts of a model with or without an adapter, or of the `network` it wraps.

        None where the cost is unknown: the attention of the family is not supported (`supports_packing`).
        """
        from transformers.pytorch_utils import Conv1D

        if not supports_packing(model):
            return None
        network = getattr(model, "network", model)
        base = unwrap_model(network)
        config, head = base.config, base.get_output_embeddings()
        params_by_trainable: Counter[bool] = Counter()
        for name, layer in base.base_model.named_modules():
            disabled = isinstance(network, AdapterDisabledModel) and ".lora_" in name
            if isinstance(layer, nn.Linear | Conv1D | Int8Linear) and not disabled:
                params_by_trainable[layer.weight.requires_grad] += layer.weight.numel()
        return cls(
            trainable_params=params_by_trainable[True],
            frozen_params=params_by_trainable[False],
            attention_width=config.num_attention_heads * _head_dim(config),
            layers_by_window=Counter(_layer_windows(config)),
            head_params=config.num_labels * config.hidden_size if head is None else head.weight.numel(),
            head_trainable=head is None or head.weight.requires_grad,
        )

    def forward(self, shape: ForwardShape) -> float:
        """FLOPs of a forward pass: 2 per weight and token, 4 x width per layer and query-key pair."""
        body = 2 * (self.trainable_params + self.frozen_params) * shape.num_tokens
        return float(body + 4 * self._attention_macs(shape) + 2 * self.head_params * shape.num_predictions)

    def forward_backward(self, shape: ForwardShape) -> float:
        """FLOPs of a forward and a backward pass.

        The backward pass of a linear layer costs as much as its forward pass for the gradient of the input,
        and as much again for the gradient of the weight if that is trained: 3 x the forward pass in total, or
        2 x where the weight is frozen, as under an adapter. Attention has no weights, and each of its two
        products has two gradients: 3 x. The lowest layer of a model with an adapter needs no gradient of its
        input; that saving is not subtracted.
        """
        body = (6 * self.trainable_params + 4 * self.frozen_params) * shape.num_tokens
        head = (6 if self.head_trainable else 4) * self.head_params * shape.num_predictions
        return float(body + 12 * self._attention_macs(shape) + head)

    def _attention_macs(self, shape: ForwardShape) -> int:
        return self.attention_width * sum(
            number * shape.attention_pairs(window) for window, number in self.layers_by_window.items()
        )


# Visiting every layer of a large model with an adapter takes milliseconds, and counts are needed every step.
_MODEL_FLOPS_CACHE: WeakKeyDictionary[nn.Module, ModelFlops | None] = WeakKeyDictionary()


def model_flops_of(model: nn.Module) -> ModelFlops | None:
    """Cached `ModelFlops.from_model`; the set of trainable weights must be final before the first call."""
    if model not in _MODEL_FLOPS_CACHE:
        _MODEL_FLOPS_CACHE[model] = ModelFlops.from_model(model)
    return _MODEL_FLOPS_CACHE[model]


def forward_flops(model: nn.Module, shape: ForwardShape) -> float:
    """`ModelFlops.forward` of this model; NaN where the cost is unknown."""
    model_flops = model_flops_of(model)
    return float("nan") if model_flops is None else model_flops.forward(shape)


def forward_backward_flops(model: nn.Module, shape: ForwardShape) -> float:
    """`ModelFlops.forward_backward` of this model; NaN where the cost is unknown."""
    model_flops = model_flops_of(model)
    return float("nan") if model_flops is None else model_flops.forward_backward(shape)


def _head_dim(config: Any) -> int:
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def _layer_windows(config: Any) -> list[int | None]:
    """Sliding window per layer; families without `layer_types` use the same window in all layers, or none."""
    window, layer_types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if layer_types is None:
        return [window] * int(config.num_hidden_layers)
    return [window if layer_type == "sliding_attention" else None for layer_type in layer_types]
