"""Page and terminal text of a plan (`paretune plan`), from its values alone."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from paretune.report.charts import LineChart, line_chart
from paretune.report.formatting import MISSING, format_compact, format_percent, one_line
from paretune.report.run_page import jinja_environment
from paretune.report.tables import align_columns
from paretune.run.io import write_atomic, write_error

TEMPLATE = "plan.html.j2"
LINE_WIDTH = 80
WAY_EXPLANATIONS = {  # by training.fsdp
    "no_shard": "every GPU holds all weights; gradients are added up after the last pass",
    "shard_grad_op": "masters and moments are divided; weights are gathered once for a step (ZeRO-2)",
    "full_shard": "all is divided; an update gathers layer by layer, a rollout all layers (ZeRO-3)",
}
BOUND_LABELS = {
    "compute": "operations",
    "memory": "memory bandwidth",
    "launches": "kernel launches",
    "network": "network",
}
OVERLAP_NOTE = "sampling beside the other phases"
CAVEAT = "A forecast from peak rates and assumed fractions of them, not a measurement."

Plan = Mapping[str, Any]


def write_plan_page(path: Path, plan: Plan) -> Path:
    """Write the page of a plan and return its path.

    Raises:
        ResourceError: It cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    write_atomic(path, jinja_environment().get_template(TEMPLATE).render(template_context(plan)))
    return path


def template_context(plan: Plan) -> dict[str, Any]:
    """All values that the template shows."""
    return {
        "plan": plan,
        "components": _component_names(plan),
        "way_explanations": WAY_EXPLANATIONS,
        "bound_labels": BOUND_LABELS,
        "overlap_note": OVERLAP_NOTE,
        "caveat": CAVEAT,
        "curves": [
            {
                **curve,
                "charts": [
                    ("responses per second", _chart(curve, "responses_per_second")),
                    ("efficiency", _chart(curve, "efficiency")),
                    ("seconds per step", _chart(curve, "seconds")),
                ],
                "verdict": _verdict(curve),
            }
            for curve in plan["scaling"]
        ],
    }


def plan_text(plan: Plan) -> str:
    """The plan as lines of at most 80 columns."""
    policy, workload, device = plan["policy"], plan["workload"], plan["device"]
    gpus = f"{plan['num_gpus']} x {device['name']}"
    lines = [
        f"{one_line(plan['name'])} on {gpus}",
        *_wrapped(
            f"policy: {one_line(policy['path'])} ({policy['source']}), {policy['parameters']} parameters in "
            f"{policy['dtype']}; {policy['how']}, trains {policy['trained']}"
        ),
        *_wrapped(
            f"step: {workload['prompts']} prompts of {workload['prompt_tokens']} tokens x "
            f"{workload['generations']} responses of {workload['response_tokens']}; passes of "
            f"{workload['max_tokens_per_pass']:,} tokens, gradient checkpointing "
            f"{workload['gradient_checkpointing']}"
        ),
        "",
        f"memory per GPU in GB, of {device['memory']:.0f}",
        *_memory_rows(plan),
        *_wrapped(_chosen_sentence(plan)),
        "",
    ]
    if plan["step"] is not None:
        title = f"about {_seconds(plan['step']['total'])} per step"
        beside = f", {OVERLAP_NOTE}" if plan["step"]["overlaps"] else ""
        lines += [title + beside, *_phase_rows(plan["step"]), ""]
    for curve in plan["scaling"]:
        lines += [_curve_title(curve), *_curve_rows(curve), *_wrapped(_verdict(curve)), ""]
    return "\n".join([*lines, *_wrapped(CAVEAT), *_wrapped(f"rates: {device['source']}")])


def _wrapped(text: str) -> list[str]:
    return wrap(text, LINE_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _component_names(plan: Plan) -> list[str]:
    return list(dict.fromkeys(name for way in plan["ways"] for name in way["components"]))


def _memory_rows(plan: Plan) -> list[str]:
    ways = plan["ways"]
    rows = [("", *(way["name"] for way in ways))]
    for name in _component_names(plan):
        rows.append((name, *(_gigabytes(way["components"].get(name)) for way in ways)))
    rows.append(("peak", *(_gigabytes(way["peak"]) for way in ways)))
    rows.append(("in phase", *(way["peak_phase"] for way in ways)))
    rows.append(("fits", *("yes" if way["fits"] else "no" for way in ways)))
    return align_columns(rows, right_aligned=range(1, len(ways) + 1))


def _chosen_sentence(plan: Plan) -> str:
    if plan["chosen"] is None:
        parts = {name: size for name, size in plan["ways"][-1]["components"].items() if size}
        largest = max(parts, key=parts.__getitem__, default="")
        more = any(point["way"] is not None for curve in plan["scaling"] for point in curve["points"])
        return (
            "No way to hold the weights fits: with the most divided one, each GPU holds "
            f"{_gigabytes(parts.get(largest))} GB of {largest}; "
            f"fix: {'more or ' * more}larger GPUs, policy.lora, "
            "training.gradient_checkpointing: recompute, or a lower training.max_tokens_per_pass"
        )
    return f"training.fsdp: {plan['chosen']}, the first that fits ({WAY_EXPLANATIONS[plan['chosen']]})."


def _phase_rows(step: Mapping[str, Any]) -> list[str]:
    rows = [("phase", "seconds", "share", "bound by")]
    for name, phase in step["phases"].items():
        share = format_percent(phase["seconds"] / step["total"])
        rows.append((name, format_compact(phase["seconds"]), share, BOUND_LABELS[phase["bound"]]))
    return align_columns(rows, right_aligned=(1, 2))


def _curve_title(curve: Mapping[str, Any]) -> str:
    if curve["kind"] == "weak":
        return "weak scaling: the prompts of a step grow with the GPUs"
    return "strong scaling: the prompts of a step stay"


def _curve_rows(curve: Mapping[str, Any]) -> list[str]:
    rows = [("GPUs", "prompts", "s/step", "responses/s", "efficiency", "weights")]
    for point in curve["points"]:
        rows.append(
            (
                f"{point['gpus']:,}",
                f"{point['prompts']:,}",
                format_compact(point["seconds"]),
                format_compact(point["responses_per_second"]),
                format_percent(point["efficiency"]),
                "does not fit" if point["way"] is None else point["way"],
            )
        )
    return align_columns(rows, right_aligned=range(5))


def _verdict(curve: Mapping[str, Any]) -> str:
    if all(point["way"] is None for point in curve["points"]):
        return "Does not fit on any number of GPUs up to 1,024."
    if curve["break_at"] is None:
        return f"Does not break: {curve['reason']}."
    return f"Breaks at {curve['break_at']:,} GPUs: {curve['reason']}."


def _chart(curve: Mapping[str, Any], key: str) -> LineChart | None:
    """A curve over the number of GPUs, whose axis is logarithmic."""
    points = [(math.log2(point["gpus"]), point[key]) for point in curve["points"]]
    chart = line_chart(points, (0.0, 1.0) if key == "efficiency" else None)
    if chart is None:
        return None
    return replace(chart, x_ticks=tuple((x, f"{2 ** int(label):,}") for x, label in chart.x_ticks))


def _gigabytes(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.2f}" if value >= 0.005 else "0"


def _seconds(value: float) -> str:
    return f"{format_compact(value)} s"


def component_summary(components: Mapping[str, float], limit: int = 4) -> Iterator[str]:
    """The largest components of an estimate in GB, such as "activations 1.2"."""
    largest = sorted(components.items(), key=lambda item: -item[1])[:limit]
    return (f"{name} {size / 1e9:.2g}" for name, size in largest)
