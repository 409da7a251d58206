"""Averages of model weights (model merging, also known as model soups)."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.reductions import masked_mean
from paretune.core.types import PeftModel
from paretune.models.model_passes import response_logprobs

StateDict = Mapping[str, Tensor]
"""Tensors by name, as `state_dict` returns them."""


def weighted_average(members: Sequence[Float[Tensor, "*n"]], weights: Sequence[float]) -> Float[Tensor, "*n"]:
    """Sum of w_i x_i, computed in float64 and returned in the members' dtype.

    The average of equal members, or one with a single weight of 1, is exact to the bit.
    """
    # Differences from the member with the largest weight: they are exactly 0 where members are equal, and the
    # sum is exactly that member if its weight is 1.
    base = max(range(len(weights)), key=lambda i: weights[i])
    start = members[base].double()
    average = start
    for x, w in zip(members, weights, strict=True):
        if w != 0:
            average = average + w * (x.double() - start)
    return average.to(members[base].dtype)


def merge_models(models: Sequence[nn.Module], weights: Sequence[float]) -> Any:
    """A new model with the weighted average of the weights of models fine-tuned from the same model.

    Members with an adapter enter with their adapter merged in float32, so that adapters are averaged by their
    products B A and not by their factors; the result has no adapter. The members are not modified.

    Args:
        models: Models of the same architecture and vocabulary.
        weights: One weight per member; they sum to 1.

    Raises:
        WiringError: The weights do not sum to 1, or the members differ in names, shapes or integer tensors.

    Source: Chegini et al. 2024, SALSA (arXiv:2411.01798); Rame et al. 2023, rewarded soups
    (arXiv:2306.04488).
    """
    merged_members = [_merge_adapter(model) for model in models]
    average = merge_state_dicts([model.state_dict() for model in merged_members], weights)
    out = copy.deepcopy(merged_members[0])
    out.load_state_dict(average)
    return out


@torch.no_grad()
def logprob_drop(merged: nn.Module, member: nn.Module, batch: Batch, *, rows_per_pass: int = 32) -> float:
    """Mean drop in log-probability per token, in nats, of a member's responses under the merged model.

    Near 0 where the members were fine-tuned from the same weights. Members of other origin may compute the
    same function and still have an average that models no language.

    Args:
        merged: The merged model.
        member: The member that generated the responses.
        batch: The responses.
        rows_per_pass: Rows per forward pass; affects memory only.
    """
    logprobs = (response_logprobs(model, batch, rows_per_pass=rows_per_pass) for model in (member, merged))
    under_member, under_merged = (float(masked_mean(x, batch.response_mask)) for x in logprobs)
    return under_member - under_merged


def merge_state_dicts(members: Sequence[StateDict], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted average of the tensors of models without adapters, theta = sum of w_i theta_i.

    Integer tensors cannot be averaged and must be equal in all members.

    Raises:
        WiringError: The weights do not sum to 1, or the members differ in names, shapes or integer tensors,
            or have LoRA adapters.
    """
    _check_mergeable(members, weights)
    if any(".lora_A." in name for name in members[0]):
        # The average of products B A is not the product of averaged factors.
        raise WiringError(
            "the members to merge have LoRA adapters, whose factors cannot be averaged; "
            "fix: merge each adapter into its base model first (merge_models does)"
        )
    return {name: _average_tensor(name, [m[name] for m in members], weights) for name in members[0]}


def _merge_adapter(model: nn.Module) -> nn.Module:
    if not isinstance(model, PeftModel):
        return model
    merged: Any = copy.deepcopy(model).float()
    return merged.merge_and_unload()


def _average_tensor(name: str, members: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if members[0].is_floating_point():
        return weighted_average(members, weights)
    if not all(torch.equal(members[0], other) for other in members[1:]):
        raise WiringError(
            f'cannot merge: the integer tensor "{name}" differs between the models; '
            "fix: merge models trained from the same initial policy"
        )
    return members[0].clone()


def _check_mergeable(members: Sequence[StateDict], weights: Sequence[float]) -> None:
    if not members or len(members) != len(weights):
        raise WiringError(
            f"cannot merge {len(members)} models with {len(weights)} weights; fix: one weight each"
        )
    if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
        raise WiringError(f"the merge weights sum to {math.fsum(weights):g}; fix: make the sum 1")
    for i, other in enumerate(members[1:], 2):
        unshared = members[0].keys() ^ other.keys()
        if unshared:
            raise WiringError(
                f'cannot merge: model {i} has another architecture than the first ("{min(unshared)}" is in '
                "only one of them); fix: merge models trained from the same initial policy"
            )
        for name, x in members[0].items():
            if x.shape != other[name].shape:
                raise WiringError(
                    f'cannot merge: "{name}" has shape {tuple(other[name].shape)} in model {i} and '
                    f"{tuple(x.shape)} in the first; fix: merge models trained from the same initial policy"
                )
