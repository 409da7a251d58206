"""FLOP counts of the phases of a step, and the matmul throughput that they are compared with.

The counts are computed on the host from shapes alone; nothing waits for an accelerator.
"""

import time
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from paretune.core.batch import Batch
from paretune.core.rng import torch_generator
from paretune.models.flops import (
    forward_backward_flops,
    forward_flops,
    generation_shape,
    independent_rows_shape,
    response_shape,
)
from paretune.models.model_passes import (
    CriticValues,
    ImplicitReward,
    ModelPass,
    Models,
    OldLogprobs,
    PolicyEntropy,
    RefLogprobs,
)
from paretune.reward.scorers import Scorer
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.metrics import PhaseTimer
from paretune.rollout.distributed import DistributedSampler
from paretune.rollout.sampler import LocalSampler, Sampler
from paretune.training.supervised import AuxiliaryData, SftTask

MATMUL_SIZE, MATMUL_SIZE_CUDA = 1024, 4096
"""Rows and columns: large enough to keep a few cores, or an accelerator, busy."""
TIME_LIMIT_SECONDS = 0.15
"""Seconds after which no further product is started."""


def matmul_throughput(
    device: torch.device, dtype: Literal["float32", "bfloat16"]
) -> dict[str, str | int | float]:
    """The fastest of a few products of two square matrices, with the threads and settings of this process.

    The matrices come from their own generator, so that the random draws of a run do not change.

    Returns:
        The setting (`device`, `dtype`, `num_threads`, `matrix_size`) and `flops_per_second`.
    """
    torch_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    size = MATMUL_SIZE_CUDA if device.type == "cuda" else MATMUL_SIZE
    rng = torch_generator(0, 0, "matrix rate")
    # Drawn on the CPU: a generator of the same seed gives other numbers on an accelerator.
    a, b = (torch.rand(size, size, generator=rng).to(device, torch_dtype) for _ in range(2))
    # The first product is not measured: it starts threads and allocates the output.
    out, best, begin = a @ b, float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < TIME_LIMIT_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype,
        "num_threads": torch.get_num_threads(),
        "matrix_size": size,
        "flops_per_second": 2 * size**3 / best,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


UNKNOWN_FLOPS = float("nan")
"""FLOPs of a part that is not the package's own, and so cannot be counted."""


def record_rollout_flops(timer: PhaseTimer, sampler: Sampler, models: Models, batch: Batch) -> None:
    """Count the sampling of responses, by the sampler's own model or by one like the policy."""
    inner = sampler.sampler if isinstance(sampler, DistributedSampler) else sampler
    model = inner.policy.model if isinstance(inner, LocalSampler) else models.policy
    tokens = int(batch.response_mask.sum())
    timer.record_work("rollout", tokens=tokens, flops=forward_flops(model, generation_shape(batch)))


def scoring_flops(scorers: Sequence[Scorer]) -> float:
    """FLOPs of all scores so far, of the scorers that count them: those with a network here."""
    return sum((float(getattr(scorer, "total_flops", 0.0)) for scorer in scorers), 0.0)


def record_model_pass_flops(
    timer: PhaseTimer, model_passes: Sequence[ModelPass], models: Models, batch: Batch
) -> None:
    """Count the forward passes without gradient on the rows of a batch."""
    used = [models_in_pass(model_pass, models) for model_pass in model_passes]
    if all(each == () for each in used):
        return
    rows = response_shape(batch)
    for each in used:
        flops = UNKNOWN_FLOPS if each is None else sum((forward_flops(model, rows) for model in each), 0.0)
        timer.record_work("model_passes", flops=flops)


def models_in_pass(model_pass: ModelPass, models: Models) -> tuple[nn.Module, ...] | None:
    """The models of a model pass, one forward pass each; None for a pass that is not the package's own."""
    match model_pass:
        case OldLogprobs():
            return () if model_pass.source == "rollout" else (models.policy,)
        case RefLogprobs():
            return (models.frozen_model(model_pass.role),)
        case ImplicitReward():
            return models.frozen_model(model_pass.tuned_role), models.frozen_model(model_pass.reference_role)
        case CriticValues():
            return () if models.critic is None else (models.critic,)
        case PolicyEntropy():
            return (models.policy,)
        case _:
            return None


def record_update_flops(
    timer: PhaseTimer, spec: AlgorithmSpec, models: Models, minibatch: Batch, step: int
) -> None:
    """Count the passes of an optimizer step on these rows.

    During the critic's warm-up the policy has a forward pass only. KL over the whole vocabulary also needs a
    forward pass of the reference.
    """
    rows, wants = response_shape(minibatch), spec.requires()
    flops = (forward_flops if step < spec.critic.warmup_steps else forward_backward_flops)(
        models.policy, rows
    )
    if "values" in wants and models.critic is not None:
        flops += forward_backward_flops(models.critic, rows)
    if "ref_policy_kl" in wants:
        flops += forward_flops(models.frozen_model("reference"), rows)
    timer.record_work("update", tokens=int(minibatch.attention_mask.sum()), flops=flops)


def record_auxiliary_flops(timer: PhaseTimer, data: AuxiliaryData, indices: Sequence[int]) -> None:
    """Count the passes of the auxiliary loss on these demonstrations."""
    flops, task = UNKNOWN_FLOPS, data.task
    if isinstance(task, SftTask):
        lengths = [len(task.token_rows[index]) for index in indices]
        num_response_tokens = sum(lengths) - sum(task.prompt_lengths[index] for index in indices)
        flops = forward_backward_flops(task.model, independent_rows_shape(lengths, num_response_tokens))
    timer.record_work("update", tokens=data.num_tokens(indices), flops=flops)
