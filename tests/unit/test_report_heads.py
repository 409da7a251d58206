"""Heads that are no better than a constant, and policies that hardly moved or collapsed."""

import pytest

from paretune.evaluate.judge_quality import head_evidence, unreliable_heads, weak_heads
from paretune.evaluate.warnings import evaluation_warnings
from paretune.report.tables import summary_table
from support.fake_run import fake_evaluation

RANKS, WEAK, UNKNOWN = "ranks", "no better than a constant", "cannot tell"


def ratings(rho, n, **more):
    return {"num_ratings": n, "spearman": rho, "r2": 0.0, "calibration": {}, **more}


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (ratings(0.02, 600), WEAK),
        (ratings(-0.4, 600), WEAK),
        (ratings(-0.5, 20), WEAK),
        (ratings(-0.9, 10), UNKNOWN),
        (ratings(0.1, 36), UNKNOWN),
        (ratings(0.1, 600), RANKS),
        (ratings(0.33, 193), RANKS),
        (ratings(1.0, 12), RANKS),
        (ratings(0.5, 3), UNKNOWN),
        (ratings(None, 50, calibration=None), WEAK),
        (ratings(None, 50, calibration=None, r2=None), UNKNOWN),
        ({"num_ratings": 0, "num_pairs": 0}, UNKNOWN),
        ({"num_pairs": 400, "pair_accuracy": 0.51}, WEAK),
        ({"num_pairs": 400, "pair_accuracy": 0.56}, RANKS),
        ({"num_pairs": 40, "pair_accuracy": 0.52}, UNKNOWN),
        ({"num_pairs": 12, "pair_accuracy": 0.1}, UNKNOWN),
        (ratings(0.0, 600) | {"num_pairs": 400, "pair_accuracy": 0.8}, RANKS),
    ],
)
def test_a_head_is_weak_if_its_interval_has_no_useful_value(head, verdict):
    assert head_evidence(head).verdict == verdict


def test_evidence_is_described_with_its_interval():
    assert head_evidence(ratings(0.02, 600)).description == "rank correlation 0.02 [−0.06, 0.10], n = 600"
    pairs = {"num_pairs": 400, "pair_accuracy": 0.51}
    assert head_evidence(pairs).description == "51 % [46 %, 56 %] of 400 pairs"
    assert unreliable_heads({"objectives": {"safe": ratings(0.02, 600)}}) == [
        "safe does not rank responses better than a constant (rank correlation 0.02 [−0.06, 0.10], n = 600)"
    ]


def test_weak_heads_count_only_if_an_objective_uses_them():
    report = {"objectives": {"safe": ratings(0.02, 600), "kind": ratings(0.6, 600)}}
    assert weak_heads(report, {"kind"}) == []
    assert weak_heads(report, {"kind", "safe"}) == ["safe (rank correlation 0.02 [−0.06, 0.10], n = 600)"]


def warned(**changes):
    results = fake_evaluation(prompts=60)[0]
    results |= {"unchanged_fraction": 0.2, "learning_rate": 1e-5} | changes
    results["warnings"] = evaluation_warnings(results)
    first = results["warnings"][0]
    assert (summary_table(results).split("\n")[0] == f"⚠ {first}") is first.startswith("The policy ")
    return first


def kl(k3, per_token):
    return {"k1": k3, "k3": k3, "low": 0.0, "high": k3, "per_token": per_token, "unit": "nats/response"}


def test_a_policy_that_hardly_moved_is_told_first():
    first = warned(kl=kl(6e-4, 1e-5), unchanged_fraction=0.97)
    assert first.startswith(
        "The policy hardly moved: KL to the initial policy 0.0006 nats per response, 97 %"
    )
    assert "training.learning_rate is 1e-05" in first
    assert "learning rate (training.learning_rate)" in warned(
        kl=kl(0.0, 0.0), unchanged_fraction=1.0, learning_rate=None
    )
    assert not warned(kl=kl(6e-4, 1e-5), unchanged_fraction=0.5).startswith("The policy ")
    assert not warned().startswith("The policy ")
    assert not warned(kl=None).startswith("The policy ")


def test_a_collapsed_policy_is_told_first():
    first = warned(
        kl=kl(166.0, 3.5),
        distinct_2={"before": 0.94, "after": 0.09},
        unique_fraction={"before": 0.99, "after": 0.12},
        truncation_rate={"num_prompts": 60, "before": 0.1, "after": 0.95, "low": 0.8, "high": 0.9},
    )
    assert first.startswith(
        "The policy collapsed: its responses are alike (distinct word pairs 0.94 → 0.09; 12 % of the "
        "responses are distinct; 95 % of the responses reach the length limit; KL 166 nats per response, "
        "3.5 per token)"
    )
    assert warned(distinct_2={"before": 0.6, "after": 0.29}).startswith("The policy collapsed")
    assert warned(kl=kl(80.0, 1.6)).startswith("The policy is very far from the initial one (KL 80 nats")
    assert not warned(distinct_2={"before": None, "after": None}).startswith("The policy ")
