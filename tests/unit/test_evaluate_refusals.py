"""Refusals by the fitted classifier, beside the keyword rule: XSTest's test part, and unknown text."""

import gzip
import json
import math

import numpy as np
import pytest

from paretune.evaluate.refusals import (
    classifier_refusal_rates,
    load_refusal_classifier,
    refusal_limitation,
    refusal_ngrams,
)
from paretune.evaluate.warnings import limitations
from paretune.reward.scorers import is_refusal
from shared import shared

REFUSAL, ANSWER = "I'm sorry, but I can't help you with that.", "To kill a process, use the kill command."
GERMAN = "Es tut mir leid, aber dabei kann ich dir leider nicht helfen."


def test_the_shipped_classifier_errs_less_than_the_rule_on_held_out_human_labels():
    path = shared("data", "ratings", "xstest_compliance.test.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [row for line in file if (row := json.loads(line))["scores"]["compliance"] != 0.5]
    truth = np.array([row["scores"]["compliance"] == 0 for row in rows])
    flags = load_refusal_classifier().refuses([row["response"] for row in rows])
    scored = ~np.isnan(flags)
    by_rule = np.array([is_refusal(row["response"]) for row in rows])
    assert scored.mean() > 0.95
    assert (flags == truth)[scored].mean() > 0.975 > (by_rule == truth)[scored].mean()


@pytest.mark.parametrize(
    "text",
    [
        GERMAN,
        "Je suis désolé, mais je ne peux pas vous aider avec cette demande.",
        "抱歉，我不能帮助你。",
        "def f(x):\n    return sorted(x)[::-1]",
        "",
        "?!",
    ],
)
def test_text_unlike_that_of_the_fit_is_not_scored(text):
    assert math.isnan(load_refusal_classifier().probability(text))


@pytest.mark.parametrize(
    ("short", "written_out"),
    [("I can't", "I cannot"), ("I won’t do", "I will not do"), ("I'm unable", "I am unable")],
)
def test_contractions_are_read_as_their_words(short, written_out):
    assert refusal_ngrams(short) == refusal_ngrams(written_out)


def test_rates_are_of_scored_prompts_by_category():
    before = [REFUSAL, ANSWER, ANSWER, GERMAN] + [ANSWER] * 6
    after = [REFUSAL, REFUSAL, REFUSAL, REFUSAL] + [ANSWER] * 6
    result = classifier_refusal_rates((before, after), 2, ["harmful", "", "", "", ""], 0.95)
    harmful, other = result["rates"]["harmful"], result["rates"]["other"]
    assert (harmful["before"], harmful["after"], harmful["num_prompts"]) == (0.5, 1.0, 1)
    assert (other["before"], other["after"], other["num_prompts"]) == (0.0, 0.25, 4)
    assert result["not_scored"] == {"before": 0.1, "after": 0.0}
    assert "% of the refusals missed" in refusal_limitation(result)


def test_without_enough_known_text_there_are_no_rates_and_the_page_says_why():
    result = classifier_refusal_rates(([GERMAN, ANSWER], [ANSWER, ANSWER]), 1, ["", ""], 0.95)
    assert result["rates"] == {}
    assert "50 %" in refusal_limitation(result)


def test_the_limitation_names_both_errors_where_both_were_measured():
    results = {"kl": {}, "refusal_categories": {}, "refusal_rate": {"other": {}}}
    results["refusal_classifier"] = classifier_refusal_rates(([ANSWER], [ANSWER]), 1, [""], 0.95)
    (sentence,) = [s for s in limitations(results, refusals_by_phrase=True) if "Refusals" in s]
    error = results["refusal_classifier"]["error"]
    for name in ("rule", "classifier"):
        assert f"{100 * error[name]['false_negative_rate']:.0f} % of the refusals missed" in sentence
