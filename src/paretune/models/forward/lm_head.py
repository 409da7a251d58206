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

from paretune.models.forward.attention import apply_softcap
from paretune.models.lora import unwrap_model

LOGITS_CHUNK_SIZE = 1024
"""Tokens whose logits exist at one time."""

MAX_SAVED_PROBS = 2**25
"""Probabilities that a pass keeps for its gradient, 128 MiB; more are computed again on the way back."""


@dataclass(frozen=True, slots=True)
class LmHead:
    """The last layer: hidden state to logits, in float32 or better.

    logits = cap tanh(scale (W h + b) / cap), without cap the plain product.
    """

    weight: Float[Tensor, "V W"]
    bias: Float[Tensor, " V"] | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "N W"]) -> Float[Tensor, "N V"]:
        """What a softmax turns into the next token's distribution."""
        x = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.logit_scale != 1.0:
            x = x * self.logit_scale
        return apply_softcap(x, self.softcap)


def lm_head_of(model: nn.Module) -> LmHead:
    """The head of a causal model, with the scaling its family applies; `forward.probe_head` checks it."""
    base = unwrap_model(model)
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
    return LmHead(layer.weight.to(dtype), None if bias is None else bias.to(dtype), scale, cap)


def next_token_logprobs(
    lm_head: LmHead, hidden: Float[Tensor, "N W"], temperature: float
) -> Float[Tensor, "N V"]:
    """Log softmax(logits / temperature): the one convention of sampler and trainer."""
    return (lm_head.logits(hidden) / temperature).log_softmax(-1)


def token_logprobs(
    lm_head: LmHead,
    hidden: Float[Tensor, "N W"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
    chunk_size: int = LOGITS_CHUNK_SIZE,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Log-probability of each target, and the entropy of its distribution in nats."""
    asked = (
        hidden.to(lm_head.weight.dtype),
        lm_head.weight,
        lm_head.bias,
        targets,
        lm_head,
        temperature,
        return_entropy,
        chunk_size,
    )
    logp, spread = _TokenLogprobs.apply(*asked)  # type: ignore[no-untyped-call]
    return logp, spread


def full_kl(
    lm_head: LmHead,
    hidden: Float[Tensor, "N W"],
    other_head: LmHead,
    other_hidden: Float[Tensor, "N U"],
    *,
    temperature: float = 1.0,
    chunk_size: int = LOGITS_CHUNK_SIZE,
) -> Float[Tensor, " N"]:
    """KL(other || ours) of each token's distribution, over the whole vocabulary; only ours has a gradient."""
    pairs: Sequence[tuple[Tensor, Tensor]] = list(
        zip(hidden.split(chunk_size), other_hidden.split(chunk_size), strict=True)
    )
    again = len(pairs) > 1 and torch.is_grad_enabled()
    parts = []
    for ours, theirs in pairs:
        asked: tuple[Any, ...] = (lm_head, ours, other_head, theirs, temperature)
        parts.append(
            checkpoint(_full_kl_chunk, *asked, use_reentrant=False) if again else _full_kl_chunk(*asked)
        )
    return torch.cat(parts)


def _full_kl_chunk(
    lm_head: LmHead, hidden: Tensor, other_head: LmHead, other_hidden: Tensor, temperature: float
) -> Tensor:
    ours, theirs = (
        next_token_logprobs(lm_head, hidden, temperature),
        next_token_logprobs(other_head, other_hidden, temperature),
    )
    return (theirs.exp() * (theirs - ours)).sum(-1)


class _TokenLogprobs(torch.autograd.Function):
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
        lm_head: LmHead,
        temperature: float,
        return_entropy: bool,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        going_back = any(ctx.needs_input_grad[:3])
        keep = going_back and lm_head.softcap is None and len(hidden) * len(weight) <= MAX_SAVED_PROBS
        logp, spread, norms, kept = [], [], [], []
        for h, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            x = lm_head.logits(h)
            if temperature != 1.0:
                x /= temperature
            norm = x.logsumexp(-1)
            logp.append(x.gather(-1, target[:, None]).squeeze(-1) - norm)
            norms.append(norm)
            if return_entropy:
                mean = torch.linalg.vecdot((p := (x - norm[:, None]).exp_()), x)
                spread.append(norm - mean)
            elif keep:
                p = x.sub_(norm[:, None]).exp_()
            if keep:
                kept.append(p)
        whole = torch.cat(spread) if return_entropy else None
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(norms), whole, *kept)
        ctx.how = (lm_head.logit_scale, lm_head.softcap, temperature, chunk_size)
        ctx.set_materialize_grads(False)
        return torch.cat(logp), whole

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms, entropy, *kept = ctx.saved_tensors
        scale, cap, temperature, chunk = ctx.how
        needs = ctx.needs_input_grad
        d_hidden = torch.zeros_like(hidden) if needs[0] else None
        d_weight = torch.zeros_like(weight) if needs[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and needs[2] else None
        head = LmHead(weight, bias, scale, cap)
        for i, start in enumerate(range(0, len(hidden), chunk)):
            at = slice(start, start + chunk)
            h, slope = hidden[at], None
            if kept:
                p = kept[i]
            else:
                x = head.logits(h)
                slope = None if cap is None else 1 - (x / cap).square()
                p = (x / temperature).sub_(norms[at, None]).exp_()
            dx = torch.zeros_like(p) if grad_logprobs is None else p * -grad_logprobs[at, None]
            if grad_logprobs is not None:
                dx.scatter_add_(1, targets[at, None], grad_logprobs[at, None])
            if grad_entropy is not None:
                dx -= (torch.xlogy(p, p) + p * entropy[at, None]) * grad_entropy[at, None]
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
