"""The singular values of a trained adapter as the only numbers that move."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paretune.errors import WiringError


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """A matrix U diag(s) Vh; U and Vh are kept, since another decomposition may turn or flip them."""

    u: Float[Tensor, "m r"]
    s: Float[Tensor, " r"]
    vh: Float[Tensor, "r n"]

    def moved(self, offset: Float[Tensor, " q"]) -> Float[Tensor, "m n"]:
        """The matrix with offsets added to its largest singular values, the first to the largest."""
        s = self.s.clone()
        s[: len(offset)] += offset.to(s)
        return (self.u * s) @ self.vh

    def offset(self, weight: Float[Tensor, "m n"], q: int) -> Float[Tensor, " q"]:
        """The q offsets that made this weight of the matrix."""
        return (self.u.T @ weight.to(self.u) @ self.vh.T).diagonal()[:q] - self.s[:q]


def spectrum(weight: Float[Tensor, "m n"]) -> Spectrum:
    """The singular value decomposition, largest value first: found on the CPU in float64, kept in float32.

    A weight in float64 is kept in float64.
    """
    u, s, vh = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    keep = torch.promote_types(weight.dtype, torch.float32)
    return Spectrum(*(part.to(weight.device, keep) for part in (u, s, vh)))


def num_moved(rank: int, share: float) -> int:
    """How many singular values of each factor move: the whole part of share times rank.

    Raises:
        WiringError: The share is not in (0, 1], or none would move.
    """
    if not 0 < share <= 1:
        raise WiringError(f"the share of singular values that move is {share}; it must be in (0, 1]")
    # A product like 0.29 * 100 is a little less than the number that was meant.
    q = math.floor(share * rank + 1e-9)
    if q == 0:
        raise WiringError(
            f"no singular value would move: the share {share} of rank {rank} is less than one; "
            f"fix: a share of at least {math.ceil(1e4 / rank) / 1e4:g}, or a larger rank"
        )
    return q


@dataclass(frozen=True, slots=True, eq=False)
class SingularLora:
    """Each factor of a LoRA adapter on its own as U diag(s + z) Vh; z is what moves.

        delta W = scaling B A,   B = U_B diag(s_B + z_B) Vh_B,   A = U_A diag(s_A + z_A) Vh_A

    z has one number for each of the q = floor(share * rank) largest singular values of every factor, factor
    by factor in the order of the model's parameters: 2 q for an adapted layer. z = 0 is the adapter as it
    was. Values may become negative; `flipped` counts them. Save `tensors()` with the run and never decompose
    again: the signs of singular vectors are an accident.

    Source: Korotyshova et al. 2025, ESSA (arXiv:2507.04453).
    """

    factors: Mapping[str, Spectrum]
    """By the name of the parameter."""
    moves: Mapping[str, int]
    """How many singular values of each factor move."""

    @staticmethod
    def of(model: nn.Module, share: float = 1.0) -> "SingularLora":
        """Decompose the adapters of a model.

        Args:
            model: Has LoRA adapters that were trained, at least a little.
            share: Of the singular values of each factor, the largest that move.

        Raises:
            WiringError: There is no adapter, one was never trained, or no singular value would move.
        """
        factors, moves = {}, {}
        for a_name, a, b_name, b in _pairs(model):
            if not b.any():
                raise WiringError(
                    f"the adapter {b_name} was never trained: it has no singular vectors to speak of; "
                    "fix: fine-tune it for a few steps before its singular values are searched"
                )
            for name, weight in ((a_name, a), (b_name, b)):
                factors[name] = spectrum(weight)
                moves[name] = min(num_moved(len(a), share), len(factors[name].s))
        if not factors:
            raise WiringError("the model has no LoRA adapter whose singular values could move")
        return SingularLora(factors, moves)

    @property
    def size(self) -> int:
        """Length of z."""
        return sum(self.moves.values())

    @property
    def scale(self) -> float:
        """Mean of the singular values that may move."""
        return float(torch.cat([self.factors[name].s[:q] for name, q in self.moves.items()]).double().mean())

    def split(self, z: Float[Tensor, " N"]) -> Iterator[tuple[str, Float[Tensor, " q"]]]:
        """The offsets of every factor, by its name.

        Raises:
            WiringError: z has another length.
        """
        if len(z) != self.size:
            raise WiringError(f"{len(z)} offsets came for {self.size} singular values")
        yield from zip(self.moves, z.split(list(self.moves.values())), strict=True)

    @torch.no_grad()
    def write(self, model: nn.Module, z: Float[Tensor, " N"]) -> None:
        """Put the offsets into the model's adapters, in place."""
        weights = dict(model.named_parameters())
        for name, offset in self.split(z):
            weights[name].copy_(self.factors[name].moved(offset))

    @torch.no_grad()
    def read(self, model: nn.Module) -> Float[Tensor, " N"]:
        """The offsets that are in the model's adapters."""
        weights = dict(model.named_parameters())
        return torch.cat([self.factors[name].offset(weights[name], q) for name, q in self.moves.items()])

    def flipped(self, z: Float[Tensor, " N"]) -> int:
        """How many singular values the offsets turn negative."""
        return sum(
            int((self.factors[k].s[: len(o)] + o.to(self.factors[k].s) < 0).sum()) for k, o in self.split(z)
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file of tensors."""
        return {
            f"{name}/{part}": value
            for name, factor in self.factors.items()
            for part, value in (
                ("u", factor.u),
                ("s", factor.s),
                ("vh", factor.vh),
                ("moves", torch.tensor(self.moves[name])),
            )
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], order: tuple[str, ...]) -> "SingularLora":
        """What `tensors` gave; `order` has the names of the factors in the order of z."""
        factors = {k: Spectrum(*(tensors[f"{k}/{part}"] for part in ("u", "s", "vh"))) for k in order}
        return SingularLora(factors, {k: int(tensors[f"{k}/moves"]) for k in order})


def _pairs(model: nn.Module) -> Iterator[tuple[str, Tensor, str, Tensor]]:
    """Name and weight of A and of B, adapter by adapter."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            yield name, weight, other, weights[other]
