"""The singular values of a trained adapter as the only numbers that move."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paretune.core.errors import WiringError


@dataclass(frozen=True, slots=True, eq=False)
class SvdFactors:
    """A matrix U diag(s) Vh; U and Vh are kept, since another decomposition may turn or flip them."""

    u: Float[Tensor, "m r"]
    s: Float[Tensor, " r"]
    vh: Float[Tensor, "r n"]

    def reconstruct(self, offset: Float[Tensor, " q"]) -> Float[Tensor, "m n"]:
        """The matrix with offsets added to its largest singular values, the first to the largest."""
        s = self.s.clone()
        s[: len(offset)] += offset.to(s)
        return (self.u * s) @ self.vh

    def recover_offset(self, weight: Float[Tensor, "m n"], count: int) -> Float[Tensor, " q"]:
        """The q offsets that made this weight of the matrix."""
        return (self.u.T @ weight.to(self.u) @ self.vh.T).diagonal()[:count] - self.s[:count]


def svd_factors(weight: Float[Tensor, "m n"]) -> SvdFactors:
    """The singular value decomposition, largest value first: found on the CPU in float64, kept in float32.

    A weight in float64 is kept in float64.
    """
    u, s, vh = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    keep = torch.promote_types(weight.dtype, torch.float32)
    return SvdFactors(*(part.to(weight.device, keep) for part in (u, s, vh)))


def trainable_count(rank: int, fraction: float) -> int:
    """How many singular values of each factor move: the whole part of share times rank.

    Raises:
        WiringError: The share is not in (0, 1], or none would move.
    """
    if not 0 < fraction <= 1:
        raise WiringError(f"the share of singular values that move is {fraction}; it must be in (0, 1]")
    # A product like 0.29 * 100 is a little less than the number that was meant.
    q = math.floor(fraction * rank + 1e-9)
    if q == 0:
        raise WiringError(
            f"no singular value would move: the share {fraction} of rank {rank} is less than one; "
            f"fix: a share of at least {math.ceil(1e4 / rank) / 1e4:g}, or a larger rank"
        )
    return q


@dataclass(frozen=True, slots=True, eq=False)
class LoraSvd:
    """Each factor of a LoRA adapter on its own as U diag(s + z) Vh; z is what moves.

        delta W = scaling B A,   B = U_B diag(s_B + z_B) Vh_B,   A = U_A diag(s_A + z_A) Vh_A

    z has one number for each of the q = floor(share * rank) largest singular values of every factor, factor
    by factor in the order of the model's parameters: 2 q for an adapted layer. z = 0 is the adapter as it
    was. Values may become negative; `num_negative` counts them. Save `tensors()` with the run and never decompose
    again: the signs of singular vectors are an accident.

    Source: Korotyshova et al. 2025, ESSA (arXiv:2507.04453).
    """

    factors: Mapping[str, SvdFactors]
    """By the name of the parameter."""
    trainable_counts: Mapping[str, int]
    """How many singular values of each factor move."""

    @staticmethod
    def from_model(model: nn.Module, fraction: float = 1.0) -> "LoraSvd":
        """Decompose the adapters of a model.

        Args:
            model: Has LoRA adapters that were trained, at least a little.
            fraction: Of the singular values of each factor, the largest that move.

        Raises:
            WiringError: There is no adapter, one was never trained, or no singular value would move.
        """
        factors, moves = {}, {}
        for a_name, a, b_name, b in _lora_pairs(model):
            if not b.any():
                raise WiringError(
                    f"the adapter {b_name} was never trained: it has no singular vectors to speak of; "
                    "fix: fine-tune it for a few steps before its singular values are searched"
                )
            for name, weight in ((a_name, a), (b_name, b)):
                factors[name] = svd_factors(weight)
                moves[name] = min(trainable_count(len(a), fraction), len(factors[name].s))
        if not factors:
            raise WiringError("the model has no LoRA adapter whose singular values could move")
        return LoraSvd(factors, moves)

    @property
    def num_params(self) -> int:
        """Length of z."""
        return sum(self.trainable_counts.values())

    @property
    def mean_singular_value(self) -> float:
        """Mean of the singular values that may move."""
        return float(
            torch.cat([self.factors[name].s[:q] for name, q in self.trainable_counts.items()]).double().mean()
        )

    def split_offsets(self, offsets: Float[Tensor, " N"]) -> Iterator[tuple[str, Float[Tensor, " q"]]]:
        """The offsets of every factor, by its name.

        Raises:
            WiringError: z has another length.
        """
        if len(offsets) != self.num_params:
            raise WiringError(f"{len(offsets)} offsets came for {self.num_params} singular values")
        yield from zip(
            self.trainable_counts, offsets.split(list(self.trainable_counts.values())), strict=True
        )

    @torch.no_grad()
    def apply_offsets(self, model: nn.Module, offsets: Float[Tensor, " N"]) -> None:
        """Put the offsets into the model's adapters, in place."""
        weights = dict(model.named_parameters())
        for name, offset in self.split_offsets(offsets):
            weights[name].copy_(self.factors[name].reconstruct(offset))

    @torch.no_grad()
    def read_offsets(self, model: nn.Module) -> Float[Tensor, " N"]:
        """The offsets that are in the model's adapters."""
        weights = dict(model.named_parameters())
        return torch.cat(
            [self.factors[name].recover_offset(weights[name], q) for name, q in self.trainable_counts.items()]
        )

    def num_negative(self, offsets: Float[Tensor, " N"]) -> int:
        """How many singular values the offsets turn negative."""
        return sum(
            int((self.factors[k].s[: len(o)] + o.to(self.factors[k].s) < 0).sum())
            for k, o in self.split_offsets(offsets)
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file of tensors."""
        return {
            f"{name}/{part}": value
            for name, factor in self.factors.items()
            for part, value in (
                ("u", factor.u),
                ("s", factor.s),
                ("vh", factor.vh),
                ("moves", torch.tensor(self.trainable_counts[name])),
            )
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], factor_names: tuple[str, ...]) -> "LoraSvd":
        """What `to_tensors` gave; `factor_names` has the names of the factors in the order of z."""
        factors = {
            k: SvdFactors(*(tensors[f"{k}/{part}"] for part in ("u", "s", "vh"))) for k in factor_names
        }
        return LoraSvd(factors, {k: int(tensors[f"{k}/moves"]) for k in factor_names})


def _lora_pairs(model: nn.Module) -> Iterator[tuple[str, Tensor, str, Tensor]]:
    """Name and weight of A and of B, adapter by adapter."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            yield name, weight, other, weights[other]
