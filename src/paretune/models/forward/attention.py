"""Custom attention inside a transformers model for single calls: packed rows, shared prefixes, KV caches.

A transformers model passes its queries, keys and values to the attention function that its configuration
names. Within `use_custom_attention` that is a function of this package; outside, the model's own attention is
unchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedModel

ATTN_IMPLEMENTATION = "paretune"
"""Value of `config._attn_implementation` within `use_custom_attention`."""

# Families whose attention depends on scale, window and soft cap only, and which take positions from
# `position_ids`. An exactness test covers each of them; other families use the slower padded pass.
SUPPORTED_MODEL_TYPES = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 olmo2 granite smollm3 gpt2 gpt_neox".split()
)

# Arguments that models pass along but that do not affect attention computed from the packed layout. Any other
# argument may change the result and is an error.
_IGNORED_KWARGS = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position"}
)


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """A layer's attention parameters."""

    layer_idx: int
    """Index of the layer, as in its KV cache."""
    scale: float
    softcap: float | None = None
    """Logits become softcap tanh(logit / softcap)."""
    window: int | None = None
    """Sliding window: a query attends to itself and the window - 1 tokens before it."""


AttentionFn = Callable[[Tensor, Tensor, Tensor, AttentionParams], Tensor]
"""From query, key and value [N, T, heads, D] of one layer to the attention output [N, T, heads, D]."""

_ATTENTION_FN: ContextVar[AttentionFn] = ContextVar("paretune_attention")


def dot_product_attention(
    query: Float[Tensor, "N Q H D"],
    key: Float[Tensor, "N S K D"],
    value: Float[Tensor, "N S K D"],
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    attn_mask: Bool[Tensor, "M Q S"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "N Q H D"]:
    """Softmax(scale q k) v per head. H is a multiple of K: neighboring query heads share a key head (GQA).

    Args:
        query: Queries.
        key: Keys; one row can serve all rows by `expand`.
        value: Values.
        scale: Factor on the logits.
        softcap: Logits become softcap tanh(logit / softcap).
        window: With `is_causal`, a query attends to itself and the window - 1 tokens before it.
        attn_mask: True where a query attends to a key, M = N or 1; each query must attend to at least one.
        is_causal: Query i attends to key j only for j <= i + S - Q: the last query is at the last key.
    """
    offset = key.shape[1] - query.shape[1]
    if window is not None and window >= key.shape[1]:
        window = None
    # The kernel's own causal mask aligns the first query to the first key and cannot be combined with a mask.
    if is_causal and (offset or window is not None or attn_mask is not None or softcap is not None):
        position = torch.arange(key.shape[1], device=query.device)
        distance = position[offset:, None] - position  # from key back to query
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        attn_mask, is_causal = visible[None] if attn_mask is None else attn_mask & visible, False
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if softcap is not None:
        return _softcap_attention(q, k, v, scale, softcap, attn_mask).transpose(1, 2)
    mask = None if attn_mask is None else attn_mask[:, None]
    # enable_gqa avoids copies of the keys for every query head: 11 instead of 17 ms forward and backward.
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def apply_softcap(logits: Float[Tensor, "..."], softcap: float | None) -> Float[Tensor, "..."]:
    """Softcap tanh(logit / softcap); unchanged logits without a soft cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _softcap_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float, attn_mask: Tensor | None
) -> Tensor:
    """Attention over [N, heads, T, D] with a soft cap, which no fused kernel supports; float32 softmax."""
    n, heads, q, d = query.shape
    grouped = query.reshape(n, key.shape[1], -1, q, d)  # query heads by the key head they share
    logits = grouped @ key.transpose(-1, -2)[:, :, None] * scale
    logits = apply_softcap(logits, softcap)
    # Masked after the cap: tanh would turn -inf into a finite logit.
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask[:, None, None], -torch.inf)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(n, heads, q, value.shape[-1])


def supports_custom_attention(model: Any) -> bool:
    """Whether `use_custom_attention` is exact for this plain transformers model: its family is supported."""
    return isinstance(model, PreTrainedModel) and config_supports_custom_attention(model.config)


def config_supports_custom_attention(config: Any) -> bool:
    """Whether `use_custom_attention` is exact for models of this configuration."""
    text_config = config.get_text_config()
    # Variants of supported families whose attention differs.
    unsupported_options = ("use_bidirectional_attention", "reorder_and_upcast_attn", "add_cross_attention")
    if any(getattr(text_config, name, None) for name in unsupported_options):
        return False
    return text_config is config and config.model_type in SUPPORTED_MODEL_TYPES


@contextmanager
def use_custom_attention(model: Any, attention_fn: AttentionFn) -> Iterator[None]:
    """Replace the attention of a plain transformers model by `attention_fn` within the context.

    Args:
        model: A model without an adapter around it; see `lora.unwrap_model_for_forward`.
        attention_fn: Called once per layer. It is responsible for masking: the model builds no mask.

    Raises:
        WiringError: The model's family is not supported; see `supports_custom_attention`.
    """
    if not supports_custom_attention(model):
        raise WiringError(
            f"custom attention does not support models of the family {model.config.model_type}; "
            f"supported: {', '.join(sorted(SUPPORTED_MODEL_TYPES))}"
        )
    _register_attention()
    original, token = model.config._attn_implementation, _ATTENTION_FN.set(attention_fn)
    model.config._attn_implementation = ATTN_IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = original
        _ATTENTION_FN.reset(token)


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered in transformers: [N, heads, T, D] in, [N, T, heads, D] out."""
    unknown = sorted(
        name for name, value in kwargs.items() if value is not None and name not in _IGNORED_KWARGS
    )
    # Dropout would differ between rows that share a prefix, which is computed once.
    if unknown or attention_mask is not None or kwargs.get("dropout"):
        option = ", ".join(unknown) or ("a mask" if attention_mask is not None else "dropout")
        raise WiringError(f"a layer passes {option} to its attention, which packed rows do not support")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    params = AttentionParams(int(module.layer_idx), scale, softcap, sliding_window)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return _ATTENTION_FN.get()(q, k, v, params), None


@cache
def _register_attention() -> None:
    """Register the name; transformers builds no mask for an implementation without a mask function."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTN_IMPLEMENTATION, _attention_forward)
