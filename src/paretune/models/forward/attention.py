"""Attention of our own inside a transformers model, for one call: packed rows, shared prompts, caches.

A model hands its queries, keys and values to whatever function its configuration names. While `attending`
lasts that is ours, which hands them on; outside it the model's own attention is untouched.
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
"""What a configuration says while `attending` lasts."""

SUPPORTED_MODEL_TYPES = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 olmo2 granite smollm3 gpt2 gpt_neox".split()
)
"""Families that ask for scale, window and soft cap alone, and take a token's place from `position_ids`."""

_IGNORED_KWARGS = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position"}
)
"""What models pass along without a bearing on attention that was worked out from the layout."""


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """What a layer asks of its attention."""

    layer_idx: int
    """Number of the layer, as its caches count."""
    scale: float
    softcap: float | None = None
    """Logits become cap tanh(logit / cap)."""
    window: int | None = None
    """A query sees itself and the window - 1 tokens before it."""


AttentionFn = Callable[[Tensor, Tensor, Tensor, AttentionParams], Tensor]
"""From query, key and value [N, T, heads, D] of one layer to what it attended to, [N, T, heads, D]."""

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
    """Softmax(scale q k) v for each head; H is a multiple of K, and neighbouring heads share keys.

    Args:
        query: What asks.
        key: What is asked; one row may serve all by `expand`.
        value: What is answered.
        scale: Factor on the logits.
        softcap: Logits become softcap tanh(logit / softcap).
        window: With `is_causal`, a query sees itself and the window - 1 tokens before it.
        attn_mask: Which keys a query sees, M = N or 1; every query must see one.
        is_causal: Query i sees key j only for j <= i + S - Q: the last query stands at the last key.
    """
    late = key.shape[1] - query.shape[1]
    if window is not None and window >= key.shape[1]:
        window = None
    if is_causal and (late or window is not None or attn_mask is not None or softcap is not None):
        order = torch.arange(key.shape[1], device=query.device)
        gap = order[late:, None] - order  # how far a key lies behind the query
        past = gap >= 0 if window is None else (gap >= 0) & (gap < window)
        attn_mask, is_causal = past[None] if attn_mask is None else attn_mask & past, False
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if softcap is not None:
        return _softcap_attention(q, k, v, scale, softcap, attn_mask).transpose(1, 2)
    mask = None if attn_mask is None else attn_mask[:, None]
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def apply_softcap(logits: Float[Tensor, "..."], softcap: float | None) -> Float[Tensor, "..."]:
    """Cap tanh(logit / cap); the logits themselves without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _softcap_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float, attn_mask: Tensor | None
) -> Tensor:
    """Attention over [N, heads, T, D] with a soft cap, which no fused kernel knows; softmax in float32."""
    n, heads, q, d = query.shape
    folded = query.reshape(n, key.shape[1], -1, q, d)  # heads that share keys stand together
    logits = folded @ key.transpose(-1, -2)[:, :, None] * scale
    logits = apply_softcap(logits, softcap)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask[:, None, None], -torch.inf)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(n, heads, q, value.shape[-1])


def supports_custom_attention(model: Any) -> bool:
    """Whether this plain transformers model can be asked under `attending`: its family is known."""
    if not isinstance(model, PreTrainedModel):
        return False
    config: Any = model.config.get_text_config()
    odd = ("use_bidirectional_attention", "reorder_and_upcast_attn", "add_cross_attention")
    if any(getattr(config, name, None) for name in odd):
        return False
    return config is model.config and config.model_type in SUPPORTED_MODEL_TYPES


@contextmanager
def use_custom_attention(model: Any, attention_fn: AttentionFn) -> Iterator[None]:
    """Let the attention of a plain transformers model be `attention_fn` while the context lasts.

    Args:
        model: A model without an adapter around it; see `adapt.bare`.
        attention_fn: Asked once a layer. Masks are its affair: the model builds none.

    Raises:
        WiringError: The model's family is not known to ask for nothing else; see `can_attend`.
    """
    if not supports_custom_attention(model):
        raise WiringError(f"models of the family {model.config.model_type} keep their own attention")
    _register_attention()
    own, token = model.config._attn_implementation, _ATTENTION_FN.set(attention_fn)
    model.config._attn_implementation = ATTN_IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = own
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
    """The registered function: [N, heads, T, D] in, [N, T, heads, D] out."""
    unknown = sorted(
        name for name, value in kwargs.items() if value is not None and name not in _IGNORED_KWARGS
    )
    if unknown or attention_mask is not None or kwargs.get("dropout"):
        said = ", ".join(unknown) or ("a mask" if attention_mask is not None else "dropout")
        raise WiringError(f"a layer asks its attention for {said}, which packed rows do not know")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    rule = AttentionParams(int(module.layer_idx), scale, softcap, sliding_window)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return _ATTENTION_FN.get()(q, k, v, rule), None


@cache
def _register_attention() -> None:
    """Tell transformers the name; for one without a mask function of its own it builds no mask at all."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTN_IMPLEMENTATION, _attention_forward)
