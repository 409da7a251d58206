"""Seconds of a training step by phase: operations, bytes of memory and of the network, each at its rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from paretune.models.flops import ForwardShape
from paretune.models.model_size import ModelSize
from paretune.models.sharding import ShardingMode
from paretune.plan.devices import (
    BANDWIDTH_FRACTION,
    COLLECTIVE_SECONDS,
    LAYER_OVERHEAD_SECONDS,
    Device,
)
from paretune.plan.workload import Workload

ROW_BYTES_PER_TOKEN = 30
"""Bytes of a token of a row that every rank receives: its id, masks, and four numbers of 4 bytes."""


@dataclass(frozen=True, kw_only=True)
class PhaseSeconds:
    """Seconds of a phase, and the rate that bounds it."""

    seconds: float
    bound: str
    """"compute", "memory", "launches" or "network"."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step."""

    phases: Mapping[str, PhaseSeconds]
    overlaps: bool = False
    """The rollout runs beside all other phases."""

    @property
    def total(self) -> float:
        """Of all phases, one after the other, or of the rollout if it takes longer than those beside it."""
        seconds = {name: phase.seconds for name, phase in self.phases.items()}
        beside = seconds.pop("rollout", 0.0) if self.overlaps else 0.0
        return max(beside, sum(seconds.values()))

    @property
    def slowest(self) -> str:
        """The phase that takes most of the time."""
        return max(self.phases, key=lambda name: self.phases[name].seconds)


def estimate_step(
    workload: Workload, device: Device, num_ranks: int = 1, sharding: ShardingMode = "no_shard"
) -> StepTime:
    """Seconds of a step of the rank with the most prompts.

    Args:
        workload: The step of all ranks together.
        device: Where it runs.
        num_ranks: Processes, one per device.
        sharding: Where the weights are.
    """
    part = workload.per_rank(num_ranks)
    shape, size = part.shape(), part.policy
    num_passes = max(1, math.ceil(shape.num_tokens / part.max_tokens_per_pass))
    phases: dict[str, PhaseSeconds] = {}
    if part.generates:
        phases["rollout"] = _rollout(part, device)
        if part.scorers:
            flops = sum((model.as_classifier().flops.forward(shape) for model in part.scorers), 0.0)
            phases["score"] = _passes(part, device, flops, num_passes)
    if part.model_passes:
        flops = part.model_passes * size.flops.forward(shape)
        phases["model passes"] = _passes(part, device, flops, num_passes * part.model_passes)
    phases["update"] = _update(part, device, shape, num_passes)
    if num_ranks > 1:
        phases["sync"] = _sync(workload, part, device, num_ranks, sharding, num_passes)
    return StepTime(phases=phases, overlaps=part.overlaps)


def _bounded(seconds: dict[str, float]) -> PhaseSeconds:
    bound = max(seconds, key=lambda name: seconds[name])
    return PhaseSeconds(seconds=seconds[bound], bound=bound)


def _passes(part: Workload, device: Device, flops: float, num_passes: int) -> PhaseSeconds:
    weights = num_passes * part.policy.num_params * part.weight_bytes
    return _bounded(
        {
            "compute": flops / (device.compute_fraction * device.flops),
            "memory": weights / (BANDWIDTH_FRACTION * device.bandwidth),
            "launches": num_passes * _launches(part.policy, device),
        }
    )


def _launches(size: ModelSize, device: Device) -> float:
    return 0.0 if device.is_cpu else size.num_layers * LAYER_OVERHEAD_SECONDS


def _rollout(part: Workload, device: Device) -> PhaseSeconds:
    """One token of each response at a time: every step reads all weights and all keys and values.

    The package's own sampler decodes up to 256 responses at a time and starts kernels one by one; vLLM takes
    all of them, and replays CUDA graphs.
    """
    size, waves = part.policy, math.ceil(part.rows / part.rows_at_once)
    steps = waves * part.response_tokens
    mean_length = part.prompt_tokens / part.generations + part.response_tokens / 2
    cache = part.rows * part.response_tokens * mean_length * size.kv_numbers_per_token * part.weight_bytes
    weights = steps * size.num_params * part.weight_bytes
    # The distributions over the vocabulary are written and read about six times in float32.
    logits = part.rows * part.response_tokens * size.vocab_size * 4 * 6
    head = steps * size.vocab_size * size.width * 4 * 2 if part.weight_bytes < 4 else 0
    return _bounded(
        {
            "compute": size.flops.forward(part.shape()) / (device.compute_fraction * device.flops),
            "memory": (weights + cache + logits + head) / (BANDWIDTH_FRACTION * device.bandwidth),
            "launches": steps * _launches(size, device) if part.engine == "local" else 0.0,
        }
    )


def _update(part: Workload, device: Device, shape: ForwardShape, num_passes: int) -> PhaseSeconds:
    size, networks = part.policy, 2 if part.critic else 1
    flops = size.flops.forward_backward(shape)
    if part.gradient_checkpointing == "recompute":
        flops += size.flops.forward(shape)
    passes = _passes(part, device, part.iterations * networks * flops, 3 * part.iterations * num_passes)
    # The optimizer reads and writes gradients, masters and moments once.
    states = networks * size.num_trainable * 2 * (8 + part.moment_bytes)
    seconds = passes.seconds + states / (BANDWIDTH_FRACTION * device.bandwidth)
    return PhaseSeconds(seconds=seconds, bound=passes.bound)


def _sync(
    workload: Workload,
    part: Workload,
    device: Device,
    num_ranks: int,
    sharding: ShardingMode,
    num_passes: int,
) -> PhaseSeconds:
    """What ranks exchange in a step: gradients, weights where they are divided, and the rows of all ranks."""
    size, share = part.policy, (num_ranks - 1) / num_ranks
    networks = 2 if part.critic else 1
    weights, gradients = size.num_params * part.weight_bytes, 4 * size.num_trainable * networks
    exchanged = 2 * share * gradients * part.iterations
    collectives = 4
    if sharding == "shard_grad_op":
        exchanged += share * weights
    if sharding == "full_shard":
        # Forward and backward gather the weights in every pass with gradients, other passes once.
        gathers = 1 + num_passes * (2 * part.iterations * networks + part.model_passes)
        exchanged += share * weights * gathers
        collectives += gathers * size.num_layers
    tokens = workload.rows * (workload.prompt_tokens + workload.response_tokens)
    exchanged += share * tokens * ROW_BYTES_PER_TOKEN
    latency = collectives * COLLECTIVE_SECONDS * math.ceil(math.log2(num_ranks))
    return PhaseSeconds(seconds=exchanged / device.link(num_ranks) + latency, bound="network")
