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

from paretune.elsewhere import PreTrainedModel
from paretune.errors import WiringError

NAME = "paretune"
"""What a configuration says while `attending` lasts."""

FAMILIES = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 olmo2 granite smollm3 gpt2 gpt_neox".split()
)
"""Families that ask for scale, window and soft cap alone, and take a token's place from `position_ids`."""

_IDLE = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position"}
)
"""What models pass along without a bearing on attention that was worked out from the layout."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a layer asks of its attention."""

    layer: int
    """Number of the layer, as its caches count."""
    scale: float
    softcap: float | None = None
    """Logits become cap tanh(logit / cap)."""
    window: int | None = None
    """A query sees itself and the window - 1 tokens before it."""


How = Callable[[Tensor, Tensor, Tensor, Rule], Tensor]
"""From query, key and value [N, T, heads, D] of one layer to what it attended to, [N, T, heads, D]."""

_HOW: ContextVar[How] = ContextVar("paretune_attention")


def attend(
    query: Float[Tensor, "N Q H D"],
    key: Float[Tensor, "N S K D"],
    value: Float[Tensor, "N S K D"],
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    seen: Bool[Tensor, "M Q S"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "N Q H D"]:
    """Softmax(scale q k) v for each head; H is a multiple of K, and neighbouring heads share keys.

    Args:
        query: What asks.
        key: What is asked; one row may serve all by `expand`.
        value: What is answered.
        scale: Factor on the logits.
        softcap: Logits become softcap tanh(logit / softcap).
        window: With `causal`, a query sees itself and the window - 1 tokens before it.
        seen: Which keys a query sees, M = N or 1; every query must see one.
        causal: Query i sees key j only for j <= i + S - Q: the last query stands at the last key.
    """
    late = key.shape[1] - query.shape[1]
    if window is not None and window >= key.shape[1]:
        window = None
    if causal and (late or window is not None or seen is not None or softcap is not None):
        order = torch.arange(key.shape[1], device=query.device)
        gap = order[late:, None] - order  # how far a key lies behind the query
        past = gap >= 0 if window is None else (gap >= 0) & (gap < window)
        seen, causal = past[None] if seen is None else seen & past, False
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if softcap is not None:
        return _capped(q, k, v, scale, softcap, seen).transpose(1, 2)
    mask = None if seen is None else seen[:, None]
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def capped(logits: Float[Tensor, "..."], softcap: float | None) -> Float[Tensor, "..."]:
    """Cap tanh(logit / cap); the logits themselves without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float, seen: Tensor | None
) -> Tensor:
    """Attention over [N, heads, T, D] with a soft cap, which no fused kernel knows; softmax in float32."""
    n, heads, q, d = query.shape
    folded = query.reshape(n, key.shape[1], -1, q, d)  # heads that share keys stand together
    logits = folded @ key.transpose(-1, -2)[:, :, None] * scale
    logits = capped(logits, softcap)
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None, None], -torch.inf)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(n, heads, q, value.shape[-1])


def can_attend(model: Any) -> bool:
    """Whether this plain transformers model can be asked under `attending`: its family is known."""
    if not isinstance(model, PreTrainedModel):
        return False
    config: Any = model.config.get_text_config()
    odd = ("use_bidirectional_attention", "reorder_and_upcast_attn", "add_cross_attention")
    if any(getattr(config, name, None) for name in odd):
        return False
    return config is model.config and config.model_type in FAMILIES


@contextmanager
def attending(model: Any, how: How) -> Iterator[None]:
    """Let the attention of a plain transformers model be `how` while the context lasts.

    Args:
        model: A model without an adapter around it; see `adapt.bare`.
        how: Asked once a layer. Masks are its affair: the model builds none.

    Raises:
        WiringError: The model's family is not known to ask for nothing else; see `can_attend`.
    """
    if not can_attend(model):
        raise WiringError(f"models of the family {model.config.model_type} keep their own attention")
    _register()
    own, token = model.config._attn_implementation, _HOW.set(how)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = own
        _HOW.reset(token)


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The registered function: [N, heads, T, D] in, [N, T, heads, D] out."""
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _IDLE)
    if unknown or attention_mask is not None or others.get("dropout"):
        said = ", ".join(unknown) or ("a mask" if attention_mask is not None else "dropout")
        raise WiringError(f"a layer asks its attention for {said}, which packed rows do not know")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    rule = Rule(int(module.layer_idx), scale, softcap, sliding_window)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return _HOW.get()(q, k, v, rule), None


@cache
def _register() -> None:
    """Tell transformers the name; for one without a mask function of its own it builds no mask at all."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _forward)
