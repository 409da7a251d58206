"""Weak and strong scaling of a step over numbers of GPUs, and where and why it stops to pay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paretune.models.sharding import ShardingMode
from paretune.plan.devices import GPUS_PER_NODE, Device
from paretune.plan.memory import SHARDINGS, MemoryEstimate, estimate_memory
from paretune.plan.roofline import ROW_BYTES_PER_TOKEN, StepTime, estimate_step
from paretune.plan.workload import Workload

RANKS = tuple(2**power for power in range(11))
"""1 to 1,024."""
MIN_EFFICIENCY = 0.5
"""Below this part of the ideal, more GPUs are called not worth their price."""
MAX_ROW_BYTES = 4e9
"""Rows of all ranks that one process can be expected to hold in main memory."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A way to hold the weights on a number of devices."""

    sharding: ShardingMode
    memory: MemoryEstimate
    fits: bool


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """A step on a number of GPUs."""

    num_ranks: int
    prompts: int
    sharding: ShardingMode | None
    """None: no way to hold the weights fits."""
    time: StepTime | None
    responses_per_second: float
    efficiency: float
    """Responses per second and GPU, relative to the smallest number of GPUs that fits."""


@dataclass(frozen=True, kw_only=True)
class ScalingCurve:
    """Points from 1 to 1,024 GPUs, and the first where more GPUs do not pay."""

    kind: str
    """"weak" or "strong"."""
    points: tuple[ScalingPoint, ...]
    break_ranks: int | None
    reason: str


def placements(workload: Workload, device: Device, num_ranks: int) -> tuple[Placement, ...]:
    """The ways to hold the weights that are allowed; with one process there is one."""
    allowed = SHARDINGS if workload.fsdp is None else (workload.fsdp,)
    ways = allowed if num_ranks > 1 else SHARDINGS[:1]
    estimates = ((way, estimate_memory(workload, device, num_ranks, way)) for way in ways)
    return tuple(
        Placement(sharding=way, memory=memory, fits=memory.peak <= device.memory) for way, memory in estimates
    )


def choose_sharding(ways: Sequence[Placement]) -> Placement | None:
    """The first that fits: ways that come earlier exchange less."""
    return next((way for way in ways if way.fits), None)


def scaling_curve(workload: Workload, device: Device, *, weak: bool, base_ranks: int) -> ScalingCurve:
    """Steps on 1 to 1,024 GPUs.

    Args:
        workload: The step of the recipe.
        device: The GPU.
        weak: Prompts grow with the GPUs, from those of the recipe on `base_ranks`; else they stay.
        base_ranks: GPUs that the recipe's prompts are for.
    """
    points: list[ScalingPoint] = []
    base: float | None = None
    for num_ranks in RANKS:
        prompts = max(1, round(workload.prompts * num_ranks / base_ranks)) if weak else workload.prompts
        step = replace(workload, prompts=prompts)
        chosen = choose_sharding(placements(step, device, num_ranks))
        if chosen is None:
            points.append(_missing_point(num_ranks, prompts))
            continue
        time = estimate_step(step, device, num_ranks, chosen.sharding)
        rate = step.rows / time.total
        base = base or rate / num_ranks
        points.append(
            ScalingPoint(
                num_ranks=num_ranks,
                prompts=prompts,
                sharding=chosen.sharding,
                time=time,
                responses_per_second=rate,
                efficiency=rate / num_ranks / base,
            )
        )
    broken = next((point for point in points if point.time and point.efficiency < MIN_EFFICIENCY), None)
    kind = "weak" if weak else "strong"
    row_ranks = _row_limit(workload, base_ranks) if weak else None
    if broken is None or (row_ranks is not None and row_ranks < broken.num_ranks):
        reason = _row_reason(workload) if row_ranks is not None else "more than half of the ideal up to 1,024"
        return ScalingCurve(kind=kind, points=tuple(points), break_ranks=row_ranks, reason=reason)
    reason = _break_reason(workload, broken)
    return ScalingCurve(kind=kind, points=tuple(points), break_ranks=broken.num_ranks, reason=reason)


def _missing_point(num_ranks: int, prompts: int) -> ScalingPoint:
    return ScalingPoint(
        num_ranks=num_ranks,
        prompts=prompts,
        sharding=None,
        time=None,
        responses_per_second=0.0,
        efficiency=0.0,
    )


def _break_reason(workload: Workload, point: ScalingPoint) -> str:
    """Why a step on so many GPUs is less than half as efficient as on the fewest."""
    assert point.time is not None
    if point.num_ranks > point.prompts:
        shared = f"{point.num_ranks:,} GPUs share {point.prompts:,} prompts"
        return f"{shared}: some have none, since the responses to a prompt stay together"
    slowest = point.time.phases[point.time.slowest]
    share = slowest.seconds / point.time.total
    why = {
        "launches": "it starts as many kernels for few responses as for many",
        "memory": "it reads all weights for few responses as for many",
        "network": "the exchange takes as long with fewer rows"
        + (" and crosses nodes" if point.num_ranks > GPUS_PER_NODE else ""),
        "compute": "the largest share has more than its part of the prompts",
    }[slowest.bound]
    return f"{point.time.slowest} takes {100 * share:.0f} % of the step: {why}"


def _row_limit(workload: Workload, base_ranks: int) -> int | None:
    """The number of GPUs from which the rows of all do not fit one process's main memory."""
    return next((n for n in RANKS if _row_bytes(workload) * n / base_ranks > MAX_ROW_BYTES), None)


def _row_bytes(workload: Workload) -> float:
    return float(workload.rows * (workload.prompt_tokens + workload.response_tokens) * ROW_BYTES_PER_TOKEN)


def _row_reason(workload: Workload) -> str:
    return f"every process holds the rows of all, which then take more than {MAX_ROW_BYTES / 1e9:.0f} GB"
