"""Throughput of each phase of a run, and its utilization of the machine's matrix-multiplication rate."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.report.charts import PHASES
from paretune.report.formatting import finite_or_none

TimingLines = Sequence[Mapping[str, Any]]

# Phases below a thousandth of a stage's time are left out of the table.
_MIN_FRACTION = 0.001


def throughput(lines: TimingLines, environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds, fraction of the time, tokens/s and FLOP/s of each phase, one row per stage and phase.

    Args:
        lines: Lines of timing.jsonl; a line may have seconds without token or FLOP counts.
        environment: Content of env.json; without its "matmul" entry there is no utilization.
    """
    matmul_rate = matmul_flops_per_second(environment)
    lines_by_stage: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if any(phase in line for phase in PHASES):
            lines_by_stage.setdefault(str(line.get("stage")), []).append(line)
    return [
        row
        for stage, stage_lines in lines_by_stage.items()
        for row in _stage_rows(stage, stage_lines, matmul_rate)
    ]


def matmul_flops_per_second(environment: Mapping[str, Any]) -> float | None:
    """Measured FLOP/s of the machine's matrix multiplication; None if it was not measured."""
    matmul = environment.get("matmul")
    return finite_or_none(matmul.get("flops_per_second")) if isinstance(matmul, Mapping) else None


def describe_matmul_benchmark(environment: Mapping[str, Any]) -> str:
    """One sentence on the matrix-multiplication measurement; "" if there is none."""
    rate, matmul = matmul_flops_per_second(environment), environment.get("matmul")
    if rate is None or not isinstance(matmul, Mapping):
        return ""
    size, num_threads = matmul.get("matrix_size"), matmul.get("num_threads")
    device = f"{matmul.get('device')} with {num_threads} thread{'s' * (num_threads != 1)}"
    shape = f"{size} x {size} matrices in {matmul.get('dtype')}"
    return f"products of two {shape} on {device}: {format_gflops(rate)} GFLOP/s"


def format_gflops(rate: float) -> str:
    """FLOP/s in units of 1e9; one decimal below 100 GFLOP/s."""
    return f"{rate / 1e9:,.0f}" if rate >= 1e11 else f"{rate / 1e9:,.1f}"


def _stage_rows(stage: str, lines: TimingLines, matmul_rate: float | None) -> list[dict[str, Any]]:
    seconds = {phase: _sum(lines, phase) for phase in PHASES}
    total = sum(seconds.values())
    rows = []
    for phase in PHASES:
        if not seconds[phase] or seconds[phase] < _MIN_FRACTION * total:
            continue
        # A resumed run can have lines with and without counts: counts are divided by their own seconds only.
        tokens_key, flops_key = f"tokens_per_second/{phase}", f"flops/{phase}"
        with_tokens = [line for line in lines if tokens_key in line]
        with_flops = [line for line in lines if flops_key in line]
        tokens = sum(
            (
                (finite_or_none(line[tokens_key]) or 0.0) * (finite_or_none(line.get(phase)) or 0.0)
                for line in with_tokens
            ),
            0.0,
        )
        tokens_rate = _rate(tokens, _sum(with_tokens, phase))
        flops_rate = _rate(_sum(with_flops, flops_key), _sum(with_flops, phase))
        rows.append(
            {
                "stage": stage,
                "phase": phase,
                "seconds": seconds[phase],
                "fraction": f"{seconds[phase] / total:.0%}",
                "tokens": None if tokens_rate is None else f"{tokens_rate:,.0f}",
                "flops": None if flops_rate is None else format_gflops(flops_rate),
                "utilization": None
                if flops_rate is None or not matmul_rate
                else f"{flops_rate / matmul_rate:.0%}",
            }
        )
    return rows


def _sum(lines: TimingLines, key: str) -> float:
    return float(sum(finite_or_none(line.get(key)) or 0.0 for line in lines))


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if amount and seconds else None
