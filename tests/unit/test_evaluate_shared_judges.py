"""A judge that measures what a training reward measures is not independent, and the report says why."""

from typing import Any

import pytest

from paretune.evaluate.judging import Judge
from paretune.evaluate.warnings import _dependent_judge_warnings
from paretune.reward.json_rule import JsonRule
from paretune.reward.rules import LengthRule, PhrasesRule, RegexRule, RepetitionRule, RuleScorer


def judge(rule: Any) -> Judge:
    scorer = RuleScorer(name="brief", rule=rule)
    return Judge(name="j", scorer=scorer, weights_hash=scorer.identity)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (LengthRule(max=100), LengthRule(max=100), "is the same rule"),
        (LengthRule(max=100), LengthRule(max=101), "is a rule on the same quantity (length)"),
        (
            LengthRule(max=100),
            LengthRule(unit="characters", target=700),
            "is a rule on the same quantity (length)",
        ),
        (RepetitionRule(n=3), RepetitionRule(n=4), "is a rule on the same quantity (repetition)"),
        (JsonRule(), JsonRule({"type": "object"}), "is a rule on the same quantity (json)"),
        (RegexRule("yes"), RegexRule("yes", ignore_case=True), "is the same rule"),
        (RegexRule("yes"), RegexRule("no"), ""),
        (PhrasesRule(("thank you",)), PhrasesRule((), ("Thank You",)), "is a rule on the same phrases"),
        (PhrasesRule(("thank you",)), PhrasesRule(("please",)), ""),
        (LengthRule(max=100), RepetitionRule(), ""),
    ],
)
def test_rules_on_one_quantity_are_not_independent(first: Any, second: Any, shared: str) -> None:
    assert judge(first).shared_with(judge(second)) == shared
    assert judge(second).shared_with(judge(first)) == shared
    assert judge(first).overlaps_with(judge(second)) == bool(shared)


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        (
            "is the same rule",
            ("it is the same rule as the training reward", "another kind of judge in `judges:`"),
        ),
        ("is the same function", ("it is the same function as the training reward", "another kind of judge")),
        (
            "asks the same model",
            ("it asks the same model as the training reward", "another model in `judges:`"),
        ),
        ("has the same weights", ("it has the same weights as the training reward", "fitted on other data")),
        ("", ("it shares weights or data with the training reward", "fitted on other data")),
    ],
)
def test_the_warning_says_what_is_shared(shared: str, words: tuple[str, ...]) -> None:
    row = {"num_scored": 3, "independent": False} | ({"shared": shared} if shared else {})
    (sentence,) = _dependent_judge_warnings({"brief": row})
    assert all(each in sentence for each in words), sentence
