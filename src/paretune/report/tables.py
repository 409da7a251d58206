"""Plain-text tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.core.goals import HIGHER, Goal
from paretune.evaluate.verdicts import BETTER, ONE_SEED, WORSE
from paretune.evaluate.warnings import POLICY_PREFIX
from paretune.report.formatting import (
    VERDICT_SYMBOLS,
    decimals_for,
    finite_or_none,
    format_before_after,
    format_compact,
    format_interval,
    format_number,
    format_percent,
    format_percent_before_after,
    format_signed,
    format_verdict,
    goal_arrow,
    goal_words,
    one_line,
)

MAX_NAME_CHARS = 28


def summary_table(evaluation: Mapping[str, Any], head_warnings: Sequence[str] = ()) -> str:
    """Lines of plain text: objectives with change, interval and verdict, then side metrics, then warnings.

    A warning about the policy as a whole comes first: the table cannot be read without it.

    Args:
        evaluation: Content of eval.json, from the file or from memory.
        head_warnings: What is wrong with the reward model or the judge; the first of the other warnings, as
            the verdicts rest on their scores.
    """
    level = f"{100 * evaluation.get('confidence_level', 0.95):.0f} %"
    rows: list[tuple[str, ...]] = [
        ("objective", "before", "after", f"change [{level} simultaneous]", "verdict")
    ]
    num_prompts, objectives = evaluation.get("num_prompts", 0), evaluation["objectives"].values()
    is_incomplete = any(0 < o.get("num_scored", 0) < num_prompts or _unscored(o) for o in objectives)
    if is_incomplete:
        rows = [(*rows[0], "prompts", "unscored")]
    for name, objective in evaluation["objectives"].items():
        decimals = decimals_for(objective)
        interval = format_interval(objective["low"], objective["high"], decimals)
        rows.append(
            (
                name_with_goal(name, objective),
                format_number(objective["before"], decimals),
                format_number(objective["after"], decimals),
                f"{format_signed(objective['change'], decimals)} {interval}".rstrip(),
                f"{VERDICT_SYMBOLS.get(objective['verdict'], ' ')} {format_verdict(objective)}",
                *(
                    (f"{objective['num_scored']} of {num_prompts}", format_percent(_unscored(objective)))
                    if is_incomplete
                    else ()
                ),
            )
        )
    warnings = evaluation.get("warnings", ())
    first = [line for line in warnings if line.startswith(POLICY_PREFIX)]
    lines = [*(f"⚠ {one_line(line)}" for line in first), *align_columns(rows, right_aligned=(1, 2))]
    lines += _format_judges(evaluation["objectives"])
    lines += judge_comparisons(evaluation)
    lines += pairwise_phrases(evaluation)
    lines += _wrap(side_metrics(evaluation))
    if any(o["verdict"] in (BETTER, WORSE) for o in objectives):
        lines.append(ONE_SEED)
    lines += [f"⚠ {one_line(line)}" for line in (*head_warnings, *warnings) if line not in first]
    return "\n".join(lines)


def name_with_goal(name: str, objective: Mapping[str, Any]) -> str:
    """The name of an objective, with its direction where higher scores are not better."""
    shown = one_line(name, MAX_NAME_CHARS)
    if Goal.of(objective) == HIGHER:
        return shown
    words = f" {goal_words(objective)}" * (objective["goal"] == "lower")
    return f"{shown} {goal_arrow(objective)}{words}"


def _unscored(objective: Mapping[str, Any]) -> float:
    """Fraction of the judgments that are missing, of an objective that was judged."""
    missing = objective.get("missing") or {}
    return float(missing.get("fraction", 0.0)) if objective.get("num_scored") else 0.0


def side_metrics(evaluation: Mapping[str, Any]) -> list[str]:
    """One phrase per measured side metric: KL, length, diversity, truncation, refusals."""
    phrases = []
    if evaluation.get("kl"):
        phrases.append(f"KL {format_compact(evaluation['kl']['k3'])} nats per response")
    if finite_or_none(evaluation["length"]["before"]) is not None:
        phrases.append(f"length (tokens) {format_before_after(evaluation['length'], 0)}")
    if finite_or_none(evaluation["distinct_2"]["before"]) is not None:
        phrases.append(f"distinct-2 {format_before_after(evaluation['distinct_2'])}")
    if finite_or_none(evaluation.get("similarity", {}).get("before")) is not None:
        phrases.append(f"similarity across prompts {format_before_after(evaluation['similarity'])}")
    if evaluation["truncation_rate"]["num_prompts"]:
        phrases.append(f"truncated {format_percent_before_after(evaluation['truncation_rate'])}")
    for category, rate in evaluation["refusal_rate"].items():
        if category in evaluation["refusal_categories"] and rate["num_prompts"]:
            shown = f"refusals on {one_line(category)} prompts {format_percent_before_after(rate)}"
            by_classifier = evaluation.get("refusal_classifier", {}).get("rates", {}).get(category)
            if by_classifier is not None and by_classifier["num_prompts"]:
                shown += f" (by classifier {format_percent_before_after(by_classifier)})"
            phrases.append(shown)
    return phrases + confidence_and_thinking(evaluation)


def reward_filtering_table(r2_by_objective: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of plain text: R² of the judge on the training reward, per objective and filter."""
    filters = ("all", "best_of_n", "best_random", "best_worst")
    rows: list[tuple[str, ...]] = [("objective", *filters, "filter")]
    for name, r2 in r2_by_objective.items():
        best = max(filters, key=lambda each: finite_or_none(r2[each]) or 0.0)
        cells = (format_number(r2[each], 3) for each in filters)
        rows.append((one_line(name, MAX_NAME_CHARS), *cells, best))
    return "\n".join(align_columns(rows, right_aligned=(1, 2, 3, 4)))


def merge_table(results: Mapping[str, Any]) -> str:
    """Lines of plain text: every merge with its verdicts, the Pareto front, the hypervolumes, warnings.

    Args:
        results: Content of merge.json.
    """
    objectives = results["objectives"]
    rows = [("weights", *(name_with_goal(name, entry) for name, entry in objectives.items()), "front")]
    rows.append(("initial policy", *(format_number(results["initial"][name], 2) for name in objectives), ""))
    for merge in results["merges"]:
        cells = (_merge_cell(merge["scores"][name]) for name in objectives)
        weights = " : ".join(f"{weight:.3g}" for weight in merge["weights"])
        rows.append((weights, *cells, "*" * bool(merge["on_pareto_front"])))
    lines = align_columns(rows, right_aligned=())
    level = f"{100 * results['confidence_level']:.0f} %"
    lines.append(f"score and its change from the initial policy with {level} intervals; ▲ better, ▼ worse")
    if volume := results["hypervolume"]:
        runs, merges, more = (
            f"{volume[key]['value']:.3g} [{volume[key]['low']:.3g}, {volume[key]['high']:.3g}]"
            for key in ("runs", "merges", "difference")
        )
        volumes = f"runs alone {runs}, with merges {merges}, difference {more}"
        lines.append(f"hypervolume above the initial policy: {volumes}")
    return "\n".join([*lines, *(f"⚠ {one_line(line)}" for line in results["warnings"])])


def _merge_cell(entry: Mapping[str, Any]) -> str:
    decimals = decimals_for(entry)
    change = (
        f"{format_signed(entry['change'], decimals)} {format_interval(entry['low'], entry['high'], decimals)}"
    )
    symbol = VERDICT_SYMBOLS.get(entry["verdict"], " ")
    return f"{symbol} {format_number(entry['after'], decimals)} {change}".rstrip()


def confidence_and_thinking(evaluation: Mapping[str, Any]) -> list[str]:
    """Phrases on the calibration of stated confidence and on the length of thinking, where measured."""
    phrases = []
    if calibration := evaluation.get("calibration"):
        pairs = {
            name: {arm: calibration[arm][key] for arm in ("before", "after")}
            for name, key in (("ECE", "ece"), ("Brier", "brier"), ("AUROC", "auroc"))
        }
        metrics = ", ".join(f"{name} {format_before_after(pair, 3)}" for name, pair in pairs.items())
        phrases.append(
            f"stated confidence against {one_line(calibration['correctness_threshold'])}: {metrics}"
        )
    if thinking := evaluation.get("thinking"):
        phrases.append(f"answer (words) {format_before_after(thinking['response'], 0)}")
        phrases.append(f"thinking (words) {format_before_after(thinking['thinking'], 0)}")
        phrases.append(f"invalid thinking format {format_percent_before_after(thinking['invalid_format'])}")
    return phrases


def _format_judges(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names_by_judge: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        names_by_judge.setdefault(objective["judge"], []).append(one_line(name, MAX_NAME_CHARS))
    if len(names_by_judge) == 1:
        (judge,) = names_by_judge
        return [f"judge: {one_line(judge)}"]
    parts = (f"{one_line(judge)} ({', '.join(names)})" for judge, names in names_by_judge.items())
    return [f"judges: {'; '.join(parts)}"]


def judge_comparisons(evaluation: Mapping[str, Any]) -> list[str]:
    """One line per objective that several judges score: their changes, verdicts and agreement."""
    lines = []
    for objective, agreement in evaluation.get("agreement", {}).items():
        parts = []
        for name, table in evaluation["judges"].items():
            if objective in table:
                entry = table[objective]
                decimals = decimals_for(entry)
                interval = format_interval(entry["low"], entry["high"], decimals)
                change = f"{format_signed(entry['change'], decimals)} {interval}".rstrip()
                parts.append(f"{one_line(name, MAX_NAME_CHARS)} {change} {entry['verdict']}")
        alpha = finite_or_none(agreement["alpha"])
        agreed = "" if alpha is None else f"; Krippendorff's alpha of their ranks {format_number(alpha, 2)}"
        rule = evaluation.get("verdict_rule", "")
        lines.append(f"{one_line(objective, MAX_NAME_CHARS)} by {rule}: {', '.join(parts)}{agreed}")
    return lines


def pairwise_phrases(evaluation: Mapping[str, Any]) -> list[str]:
    """One line per judge of pairs and objective: win rates with intervals, and what makes them unsure."""
    lines = []
    for name, judge in evaluation.get("pairwise", {}).items():
        for objective, entry in judge["objectives"].items():
            rates = [
                " ".join([format_percent(o["rate"]), format_interval(o["low"], o["high"], 0, 100)]).rstrip()
                for o in (entry["win_rate"], entry["length_controlled"])
            ]
            unsure = f"orders disagree on {format_percent(entry['win_rate']['disagreement_rate'])}"
            if entry["missing"]["fraction"]:
                unsure += f", {format_percent(entry['missing']['fraction'], 1)} missing"
            lines.append(
                f"{one_line(objective, MAX_NAME_CHARS)} in pairs by {one_line(name, MAX_NAME_CHARS)}: "
                f"{VERDICT_SYMBOLS.get(entry['verdict'], ' ')} {entry['verdict']}, wins {rates[0]}, at equal "
                f"lengths {rates[1]}; {unsure}"
            )
    return lines


def _wrap(phrases: Sequence[str], max_chars: int = 110) -> list[str]:
    """Phrases joined by middle dots, in lines of at most `max_chars` characters where a phrase allows it."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and len(lines[-1]) + len(phrase) + 3 <= max_chars:
            lines[-1] += f" · {phrase}"
        else:
            lines.append(phrase)
    return lines


def align_columns(rows: Sequence[Sequence[str]], right_aligned: Sequence[int]) -> list[str]:
    """Rows of cells as lines with aligned columns.

    Args:
        rows: Cells; every row has the same number.
        right_aligned: Indices of the columns to align on the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("   ".join(cells).rstrip())
    return lines
