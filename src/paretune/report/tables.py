"""The table that closes a run on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.report.formatting import (
    VERDICT_SYMBOLS,
    decimals_for,
    finite_or_none,
    format_before_after,
    format_compact,
    format_interval,
    format_number,
    format_percent_before_after,
    format_signed,
    format_verdict,
    one_line,
)

MAX_NAME_CHARS = 28


def summary_table(evaluation: Mapping[str, Any]) -> str:
    """Lines of plain text: objectives with change, interval and verdict, then side costs, then warnings.

    Args:
        evaluation: Of eval.json, from the file or from memory.
    """
    level = f"{100 * evaluation.get('level', 0.95):.0f} %"
    rows = [("objective", "before", "after", f"change [{level} simultaneous]", "verdict")]
    for name, objective in evaluation["objectives"].items():
        digits = decimals_for(objective)
        change = f"{format_signed(objective['change'], digits)} {format_interval(objective['low'], objective['high'], digits)}"
        rows.append(
            (
                one_line(name, MAX_NAME_CHARS),
                format_number(objective["before"], digits),
                format_number(objective["after"], digits),
                change.rstrip(),
                f"{VERDICT_SYMBOLS.get(objective['verdict'], ' ')} {format_verdict(objective)}",
            )
        )
    lines = align_columns(rows, right_aligned=(1, 2))
    lines += _format_judges(evaluation["objectives"])
    lines += _wrap(side_metrics(evaluation))
    lines += [f"⚠ {one_line(warning)}" for warning in evaluation.get("warnings", ())]
    return "\n".join(lines)


def side_metrics(evaluation: Mapping[str, Any]) -> list[str]:
    """What the change cost beside the objectives, one phrase each; what was not measured is left out."""
    found = []
    if evaluation.get("kl"):
        found.append(f"KL {format_compact(evaluation['kl']['k3'])} nats a response")
    if finite_or_none(evaluation["length"]["before"]) is not None:
        found.append(f"length (tokens) {format_before_after(evaluation['length'], 0)}")
    if finite_or_none(evaluation["distinct_2"]["before"]) is not None:
        found.append(f"distinct-2 {format_before_after(evaluation['distinct_2'])}")
    if finite_or_none(evaluation.get("similarity", {}).get("before")) is not None:
        found.append(f"similarity across prompts {format_before_after(evaluation['similarity'])}")
    if evaluation["truncated"]["n"]:
        found.append(f"truncated {format_percent_before_after(evaluation['truncated'])}")
    names = {"harmful": "harmful requests", "lookalike": "harmless look-alikes"}
    for kind, rate in evaluation["refusals"].items():
        if kind in names and rate["n"]:
            found.append(f"refusals on {names[kind]} {format_percent_before_after(rate)}")
    return found + confidence_and_thinking(evaluation)


def reward_filtering_table(r2_by_objective: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of plain text: R2 of the judge on the training reward, objective by way of filtering."""
    ways = ("all", "best_of_n", "best_random", "best_worst")
    rows: list[tuple[str, ...]] = [("objective", *ways, "filter")]
    for name, r2 in r2_by_objective.items():
        best = max(ways, key=lambda way: finite_or_none(r2[way]) or 0.0)
        rows.append((one_line(name, MAX_NAME_CHARS), *(format_number(r2[way], 3) for way in ways), best))
    return "\n".join(align_columns(rows, right_aligned=(1, 2, 3, 4)))


def merge_table(results: Mapping[str, Any]) -> str:
    """Lines of plain text: the mixtures of a soup with their means, and what they add to the runs' front."""
    names = results["objectives"]
    rows: list[tuple[str, ...]] = [("shares", *(one_line(n, MAX_NAME_CHARS) for n in names), "front")]
    rows.append(("the start", *(format_number(results["start"][name], 2) for name in names), ""))
    for each in results["mixtures"]:
        means = (format_number(each["mean"][name], 2) for name in names)
        rows.append(
            (" : ".join(f"{share:.3g}" for share in each["shares"]), *means, "*" * bool(each["front"]))
        )
    lines = align_columns(rows, right_aligned=tuple(range(1, len(names) + 1)))
    volume = results["hypervolume"]
    if volume["soups"] is not None:
        lines.append(
            f"hypervolume above the start: the runs {volume['runs']:.3g}, with soups {volume['soups']:.3g}"
        )
    return "\n".join(lines)


def confidence_and_thinking(evaluation: Mapping[str, Any]) -> list[str]:
    """What responses say of themselves: how far their confidence can be trusted, and how much they think."""
    found = []
    if calibrated := evaluation.get("calibration"):
        pairs = {
            name: {arm: calibrated[arm][key] for arm in ("before", "after")}
            for name, key in (("ECE", "ece"), ("Brier", "brier"), ("AUROC", "auroc"))
        }
        said = ", ".join(f"{name} {format_before_after(pair, 3)}" for name, pair in pairs.items())
        found.append(f"stated confidence against {one_line(calibrated['correct'])}: {said}")
    if thoughts := evaluation.get("thoughts"):
        found.append(f"answers (words) {format_before_after(thoughts['answer'], 0)}")
        found.append(f"thoughts (words) {format_before_after(thoughts['trace'], 0)}")
        found.append(f"without readable thoughts {format_percent_before_after(thoughts['unread'])}")
    return found


def _format_judges(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    judges: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        judges.setdefault(objective["judge"], []).append(one_line(name, MAX_NAME_CHARS))
    if len(judges) == 1:
        (judge,) = judges
        return [f"judge: {one_line(judge)}"]
    return ["judges: " + "; ".join(f"{one_line(judge)} ({', '.join(who)})" for judge, who in judges.items())]


def _wrap(phrases: Sequence[str], max_chars: int = 110) -> list[str]:
    """Phrases joined by dots, a new line where one would grow beyond `max_chars`."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and len(lines[-1]) + len(phrase) + 3 <= max_chars:
            lines[-1] += f" · {phrase}"
        else:
            lines.append(phrase)
    return lines


def align_columns(rows: Sequence[Sequence[str]], right_aligned: Sequence[int]) -> list[str]:
    """Rows of cells as lines with columns of one width; `right_aligned`: columns that are aligned on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("   ".join(cells).rstrip())
    return lines
