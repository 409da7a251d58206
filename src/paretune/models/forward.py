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

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.models.activations import as_chosen
from paretune.models.adapt import bare, inside
from paretune.models.attention import attending, can_attend
from paretune.models.head import CHUNK, against, head_of, spoken
from paretune.models.packing import Layout, pack
from paretune.models.rounding import rounded_rows


def device_of(model: nn.Module) -> torch.device:
    """Where the model's input goes."""
    return weight_of(model).device


def weight_of(model: nn.Module) -> Tensor:
    """The table of the tokens: it lies where the input goes, and is as precise as what is computed."""
    weight = inside(model).get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def positions(attend: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Each real token's place in its row, counted from 0, wherever the padding is."""
    return (attend.long().cumsum(-1) - 1).clamp(min=0)


def hidden_states(
    model: nn.Module, tokens: Int[Tensor, "B T"], attend: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T W"]:
    """The body's last hidden states, computed in padded rows by the model's own attention.

    They lie on the model's device; at padding they mean nothing.
    """
    device = device_of(model)
    tokens, attend = tokens.to(device), attend.to(device)
    with bare(model) as base, as_chosen(base, lambda: bare(model)):
        out = base.base_model(
            input_ids=tokens, attention_mask=attend.long(), position_ids=positions(attend), use_cache=False
        )
    hidden = out.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


@dataclass(frozen=True, slots=True)
class States:
    """The body's last hidden states, without those of padding where the model can be packed."""

    flat: Float[Tensor, "N W"]
    place: Int[Tensor, "B T"]
    """Where in `flat` the state after each real token lies; rows may share one. Of padding: any place."""


def can_pack(model: nn.Module) -> bool:
    """Whether rows reach this model, or the `network` it wraps, packed; unknown families read them padded."""
    return can_attend(inside(getattr(model, "network", model)))


def states(model: nn.Module, tokens: Int[Tensor, "B T"], attend: Bool[Tensor, "B T"]) -> States:
    """The body's last hidden states, on the model's device: those of `hidden_states`, at the least cost."""
    if not can_pack(model) or not attend.any():
        hidden = hidden_states(model, tokens, attend)
        place = torch.arange(attend.numel(), device=hidden.device).reshape(attend.shape)
        return States(hidden.flatten(0, 1), place)
    weight = weight_of(model)
    packed = pack(tokens, attend, weight.device, size=partial(rounded_rows, like=weight))
    with _reading(model, packed.layout) as base, as_chosen(base, lambda: _reading(model, packed.layout)):
        out = base.base_model(input_ids=packed.tokens, position_ids=packed.positions, use_cache=False)
    return States(out.last_hidden_state[0], packed.place)


@contextmanager
def _reading(model: nn.Module, layout: Layout) -> Iterator[Any]:
    """The transformers model inside, which reads rows laid out like this."""
    with bare(model) as base, attending(base, layout):
        yield base


def token_logp(
    model: nn.Module,
    tokens: Int[Tensor, "B T"],
    attend: Bool[Tensor, "B T"],
    where: Bool[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Float[Tensor, "B T"]:
    """Log p(tokens[b, t] | what stands before it) at the chosen places; 0 elsewhere and at t = 0.

    Args:
        model: A causal model, with or without an adapter.
        tokens: Rows of token ids.
        attend: Real tokens; the others are neither read nor counted as places.
        where: Places that are asked for; the head is applied to no others.
        temperature: Logits are divided by it, as the sampler's are.
        chunk: Tokens whose logits exist at one time; changes memory only.
    """
    return _ask(model, tokens, attend, where, frozenset(), None, temperature, chunk)["logp"]


def run(
    model: nn.Module,
    batch: Batch,
    wants: frozenset[str] = frozenset(),
    *,
    temperature: float = 1.0,
    references: Mapping[str, nn.Module] | None = None,
    critic: nn.Module | None = None,
    chunk: int = CHUNK,
) -> Outputs:
    """What a loss needs to know of the responses under this model.

    Args:
        model: A causal model, with or without an adapter.
        batch: Rows; asked at `batch.respond`.
        wants: More than `logp`: "entropy" of each token's distribution in nats, "kl_reference_policy", the
            exact divergence of this model from references["reference"], and "values" of the critic.
        temperature: Logits are divided by it, the reference's too.
        references: Frozen models by role.
        critic: What is asked for "values", as in `aligned_values`.
        chunk: Tokens whose logits exist at one time; changes memory only.

    Raises:
        WiringError: An output nobody knows, or a reference or a critic is wanted and none is there.
    """
    unknown = wants - {"entropy", "kl_reference_policy", "values"}
    if unknown:
        raise WiringError(f"a loss wants {', '.join(sorted(unknown))}, which the forward pass cannot give")
    if "values" in wants and critic is None:
        raise WiringError("a loss wants the values of a critic, but the run has no critic")
    reference = (references or {}).get("reference")
    if "kl_reference_policy" in wants and reference is None:
        raise WiringError("a loss wants kl_reference_policy, but the run has no reference model")
    asked = (batch.tokens, batch.attend, batch.respond)
    out = _ask(model, *asked, wants - {"values"}, reference, temperature, chunk)
    values = aligned_values(critic, *asked) if critic is not None and "values" in wants else None
    kl = out.get("kl_reference_policy")
    return Outputs(logp=out["logp"], entropy=out.get("entropy"), kl_reference_policy=kl, values=values)


def aligned_values(
    critic: nn.Module,
    tokens: Int[Tensor, "B T"],
    attend: Bool[Tensor, "B T"],
    where: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T H"]:
    """The value of the state in which tokens[b, t] was chosen, at the chosen places; 0 elsewhere.

    Args:
        critic: From tokens and attend to [B, T, H]; at t the values of the state after tokens[:, t].
        tokens: Rows of token ids.
        attend: Real tokens; the others are neither read nor counted as places.
        where: Places that are asked for; t = 0 has no state before it and gets 0.
    """
    after = critic(tokens, attend)
    assert isinstance(after, Tensor)
    before = F.pad(after[:, :-1], (0, 0, 1, 0)).to(tokens.device)  # the shift, as for the log-probabilities
    place = where.clone()
    place[:, 0] = False
    return torch.where(place[..., None], before, 0.0)


def _ask(
    model: nn.Module,
    tokens: Tensor,
    attend: Tensor,
    where: Tensor,
    wants: frozenset[str],
    reference: nn.Module | None,
    temperature: float,
    chunk: int,
) -> dict[str, Tensor]:
    """The wanted quantities at `where`, scattered back over [B, T]."""
    used = attend.any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    narrow, real = tokens[:, :width], attend[:, :width]
    asked = where[:, 1:width]
    hidden = _before(model, narrow, real, asked)
    targets = narrow[:, 1:][asked].to(hidden.device)
    logp, entropy = spoken(
        head_of(model), hidden, targets, temperature=temperature, entropy="entropy" in wants, chunk=chunk
    )
    found = {"logp": logp} if entropy is None else {"logp": logp, "entropy": entropy}
    if "kl_reference_policy" in wants and reference is not None:
        with torch.no_grad():
            other = (head_of(reference), _before(reference, narrow, real, asked))
        found["kl_reference_policy"] = against(
            head_of(model), hidden, *other, temperature=temperature, chunk=chunk
        )
    # The shift back: position t of the answer was read from the hidden state at t - 1.
    place = torch.zeros_like(where)
    place[:, 1:width] = asked
    blank = torch.zeros(tokens.shape, dtype=logp.dtype, device=tokens.device)
    return {name: blank.masked_scatter(place, x.to(tokens.device)) for name, x in found.items()}


def _before(model: nn.Module, tokens: Tensor, attend: Tensor, asked: Tensor) -> Tensor:
    """Hidden states of the tokens that stand just before the asked ones, [N, W]. This is the shift."""
    if can_pack(model) and asked.any():  # what stands from the last asked token on is nobody's predecessor
        tokens, attend = tokens[:, :-1], attend[:, :-1] & asked.flip(1).cumsum(1).flip(1).bool()
    found = states(model, tokens, attend)
    return found.flat[found.place[:, : asked.shape[1]][asked.to(found.place.device)]]


@torch.no_grad()
def probe_head(model: nn.Module, *, length: int = 6) -> None:
    """Compare our logits with the model's own on a short row.

    Args:
        model: A causal model, with or without an adapter.
        length: Tokens of the row.

    Raises:
        WiringError: They differ, so the family does something to its logits that `head_of` does not know.
    """
    device = device_of(model)
    with bare(model) as base:
        vocab = base.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(1, length + 1, device=device) % vocab)[None]
        theirs = base(input_ids=tokens, use_cache=False).logits[0]
        family = base.config.model_type
    ours = head_of(model).logits(hidden_states(model, tokens, torch.ones_like(tokens).bool())[0])
    gap = float((ours - theirs.to(ours.dtype)).abs().max())
    rounding = 4 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
    if not gap <= 1e-3 + rounding:
        raise WiringError(
            f"models of the family {family} change their logits after the head in a way unknown here "
            f"(largest difference {gap:.3g}); fix: use a family such as llama, qwen2, gemma2 or gpt2"
        )
