"""The table that closes a run on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.report.sanitize import one_line
from paretune.report.words import (
    SIGNS,
    arrow,
    compact,
    digits_for,
    interval,
    known,
    number,
    percent_arrow,
    signed,
    verdict_words,
)

LONGEST_NAME = 28


def closing_table(numbers: Mapping[str, Any]) -> str:
    """Lines of plain text: objectives with change, interval and verdict, then side costs, then warnings.

    Args:
        numbers: Of eval.json, from the file or from memory.
    """
    level = f"{100 * numbers.get('level', 0.95):.0f} %"
    rows = [("objective", "before", "after", f"change [{level} simultaneous]", "verdict")]
    for name, objective in numbers["objectives"].items():
        digits = digits_for(objective)
        change = (
            f"{signed(objective['change'], digits)} {interval(objective['low'], objective['high'], digits)}"
        )
        rows.append(
            (
                one_line(name, LONGEST_NAME),
                number(objective["before"], digits),
                number(objective["after"], digits),
                change.rstrip(),
                f"{SIGNS.get(objective['verdict'], ' ')} {verdict_words(objective)}",
            )
        )
    lines = aligned(rows, right=(1, 2))
    lines += _judged_by(numbers["objectives"])
    lines += _wrapped(side_costs(numbers))
    lines += [f"⚠ {one_line(warning)}" for warning in numbers.get("warnings", ())]
    return "\n".join(lines)


def side_costs(numbers: Mapping[str, Any]) -> list[str]:
    """What the change cost beside the objectives, one phrase each; what was not measured is left out."""
    found = []
    if numbers.get("kl"):
        found.append(f"KL {compact(numbers['kl']['k3'])} nats a response")
    if known(numbers["length"]["before"]) is not None:
        found.append(f"length (tokens) {arrow(numbers['length'], 0)}")
    if known(numbers["distinct_2"]["before"]) is not None:
        found.append(f"distinct-2 {arrow(numbers['distinct_2'])}")
    if known(numbers.get("similarity", {}).get("before")) is not None:
        found.append(f"similarity across prompts {arrow(numbers['similarity'])}")
    if numbers["truncated"]["n"]:
        found.append(f"truncated {percent_arrow(numbers['truncated'])}")
    names = {"harmful": "harmful requests", "lookalike": "harmless look-alikes"}
    for kind, rate in numbers["refusals"].items():
        if kind in names and rate["n"]:
            found.append(f"refusals on {names[kind]} {percent_arrow(rate)}")
    return found + stated(numbers)


def filtration_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of plain text: R2 of the judge on the training reward, objective by way of filtering."""
    ways = ("all", "best_of_n", "best_random", "best_worst")
    rows: list[tuple[str, ...]] = [("objective", *ways, "filter")]
    for name, r2 in found.items():
        best = max(ways, key=lambda way: known(r2[way]) or 0.0)
        rows.append((one_line(name, LONGEST_NAME), *(number(r2[way], 3) for way in ways), best))
    return "\n".join(aligned(rows, right=(1, 2, 3, 4)))


def soup_table(found: Mapping[str, Any]) -> str:
    """Lines of plain text: the mixtures of a soup with their means, and what they add to the runs' front."""
    names = found["objectives"]
    rows: list[tuple[str, ...]] = [("shares", *(one_line(n, LONGEST_NAME) for n in names), "front")]
    rows.append(("the start", *(number(found["start"][name], 2) for name in names), ""))
    for each in found["mixtures"]:
        means = (number(each["mean"][name], 2) for name in names)
        rows.append(
            (" : ".join(f"{share:.3g}" for share in each["shares"]), *means, "*" * bool(each["front"]))
        )
    lines = aligned(rows, right=tuple(range(1, len(names) + 1)))
    volume = found["hypervolume"]
    if volume["soups"] is not None:
        lines.append(
            f"hypervolume above the start: the runs {volume['runs']:.3g}, with soups {volume['soups']:.3g}"
        )
    return "\n".join(lines)


def stated(numbers: Mapping[str, Any]) -> list[str]:
    """What responses say of themselves: how far their confidence can be trusted, and how much they think."""
    found = []
    if calibrated := numbers.get("calibration"):
        pairs = {
            name: {arm: calibrated[arm][key] for arm in ("before", "after")}
            for name, key in (("ECE", "ece"), ("Brier", "brier"), ("AUROC", "auroc"))
        }
        said = ", ".join(f"{name} {arrow(pair, 3)}" for name, pair in pairs.items())
        found.append(f"stated confidence against {one_line(calibrated['correct'])}: {said}")
    if thoughts := numbers.get("thoughts"):
        found.append(f"answers (words) {arrow(thoughts['answer'], 0)}")
        found.append(f"thoughts (words) {arrow(thoughts['trace'], 0)}")
        found.append(f"without readable thoughts {percent_arrow(thoughts['unread'])}")
    return found


def _judged_by(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    judges: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        judges.setdefault(objective["judge"], []).append(one_line(name, LONGEST_NAME))
    if len(judges) == 1:
        (judge,) = judges
        return [f"judge: {one_line(judge)}"]
    return ["judges: " + "; ".join(f"{one_line(judge)} ({', '.join(who)})" for judge, who in judges.items())]


def _wrapped(phrases: Sequence[str], most: int = 110) -> list[str]:
    """Phrases joined by dots, a new line where one would grow beyond `most`."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and len(lines[-1]) + len(phrase) + 3 <= most:
            lines[-1] += f" · {phrase}"
        else:
            lines.append(phrase)
    return lines


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Rows of cells as lines with columns of one width; `right`: columns that are aligned on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("   ".join(cells).rstrip())
    return lines
