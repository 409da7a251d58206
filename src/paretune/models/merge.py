"""Averages of weights: of whole models, and of LoRA adapters by their products."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.reductions import masked_mean
from paretune.core.types import PeftModel
from paretune.models.model_passes import response_logprobs

StateDict = Mapping[str, Tensor]
"""Tensors by name, as `state_dict` gives them."""


def weighted_average(members: Sequence[Float[Tensor, "*n"]], weights: Sequence[float]) -> Float[Tensor, "*n"]:
    """The sum of w_i x_i, in float64 and back; equal members give themselves, and so does a weight of 1."""
    # From the heaviest member on, so that rounding moves nothing where there is nothing to average.
    base = max(range(len(weights)), key=lambda i: weights[i])
    start = members[base].double()
    moved = start
    for x, w in zip(members, weights, strict=True):
        if w != 0:
            moved = moved + w * (x.double() - start)
    return moved.to(members[base].dtype)


def merge_models(models: Sequence[nn.Module], weights: Sequence[float]) -> Any:
    """A new model whose weights are the weighted average of models that grew from one start.

    An adapted member counts with its adapter merged in float32, so that what is averaged of adapters is their
    products; the soup is a plain model. The members stay as they are.

    Args:
        models: Of one architecture and one vocabulary.
        weights: One a member; they sum to 1.

    Raises:
        WiringError: The weights do not sum to 1, or the members differ in names, shapes or integers.

    Source: Chegini et al. 2024, SALSA (arXiv:2411.01798); Rame et al. 2023, rewarded soups
    (arXiv:2306.04488).
    """
    whole = [_merge_adapter(model) for model in models]
    blend = merge_state_dicts([model.state_dict() for model in whole], weights)
    out = copy.deepcopy(whole[0])
    out.load_state_dict(blend)
    return out


@torch.no_grad()
def logprob_drop(merged: nn.Module, member: nn.Module, batch: Batch, *, rows_per_pass: int = 32) -> float:
    """Nats a token by which responses are less likely under an average than under the member that wrote them.

    Near 0 where the members grew from the same weights. Members that did not may answer alike and still have
    an average that is no model of language.

    Args:
        merged: The average.
        member: The member that wrote the responses.
        batch: The responses.
        rows_per_pass: Asked at one time; changes memory only.
    """
    asked = (response_logprobs(model, batch, rows_per_pass=rows_per_pass) for model in (member, merged))
    own, under = (float(masked_mean(logp, batch.response_mask)) for logp in asked)
    return own - under


def merge_state_dicts(members: Sequence[StateDict], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted average of the tensors of whole models, theta = sum of w_i theta_i.

    Tensors that are no numbers to be averaged (integers) must be the same in all. LoRA adapters have
    `lora_soup`: the average of factors is not a factor of the average.

    Raises:
        WiringError: The weights do not sum to 1, or the members differ in names, shapes or integers, or have
            LoRA adapters.
    """
    _check_mergeable(members, weights)
    if any(".lora_A." in name for name in members[0]):
        raise WiringError("the members have LoRA adapters, whose factors must not be averaged: use lora_soup")
    return {name: _average_tensor(name, [m[name] for m in members], weights) for name in members[0]}


@dataclass(frozen=True, slots=True, eq=False)
class MergedLora:
    """An adapter whose product is the average of others' products."""

    tensors: dict[str, Tensor]
    rank: int
    """Of the new adapter, whose `alpha` is the same number: its scaling is 1."""
    truncation_error: float
    """The largest share of an average's norm that the rank cuts off; 0 without a cut."""


def merge_loras(
    members: Sequence[StateDict], weights: Sequence[float], scalings: Sequence[float], rank: int | None = None
) -> MergedLora:
    """The average of adapters by their products: delta W = sum of w_i scaling_i B_i A_i.

    Without `rank` it is exact, and has the sum of the members' ranks: factors side by side. With `rank` each
    average is cut to its largest singular values, which is the nearest matrix of that rank. Anything beside
    the adapters, such as a scoring head, is averaged as it is.

    Args:
        members: Tensors of the adapters by name, ".lora_A." and ".lora_B." in pairs.
        weights: One a member; they sum to 1.
        scalings: alpha / r of every member.
        rank: Of the new adapter; the sum of the ranks when not given.

    Raises:
        WiringError: The weights do not sum to 1, the members differ in names or shapes, or there is no
            adapter.

    Source: Rame et al. 2023, rewarded soups (arXiv:2306.04488). Differs: its code averages the factors, which
    adds products of one member's B with another's A.
    """
    _check_mergeable(members, weights, ranks_differ=True)
    if len(scalings) != len(members):
        raise WiringError(f"{len(members)} adapters came with {len(scalings)} scalings")
    pairs = {name: name.replace(".lora_A.", ".lora_B.") for name in members[0] if ".lora_A." in name}
    if not pairs:
        raise WiringError("the members have no LoRA adapter: use soup_states")
    out: dict[str, Tensor] = {}
    lost = 0.0
    for a_name, b_name in pairs.items():
        factors = [(m[b_name].double(), m[a_name].double()) for m in members]
        b, a = concat_factors(factors, [w * s for w, s in zip(weights, scalings, strict=True)])
        if rank is not None:
            b, a, share = truncate_rank(b, a, rank)
            lost = max(lost, share)
        out[b_name], out[a_name] = b.to(members[0][b_name].dtype), a.to(members[0][a_name].dtype)
    for name in members[0].keys() - out.keys():
        out[name] = _average_tensor(name, [m[name] for m in members], weights)
    whole = sum(m[next(iter(pairs))].shape[0] for m in members)
    return MergedLora(out, whole if rank is None else rank, lost)


def concat_factors(
    factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> tuple[Float[Tensor, "m R"], Float[Tensor, "R n"]]:
    """B and A of rank R, the sum of the ranks, with B A = sum of w_i B_i A_i exactly."""
    b = torch.cat([w * b for (b, _), w in zip(factors, weights, strict=True)], 1)
    return b, torch.cat([a for _, a in factors])


def truncate_rank(
    b: Float[Tensor, "m R"], a: Float[Tensor, "R n"], rank: int
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"], float]:
    """The nearest product of this rank, shared evenly by both factors, and the share of the norm it loses.

    By way of small matrices: the product itself is never made. A rank beyond that of the product is filled
    with zeros, so that the factors have the shape that was asked for.

    Raises:
        WiringError: The rank is less than 1.

    Source: Eckart and Young 1936.
    """
    if rank < 1:
        raise WiringError(f"the rank of an averaged adapter is {rank}; it must be at least 1")
    left, right = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T)
    size = float(s.norm())
    lost = float(s[rank:].norm()) / size if size > 0 else 0.0
    root, k = s[:rank].sqrt(), min(rank, len(s))
    fill = rank - k
    new_b = F.pad(left.Q @ u[:, :k] * root, (0, fill))
    new_a = F.pad(root[:, None] * (vh[:k] @ right.Q.T), (0, 0, 0, fill))
    return new_b, new_a, lost


def _merge_adapter(model: nn.Module) -> nn.Module:
    if not isinstance(model, PeftModel):
        return model
    whole: Any = copy.deepcopy(model).float()
    return whole.merge_and_unload()


def _average_tensor(name: str, members: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if members[0].is_floating_point():
        return weighted_average(members, weights)
    if not all(torch.equal(members[0], other) for other in members[1:]):
        raise WiringError(f'the tensor "{name}" has no fractions and differs between the members')
    return members[0].clone()


def _check_mergeable(
    members: Sequence[StateDict], weights: Sequence[float], ranks_differ: bool = False
) -> None:
    if not members or len(members) != len(weights):
        raise WiringError(f"{len(members)} members came with {len(weights)} weights")
    if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
        raise WiringError(f"the weights of a soup sum to {math.fsum(weights):g}; fix: make the sum 1")
    for i, other in enumerate(members[1:], 2):
        apart = members[0].keys() ^ other.keys()
        if apart:
            raise WiringError(
                f'member {i} of the soup is of another kind: "{min(apart)}" is in one of the two'
            )
        for name, x in members[0].items():
            free = {".lora_A.": 0, ".lora_B.": 1} if ranks_differ else {}
            axis = next((v for k, v in free.items() if k in name), None)
            if _shape_without(x, axis) != _shape_without(other[name], axis):
                raise WiringError(
                    f'member {i} of the soup is of another size: "{name}" is {tuple(other[name].shape)}, '
                    f"in the first {tuple(x.shape)}"
                )


def _shape_without(x: Tensor, skip_axis: int | None) -> tuple[int, ...]:
    """The shape, but for one axis."""
    return tuple(n for axis, n in enumerate(x.shape) if axis != skip_axis)
