"""Singular values of a trained LoRA adapter as the only tunable parameters (ESSA)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paretune.core.errors import WiringError


@dataclass(frozen=True, slots=True, eq=False)
class SvdFactors:
    """A matrix U diag(s) Vh. U and Vh are stored: a new decomposition may rotate or flip singular vectors."""

    u: Float[Tensor, "m r"]
    s: Float[Tensor, " r"]
    vh: Float[Tensor, "r n"]

    def reconstruct(self, offset: Float[Tensor, " q"]) -> Float[Tensor, "m n"]:
        """The matrix with offsets added to its q largest singular values, in descending order."""
        s = self.s.clone()
        s[: len(offset)] += offset.to(s)
        return (self.u * s) @ self.vh

    def recover_offset(self, weight: Float[Tensor, "m n"], count: int) -> Float[Tensor, " q"]:
        """The offsets of the `count` largest singular values from which `weight` was reconstructed."""
        return (self.u.T @ weight.to(self.u) @ self.vh.T).diagonal()[:count] - self.s[:count]


def svd_factors(weight: Float[Tensor, "m n"]) -> SvdFactors:
    """Singular value decomposition, largest value first; computed on the CPU in float64, stored in float32.

    A float64 weight is stored in float64.
    """
    # On the CPU in float64, so that the factors do not depend on the run's device and precision.
    u, s, vh = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return SvdFactors(*(factor.to(weight.device, dtype) for factor in (u, s, vh)))


def trainable_count(rank: int, fraction: float) -> int:
    """Number of trainable singular values per factor: floor(fraction * rank).

    Raises:
        WiringError: The fraction is not in (0, 1], or the number is 0.
    """
    if not 0 < fraction <= 1:
        raise WiringError(f"the fraction of trainable singular values is {fraction}; it must be in (0, 1]")
    # Floating point: 0.29 * 100 is 28.999..., but 29 is meant.
    q = math.floor(fraction * rank + 1e-9)
    if q == 0:
        raise WiringError(
            f"no singular value would be trainable: the fraction {fraction} of rank {rank} is less than one; "
            f"fix: a fraction of at least {math.ceil(1e4 / rank) / 1e4:g}, or a larger rank"
        )
    return q


@dataclass(frozen=True, slots=True, eq=False)
class LoraSvd:
    """Each factor of a LoRA adapter as U diag(s + z) Vh; z holds the tunable offsets.

        delta W = scaling B A,   B = U_B diag(s_B + z_B) Vh_B,   A = U_A diag(s_A + z_A) Vh_A

    z has one entry for each of the q = floor(fraction * rank) largest singular values of every factor, factor
    by factor in the order of the model's parameters: 2 q per layer with an adapter. z = 0 is the unchanged
    adapter. Values may become negative; `num_negative` counts them. Save `to_tensors()` with the run instead
    of decomposing again: the signs of singular vectors are arbitrary.

    Source: Korotyshova et al. 2025, ESSA (arXiv:2507.04453).
    """

    factors: Mapping[str, SvdFactors]
    """Decompositions by parameter name."""
    trainable_counts: Mapping[str, int]
    """Number of trainable singular values by parameter name."""

    @staticmethod
    def from_model(model: nn.Module, fraction: float = 1.0) -> "LoraSvd":
        """Decompose the adapters of a model.

        Args:
            model: A model whose LoRA adapters have been trained for at least a few steps.
            fraction: Fraction of the singular values of each factor, largest first, that are trainable.

        Raises:
            WiringError: No adapter, an untrained adapter, or no trainable singular value.
        """
        factors, counts = {}, {}
        for a_name, a, b_name, b in _lora_pairs(model):
            if not b.any():
                raise WiringError(
                    f"the adapter {b_name} is untrained: B = 0 has no singular vectors; "
                    "fix: fine-tune it for a few steps before its singular values are searched"
                )
            for name, weight in ((a_name, a), (b_name, b)):
                factors[name] = svd_factors(weight)
                # A layer narrower than the rank has fewer singular values than the rank.
                counts[name] = min(trainable_count(len(a), fraction), len(factors[name].s))
        if not factors:
            raise WiringError("the model has no LoRA adapter; fix: set policy.lora, and train it first")
        return LoraSvd(factors, counts)

    @property
    def num_params(self) -> int:
        """Length of z."""
        return sum(self.trainable_counts.values())

    @property
    def mean_singular_value(self) -> float:
        """Mean of the trainable singular values at z = 0."""
        return float(
            torch.cat([self.factors[name].s[:q] for name, q in self.trainable_counts.items()]).double().mean()
        )

    def split_offsets(self, offsets: Float[Tensor, " N"]) -> Iterator[tuple[str, Float[Tensor, " q"]]]:
        """Pairs of parameter name and offsets of that factor.

        Raises:
            WiringError: z has the wrong length.
        """
        if len(offsets) != self.num_params:
            raise WiringError(f"got {len(offsets)} offsets for {self.num_params} trainable singular values")
        yield from zip(
            self.trainable_counts, offsets.split(list(self.trainable_counts.values())), strict=True
        )

    @torch.no_grad()
    def apply_offsets(self, model: nn.Module, offsets: Float[Tensor, " N"]) -> None:
        """Write the adapters with these offsets into the model, in place."""
        weights = dict(model.named_parameters())
        for name, offset in self.split_offsets(offsets):
            weights[name].copy_(self.factors[name].reconstruct(offset))

    @torch.no_grad()
    def read_offsets(self, model: nn.Module) -> Float[Tensor, " N"]:
        """The offsets of the model's current adapters."""
        weights = dict(model.named_parameters())
        return torch.cat(
            [self.factors[name].recover_offset(weights[name], q) for name, q in self.trainable_counts.items()]
        )

    def num_negative(self, offsets: Float[Tensor, " N"]) -> int:
        """Number of singular values that become negative with these offsets."""
        return sum(
            int((self.factors[name].s[: len(z)] + z.to(self.factors[name].s) < 0).sum())
            for name, z in self.split_offsets(offsets)
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """All fields as named tensors, for a safetensors file."""
        return {
            f"{name}/{field}": value
            for name, factor in self.factors.items()
            for field, value in (
                ("u", factor.u),
                ("s", factor.s),
                ("vh", factor.vh),
                ("trainable_count", torch.tensor(self.trainable_counts[name])),
            )
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], factor_names: tuple[str, ...]) -> "LoraSvd":
        """Inverse of `to_tensors`; `factor_names` lists the parameter names in the order of z.

        The order is an argument because files of tensors are sorted by name.
        """
        factors = {
            name: SvdFactors(*(tensors[f"{name}/{field}"] for field in ("u", "s", "vh")))
            for name in factor_names
        }
        return LoraSvd(factors, {name: int(tensors[f"{name}/trainable_count"]) for name in factor_names})


def _lora_pairs(model: nn.Module) -> Iterator[tuple[str, Tensor, str, Tensor]]:
    """Name and weight of A, then of B, per adapted layer."""
    weights = dict(model.named_parameters())
    for a_name, a in weights.items():
        if ".lora_A." in a_name:
            b_name = a_name.replace(".lora_A.", ".lora_B.")
            yield a_name, a, b_name, weights[b_name]
