"""The LM head in float32: log-probabilities, entropy and KL divergence, computed over chunks of tokens."""

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

# Tokens whose logits are in memory at one time: [tokens, vocabulary] in float32 is the largest tensor of a
# pass, 600 MB for 1024 tokens of a vocabulary of 150,000.
LOGITS_CHUNK_SIZE = 1024

# Probabilities that a forward pass saves for its backward pass (128 MiB in float32). Beyond that they are
# recomputed, which costs one more product with the head's weight.
MAX_SAVED_PROBS = 2**25

# Names of the soft cap of the logits in the configurations of Gemma, RecurrentGemma and xLSTM.
_SOFTCAP_FIELDS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# Attribute of a sharded model whose head must be read as the embedding; see `models.sharding`.
TIED_HEAD = "_paretune_tied_head"

# Attribute of the transformers model, so that every copy of the model has the same distributions.
_VOCAB_LIMIT = "_paretune_vocab_limit"


@dataclass(frozen=True, slots=True)
class LmHead:
    """The output layer: hidden states to logits, in float32 or higher precision.

    logits = softcap tanh(logit_scale (W h + b) / softcap); without a soft cap, logit_scale (W h + b).
    """

    weight: Float[Tensor, "V W"]
    bias: Float[Tensor, " V"] | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "N W"]) -> Float[Tensor, "N V"]:
        """Logits of the next-token distribution at temperature 1."""
        x = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.logit_scale != 1.0:
            x = x * self.logit_scale
        return apply_softcap(x, self.softcap)


def limit_vocab(model: nn.Module, num_tokens: int) -> None:
    """Leave out the ids from `num_tokens` on: they are never sampled and have no part in any distribution.

    Vocabularies are often padded to a round number of rows that the tokenizer does not know. The limit holds
    wherever the head is read by `lm_head_of`: sampling, log-probabilities, entropy and KL divergence. It
    stays with the model and its copies, is not saved, and does nothing if the head has no more rows.

    Args:
        model: A causal model, with or without an adapter.
        num_tokens: Number of ids that the tokenizer knows.
    """
    base = unwrap_model(model)
    layer = base.get_output_embeddings()
    if layer is not None and layer.weight.shape[0] > num_tokens:
        setattr(base, _VOCAB_LIMIT, num_tokens)


def lm_head_of(model: nn.Module) -> LmHead:
    """The head of a causal model with its family's scaling of logits; `check_lm_head` verifies it.

    With a limit by `limit_vocab`, V is the limit.
    """
    base = unwrap_model(model)
    layer, config = base.get_output_embeddings(), base.config.get_text_config()
    family = config.model_type
    scale = 1.0
    if family.startswith("cohere"):
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None) is not None:
        # Granite divides by this value; HyperCLOVA X multiplies.
        scale = float(config.logits_scaling) if family == "hyperclovax" else 1.0 / config.logits_scaling
    # bfloat16 logits have three significant digits: too few for the ratios of log-probabilities in losses.
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if getattr(base, TIED_HEAD, False):
        weight = base.get_input_embeddings().weight  # the head's own attribute is the part before sharding
    limit: int | None = getattr(base, _VOCAB_LIMIT, None)
    if limit is not None:
        weight, bias = weight[:limit], None if bias is None else bias[:limit]
    softcap = next((cap for name in _SOFTCAP_FIELDS if (cap := getattr(config, name, None))), None)
    return LmHead(weight.to(dtype), None if bias is None else bias.to(dtype), scale, softcap)


def next_token_logprobs(
    lm_head: LmHead, hidden: Float[Tensor, "N W"], temperature: float
) -> Float[Tensor, "N V"]:
    """Log softmax(logits / temperature), the definition that sampling and training share."""
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
    """Log-probability of each target, and optionally the entropy of its distribution in nats.

    Args:
        lm_head: The head of the model.
        hidden: Hidden states from which the targets are predicted.
        targets: Token ids.
        temperature: Divides the logits.
        return_entropy: Also compute the entropy; otherwise None is returned for it.
        chunk_size: Tokens whose logits are in memory at one time; affects memory only.
    """
    arguments = (
        hidden.to(lm_head.weight.dtype),
        lm_head.weight,
        lm_head.bias,
        targets,
        lm_head,
        temperature,
        return_entropy,
        chunk_size,
    )
    logprobs, entropy = _TokenLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return logprobs, entropy


def full_kl(
    lm_head: LmHead,
    hidden: Float[Tensor, "N W"],
    other_head: LmHead,
    other_hidden: Float[Tensor, "N U"],
    *,
    temperature: float = 1.0,
    chunk_size: int = LOGITS_CHUNK_SIZE,
) -> Float[Tensor, " N"]:
    """KL(other || ours) of each token's distribution over the whole vocabulary; gradients flow to ours only.

    Args:
        lm_head: Head of our model.
        hidden: Hidden states of our model.
        other_head: Head of the other model, such as the reference policy.
        other_hidden: Hidden states of the other model.
        temperature: Divides the logits of both.
        chunk_size: Tokens whose logits are in memory at one time; affects memory only.
    """
    chunks: Sequence[tuple[Tensor, Tensor]] = list(
        zip(hidden.split(chunk_size), other_hidden.split(chunk_size), strict=True)
    )
    # A single chunk fits into memory by definition, and is not computed twice.
    use_checkpoint = len(chunks) > 1 and torch.is_grad_enabled()
    divergences = []
    for ours, others in chunks:
        arguments: tuple[Any, ...] = (lm_head, ours, other_head, others, temperature)
        divergences.append(
            checkpoint(_full_kl_chunk, *arguments, use_reentrant=False)
            if use_checkpoint
            else _full_kl_chunk(*arguments)
        )
    return torch.cat(divergences)


def _full_kl_chunk(
    lm_head: LmHead, hidden: Tensor, other_head: LmHead, other_hidden: Tensor, temperature: float
) -> Tensor:
    ours, others = (
        next_token_logprobs(lm_head, hidden, temperature),
        next_token_logprobs(other_head, other_hidden, temperature),
    )
    return (others.exp() * (others - ours)).sum(-1)


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability and entropy with an explicit gradient.

    Automatic differentiation would save several tensors of tokens x vocabulary; this saves one or none.

    With p = softmax(x), y the target and H the entropy:
        d log p_y / d x = onehot(y) - p,    d H / d x = -p (log p + H)
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
        needs_grad = any(ctx.needs_input_grad[:3])
        # With a soft cap the backward pass needs the logits too, so saving probabilities avoids nothing.
        save_probs = needs_grad and lm_head.softcap is None and len(hidden) * len(weight) <= MAX_SAVED_PROBS
        logprobs, entropies, normalizers, saved_probs = [], [], [], []
        for h, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            x = lm_head.logits(h)
            if temperature != 1.0:
                x /= temperature
            normalizer = x.logsumexp(-1)
            logprobs.append(x.gather(-1, target[:, None]).squeeze(-1) - normalizer)
            normalizers.append(normalizer)
            if return_entropy:
                mean_logit = torch.linalg.vecdot((p := (x - normalizer[:, None]).exp_()), x)
                entropies.append(normalizer - mean_logit)  # H = log Z - E[x]
            elif save_probs:
                p = x.sub_(normalizer[:, None]).exp_()  # in place: the logits are not needed any more
            if save_probs:
                saved_probs.append(p)
        entropy = torch.cat(entropies) if return_entropy else None
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers), entropy, *saved_probs)
        ctx.settings = (lm_head.logit_scale, lm_head.softcap, temperature, chunk_size)
        # Unused outputs get None instead of zeros, which saves their part of the backward pass.
        ctx.set_materialize_grads(False)
        return torch.cat(logprobs), entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers, entropy, *saved_probs = ctx.saved_tensors
        scale, softcap, temperature, chunk_size = ctx.settings
        needs_grad = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden) if needs_grad[0] else None
        grad_weight = torch.zeros_like(weight) if needs_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_grad[2] else None
        head = LmHead(weight, bias, scale, softcap)
        for i, start in enumerate(range(0, len(hidden), chunk_size)):
            chunk = slice(start, start + chunk_size)
            h, softcap_slope = hidden[chunk], None
            if saved_probs:
                p = saved_probs[i]
            else:
                x = head.logits(h)
                softcap_slope = None if softcap is None else 1 - (x / softcap).square()
                p = (x / temperature).sub_(normalizers[chunk, None]).exp_()
            grad_x = torch.zeros_like(p) if grad_logprobs is None else p * -grad_logprobs[chunk, None]
            if grad_logprobs is not None:
                grad_x.scatter_add_(1, targets[chunk, None], grad_logprobs[chunk, None])
            if grad_entropy is not None:
                # xlogy is 0 where p is 0; p log p would be NaN.
                grad_x -= (torch.xlogy(p, p) + p * entropy[chunk, None]) * grad_entropy[chunk, None]
            if scale != temperature:
                grad_x *= scale / temperature
            if softcap_slope is not None:
                grad_x *= softcap_slope
            if grad_hidden is not None:
                torch.mm(grad_x, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.addmm_(grad_x.T, h)
            if grad_bias is not None:
                grad_bias += grad_x.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None
