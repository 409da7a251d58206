"""What responses say of themselves is reported before and after."""

import pytest
from test_evaluate_judge import PROMPTS, Counts, Scripted

from paretune.core.errors import WiringError
from paretune.data.chat import THINK_START_TAG, strip_confidence
from paretune.evaluate.evaluate import Judge, evaluate
from paretune.evaluate.generate import generate
from paretune.report.tables import summary_table

JUDGE = Judge(name="counts", scorer=Counts())


def arms(before, after, frame="confidence"):
    return [generate(Scripted(answer), PROMPTS[:20], prompt_format=frame) for answer in (before, after)]


def compared(before, after, frame="confidence", **more):
    one, two = arms(before, after, frame)
    return evaluate(one, two, [JUDGE], objectives=["politeness", "content"], bootstrap_samples=100, **more)


def test_calibration_holds_the_confidence_against_what_is_right():
    found = compared(
        lambda i, j: ("please" if i % 2 else "no") + " . Confidence: 9",
        lambda i, j: "please . Confidence: 9" if i % 2 else "no . Confidence: 1",
        correct=("politeness", 1.0),
        view="without_confidence",
    )
    said = found.results["calibration"]
    assert said["correct"] == "politeness >= 1"
    assert said["before"]["ece"] == pytest.approx(0.4)
    assert said["before"]["accuracy"] == pytest.approx(0.5)
    assert said["before"]["confidence"] == pytest.approx(0.9)
    assert said["before"]["auroc"] == 0.5
    assert said["after"]["ece"] == pytest.approx(0.1)
    assert said["after"]["brier"] == pytest.approx(0.01)
    assert said["after"]["auroc"] == 1.0
    line = "stated confidence against politeness >= 1: ECE 0.400 → 0.100, Brier 0.410 → 0.010, AUROC 0.5"
    assert line in summary_table(found.results)
    assert found.columns["before"][0] == "no . Confidence: 9"


def test_judges_are_shown_what_the_view_shows():
    found = compared(lambda i, j: "a b Confidence: 9", lambda i, j: "a b c", view="without_confidence")
    content = found.results["objectives"]["content"]
    assert content["before"] == len(strip_confidence("a b Confidence: 9").split()) == 2
    assert "calibration" not in found.results


def test_thoughts_and_answers_are_measured_apart_and_only_the_answer_is_judged():
    found = compared(
        lambda i, j: f"{THINK_START_TAG}please please</think> one two",
        lambda i, j: f"{THINK_START_TAG}hm</think> please do so" if i else f"{THINK_START_TAG}please",
        frame="think",
        view="after_thinking",
        refuses=lambda text: "one" in text,
    )
    numbers = found.results
    assert numbers["objectives"]["politeness"]["before"] == 0
    assert numbers["objectives"]["politeness"]["n"] == 19
    assert numbers["thoughts"]["answer"] == {"before": 2, "after": 3}
    assert numbers["thoughts"]["trace"] == {"before": 2, "after": 1}
    assert numbers["thoughts"]["unread"]["after"] == pytest.approx(0.05)
    assert numbers["refusals"]["harmful"]["before"] == 1
    table = summary_table(numbers)
    for said in ("answers (words) 2 → 3", "thoughts (words) 2 → 1", "without readable thoughts 0 % → 5 %"):
        assert said in table


def test_somebody_must_say_what_is_right():
    with pytest.raises(WiringError, match="nobody judges it"):
        compared(lambda i, j: "a", lambda i, j: "b", correct=("truth", 0.5))
