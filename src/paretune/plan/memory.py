"""Peak memory of one process of a run, by component; the only memory model of the package.

`paretune check`, `paretune plan` and proofs/plan_memory.py read it. Activations are counted tensor by tensor
as the packed forward pass of a decoder layer saves them; docs/results/plan-memory.md compares with measured
peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from paretune.models.forward.lm_head import LOGITS_CHUNK_SIZE, MAX_SAVED_PROBS
from paretune.models.model_size import ModelSize
from paretune.models.sharding import ShardingMode
from paretune.plan.devices import Device
from paretune.plan.workload import Workload
from paretune.training.microbatch import NO_GRAD_TOKEN_FACTOR

SHARDINGS: tuple[ShardingMode, ...] = get_args(ShardingMode)
"""Ways to hold the weights, as training.fsdp has them: whole on every rank; in parts, and whole through a
step; in parts, and gathered layer by layer in every pass."""

PROCESS_BYTES = 0.45e9
"""Python and its libraries after they are imported, in main memory."""
WORKING_BYTES = 4e7
"""What the libraries add once they compute, in main memory."""
CUDA_CONTEXT_BYTES = 0.7e9
"""CUDA context and the work spaces of its matrix libraries. Assumed."""
ALLOCATOR_FRACTION = 0.05
"""Memory of a GPU that torch's allocator holds and cannot use. Assumed."""
KV_GROWTH = 1.5
"""Tables of the sampler double: the last one and the one before it exist together."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank. The peak is what is always there plus the largest phase."""

    resident: Mapping[str, float]
    """Component -> bytes that are there throughout a step."""
    phases: Mapping[str, Mapping[str, float]]
    """Phase -> component -> bytes that it adds."""

    @property
    def peak_phase(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return sum(self.resident.values()) + sum(self.phases[self.peak_phase].values())

    @property
    def peak_without_process(self) -> float:
        """Bytes at the peak beyond those of the imported libraries."""
        return self.peak - self.resident.get("process", 0.0)

    def components(self) -> dict[str, float]:
        """Component -> bytes: those that are always there, and the most that a phase adds of each other."""
        parts = dict(self.resident)
        for phase in self.phases.values():
            for name, size in phase.items():
                parts[name] = max(parts.get(name, 0.0), size)
        return {name: size for name, size in parts.items() if size}


def estimate_memory(
    workload: Workload, device: Device, num_ranks: int = 1, sharding: ShardingMode = "no_shard"
) -> MemoryEstimate:
    """Memory of the rank with the most prompts.

    Args:
        workload: The step of all ranks together.
        device: Where it runs.
        num_ranks: Processes, one per device.
        sharding: Where the weights are.
    """
    part = workload.per_rank(num_ranks)
    states = _trained_states(part, num_ranks, sharding)
    divided = num_ranks if sharding == "full_shard" else 1
    size = part.policy
    frozen = part.weight_bytes * size.num_params / divided
    resident = {
        **states.resident,
        "reference": part.references * frozen,
        "reward models": part.scorer_bytes,
    }
    if part.engine == "in_process":
        resident["vLLM"] = part.engine_fraction * device.memory
    if part.critic:
        resident["critic"] = sum(states.resident.values())
    if device.is_cpu:
        resident |= {"process": PROCESS_BYTES, "libraries": WORKING_BYTES}
    else:
        resident["CUDA context"] = CUDA_CONTEXT_BYTES
    phases = _phases(part, device, states)
    if sharding == "full_shard":
        _add_gathered(phases, part, num_ranks)
    if not device.is_cpu:
        peak = MemoryEstimate(resident=resident, phases=phases).peak
        resident["allocator"] = ALLOCATOR_FRACTION * peak
    return MemoryEstimate(resident=resident, phases=phases)


def evaluation_memory(workload: Workload, device: Device, scorer_bytes: float) -> MemoryEstimate:
    """Memory of the evaluation in one process: both policies, all that scores, and the sampler's tables.

    Args:
        workload: The step of the training, whose batches are about those of the evaluation.
        device: Where it runs.
        scorer_bytes: Weights of the reward models, judges and classifiers.
    """
    process = {"process": PROCESS_BYTES, "libraries": WORKING_BYTES}
    resident = {
        "policies": 2.0 * workload.policy.num_params * workload.weight_bytes,
        "reward models": scorer_bytes,
        **(process if device.is_cpu else {"CUDA context": CUDA_CONTEXT_BYTES}),
    }
    return MemoryEstimate(resident=resident, phases={"rollout": _rollout_bytes(workload)})


def _add_gathered(phases: dict[str, dict[str, float]], part: Workload, num_ranks: int) -> None:
    """What full_shard gathers: all weights where nothing has a gradient, and single layers in an update."""
    size = part.policy
    others = (1 - 1 / num_ranks) * part.weight_bytes * size.num_params
    # The embedding stays whole; then the layer that computes, and the next one that is on its way.
    layers = part.weight_bytes * (size.vocab_size * size.width + 2.0 * size.largest_unit)
    for name in ("rollout", "score", "passes"):
        if name in phases:
            phases[name]["gathered weights"] = others * (1 + part.references)
    phases["update"]["gathered layers"] = layers


@dataclass(frozen=True)
class _TrainedStates:
    """Bytes of what is trained."""

    resident: Mapping[str, float]
    gradients: float
    step_copies: float
    """Gradients in float32 during the optimizer's step, where the weights have half precision."""


def _trained_states(part: Workload, num_ranks: int, sharding: ShardingMode) -> _TrainedStates:
    size, width = part.policy, part.weight_bytes
    trained = size.num_trainable
    owners = 1 if sharding == "no_shard" else num_ranks
    weights_divided = num_ranks if sharding == "full_shard" else 1
    weights = size.num_params * width / weights_divided
    # An adapter is float32 on any base model; of float32 weights the masters are the weights themselves.
    trained_width = 4 if part.lora else width
    needs_masters = trained_width < 4 or sharding != "no_shard"
    accumulated = trained_width if sharding == "no_shard" else 4
    resident = {
        "weights": weights + (4 * trained / weights_divided if part.lora else 0),
        "masters": 4.0 * trained / owners if needs_masters else 0.0,
        "moments": part.moment_bytes * trained / owners,
    }
    return _TrainedStates(
        resident=resident,
        gradients=accumulated * trained / weights_divided,
        step_copies=4.0 * trained if trained_width < 4 and sharding == "no_shard" else 0.0,
    )


def _phases(part: Workload, device: Device, states: _TrainedStates) -> dict[str, dict[str, float]]:
    networks = 2 if part.critic else 1
    tokens, rows = part.tokens_of_pass(part.max_tokens_per_pass)
    gradients = networks * states.gradients
    phases = {
        "update": {
            "gradients": gradients,
            "activations": networks * _activation_bytes(part, tokens, rows, on_cpu=device.is_cpu),
            "logits": _logit_bytes(part, rows, with_gradient=True),
        },
        "optimizer": {"gradients": gradients, "float32 gradients": networks * states.step_copies},
    }
    if part.generates:
        if part.engine == "local":
            phases["rollout"] = _rollout_bytes(part)
        no_grad_tokens, _ = part.tokens_of_pass(NO_GRAD_TOKEN_FACTOR * part.max_tokens_per_pass)
        phases["score"] = {"hidden states": _no_grad_bytes(part, min(no_grad_tokens, 4096))}
    if part.model_passes:
        no_grad_tokens, no_grad_rows = part.tokens_of_pass(NO_GRAD_TOKEN_FACTOR * part.max_tokens_per_pass)
        phases["passes"] = {
            "hidden states": _no_grad_bytes(part, no_grad_tokens),
            "logits": _logit_bytes(part, no_grad_rows, with_gradient=False),
        }
    return phases


def _rollout_bytes(part: Workload) -> dict[str, float]:
    """Tables of keys and values, and the distributions of a decoding step."""
    rows = part.rows_at_once
    prompts = min(part.prompts, 2 * -(-rows // part.generations))
    per_token = part.policy.kv_numbers_per_token * part.weight_bytes
    cache = per_token * (KV_GROWTH * rows * part.response_tokens + prompts * part.prompt_tokens)
    # Logits, log-probabilities and probabilities; then cumulative sums of spans.
    logits = rows * part.policy.vocab_size * 4 * 3
    return {"KV cache": cache, "logits": logits + _head_copy(part)}


def _no_grad_bytes(part: Workload, tokens: int) -> float:
    """A layer's tensors, of which a few live at one time."""
    size = part.policy
    return float(tokens * part.weight_bytes * (4 * size.width + 3 * size.ffn_width))


def _head_copy(part: Workload) -> float:
    """The head's weight in float32, where the model has half precision."""
    return 4.0 * part.policy.vocab_size * part.policy.width if part.weight_bytes < 4 else 0.0


def _logit_bytes(part: Workload, rows: int, *, with_gradient: bool) -> float:
    """Distributions over the vocabulary of a chunk of tokens, and the saved ones where they are few."""
    size = part.policy
    tokens = rows * part.response_tokens
    chunk = min(tokens, LOGITS_CHUNK_SIZE) * size.vocab_size * 4.0
    if not with_gradient:
        return 2 * chunk + _head_copy(part)
    saves = tokens * size.vocab_size <= MAX_SAVED_PROBS
    saved = tokens * size.vocab_size * 4.0 if saves else chunk
    head_gradient = 0.0 if part.lora else 4 * size.vocab_size * size.width
    return saved + max(2 * chunk, chunk + head_gradient) + _head_copy(part)


def _activation_bytes(part: Workload, tokens: int, rows: int, *, on_cpu: bool) -> float:
    """Tensors that the forward pass saves for the backward pass."""
    size, width = part.policy, part.weight_bytes
    layer = layer_activation_bytes(part, size, tokens, rows, on_cpu=on_cpu)
    if part.gradient_checkpointing == "none":
        return size.num_layers * layer
    inputs = size.num_layers * tokens * size.width * width
    # Offloaded tensors are in main memory: a GPU holds one layer, a CPU all of them.
    return layer if part.gradient_checkpointing == "offload" and not on_cpu else float(inputs + layer)


def layer_activation_bytes(
    part: Workload, size: ModelSize, tokens: int, rows: int, *, on_cpu: bool = False
) -> float:
    """Bytes that a decoder layer saves in a packed pass of so many tokens and rows.

    The inputs of the norms in float32; the inputs of the linear layers; queries, keys and values in the order
    of attention, its output, and for every row the keys and values of its prompt and of itself side by side;
    of the feed-forward layer the gate, its activation and the other factor. Where all weights are trained,
    the normalized inputs too. An adapter reads its input in float32: on a base model of half precision each
    of the seven linear layers keeps a copy of its own.
    """
    width = part.weight_bytes
    # A CPU computes attention of half precision in float32.
    attention_width = 4 if on_cpu else width
    heads, input_width = size.flops.attention_width, 4 if part.lora else width
    norms = 2 * (4 + (0 if part.lora else width)) * size.width
    shared_inputs = 5 if part.lora and width < 4 else 2
    inputs = input_width * (shared_inputs * size.width + heads + size.ffn_width)
    attention = (2 * heads + 2 * size.kv_width) * attention_width
    ffn = (3 if size.gated else 1) * size.ffn_width * width
    row_keys = rows * (part.prompt_tokens + part.response_tokens) * 2 * size.kv_width * attention_width
    return float(tokens * (norms + inputs + attention + ffn) + row_keys)
