"""Seconds of a step by phase: they add up, and a checkpoint belongs to no step."""

import pytest

from paretune.report.charts import PHASES as DRAWN
from paretune.report.charts import time_by_stage
from paretune.rl.metrics import STEP_PHASES, PhaseTimer


def test_what_no_phase_accounts_for_is_idle_and_a_reading_begins_anew():
    clock = PhaseTimer()
    clock.seconds |= {"sample": 2.0, "learn": 3.0, "save": 10.0}
    found = clock.read_and_reset(6.0)
    assert found == {"sample": 2.0, "score": 0.0, "measure": 0.0, "learn": 3.0, "save": 10.0, "idle": 1.0}
    assert set(clock.read_and_reset(0.5).values()) == {0.0, 0.5}


def test_what_was_done_stands_beside_the_seconds_until_the_next_reading():
    clock = PhaseTimer()
    clock.seconds |= {"sample": 2.0, "learn": 4.0}
    clock.record_work("sample", tokens=100, flops=3.0)
    clock.record_work("sample", tokens=20, flops=4.0)
    clock.record_work("learn", tokens=8, flops=5.0)
    clock.record_work("learn", flops=float("nan"))
    found = clock.read_and_reset(6.0)
    assert (found["tokens_per_second/sample"], found["flops/sample"]) == (60.0, 7.0)
    assert found["tokens_per_second/learn"] == 2.0
    assert "flops/learn" not in found, "nobody could say of all of it"
    assert not [key for key in clock.read_and_reset(1.0) if "/" in key]


def test_a_phase_counts_also_what_failed():
    clock = PhaseTimer()
    with pytest.raises(ZeroDivisionError), clock.phase("score"):
        _ = 1 / 0
    assert clock.seconds["score"] > 0
    assert clock.seconds["learn"] == 0


def test_the_report_shows_the_phases_of_the_stages_that_have_some():
    lines = [
        {"stage": "policy", "step": 0, "seconds": 2.0, "tokens": 10},
        {"stage": "align", "step": 0, "seconds": 4.0, "tokens": 100, "sample": 1.0, "learn": 3.0},
        {"stage": "align", "step": 1, "seconds": 4.0, "tokens": 100, "sample": 1.0, "learn": 3.0},
    ]
    policy, align = time_by_stage(lines)
    assert policy["phases"] == ""
    assert align["phases"] == "learn 75%, sample 25%"
    assert (align["seconds"], align["tokens"], align["steps"]) == (8.0, 200, 2)
    assert (*STEP_PHASES, "idle") == DRAWN
