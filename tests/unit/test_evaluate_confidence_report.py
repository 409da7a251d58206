"""Calibration of stated confidence and length of thinking in eval.json, before and after."""

import pytest
from test_evaluate_evaluate import PROMPTS, Scripted, WordCounts

from paretune.core.errors import WiringError
from paretune.data.chat_template import THINK_START_TAG
from paretune.data.prompt_formats import strip_confidence
from paretune.evaluate.evaluate import evaluate
from paretune.evaluate.generate import generate
from paretune.evaluate.judging import Judge
from paretune.report.tables import summary_table

JUDGE = Judge(name="counts", scorer=WordCounts())


def arms(before, after, prompt_format="confidence"):
    return [
        generate(Scripted(respond), PROMPTS[:20], prompt_format=prompt_format) for respond in (before, after)
    ]


def compared(before, after, prompt_format="confidence", **arguments):
    before_arm, after_arm = arms(before, after, prompt_format)
    return evaluate(
        before_arm,
        after_arm,
        [JUDGE],
        objectives=["politeness", "content"],
        bootstrap_samples=100,
        **arguments,
    )


def test_calibration_compares_stated_confidence_with_correctness():
    evaluation = compared(
        lambda i, j: ("please" if i % 2 else "no") + " . Confidence: 9",
        lambda i, j: "please . Confidence: 9" if i % 2 else "no . Confidence: 1",
        correctness_threshold=("politeness", 1.0),
        scorer_view="without_confidence",
    )
    calibration = evaluation.results["calibration"]
    assert calibration["correctness_threshold"] == "politeness >= 1"
    assert calibration["before"]["ece"] == pytest.approx(0.4)
    assert calibration["before"]["accuracy"] == pytest.approx(0.5)
    assert calibration["before"]["confidence"] == pytest.approx(0.9)
    assert calibration["before"]["auroc"] == 0.5
    assert calibration["after"]["ece"] == pytest.approx(0.1)
    assert calibration["after"]["brier"] == pytest.approx(0.01)
    assert calibration["after"]["auroc"] == 1.0
    line = "stated confidence against politeness >= 1: ECE 0.400 → 0.100, Brier 0.410 → 0.010, AUROC 0.5"
    assert line in summary_table(evaluation.results)
    assert evaluation.columns["before"][0] == "no . Confidence: 9"


def test_judges_read_the_scorer_view():
    evaluation = compared(
        lambda i, j: "a b Confidence: 9", lambda i, j: "a b c", scorer_view="without_confidence"
    )
    content = evaluation.results["objectives"]["content"]
    assert content["before"] == len(strip_confidence("a b Confidence: 9").split()) == 2
    assert "calibration" not in evaluation.results


def test_thinking_is_measured_but_only_the_answer_is_judged():
    evaluation = compared(
        lambda i, j: f"{THINK_START_TAG}please please</think> one two",
        lambda i, j: f"{THINK_START_TAG}hm</think> please do so" if i else f"{THINK_START_TAG}please",
        prompt_format="think",
        scorer_view="after_thinking",
        refusal_detector=lambda text: "one" in text,
    )
    results = evaluation.results
    assert results["objectives"]["politeness"]["before"] == 0
    assert results["objectives"]["politeness"]["num_scored"] == 19
    assert results["thinking"]["response"] == {"before": 2, "after": 3}
    assert results["thinking"]["thinking"] == {"before": 2, "after": 1}
    assert results["thinking"]["invalid_format"]["after"] == pytest.approx(0.05)
    assert results["refusal_rate"]["harmful"]["before"] == 1
    table = summary_table(results)
    for phrase in ("answer (words) 2 → 3", "thinking (words) 2 → 1", "invalid thinking format 0 % → 5 %"):
        assert phrase in table


def test_correctness_without_a_judge_is_rejected():
    with pytest.raises(WiringError, match='"truth", which has no judge'):
        compared(lambda i, j: "a", lambda i, j: "b", correctness_threshold=("truth", 0.5))
