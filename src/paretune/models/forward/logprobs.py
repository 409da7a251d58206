"""Tokens to log-probabilities. The only one-token shift of the package.

Every answer is aligned to the tokens it speaks of and lies on their device, wherever the model is. Rows come
padded and go into the model packed, with what they begin with in common computed once (`models.packing`).
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
from paretune.models.forward.packing import PackedLayout, pack_rows, round_up_rows
from paretune.models.lora import unwrap_model, unwrap_model_for_forward


def device_of(model: nn.Module) -> torch.device:
    """Where the model's input goes."""
    return embedding_weight(model).device


def embedding_weight(model: nn.Module) -> Tensor:
    """The table of the tokens: it lies where the input goes, and is as precise as what is computed."""
    weight = unwrap_model(model).get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def position_ids_of(attention_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Each real token's place in its row, counted from 0, wherever the padding is."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def hidden_states(
    model: nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T W"]:
    """The body's last hidden states, computed in padded rows by the model's own attention.

    They lie on the model's device; at padding they mean nothing.
    """
    device = device_of(model)
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
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
    return hidden


@dataclass(frozen=True, slots=True)
class FlatHiddenStates:
    """The body's last hidden states, without those of padding where the model can be packed."""

    flat: Float[Tensor, "N W"]
    index: Int[Tensor, "B T"]
    """Where in `flat` the state after each real token lies; rows may share one. Of padding: any place."""


def supports_packing(model: nn.Module) -> bool:
    """Whether rows reach this model, or the `network` it wraps, packed; unknown families read them padded."""
    return supports_custom_attention(unwrap_model(getattr(model, "network", model)))


def flat_hidden_states(
    model: nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> FlatHiddenStates:
    """The body's last hidden states, on the model's device: those of `hidden_states`, at the least cost."""
    if not supports_packing(model) or not attention_mask.any():
        hidden = hidden_states(model, input_ids, attention_mask)
        place = torch.arange(attention_mask.numel(), device=hidden.device).reshape(attention_mask.shape)
        return FlatHiddenStates(hidden.flatten(0, 1), place)
    weight = embedding_weight(model)
    packed = pack_rows(
        input_ids, attention_mask, weight.device, padded_length=partial(round_up_rows, like=weight)
    )
    with (
        _packed_attention(model, packed.layout) as base,
        apply_gradient_checkpointing(base, lambda: _packed_attention(model, packed.layout)),
    ):
        out = base.base_model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False)
    return FlatHiddenStates(out.last_hidden_state[0], packed.index)


@contextmanager
def _packed_attention(model: nn.Module, layout: PackedLayout) -> Iterator[Any]:
    """The transformers model inside, which reads rows laid out like this."""
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
    """Log p(tokens[b, t] | what stands before it) at the chosen places; 0 elsewhere and at t = 0.

    Args:
        model: A causal model, with or without an adapter.
        input_ids: Rows of token ids.
        attention_mask: Real tokens; the others are neither read nor counted as places.
        target_mask: Places that are asked for; the head is applied to no others.
        temperature: Logits are divided by it, as the sampler's are.
        chunk_size: Tokens whose logits exist at one time; changes memory only.
    """
    return _compute_at(
        model, input_ids, attention_mask, target_mask, frozenset(), None, temperature, chunk_size
    )["logp"]


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
    """What a loss needs to know of the responses under this model.

    Args:
        model: A causal model, with or without an adapter.
        batch: Rows; asked at `batch.respond`.
        requires: More than `logp`: "entropy" of each token's distribution in nats, "kl_reference_policy", the
            exact divergence of this model from references["reference"], and "values" of the critic.
        temperature: Logits are divided by it, the reference's too.
        references: Frozen models by role.
        critic: What is asked for "values", as in `aligned_values`.
        chunk_size: Tokens whose logits exist at one time; changes memory only.

    Raises:
        WiringError: An output nobody knows, or a reference or a critic is wanted and none is there.
    """
    unknown = requires - {"entropy", "kl_reference_policy", "values"}
    if unknown:
        raise WiringError(f"a loss wants {', '.join(sorted(unknown))}, which the forward pass cannot give")
    if "values" in requires and critic is None:
        raise WiringError("a loss wants the values of a critic, but the run has no critic")
    reference = (references or {}).get("reference")
    if "kl_reference_policy" in requires and reference is None:
        raise WiringError("a loss wants kl_reference_policy, but the run has no reference model")
    asked = (batch.input_ids, batch.attention_mask, batch.response_mask)
    out = _compute_at(model, *asked, requires - {"values"}, reference, temperature, chunk_size)
    values = compute_values(critic, *asked) if critic is not None and "values" in requires else None
    kl = out.get("kl_reference_policy")
    return Outputs(logprobs=out["logp"], entropy=out.get("entropy"), ref_policy_kl=kl, values=values)


def compute_values(
    critic: nn.Module,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    target_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T H"]:
    """The value of the state in which tokens[b, t] was chosen, at the chosen places; 0 elsewhere.

    Args:
        critic: From tokens and attend to [B, T, H]; at t the values of the state after tokens[:, t].
        input_ids: Rows of token ids.
        attention_mask: Real tokens; the others are neither read nor counted as places.
        target_mask: Places that are asked for; t = 0 has no state before it and gets 0.
    """
    after = critic(input_ids, attention_mask)
    assert isinstance(after, Tensor)
    before = F.pad(after[:, :-1], (0, 0, 1, 0)).to(
        input_ids.device
    )  # the shift, as for the log-probabilities
    place = target_mask.clone()
    place[:, 0] = False
    return torch.where(place[..., None], before, 0.0)


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
    """The wanted quantities at `target_mask`, scattered back over [B, T]."""
    used = attention_mask.any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    narrow, real = input_ids[:, :width], attention_mask[:, :width]
    asked = target_mask[:, 1:width]
    hidden = _preceding_hidden_states(model, narrow, real, asked)
    targets = narrow[:, 1:][asked].to(hidden.device)
    logp, entropy = token_logprobs(
        lm_head_of(model),
        hidden,
        targets,
        temperature=temperature,
        return_entropy="entropy" in requires,
        chunk_size=chunk_size,
    )
    found = {"logp": logp} if entropy is None else {"logp": logp, "entropy": entropy}
    if "kl_reference_policy" in requires and reference is not None:
        with torch.no_grad():
            other = (lm_head_of(reference), _preceding_hidden_states(reference, narrow, real, asked))
        found["kl_reference_policy"] = full_kl(
            lm_head_of(model), hidden, *other, temperature=temperature, chunk_size=chunk_size
        )
    # The shift back: position t of the answer was read from the hidden state at t - 1.
    place = torch.zeros_like(target_mask)
    place[:, 1:width] = asked
    blank = torch.zeros(input_ids.shape, dtype=logp.dtype, device=input_ids.device)
    return {name: blank.masked_scatter(place, x.to(input_ids.device)) for name, x in found.items()}


def _preceding_hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, target_mask: Tensor
) -> Tensor:
    """Hidden states of the tokens that stand just before the asked ones, [N, W]. This is the shift."""
    if (
        supports_packing(model) and target_mask.any()
    ):  # what stands from the last asked token on is nobody's predecessor
        input_ids, attention_mask = (
            input_ids[:, :-1],
            attention_mask[:, :-1] & target_mask.flip(1).cumsum(1).flip(1).bool(),
        )
    found = flat_hidden_states(model, input_ids, attention_mask)
    return found.flat[found.index[:, : target_mask.shape[1]][target_mask.to(found.index.device)]]


@torch.no_grad()
def check_lm_head(model: nn.Module, *, num_tokens: int = 6) -> None:
    """Compare our logits with the model's own on a short row.

    Args:
        model: A causal model, with or without an adapter.
        num_tokens: Tokens of the row.

    Raises:
        WiringError: They differ, so the family does something to its logits that `head_of` does not know.
    """
    device = device_of(model)
    with unwrap_model_for_forward(model) as base:
        vocab = base.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(1, num_tokens + 1, device=device) % vocab)[None]
        theirs = base(input_ids=tokens, use_cache=False).logits[0]
        family = base.config.model_type
    ours = lm_head_of(model).logits(hidden_states(model, tokens, torch.ones_like(tokens).bool())[0])
    gap = float((ours - theirs.to(ours.dtype)).abs().max())
    rounding = 4 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
    if not gap <= 1e-3 + rounding:
        raise WiringError(
            f"models of the family {family} change their logits after the head in a way unknown here "
            f"(largest difference {gap:.3g}); fix: use a family such as llama, qwen2, gemma2 or gpt2"
        )
