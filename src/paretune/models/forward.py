"""Tokens to log-probabilities. The only one-token shift of the package, and the float32 head.

Every answer is aligned to the tokens it speaks of and lies on their device, wherever the model is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.models.adapt import bare, inside

CHUNK = 2048
"""Tokens whose logits exist at one time."""


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
        return x if self.cap is None else self.cap * torch.tanh(x / self.cap)


def head_of(model: nn.Module) -> Head:
    """The head of a causal model, with the scaling its family applies; `probe_head` checks it."""
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


def device_of(model: nn.Module) -> torch.device:
    """Where the model's input goes."""
    device = inside(model).get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return device


def positions(attend: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Each real token's place in its row, counted from 0, wherever the padding is."""
    return (attend.long().cumsum(-1) - 1).clamp(min=0)


def hidden_states(
    model: nn.Module, tokens: Int[Tensor, "B T"], attend: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T W"]:
    """The body's last hidden states, on the model's device; at padding they mean nothing."""
    device = device_of(model)
    tokens, attend = tokens.to(device), attend.to(device)
    with bare(model) as base:
        out = base.base_model(
            input_ids=tokens, attention_mask=attend.long(), position_ids=positions(attend), use_cache=False
        )
    hidden = out.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


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
    narrow, real, asked = tokens[:, :width], attend[:, :width], where[:, 1:width]
    hidden = _before(model, narrow, real, asked)
    against = None
    if "kl_reference_policy" in wants and reference is not None:
        with torch.no_grad():
            against = (head_of(reference), _before(reference, narrow, real, asked).split(chunk))
    targets = narrow[:, 1:][asked].to(hidden.device)
    columns = _chunked(head_of(model), hidden.split(chunk), targets.split(chunk), wants, against, temperature)
    # The shift back: position t of the answer was read from the hidden state at t - 1.
    place = torch.zeros_like(where)
    place[:, 1:width] = asked
    names = ("logp", *sorted(wants))
    values = columns.to(tokens.device)
    blank = torch.zeros(tokens.shape, dtype=values.dtype, device=tokens.device)
    return {name: blank.masked_scatter(place, values[:, i]) for i, name in enumerate(names)}


def _before(model: nn.Module, tokens: Tensor, attend: Tensor, asked: Tensor) -> Tensor:
    """Hidden states of the tokens that stand just before the asked ones, [N, W]. This is the shift."""
    hidden = hidden_states(model, tokens, attend)
    return hidden[:, :-1][asked.to(hidden.device)]


def _chunked(
    head: Head,
    hidden: Sequence[Tensor],
    targets: Sequence[Tensor],
    wants: frozenset[str],
    against: tuple[Head, Sequence[Tensor]] | None,
    temperature: float,
) -> Tensor:
    """Columns (logp, wants in order) for all tokens; logits of one chunk at a time, also going back."""
    again = len(hidden) > 1 and torch.is_grad_enabled()
    parts = []
    for i, (h, target) in enumerate(zip(hidden, targets, strict=True)):
        other = None if against is None else (against[0], against[1][i])
        arguments: tuple[Any, ...] = (head, h, target, wants, other, temperature)
        parts.append(checkpoint(_columns, *arguments, use_reentrant=False) if again else _columns(*arguments))
    return torch.cat(parts)


def _columns(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    wants: frozenset[str],
    against: tuple[Head, Tensor] | None,
    temperature: float,
) -> Tensor:
    """One chunk: [N, 1 + len(wants)]."""
    logp = log_distribution(head, hidden, temperature)
    columns = {"logp": logp.gather(-1, targets[:, None]).squeeze(-1)}
    if "entropy" in wants:
        columns["entropy"] = -(logp.exp() * logp).sum(-1)
    if against is not None:
        other = log_distribution(*against, temperature)
        columns["kl_reference_policy"] = (other.exp() * (other - logp)).sum(-1)
    return torch.stack([columns[name] for name in ("logp", *sorted(wants))], -1)


def log_distribution(head: Head, hidden: Float[Tensor, "N W"], temperature: float) -> Float[Tensor, "N V"]:
    """Log softmax(logits / temperature): the one convention of sampler and trainer."""
    return (head.logits(hidden) / temperature).log_softmax(-1)


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
