"""Log-probabilities, values and hidden states of padded rows; the only one-token shift of the package.

All results are aligned to the tokens they refer to and are on the device of `input_ids`, wherever the model
is. Rows are padded on input and packed for the model, with shared prefixes computed once (`forward.packing`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError
from paretune.models.forward.attention import supports_custom_attention, use_custom_attention
from paretune.models.forward.checkpointing import apply_gradient_checkpointing
from paretune.models.forward.lm_head import LOGITS_CHUNK_SIZE, full_kl, lm_head_of, token_logprobs
from paretune.models.forward.packing import PackedLayout, pack_rows, round_up_packed
from paretune.models.lora import unwrap_model, unwrap_model_for_forward


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's input."""
    return embedding_weight(model).device


def embedding_weight(model: nn.Module) -> Tensor:
    """The input embedding weight; it has the device of the input and the dtype of the computation."""
    weight = unwrap_model(model).get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def position_ids_of(attention_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Position of each real token in its row, counted from 0 for any padding side."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def hidden_states(
    model: nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T W"]:
    """The body's last hidden states, computed on padded rows with the model's own attention.

    They are on the model's device; their values at padding are undefined. Rows are padded on the right for
    the model: padding before a token would pass through the state of recurrent layers.
    """
    device = device_of(model)
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    order = _padding_last(attention_mask)
    if order is not None:
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
    with (
        unwrap_model_for_forward(model) as base,
        apply_gradient_checkpointing(base, lambda: unwrap_model_for_forward(model)),
    ):
        out = base.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids_of(attention_mask),
            use_cache=False,
        )
    hidden = out.last_hidden_state
    assert isinstance(hidden, Tensor)
    if order is not None:
        hidden = hidden.gather(1, order.argsort(1)[..., None].expand_as(hidden))
    return hidden


def _padding_last(attention_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"] | None:
    """The order of columns with padding at the end of each row; None if it is there already."""
    if not bool((attention_mask[:, 1:] & ~attention_mask[:, :-1]).any()):
        return None
    return (~attention_mask).int().argsort(dim=1, stable=True)


@dataclass(frozen=True, slots=True)
class FlatHiddenStates:
    """The body's last hidden states; for models that support packing, without those of padding."""

    flat: Float[Tensor, "N W"]
    index: Int[Tensor, "B T"]
    """Index in `flat` of the state after each real token; rows may share states. Undefined at padding."""


def supports_packing(model: nn.Module) -> bool:
    """Whether rows are packed for this model, or the `network` it wraps; other families read padded rows."""
    return supports_custom_attention(unwrap_model(getattr(model, "network", model)))


def flat_hidden_states(
    model: nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> FlatHiddenStates:
    """The body's last hidden states, on the model's device; as `hidden_states`, but packed if possible."""
    if not supports_packing(model) or not attention_mask.any():
        hidden = hidden_states(model, input_ids, attention_mask)
        index = torch.arange(attention_mask.numel(), device=hidden.device).reshape(attention_mask.shape)
        return FlatHiddenStates(hidden.flatten(0, 1), index)
    weight = embedding_weight(model)
    packed = pack_rows(
        input_ids, attention_mask, weight.device, round_up_length=partial(round_up_packed, like=weight)
    )
    with (
        _packed_attention(model, packed.layout) as base,
        apply_gradient_checkpointing(base, lambda: _packed_attention(model, packed.layout)),
    ):
        out = base.base_model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False)
    return FlatHiddenStates(out.last_hidden_state[0], packed.index)


@contextmanager
def _packed_attention(model: nn.Module, layout: PackedLayout) -> Iterator[Any]:
    """The transformers model inside, with attention for rows of this layout."""
    with unwrap_model_for_forward(model) as base, use_custom_attention(base, layout):
        yield base


def compute_logprobs(
    model: nn.Module,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    target_mask: Bool[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    chunk_size: int = LOGITS_CHUNK_SIZE,
) -> Float[Tensor, "B T"]:
    """Log p(input_ids[b, t] | input_ids[b, :t]) where `target_mask` is True; 0 elsewhere and at t = 0.

    Args:
        model: A causal model, with or without an adapter.
        input_ids: Rows of token ids.
        attention_mask: True at real tokens; padding is neither read nor counted in positions.
        target_mask: Tokens to predict; the LM head is applied for these only.
        temperature: Divides the logits, as in sampling.
        chunk_size: Tokens whose logits are in memory at one time; affects memory only.
    """
    return _compute_at(
        model, input_ids, attention_mask, target_mask, frozenset(), None, temperature, chunk_size
    )["logprobs"]


def compute_outputs(
    model: nn.Module,
    batch: Batch,
    requires: frozenset[str] = frozenset(),
    *,
    temperature: float = 1.0,
    references: Mapping[str, nn.Module] | None = None,
    critic: nn.Module | None = None,
    chunk_size: int = LOGITS_CHUNK_SIZE,
) -> Outputs:
    """The model outputs that a loss needs, at the response tokens.

    Args:
        model: A causal model, with or without an adapter.
        batch: Rows; outputs are computed at `batch.response_mask`.
        requires: Outputs in addition to `logprobs`: "entropy", the entropy of each token's distribution in
            nats; "ref_policy_kl", the exact KL divergence KL(reference || policy) per token with respect to
            references["reference"]; "values", the critic's state values.
        temperature: Divides the logits, those of the reference too.
        references: Frozen models by role.
        critic: Computes "values", as in `compute_values`.
        chunk_size: Tokens whose logits are in memory at one time; affects memory only.

    Raises:
        WiringError: An unknown output is required, or the reference or critic for it is missing.
    """
    unknown = requires - {"entropy", "ref_policy_kl", "values"}
    if unknown:
        raise WiringError(
            f"a loss requires unknown model outputs: {', '.join(sorted(unknown))}; "
            "known: entropy, ref_policy_kl, values"
        )
    if "values" in requires and critic is None:
        raise WiringError("a loss requires values, but the run has no critic")
    reference = (references or {}).get("reference")
    if "ref_policy_kl" in requires and reference is None:
        raise WiringError("a loss requires ref_policy_kl, but the run has no reference model")
    rows = (batch.input_ids, batch.attention_mask, batch.response_mask)
    out = _compute_at(model, *rows, requires - {"values"}, reference, temperature, chunk_size)
    values = compute_values(critic, *rows) if critic is not None and "values" in requires else None
    kl = out.get("ref_policy_kl")
    return Outputs(logprobs=out["logprobs"], entropy=out.get("entropy"), ref_policy_kl=kl, values=values)


def compute_values(
    critic: nn.Module,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    target_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T H"]:
    """Value of the state in which input_ids[b, t] was sampled, where `target_mask` is True; 0 elsewhere.

    Args:
        critic: Maps input_ids and attention_mask to [B, T, H]: at t, the values of the state after token t.
        input_ids: Rows of token ids.
        attention_mask: True at real tokens; padding is neither read nor counted in positions.
        target_mask: Tokens to evaluate; t = 0 has no state before it and gets 0.
    """
    after = critic(input_ids, attention_mask)
    assert isinstance(after, Tensor)
    # The shift, as for the log-probabilities: the state before token t is the state after token t - 1.
    before = F.pad(after[:, :-1], (0, 0, 1, 0)).to(input_ids.device)
    has_state = target_mask.clone()
    has_state[:, 0] = False
    return torch.where(has_state[..., None], before, 0.0)


def _compute_at(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    target_mask: Tensor,
    requires: frozenset[str],
    reference: nn.Module | None,
    temperature: float,
    chunk_size: int,
) -> dict[str, Tensor]:
    """The required outputs at `target_mask`, scattered into [B, T]."""
    # Columns of padding only are cut off: minibatches keep the width of the whole batch.
    used_columns = attention_mask.any(0).nonzero()
    width = int(used_columns[-1]) + 1 if len(used_columns) else 1
    narrow_ids, narrow_mask = input_ids[:, :width], attention_mask[:, :width]
    is_target = target_mask[:, 1:width]
    hidden = _preceding_hidden_states(model, narrow_ids, narrow_mask, is_target)
    targets = narrow_ids[:, 1:][is_target].to(hidden.device)
    logprobs, entropy = token_logprobs(
        lm_head_of(model),
        hidden,
        targets,
        temperature=temperature,
        return_entropy="entropy" in requires,
        chunk_size=chunk_size,
    )
    outputs = {"logprobs": logprobs} if entropy is None else {"logprobs": logprobs, "entropy": entropy}
    if "ref_policy_kl" in requires and reference is not None:
        with torch.no_grad():
            other = (
                lm_head_of(reference),
                _preceding_hidden_states(reference, narrow_ids, narrow_mask, is_target),
            )
        outputs["ref_policy_kl"] = full_kl(
            lm_head_of(model), hidden, *other, temperature=temperature, chunk_size=chunk_size
        )
    # The shift back: the output at position t was computed from the hidden state at t - 1.
    scatter_mask = torch.zeros_like(target_mask)
    scatter_mask[:, 1:width] = is_target
    zeros = torch.zeros(input_ids.shape, dtype=logprobs.dtype, device=input_ids.device)
    return {name: zeros.masked_scatter(scatter_mask, x.to(input_ids.device)) for name, x in outputs.items()}


def _preceding_hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, target_mask: Tensor
) -> Tensor:
    """Hidden states [N, W] of the tokens just before the targets. This is the shift.

    `target_mask` is already shifted: column t refers to token t + 1.
    """
    # Tokens from a row's last target on predict nothing. Unpadded rows make leaving them out worthwhile.
    if supports_packing(model) and target_mask.any():
        input_ids, attention_mask = (
            input_ids[:, :-1],
            attention_mask[:, :-1] & target_mask.flip(1).cumsum(1).flip(1).bool(),
        )
    states = flat_hidden_states(model, input_ids, attention_mask)
    return states.flat[states.index[:, : target_mask.shape[1]][target_mask.to(states.index.device)]]


@torch.no_grad()
def check_lm_head(model: nn.Module, *, num_tokens: int = 6) -> None:
    """Compare the logits of `lm_head_of` with the model's own on a short row.

    Args:
        model: A causal model, with or without an adapter.
        num_tokens: Length of the row.

    Raises:
        WiringError: They differ: the family transforms its logits in a way unknown to `lm_head_of`.
    """
    device = device_of(model)
    with unwrap_model_for_forward(model) as base:
        vocab_size = base.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(1, num_tokens + 1, device=device) % vocab_size)[None]
        expected = base(input_ids=tokens, use_cache=False).logits[0]
        family = base.config.model_type
    ours = lm_head_of(model).logits(hidden_states(model, tokens, torch.ones_like(tokens).bool())[0])
    gap = float((ours - expected[..., : ours.shape[-1]].to(ours.dtype)).abs().max())
    # Up to four rounding errors at the size of the largest logit; a missing transformation is far larger.
    rounding = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    # `not <=` also catches NaN.
    if not gap <= 1e-3 + rounding:
        raise WiringError(
            f"models of the family {family} transform their logits after the LM head in an unsupported way "
            f"(largest difference {gap:.3g}); fix: use a family such as llama, qwen2, gemma2 or gpt2"
        )
