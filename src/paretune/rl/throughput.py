"""How fast this machine multiplies matrices: what a run's own rate is held against.

What the phases of a step had to compute, told to its clock. Counted from numbers on the host alone.
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
from paretune.reward.model import RewardModelScorer
from paretune.reward.scorers import Scorer
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.metrics import PhaseTimer
from paretune.rollout.sampler import LocalSampler, Sampler
from paretune.training.supervised import AuxiliaryData, SftTask

MATMUL_SIZE, MATMUL_SIZE_CUDA = 1024, 4096
"""Rows and columns: enough to keep a few cores, or an accelerator, busy."""
TIME_LIMIT_SECONDS = 0.15
"""Seconds after which no further product is tried."""


def matmul_throughput(
    device: torch.device, dtype: Literal["float32", "bfloat16"]
) -> dict[str, str | int | float]:
    """The best of a few products of two square matrices, with the threads and settings of this process.

    Nothing is trained with it, and nobody else's chance moves.

    Returns:
        What was measured (`device`, `dtype`, `threads`, `size`) and `flops_per_second`.
    """
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    size = MATMUL_SIZE_CUDA if device.type == "cuda" else MATMUL_SIZE
    rng = torch_generator(0, 0, "matrix rate")
    a, b = (torch.rand(size, size, generator=rng).to(device, kind) for _ in range(2))
    out, best, begin = a @ b, float("inf"), time.perf_counter()  # the first one also wakes threads up
    while best == float("inf") or time.perf_counter() - begin < TIME_LIMIT_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "size": size,
        "flops_per_second": 2 * size**3 / best,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


UNKNOWN_FLOPS = float("nan")
"""Operations that nobody can count."""


def record_rollout_flops(timer: PhaseTimer, sampler: Sampler, models: Models, batch: Batch) -> None:
    """Responses were drawn: by the sampler's own model, or by one like the policy."""
    model = sampler.policy.model if isinstance(sampler, LocalSampler) else models.policy
    tokens = int(batch.response_mask.sum())
    timer.record_work("sample", tokens=tokens, flops=forward_flops(model, generation_shape(batch)))


def scoring_flops(scorers: Sequence[Scorer]) -> float:
    """Operations of all that reward models scored so far; other scorers are taken to ask no network."""
    return sum((scorer.total_flops for scorer in scorers if isinstance(scorer, RewardModelScorer)), 0.0)


def record_model_pass_flops(
    timer: PhaseTimer, model_passes: Sequence[ModelPass], models: Models, batch: Batch
) -> None:
    """Models were asked about the rows of a batch."""
    passes = [models_in_pass(measure, models) for measure in model_passes]
    if all(found == () for found in passes):
        return
    rows = response_shape(batch)
    for found in passes:
        flops = UNKNOWN_FLOPS if found is None else sum((forward_flops(model, rows) for model in found), 0.0)
        timer.record_work("measure", flops=flops)


def models_in_pass(model_pass: ModelPass, models: Models) -> tuple[nn.Module, ...] | None:
    """The models that a measurement asks, one pass each; None of a part that is not the package's."""
    match model_pass:
        case OldLogprobs():
            return () if model_pass.source == "sampler" else (models.policy,)
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
    """An optimiser step was made on these rows.

    While the critic learns alone the policy is only asked. A divergence over the whole vocabulary asks the
    reference in the same pass.
    """
    rows, wants = response_shape(minibatch), spec.requires()
    flops = (forward_flops if step < spec.critic.warmup_steps else forward_backward_flops)(
        models.policy, rows
    )
    if "values" in wants and models.critic is not None:
        flops += forward_backward_flops(models.critic, rows)
    if "kl_reference_policy" in wants:
        flops += forward_flops(models.frozen_model("reference"), rows)
    timer.record_work("learn", tokens=int(minibatch.attention_mask.sum()), flops=flops)


def record_auxiliary_flops(timer: PhaseTimer, data: AuxiliaryData, indices: Sequence[int]) -> None:
    """Demonstrations were learnt beside them."""
    flops, task = UNKNOWN_FLOPS, data.task
    if isinstance(task, SftTask):
        lengths = [len(task.token_rows[unit]) for unit in indices]
        responses = sum(lengths) - sum(task.prompt_lengths[unit] for unit in indices)
        flops = forward_backward_flops(task.model, independent_rows_shape(lengths, responses))
    timer.record_work("learn", tokens=data.num_tokens(indices), flops=flops)
