"""Warnings about suspicious results of an evaluation, and its limitations."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from paretune.core.goals import Goal
from paretune.evaluate.refusals import refusal_limitation
from paretune.evaluate.verdicts import (
    INCONCLUSIVE,
    JUDGE_UNRELIABLE,
    ONE_SEED,
    WORSE,
    shared_words,
)
from paretune.run.folder import (
    CONSTANT_SCORE_EVENT,
    EARLIER_EVALUATION_EVENT,
    MISMATCH_EVENT,
    NEGATIVE_SHARE_EVENT,
)

RefusalDirection = Literal["up", "down"]
"""The better direction of a category's refusal rate: "up" for harmful prompts, "down" for harmless ones."""

MAX_LENGTH_RATIO = 1.5
"""A change of the mean length by more than this factor is a warning."""
MIN_REWARD_RISE = 0.1
"""Smallest rise of a reward, in standard deviations at the start, that a constant judge contradicts."""
MIN_PROMPTS = 30
"""With fewer prompts, a bootstrap over prompts underestimates the variance between them."""
MIN_UNIQUE_FRACTION = 0.7
"""A lower fraction of distinct responses, after a fall of at least `MIN_UNIQUE_FALL`, is a collapse."""
MIN_UNIQUE_FALL = 0.1
MAX_TRUNCATION_RATE = 0.1
"""With more truncated responses, the length limit shapes the scores."""
POLICY_PREFIX = "The policy "
"""Prefix of the warnings about the policy as a whole, without which no verdict can be read."""
MIN_KL_MOVED = 1e-3
"""KL to the initial policy in nats per response. By Pinsker's inequality, no event, such as "the response is
safe", then has a probability that differs by more than 0.023."""
MIN_UNCHANGED_FRACTION = 0.9
"""Both policies sample with the same random numbers, so equal policies give equal responses."""
MIN_DISTINCT_RATIO = 0.5
"""A fall of the distinct word pairs below this fraction of what they were is a collapse."""
MAX_KL_PER_TOKEN = 1.0
"""Nats per token: the tokens are on average e times as likely as under the initial policy."""
WARNING_EVENTS = (EARLIER_EVALUATION_EVENT, MISMATCH_EVENT, NEGATIVE_SHARE_EVENT, CONSTANT_SCORE_EVENT)
"""Events of a run that are also warnings about its results."""


def evaluation_warnings(results: Mapping[str, Any]) -> list[str]:
    """Warnings about suspicious results, most important first.

    Args:
        results: The content of eval.json.
    """
    objectives: Mapping[str, Mapping[str, Any]] = results["objectives"]
    return [
        *policy_warnings(results),
        *unreliable_judge_warnings(objectives),
        *_dependent_judge_warnings(objectives),
        *few_prompts_warning(results["num_prompts"], _num_scored(objectives, results["num_prompts"])),
        *_regression_warnings(objectives),
        *_overoptimization_warnings(objectives),
        *_refusal_warnings(results["refusal_rate"], results["refusal_categories"]),
        *_side_effect_warnings(results),
    ]


def event_warnings(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Warnings of the training and of an earlier evaluation, without which the results mislead.

    Args:
        events: Lines of events.jsonl.
    """
    return list(dict.fromkeys(str(e["text"]) for e in events if e.get("type") in WARNING_EVENTS))


def policy_warnings(results: Mapping[str, Any]) -> list[str]:
    """A sentence if the policy hardly moved, collapsed, or is very far from the initial one.

    Args:
        results: The content of eval.json.
    """
    kl, rate = results.get("kl"), results.get("learning_rate")
    is_rate = "" if rate is None else f" is {rate:.3g}"
    per_response = None if kl is None else kl["k3"]
    unchanged = results.get("unchanged_fraction")
    if per_response is not None and per_response < MIN_KL_MOVED and (unchanged or 0) > MIN_UNCHANGED_FRACTION:
        return [
            f"The policy hardly moved: KL to the initial policy {_format_number(per_response)} nats per "
            f"response, {100 * (unchanged or 0):.0f} % of the responses word for word as before. No verdict "
            "here says anything about the method; the likely cause is the learning rate "
            f"(training.learning_rate{is_rate}) or too few steps; fix: raise it tenfold."
        ]
    is_far = kl is not None and (kl["per_token"] or 0) > MAX_KL_PER_TOKEN
    alike, details = _collapse_details(results)
    if not (is_far or alike):
        return []
    if kl is not None:
        details.append(
            f"KL {_format_large(kl['k3'])} nats per response, {_format_large(kl['per_token'])} per token"
        )
    what = "collapsed: its responses are alike" if alike else "is very far from the initial one"
    return [
        f"The policy {what} ({'; '.join(details)}). The likely cause is the learning rate "
        f"(training.learning_rate{is_rate}), or a KL penalty that is too small; "
        "fix: lower the rate, or raise algorithm.kl_coef."
    ]


def _collapse_details(results: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether the responses are alike, and what shows it."""
    distinct, unique, details = results["distinct_2"], results["unique_fraction"], []
    fewer_pairs = bool(
        distinct["before"]
        and distinct["after"] is not None
        and distinct["after"] < MIN_DISTINCT_RATIO * distinct["before"]
    )
    repeated = unique["after"] < MIN_UNIQUE_FRACTION and unique["after"] < unique["before"] - MIN_UNIQUE_FALL
    if fewer_pairs:
        details.append(f"distinct word pairs {distinct['before']:.2f} → {distinct['after']:.2f}")
    if repeated:
        details.append(f"{100 * unique['after']:.0f} % of the responses are distinct")
    truncated = results["truncation_rate"]
    if truncated["num_prompts"] and truncated["after"] - truncated["before"] > MAX_TRUNCATION_RATE:
        details.append(f"{100 * truncated['after']:.0f} % of the responses reach the length limit")
    return fewer_pairs or repeated, details


def few_prompts_warning(num_prompts: int, num_scored: Mapping[str, int] | None = None) -> list[str]:
    """A warning if too few prompts were scored for reliable intervals.

    Args:
        num_prompts: Test prompts.
        num_scored: Objective -> prompts that were scored in both arms, where that is fewer.
    """
    few = {name: number for name, number in (num_scored or {}).items() if number < MIN_PROMPTS}
    if num_prompts >= MIN_PROMPTS and not few:
        return []
    counts = f"{num_prompts} test prompt{'s' * (num_prompts != 1)}"
    if few:
        scored = ", ".join(f"{number} for {name}" for name, number in few.items())
        counts = f"{scored} of {counts} {'was' if [*few.values()] == [1] else 'were'} scored"
    return [
        f"Only {counts}: confidence intervals over so few "
        f"prompts are often too narrow; fix: evaluate on {MIN_PROMPTS} or more"
        f"{', with a judge that can read them' if few else ''}."
    ]


def _num_scored(objectives: Mapping[str, Mapping[str, Any]], num_prompts: int) -> dict[str, int]:
    """Objective -> scored prompts, of those objectives that were scored on some prompts but not on all."""
    return {name: o["num_scored"] for name, o in objectives.items() if 0 < o["num_scored"] < num_prompts}


def limitations(results: Mapping[str, Any], *, refusals_by_phrase: bool) -> list[str]:
    """What this evaluation did not measure.

    Args:
        results: The content of eval.json.
        refusals_by_phrase: Refusals were detected by their phrases.
    """
    sentences = [
        ONE_SEED,
        "No person read the responses.",
        "Abilities outside the objectives (knowledge, code, mathematics) were not tested.",
        "Scores are not corrected for the length of responses.",
    ]
    if results["kl"] is None:
        sentences.append("The distance from the starting policy (KL) was not measured.")
    for category in results["refusal_categories"]:
        if category not in results["refusal_rate"]:
            sentences.append(
                f"No test prompts of the category “{category}”: their refusals were not measured."
            )
    if refusals_by_phrase and results["refusal_rate"]:
        sentences.append(refusal_limitation(results.get("refusal_classifier")))
    return sentences


def unreliable_judge_warnings(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence about the judged objectives whose judge does not rank as its labels do.

    Args:
        objectives: Entries of eval.json or of benchmark.json.
    """
    phrases = [
        f"{name} {quality['reason']}"
        for name, o in objectives.items()
        if (quality := o.get("judge_quality"))
        and quality["status"] == "unreliable"
        and o.get("num_scored", 1)
    ]
    if not phrases:
        return []
    return [
        f"Judge unreliable: {'; '.join(phrases)}. No verdict on these objectives rests on its scores; fix: "
        "more labels for the judge, or more epochs."
    ]


def _dependent_judge_warnings(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    dependent = [name for name, o in objectives.items() if o["num_scored"] and not o["independent"]]
    names_by_reason: dict[str, list[str]] = {}
    for name in dependent:
        names_by_reason.setdefault(objectives[name].get("shared", ""), []).append(name)
    return [
        f"Judge not independent for {', '.join(names)}: it {shared_words(reason)} the training reward, so a "
        f"gain may be overoptimization; fix: {_judge_fix(reason)}."
        for reason, names in names_by_reason.items()
    ]


def _judge_fix(shared: str) -> str:
    """What to write instead of a judge that shares something with the training reward."""
    if "rule" in shared or "function" in shared or "scorer" in shared:
        return "name another kind of judge in `judges:`, or a `judge:` fitted on labels"
    return (
        "name another model in `judges:`"
        if "model" in shared
        else "give the recipe a `judge:` fitted on other data"
    )


def _regression_warnings(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sentences = []
    for name, o in objectives.items():
        if o["verdict"] == WORSE:
            loss, low, high = (_format_number(-o["oriented"][key]) for key in ("change", "high", "low"))
            goal = Goal.of(o)
            how = {"lower": ": it rose", "target": f": its distance to {goal.target} grew"}.get(goal.kind, "")
            sentences.append(f"{name} got worse{how} by {loss} [{low}, {high}].")
        missing = o["missing"]
        if o["num_scored"] and o["verdict"] == INCONCLUSIVE:
            share = f"{100 * missing['fraction']:.1f} % of the judgments are missing"
            sentences += [text for text in o["cautions"] if share in text]
    return sentences


def _overoptimization_warnings(objectives: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sentences = []
    for name, o in objectives.items():
        reward = o["reward"]
        is_judged = o["num_scored"] and o["independent"] and o["verdict"] != JUDGE_UNRELIABLE
        if not (reward and is_judged):
            continue
        # A bound is null in eval.json where it was not measured.
        judge, reward = o["oriented"], reward["oriented"] | {"std": reward["std"]}
        judge_rose, reward_rose = (judge["low"] or 0) > 0, (reward["low"] or 0) > 0
        if judge_rose or not reward_rose:
            continue
        if _in_standard_deviations(reward["change"], reward["std"]) > _min_telling_rise(o):
            interval = f"[{_format_signed(o['low'])}, {_format_signed(o['high'])}]"
            constant = o["low"] == o["high"] == 0
            change = (
                "no score of the judge changed"
                if constant
                else f"the score of the judge changed by {_format_signed(o['change'])} {interval}"
            )
            rose = "rose" if Goal.of(o).kind == "higher" else "improved"
            sentences.append(
                f"The training reward of {name} {rose} by {_format_number(reward['change'])} while {change}: "
                "overoptimization is likely."
            )
    return sentences


def _min_telling_rise(objective: Mapping[str, Any]) -> float:
    """The smallest rise of a reward, in standard deviations at the start, that its judge should also show.

    Reward and judge may have different units, so each is measured in its own standard deviations. A rise
    below what the judge can detect proves nothing, unless the judge shows a fall.
    """
    if (objective["oriented"]["high"] or 0) < 0:
        return MIN_REWARD_RISE
    return max(MIN_REWARD_RISE, _in_standard_deviations(objective["min_detectable_effect"], objective["std"]))


def _in_standard_deviations(change: float, std: float) -> float:
    if not change > 0:
        return 0.0
    return change / std if std > 0 else math.inf


def _refusal_warnings(
    refusal_rate: Mapping[str, Mapping[str, Any]], refusal_categories: Mapping[str, RefusalDirection]
) -> list[str]:
    sentences = []
    for category, rate in refusal_rate.items():
        if not rate["num_prompts"]:
            continue
        # Categories that are not configured are ordinary prompts, which should be answered.
        if refusal_categories.get(category, "down") == "up":
            if rate["high"] < 0:
                sentences.append(
                    f"Refusals on {category} prompts fell from {100 * rate['before']:.0f} % to "
                    f"{100 * rate['after']:.0f} %."
                )
        elif rate["low"] > 0:
            low, high = _format_percentage_points(rate["low"]), _format_percentage_points(rate["high"])
            sentences.append(
                f"Refusals on {category} prompts rose from {100 * rate['before']:.0f} % to "
                f"{100 * rate['after']:.0f} % (change [{low}, {high}])."
            )
    return sentences


def _side_effect_warnings(results: Mapping[str, Any]) -> list[str]:
    sentences = []
    length = results["length"]
    if length["before"]:
        ratio = length["after"] / length["before"]
        # A bound is null in eval.json where it was not measured.
        changed = (length["low"] or 0) > 0 or (length["high"] or 0) < 0
        if changed and not 1 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO:
            sentences.append(
                f"Responses are {ratio:.1f} times as long as before; some scores may follow length."
            )
    truncated = results["truncation_rate"]
    if truncated["num_prompts"] and truncated["after"] > MAX_TRUNCATION_RATE:
        sentences.append(
            f"{100 * truncated['after']:.0f} % of the responses were truncated at the length limit, so their "
            "scores are of cut texts; fix: raise algorithm.max_new_tokens (and evaluate.max_new_tokens, if "
            "set)."
        )
    return sentences


def _format_number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def _format_large(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _format_signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")


def _format_percentage_points(fraction: float) -> str:
    return f"{100 * fraction:+.0f}".replace("-", "−")
