"""Floating-point operations that a pass through a model has to do, known without asking a device.

What is counted is what the mathematics needs, and not what a program happens to compute: no padding, no token
twice that several rows begin with, no activation again on the way back, no key that a query may not see. So
the rate that a run achieves is comparable between programs, and never flattered by waste.
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
    """Stretches of rows that a body has to read, and for how many tokens a distribution is asked."""

    prefix_lengths: NDArray[np.int64]
    """Of each stretch, the tokens of its row that stand before it."""
    segment_lengths: NDArray[np.int64]
    """Its own tokens."""
    num_predictions: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the body reads."""
        return int(self.segment_lengths.sum())

    def attention_pairs(self, window: int | None) -> int:
        """Pairs of a query and a key that it sees: itself, and what stands before it within the window."""
        return int(
            (
                _num_visible_keys(self.prefix_lengths + self.segment_lengths, window)
                - _num_visible_keys(self.prefix_lengths, window)
            ).sum()
        )


def _num_visible_keys(lengths: NDArray[np.int64], window: int | None) -> NDArray[np.int64]:
    """Keys that the first `lengths` queries of a row see: sum of min(i, window)."""
    near = lengths if window is None else np.minimum(lengths, window)
    return near * (near + 1) // 2 + (lengths - near) * near


def generation_shape(batch: Batch) -> ForwardShape:
    """What a sampler reads for these responses: each prompt once, each response but for its last token."""
    real, drawn = batch.attention_mask.sum(-1).numpy(), batch.response_mask.sum(-1).numpy()
    _, first = np.unique(batch.group.numpy(), return_index=True)
    before = np.concatenate([np.zeros(len(first), np.int64), real - drawn])
    size = np.concatenate([(real - drawn)[first], np.maximum(drawn - 1, 0)])
    return ForwardShape(before, size, int(drawn.sum()))


def response_shape(batch: Batch) -> ForwardShape:
    """What a model reads that is asked at `respond`: what rows begin with once, their last token never."""
    rows, _ = compact_rows(batch.input_ids, batch.attention_mask)
    needed = ((batch.attention_mask.cumsum(-1) * batch.response_mask).amax(-1) - 1).clamp(min=0).numpy()
    order = sorted(range(len(rows)), key=lambda i: rows[i, : needed[i]].tobytes())
    rows, needed = rows[order], needed[order]
    # In this order no row has more in common with any before it than with the last one.
    differ = rows[1:] != rows[:-1]
    common = np.where(differ.any(1), differ.argmax(1), rows.shape[1])
    before = np.concatenate([[0], np.minimum(common, np.minimum(needed[1:], needed[:-1]))])
    return ForwardShape(before, needed - before, int(batch.response_mask.sum()))


def shared_prefix_shape(prefix_lengths: list[int], rows: list[tuple[int, int]]) -> ForwardShape:
    """What a model reads that is asked at the last token of rows: starts, and (start, own) tokens of each."""
    before = [*[0] * len(prefix_lengths), *[start for start, _ in rows]]
    size = [*prefix_lengths, *[own for _, own in rows]]
    return ForwardShape(np.array(before, np.int64), np.array(size, np.int64), len(rows))


def independent_rows_shape(lengths: list[int], num_predictions: int) -> ForwardShape:
    """What a model reads of rows that have nothing in common, asked for so many tokens at their ends."""
    size = np.array(lengths, np.int64) - 1
    return ForwardShape(np.zeros_like(size), size, num_predictions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """Multiply-adds of a causal model, or of a sequence classifier that is read at every asked token.

    A multiply-add is two operations; softmax, norms, rotations and activations are left out, as is usual.
    """

    trainable_params: int
    """A token, in linear layers of the body whose weights learn; those of an adapter are such layers."""
    frozen_params: int
    """A token, in all other linear layers of the body."""
    attention_width: int
    """Heads times their size: a query costs so much for each key, and as much for each value."""
    layers_by_window: Mapping[int | None, int]
    """Number of layers by their window; None: those that see everything before."""
    head_params: int
    """An asked token, in the output head; a tied one counts here alone, since looking up costs nothing."""
    head_trainable: bool

    @classmethod
    def from_model(cls, model: nn.Module) -> "ModelFlops | None":
        """That of this model, with or without an adapter, or of the `network` it wraps.

        None where nobody can say: the family is not one whose attention is known (`can_pack`).
        """
        from transformers.pytorch_utils import Conv1D

        if not supports_packing(model):
            return None
        network = getattr(model, "network", model)
        base = unwrap_model(network)
        config, head = base.config, base.get_output_embeddings()
        sizes: Counter[bool] = Counter()
        for name, layer in base.base_model.named_modules():
            off = isinstance(network, AdapterDisabledModel) and ".lora_" in name
            if isinstance(layer, nn.Linear | Conv1D | Int8Linear) and not off:
                sizes[layer.weight.requires_grad] += layer.weight.numel()
        return cls(
            trainable_params=sizes[True],
            frozen_params=sizes[False],
            attention_width=config.num_attention_heads * _head_dim(config),
            layers_by_window=Counter(_layer_windows(config)),
            head_params=config.num_labels * config.hidden_size if head is None else head.weight.numel(),
            head_trainable=head is None or head.weight.requires_grad,
        )

    def forward(self, shape: ForwardShape) -> float:
        """Operations of a pass without gradient: 2 a weight and token, 4 x width a layer, query and key."""
        body = 2 * (self.trainable_params + self.frozen_params) * shape.num_tokens
        return float(body + 4 * self._attention_macs(shape) + 2 * self.head_params * shape.num_predictions)

    def forward_backward(self, shape: ForwardShape) -> float:
        """Operations of a pass and its way back.

        The way back costs a linear layer as much as the pass for the gradient of what it read, and as much
        again for that of its weight where it learns: in all 3 x the pass, and 2 x where the weight is frozen,
        as under an adapter. Attention has no weights, and each of its products two gradients: 3 x. That the
        lowest layer of an adapted model needs no gradient of what it read is not taken off.
        """
        body = (6 * self.trainable_params + 4 * self.frozen_params) * shape.num_tokens
        head = (6 if self.head_trainable else 4) * self.head_params * shape.num_predictions
        return float(body + 12 * self._attention_macs(shape) + head)

    def _attention_macs(self, shape: ForwardShape) -> int:
        return self.attention_width * sum(
            number * shape.attention_pairs(window) for window, number in self.layers_by_window.items()
        )


_MODEL_FLOPS_CACHE: WeakKeyDictionary[nn.Module, ModelFlops | None] = WeakKeyDictionary()
"""Looking at every layer of a large adapted model takes milliseconds."""


def model_flops_of(model: nn.Module) -> ModelFlops | None:
    """`Work.of` this model, remembered: what of a model learns is settled before it is asked."""
    if model not in _MODEL_FLOPS_CACHE:
        _MODEL_FLOPS_CACHE[model] = ModelFlops.from_model(model)
    return _MODEL_FLOPS_CACHE[model]


def forward_flops(model: nn.Module, shape: ForwardShape) -> float:
    """`Work.forward` of this model; NaN where nobody can say."""
    work = model_flops_of(model)
    return float("nan") if work is None else work.forward(shape)


def forward_backward_flops(model: nn.Module, shape: ForwardShape) -> float:
    """`Work.gradient` of this model; NaN where nobody can say."""
    work = model_flops_of(model)
    return float("nan") if work is None else work.forward_backward(shape)


def _head_dim(config: Any) -> int:
    said = getattr(config, "head_dim", None)
    return int(said or config.hidden_size // config.num_attention_heads)


def _layer_windows(config: Any) -> list[int | None]:
    """Of each layer; a family without kinds of layers has one window for all of them, or none."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * int(config.num_hidden_layers)
    return [window if kind == "sliding_attention" else None for kind in kinds]
