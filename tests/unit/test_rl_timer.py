"""Seconds per phase: they add up to the step, and writing a checkpoint is part of no step."""

import pytest

from paretune.report.charts import PHASES as CHART_PHASES
from paretune.report.charts import time_by_stage
from paretune.rl.metrics import STEP_PHASES, PhaseTimer


def test_rest_of_the_step_is_other_and_reading_resets():
    timer = PhaseTimer()
    timer.seconds |= {"rollout": 2.0, "update": 3.0, "checkpoint": 10.0}
    phases = timer.read_and_reset(6.0)
    assert phases == {
        "rollout": 2.0,
        "score": 0.0,
        "model_passes": 0.0,
        "update": 3.0,
        "checkpoint": 10.0,
        "other": 1.0,
    }
    assert set(timer.read_and_reset(0.5).values()) == {0.0, 0.5}


def test_rates_and_flops_per_phase_until_the_next_reading():
    timer = PhaseTimer()
    timer.seconds |= {"rollout": 2.0, "update": 4.0}
    timer.record_work("rollout", tokens=100, flops=3.0)
    timer.record_work("rollout", tokens=20, flops=4.0)
    timer.record_work("update", tokens=8, flops=5.0)
    timer.record_work("update", flops=float("nan"))
    phases = timer.read_and_reset(6.0)
    assert (phases["tokens_per_second/rollout"], phases["flops/rollout"]) == (60.0, 7.0)
    assert phases["tokens_per_second/update"] == 2.0
    assert "flops/update" not in phases, "unknown for a part, so unknown for the phase"
    assert not [key for key in timer.read_and_reset(1.0) if "/" in key]


def test_phase_counts_seconds_of_a_failed_block():
    timer = PhaseTimer()
    with pytest.raises(ZeroDivisionError), timer.phase("score"):
        _ = 1 / 0
    assert timer.seconds["score"] > 0
    assert timer.seconds["update"] == 0


def test_report_shows_phases_of_stages_that_have_some():
    lines = [
        {"stage": "policy", "step": 0, "seconds": 2.0, "tokens": 10},
        {"stage": "align", "step": 0, "seconds": 4.0, "tokens": 100, "rollout": 1.0, "update": 3.0},
        {"stage": "align", "step": 1, "seconds": 4.0, "tokens": 100, "rollout": 1.0, "update": 3.0},
    ]
    policy, align = time_by_stage(lines)
    assert policy["phase_shares"] == ""
    assert align["phase_shares"] == "update 75%, rollout 25%"
    assert (align["seconds"], align["tokens"], align["steps"]) == (8.0, 200, 2)
    assert (*STEP_PHASES, "other") == CHART_PHASES
