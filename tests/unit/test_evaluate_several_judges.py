"""Several judges: one verdict by rule, and their agreement."""

import math

import numpy as np
import pytest

from paretune.evaluate.several_judges import judge_agreement, shared_objectives
from paretune.evaluate.verdicts import combine_verdicts


@pytest.mark.parametrize(
    ("verdicts", "rule", "expected"),
    [
        (["better", "better", "better"], "all", "better"),
        (["better", "better", "no evidence"], "all", "no evidence"),
        (["better", "better", "worse"], "majority", "better"),
        (["better", "worse"], "majority", "no evidence"),
        (["better", "not measured"], "all", "better"),
        (["not measured", "not measured"], "all", "not measured"),
        (["better", "worse", "no evidence"], "j1", "worse"),
    ],
)
def test_the_rule_decides(verdicts, rule, expected):
    named = {f"j{i}": verdict for i, verdict in enumerate(verdicts)}
    assert combine_verdicts(named, rule) == expected


def test_where_the_deciding_judge_does_not_judge_all_must_agree():
    assert combine_verdicts({"a": "better", "b": "better"}, "c") == "better"
    assert combine_verdicts({"a": "better", "b": "worse"}, "c") == "no evidence"


def test_judges_on_different_scales_that_order_alike_agree():
    scores = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    agreement = judge_agreement({"a": scores, "b": 100 * scores**3})
    assert agreement["alpha"] == pytest.approx(1)
    assert agreement["spearman"] == {"a, b": pytest.approx(1)}


def test_only_responses_that_all_judges_scored_count():
    a = np.array([1.0, 2, 3, 4, np.nan, 6])
    b = np.array([1.0, np.nan, 2, 3, 9, 4])
    assert judge_agreement({"a": a, "b": b})["num_responses"] == 4


@pytest.mark.parametrize("b", [[1.0, 1, 1, 1], [np.nan, np.nan, 1, 2]])
def test_agreement_with_a_constant_or_with_two_responses_is_not_known(b):
    agreement = judge_agreement({"a": np.array([1.0, 2, 3, 4]), "b": np.array(b)})
    assert math.isnan(agreement["alpha"])
    assert math.isnan(agreement["spearman"]["a, b"])


def test_opposite_judges_disagree():
    a = np.arange(10.0)
    agreement = judge_agreement({"a": a, "b": -a})
    assert agreement["spearman"]["a, b"] == pytest.approx(-1)
    assert agreement["alpha"] < -0.5


def test_shared_objectives():
    assert shared_objectives({"a": ["x", "y"], "b": ["y", "z"], "c": ["y"]}) == ["y"]
