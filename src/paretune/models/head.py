"""The float32 head: from hidden states to what is asked of a token's distribution, a few tokens at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from paretune.models.adapt import inside
from paretune.models.attention import capped

CHUNK = 1024
"""Tokens whose logits exist at one time."""

KEPT = 2**25
"""Probabilities that a pass keeps for its gradient, 128 MiB; more are computed again on the way back."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last layer: hidden state to logits, in float32 or better.

    logits = cap tanh(scale (W h + b) / cap), without cap the plain product.
    """

    weight: Float[Tensor, "V W"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Float[Tensor, "N W"]) -> Float[Tensor, "N V"]:
        """What a softmax turns into the next token's distribution."""
        x = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            x = x * self.scale
        return capped(x, self.cap)


def head_of(model: nn.Module) -> Head:
    """The head of a causal model, with the scaling its family applies; `forward.probe_head` checks it."""
    base = inside(model)
    layer, config = base.get_output_embeddings(), base.config.get_text_config()
    family = config.model_type
    scale = 1.0
    if family.startswith("cohere"):
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None) is not None:
        scale = float(config.logits_scaling) if family == "hyperclovax" else 1.0 / config.logits_scaling
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    bias = getattr(layer, "bias", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight.to(dtype), None if bias is None else bias.to(dtype), scale, cap)


def log_distribution(head: Head, hidden: Float[Tensor, "N W"], temperature: float) -> Float[Tensor, "N V"]:
    """Log softmax(logits / temperature): the one convention of sampler and trainer."""
    return (head.logits(hidden) / temperature).log_softmax(-1)


def spoken(
    head: Head,
    hidden: Float[Tensor, "N W"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Log-probability of each target, and the entropy of its distribution in nats."""
    asked = (hidden.to(head.weight.dtype), head.weight, head.bias, targets, head, temperature, entropy, chunk)
    logp, spread = _Spoken.apply(*asked)  # type: ignore[no-untyped-call]
    return logp, spread


def against(
    head: Head,
    hidden: Float[Tensor, "N W"],
    other: Head,
    states: Float[Tensor, "N U"],
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Float[Tensor, " N"]:
    """KL(other || ours) of each token's distribution, over the whole vocabulary; only ours has a gradient."""
    pairs: Sequence[tuple[Tensor, Tensor]] = list(zip(hidden.split(chunk), states.split(chunk), strict=True))
    again = len(pairs) > 1 and torch.is_grad_enabled()
    parts = []
    for ours, theirs in pairs:
        asked: tuple[Any, ...] = (head, ours, other, theirs, temperature)
        parts.append(checkpoint(_divergence, *asked, use_reentrant=False) if again else _divergence(*asked))
    return torch.cat(parts)


def _divergence(head: Head, hidden: Tensor, other: Head, states: Tensor, temperature: float) -> Tensor:
    ours, theirs = log_distribution(head, hidden, temperature), log_distribution(other, states, temperature)
    return (theirs.exp() * (theirs - ours)).sum(-1)


class _Spoken(torch.autograd.Function):
    """Log-probability and entropy, with the gradient written out.

    Automatic differentiation would keep several arrays of tokens times vocabulary; this keeps one or none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
        entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None]:
        going_back = any(ctx.needs_input_grad[:3])
        keep = going_back and head.cap is None and len(hidden) * len(weight) <= KEPT
        logp, spread, norms, kept = [], [], [], []
        for h, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            x = head.logits(h)
            if temperature != 1.0:
                x /= temperature
            norm = x.logsumexp(-1)
            logp.append(x.gather(-1, target[:, None]).squeeze(-1) - norm)
            norms.append(norm)
            if entropy:
                mean = torch.linalg.vecdot((p := (x - norm[:, None]).exp_()), x)
                spread.append(norm - mean)
            elif keep:
                p = x.sub_(norm[:, None]).exp_()
            if keep:
                kept.append(p)
        whole = torch.cat(spread) if entropy else None
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(norms), whole, *kept)
        ctx.how = (head.scale, head.cap, temperature, chunk)
        ctx.set_materialize_grads(False)
        return torch.cat(logp), whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logp: Tensor | None, d_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms, entropy, *kept = ctx.saved_tensors
        scale, cap, temperature, chunk = ctx.how
        needs = ctx.needs_input_grad
        d_hidden = torch.zeros_like(hidden) if needs[0] else None
        d_weight = torch.zeros_like(weight) if needs[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and needs[2] else None
        head = Head(weight, bias, scale, cap)
        for i, start in enumerate(range(0, len(hidden), chunk)):
            at = slice(start, start + chunk)
            h, slope = hidden[at], None
            if kept:
                p = kept[i]
            else:
                x = head.logits(h)
                slope = None if cap is None else 1 - (x / cap).square()
                p = (x / temperature).sub_(norms[at, None]).exp_()
            dx = torch.zeros_like(p) if d_logp is None else p * -d_logp[at, None]
            if d_logp is not None:
                dx.scatter_add_(1, targets[at, None], d_logp[at, None])
            if d_entropy is not None:
                dx -= (torch.xlogy(p, p) + p * entropy[at, None]) * d_entropy[at, None]
            if scale != temperature:
                dx *= scale / temperature
            if slope is not None:
                dx *= slope
            if d_hidden is not None:
                torch.mm(dx, weight, out=d_hidden[at])
            if d_weight is not None:
                d_weight.addmm_(dx.T, h)
            if d_bias is not None:
                d_bias += dx.sum(0)
        return d_hidden, d_weight, d_bias, None, None, None, None, None
