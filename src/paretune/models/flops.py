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

from paretune.batch import Batch
from paretune.models.adapt import AdapterOff, inside
from paretune.models.forward import can_pack
from paretune.models.int8 import Int8Linear
from paretune.models.sharing import compact


@dataclass(frozen=True, slots=True)
class Reading:
    """Stretches of rows that a body has to read, and for how many tokens a distribution is asked."""

    before: NDArray[np.int64]
    """Of each stretch, the tokens of its row that stand before it."""
    size: NDArray[np.int64]
    """Its own tokens."""
    asked: int

    @property
    def tokens(self) -> int:
        """Tokens that the body reads."""
        return int(self.size.sum())

    def pairs(self, window: int | None) -> int:
        """Pairs of a query and a key that it sees: itself, and what stands before it within the window."""
        return int((_seen(self.before + self.size, window) - _seen(self.before, window)).sum())


def _seen(length: NDArray[np.int64], window: int | None) -> NDArray[np.int64]:
    """Keys that the first `length` queries of a row see: sum of min(i, window)."""
    near = length if window is None else np.minimum(length, window)
    return near * (near + 1) // 2 + (length - near) * near


def written(batch: Batch) -> Reading:
    """What a sampler reads for these responses: each prompt once, each response but for its last token."""
    real, drawn = batch.attend.sum(-1).numpy(), batch.respond.sum(-1).numpy()
    _, first = np.unique(batch.group.numpy(), return_index=True)
    before = np.concatenate([np.zeros(len(first), np.int64), real - drawn])
    size = np.concatenate([(real - drawn)[first], np.maximum(drawn - 1, 0)])
    return Reading(before, size, int(drawn.sum()))


def asked(batch: Batch) -> Reading:
    """What a model reads that is asked at `respond`: what rows begin with once, their last token never."""
    rows, _ = compact(batch.tokens, batch.attend)
    needed = ((batch.attend.cumsum(-1) * batch.respond).amax(-1) - 1).clamp(min=0).numpy()
    order = sorted(range(len(rows)), key=lambda i: rows[i, : needed[i]].tobytes())
    rows, needed = rows[order], needed[order]
    # In this order no row has more in common with any before it than with the last one.
    differ = rows[1:] != rows[:-1]
    common = np.where(differ.any(1), differ.argmax(1), rows.shape[1])
    before = np.concatenate([[0], np.minimum(common, np.minimum(needed[1:], needed[:-1]))])
    return Reading(before, needed - before, int(batch.respond.sum()))


def continued(starts: list[int], rows: list[tuple[int, int]]) -> Reading:
    """What a model reads that is asked at the last token of rows: starts, and (start, own) tokens of each."""
    before = [*[0] * len(starts), *[start for start, _ in rows]]
    size = [*starts, *[own for _, own in rows]]
    return Reading(np.array(before, np.int64), np.array(size, np.int64), len(rows))


def apart(lengths: list[int], responses: int) -> Reading:
    """What a model reads of rows that have nothing in common, asked for so many tokens at their ends."""
    size = np.array(lengths, np.int64) - 1
    return Reading(np.zeros_like(size), size, responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Multiply-adds of a causal model, or of a sequence classifier that is read at every asked token.

    A multiply-add is two operations; softmax, norms, rotations and activations are left out, as is usual.
    """

    trained: int
    """A token, in linear layers of the body whose weights learn; those of an adapter are such layers."""
    frozen: int
    """A token, in all other linear layers of the body."""
    width: int
    """Heads times their size: a query costs so much for each key, and as much for each value."""
    layers: Mapping[int | None, int]
    """Number of layers by their window; None: those that see everything before."""
    head: int
    """An asked token, in the output head; a tied one counts here alone, since looking up costs nothing."""
    head_learns: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Work | None":
        """That of this model, with or without an adapter, or of the `network` it wraps.

        None where nobody can say: the family is not one whose attention is known (`can_pack`).
        """
        from transformers.pytorch_utils import Conv1D

        if not can_pack(model):
            return None
        network = getattr(model, "network", model)
        base = inside(network)
        config, head = base.config, base.get_output_embeddings()
        sizes: Counter[bool] = Counter()
        for name, layer in base.base_model.named_modules():
            off = isinstance(network, AdapterOff) and ".lora_" in name
            if isinstance(layer, nn.Linear | Conv1D | Int8Linear) and not off:
                sizes[layer.weight.requires_grad] += layer.weight.numel()
        return cls(
            trained=sizes[True],
            frozen=sizes[False],
            width=config.num_attention_heads * _head_size(config),
            layers=Counter(_windows(config)),
            head=config.num_labels * config.hidden_size if head is None else head.weight.numel(),
            head_learns=head is None or head.weight.requires_grad,
        )

    def forward(self, rows: Reading) -> float:
        """Operations of a pass without gradient: 2 a weight and token, 4 x width a layer, query and key."""
        body = 2 * (self.trained + self.frozen) * rows.tokens
        return float(body + 4 * self._met(rows) + 2 * self.head * rows.asked)

    def gradient(self, rows: Reading) -> float:
        """Operations of a pass and its way back.

        The way back costs a linear layer as much as the pass for the gradient of what it read, and as much
        again for that of its weight where it learns: in all 3 x the pass, and 2 x where the weight is frozen,
        as under an adapter. Attention has no weights, and each of its products two gradients: 3 x. That the
        lowest layer of an adapted model needs no gradient of what it read is not taken off.
        """
        body = (6 * self.trained + 4 * self.frozen) * rows.tokens
        head = (6 if self.head_learns else 4) * self.head * rows.asked
        return float(body + 12 * self._met(rows) + head)

    def _met(self, rows: Reading) -> int:
        return self.width * sum(number * rows.pairs(window) for window, number in self.layers.items())


_KNOWN: WeakKeyDictionary[nn.Module, Work | None] = WeakKeyDictionary()
"""Looking at every layer of a large adapted model takes milliseconds."""


def work_of(model: nn.Module) -> Work | None:
    """`Work.of` this model, remembered: what of a model learns is settled before it is asked."""
    if model not in _KNOWN:
        _KNOWN[model] = Work.of(model)
    return _KNOWN[model]


def forward_flops(model: nn.Module, rows: Reading) -> float:
    """`Work.forward` of this model; NaN where nobody can say."""
    work = work_of(model)
    return float("nan") if work is None else work.forward(rows)


def gradient_flops(model: nn.Module, rows: Reading) -> float:
    """`Work.gradient` of this model; NaN where nobody can say."""
    work = work_of(model)
    return float("nan") if work is None else work.gradient(rows)


def _head_size(config: Any) -> int:
    said = getattr(config, "head_dim", None)
    return int(said or config.hidden_size // config.num_attention_heads)


def _windows(config: Any) -> list[int | None]:
    """Of each layer; a family without kinds of layers has one window for all of them, or none."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * int(config.num_hidden_layers)
    return [window if kind == "sliding_attention" else None for kind in kinds]
