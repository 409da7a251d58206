"""How near the phases of a run came to what its machine can do."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.report.charts import PHASES
from paretune.report.formatting import finite_or_none

TimingLines = Sequence[Mapping[str, Any]]


def throughput(lines: TimingLines, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds, share, tokens a second and operations a second of each phase of each stage that has phases.

    Args:
        lines: Of timing.jsonl; those of old runs lack what was done, and phases may lack it too.
        machine: Of env.json; its "matrix" may be absent.
    """
    matrix = matmul_flops_per_second(machine)
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if any(phase in line for phase in PHASES):
            stages.setdefault(str(line.get("stage")), []).append(line)
    return [row for stage, found in stages.items() for row in _stage_rows(stage, found, matrix)]


def matmul_flops_per_second(machine: Mapping[str, Any]) -> float | None:
    """Operations a second of the machine's products of matrices, where they were measured."""
    matrix = machine.get("matrix")
    return finite_or_none(matrix.get("flops_per_second")) if isinstance(matrix, Mapping) else None


def describe_matmul_benchmark(machine: Mapping[str, Any]) -> str:
    """What was measured of the machine, in words; "" where nothing was."""
    rate, matrix = matmul_flops_per_second(machine), machine.get("matrix")
    if rate is None or not isinstance(matrix, Mapping):
        return ""
    size, threads = matrix.get("size"), matrix.get("threads")
    where = f"{matrix.get('device')} with {threads} thread{'s' * (threads != 1)}"
    return f"products of two {size} x {size} matrices in {matrix.get('dtype')} on {where}: {format_gflops(rate)} GFLOP/s"


def format_gflops(rate: float) -> str:
    """Operations a second in thousand millions."""
    return f"{rate / 1e9:,.0f}" if rate >= 1e11 else f"{rate / 1e9:,.1f}"


def _stage_rows(stage: str, lines: TimingLines, matmul_rate: float | None) -> list[dict[str, Any]]:
    seconds = {phase: _sum(lines, phase) for phase in PHASES}
    whole = sum(seconds.values())
    rows = []
    for phase in PHASES:
        if not seconds[phase] or seconds[phase] < 0.001 * whole:
            continue
        # A resumed run may have lines of both kinds: what was done counts against its own seconds only.
        per_second, spoken = f"tokens_per_second/{phase}", f"flops/{phase}"
        told = [line for line in lines if per_second in line]
        done = [line for line in lines if spoken in line]
        tokens = sum(
            ((finite_or_none(x[per_second]) or 0.0) * (finite_or_none(x.get(phase)) or 0.0) for x in told),
            0.0,
        )
        speed, rate = _rate(tokens, _sum(told, phase)), _rate(_sum(done, spoken), _sum(done, phase))
        rows.append(
            {
                "stage": stage,
                "phase": phase,
                "seconds": seconds[phase],
                "share": f"{seconds[phase] / whole:.0%}",
                "tokens": None if speed is None else f"{speed:,.0f}",
                "flops": None if rate is None else format_gflops(rate),
                "of_machine": None if rate is None or not matmul_rate else f"{rate / matmul_rate:.0%}",
            }
        )
    return rows


def _sum(lines: TimingLines, key: str) -> float:
    return float(sum(finite_or_none(line.get(key)) or 0.0 for line in lines))


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if amount and seconds else None
