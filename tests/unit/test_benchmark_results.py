"""Results of a benchmark from invented runs: means, changes, ranks, budgets, files."""

import json
from pathlib import Path

import numpy as np
import pytest

from paretune.benchmark.changes import ranks_from_pairs
from paretune.benchmark.costs import benchmark_costs, budget_violations, run_costs
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.run import preregister
from paretune.benchmark.spec import load_benchmark
from paretune.cli import main
from paretune.config import config_hash, resolved_yaml
from paretune.core.errors import ConfigError, DataError
from paretune.core.goals import Goal
from paretune.evaluate.judge_quality import judge_quality
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.evaluate.stored_scores import read_generations
from paretune.experiment.reuse import reuse_key
from paretune.report.benchmark_page import benchmark_table
from paretune.run.compat import EVALUATION_SECTIONS
from support.fake_benchmark import FILE, MEANS, OBJECTIVES, make_runs, write_benchmark_file


def results_of(tmp_path, text=None, **options):
    spec = load_benchmark(write_benchmark_file(tmp_path, text))
    make_runs(spec, **options)
    runs = spec.run_specs()
    return benchmark_results(spec, runs, benchmark_costs(spec, runs, {}), {})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of(tmp_path_factory.mktemp("benchmark"))


def test_method_off_the_budget_by_two_percent_is_not_ranked():
    within = {"a": [1000, 1019], "b": [985, 1001]}
    assert budget_violations(within, 1000, "reward_calls") == {}
    violations = budget_violations({"a": [1000, 1021], "b": [979, 1000], "c": [1000]}, 1000, "reward_calls")
    assert violations.keys() == {"a", "b"}
    assert violations["a"].startswith(
        "a: not ranked: a run used 1,021 reward_calls, +2.1% from the budget of 1,000"
    )
    assert "fix:" in violations["b"]


def test_methods_too_far_from_each_other_are_not_both_ranked():
    violations = budget_violations({"a": [1018], "b": [983], "c": [1000]}, 1000, "reward_calls")
    assert violations.keys() == {"a"}, "the method further from the budget"
    assert "it used 1,018 reward_calls per run and b 983: more than 2 % apart" in violations["a"]


def test_means_intervals_and_ranks(results):
    means = {m: results["methods"][m]["scores"]["equal"] for m in MEANS}
    for k, objective in enumerate(results["objectives"]):
        order = sorted(MEANS, key=lambda m, o=objective: -means[m][o]["mean"])
        ranks = [means[m][objective]["rank"] for m in order]
        assert ranks == sorted(ranks)
        assert set(ranks) <= {1, 2, 3, 4}
        assert ranks[0] == 1
        assert ranks[-1] > 1, "the others are far above it"
        for method in MEANS:
            point = means[method][objective]
            assert point["mean"] == pytest.approx(MEANS[method][k], abs=0.05)
            assert point["low"] < point["mean"] < point["high"]
            assert len(point["seed_means"]) == 3
    assert results["same_prompts"]
    assert results["unranked"] == []
    assert [line.split(":")[0] for line in results["caveats"]] == ["3 seeds", "No tuning"]


def test_changes_from_baseline_are_paired_and_verdicts_follow_the_interval(results):
    grpo, ppo = (results["methods"][m]["scores"]["equal"] for m in ("grpo", "ppo_max"))
    assert all(point["change_from_baseline"] is None for point in grpo.values()), "the baseline"
    lost, won = ppo["politeness"]["change_from_baseline"], ppo["safety"]["change_from_baseline"]
    assert (lost["verdict"], won["verdict"]) == ("worse", "better")
    assert lost["change"] == pytest.approx(ppo["politeness"]["mean"] - grpo["politeness"]["mean"])
    assert lost["high"] < 0 < won["low"]


def test_changes_from_initial_are_paired_with_the_same_run_before_training(results):
    for method in MEANS:
        for objective, point in results["methods"][method]["scores"]["equal"].items():
            change = point["change_from_initial"]
            assert change["change"] == pytest.approx(point["mean"] - results["initial"][objective])
            assert change["low"] < change["change"] < change["high"]
            assert change["verdict"] == "better", "the baseline too"


def test_change_from_initial_is_worse_after_a_fall_and_no_evidence_when_self_judged(tmp_path):
    results = results_of(tmp_path, means=MEANS | {"rloo": (0.2, 0.55, 0.34, 0.64)}, used={"grpo": 63_000})
    rloo = {
        o: p["change_from_initial"]["verdict"]
        for o, p in results["methods"]["rloo"]["scores"]["equal"].items()
    }
    assert rloo == {"politeness": "worse"} | dict.fromkeys(list(rloo)[1:], "no evidence")
    over_budget = results["methods"]["grpo"]["scores"]["equal"].values()
    assert results["methods"]["grpo"]["unranked_reason"]
    assert {p["change_from_initial"]["verdict"] for p in over_budget} == {"better"}, (
        "budgets do not matter for it"
    )
    (tmp_path / "own").mkdir()
    results = results_of(tmp_path / "own", independent=False)
    words = {
        p["change_from_initial"]["verdict"]
        for m in results["methods"].values()
        for p in m["scores"]["equal"].values()
    }
    assert words == {"no evidence"}


def test_few_prompts_give_a_caveat(tmp_path):
    results = results_of(tmp_path, prompts=12)
    assert any(line.startswith("Only 12 test prompts: ") for line in results["caveats"])


def test_hypervolume_is_that_of_the_means(results):
    for method, entry in results["methods"].items():
        volume = 1.0
        for point in entry["scores"]["equal"].values():
            volume *= point["mean"]
        assert entry["hypervolume"]["value"] == pytest.approx(volume), method
        assert entry["hypervolume"]["low"] < volume < entry["hypervolume"]["high"]
    ranks = {m: e["hypervolume"]["rank"] for m, e in results["methods"].items()}
    assert ranks["gdpo"] == 1
    assert results["methods"]["ppo_max"]["hypervolume"]["change_from_baseline"]["high"] < 0


def test_overoptimization_metrics_and_side_metrics(results):
    pressure = results["methods"]["gdpo"]["overoptimization"]["equal"]
    assert pressure["judge_score"] == {"before": pytest.approx(1.6), "after": [pytest.approx(2.8)] * 3}
    assert pressure["training_reward"] == {"before": pytest.approx(2.0), "after": [pytest.approx(3.6)] * 3}
    assert pressure["similarity"]["after"] == [0.3] * 3
    assert pressure["kl"]["before"] == 0
    assert all(4 < kl < 6 for kl in pressure["kl"]["after"])
    side = results["methods"]["gdpo"]["side_metrics"]["equal"]
    assert side["similarity"] == {"before": 0.25, "after": pytest.approx(0.3)}
    assert side["ece"] == {"before": None, "after": None}, "no response states a confidence"


def test_method_over_budget_is_shown_and_not_ranked(tmp_path):
    results = results_of(tmp_path, used={"ppo_max": 63_000})
    method = results["methods"]["ppo_max"]
    assert results["unranked"] == [method["unranked_reason"]]
    assert "+5.0% from the budget of 60,000" in method["unranked_reason"]
    assert {point["rank"] for point in method["scores"]["equal"].values()} == {None}
    assert {p["change_from_baseline"]["verdict"] for p in method["scores"]["equal"].values()} == {
        "not ranked"
    }
    assert method["hypervolume"]["rank"] is None
    ranks = [results["methods"][m]["scores"]["equal"]["safety"]["rank"] for m in ("grpo", "gdpo", "rloo")]
    assert None not in ranks
    assert max(ranks) <= 3
    table = benchmark_table(json.loads(json.dumps(results)))
    assert "105.0 % (not ranked)" in table
    assert "⚠ ppo_max: not ranked" in table


def test_no_method_is_better_without_an_independent_judge(tmp_path):
    results = results_of(tmp_path, independent=False)
    words = {
        p["change_from_baseline"]["verdict"]
        for m in ("gdpo", "ppo_max")
        for p in results["methods"][m]["scores"]["equal"].values()
    }
    assert "better" not in words
    assert results["caveats"][0].startswith("Judge not independent for politeness, meaningfulness")


def test_no_hypervolume_without_a_reference_point(tmp_path):
    text = FILE.format(folder=tmp_path / "benchmark").replace(
        "reference_point: {politeness: 0, meaningfulness: 0, actionability: 0, safety: 0}\n", ""
    )
    results = results_of(tmp_path, text)
    assert {entry["hypervolume"] for entry in results["methods"].values()} == {None}
    assert "–" in benchmark_table(json.loads(json.dumps(results)))


def test_runs_on_different_prompts_are_refused(tmp_path):
    spec = load_benchmark(write_benchmark_file(tmp_path))
    make_runs(spec)
    make_runs(
        load_benchmark(write_benchmark_file(tmp_path, FILE.format(folder=tmp_path / "other"))), prompts=30
    )
    other = tmp_path / "other" / "gdpo" / "equal" / "seed-1" / "eval" / "final" / "generations.parquet"
    other.replace(
        tmp_path / "benchmark" / "gdpo" / "equal" / "seed-1" / "eval" / "final" / "generations.parquet"
    )
    with pytest.raises(DataError, match="evaluated on other prompts"):
        benchmark_results(spec, spec.run_specs(), benchmark_costs(spec, spec.run_specs(), {}), {})


def test_costs_include_phases_and_exclude_shared_stages(tmp_path):
    lines = [
        {"stage": "reward", "step": 0, "seconds": 5.0, "trained_tokens": 999, "peak_memory": 9e9},
        {
            "stage": "dpo",
            "step": 0,
            "seconds": 2.0,
            "rollout_tokens": 10,
            "trained_tokens": 40,
            "peak_memory": 2e9,
        },
        {
            "stage": "align",
            "step": 0,
            "seconds": 1.0,
            "rollout_tokens": 30,
            "reward_calls": 4,
            "peak_memory": 1e9,
        },
    ]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = run_costs(tmp_path, kind="run")
    assert {key: row[key] for key in ("rollout_tokens", "trained_tokens", "reward_calls")} == {
        "rollout_tokens": 40,
        "trained_tokens": 40,
        "reward_calls": 4,
    }
    assert (row["seconds"], row["peak_memory"], row["judge_calls"], row["steps"]) == (3.0, 2e9, 0, 1)


def test_preregistered_values_cannot_change(tmp_path):
    text = FILE.format(folder=tmp_path / "benchmark")
    spec = load_benchmark(write_benchmark_file(tmp_path, text))
    spec.output_dir.mkdir()
    preregister(spec)
    preregister(spec)
    for old, new in (
        ("safety: 0}", "safety: 0.5}"),
        ("60000", "70000"),
        ("bootstrap_samples: 300", "bootstrap_samples: 301"),
    ):
        with pytest.raises(ConfigError, match="preregistered before the first run") as caught:
            preregister(load_benchmark(write_benchmark_file(tmp_path, text.replace(old, new))))
        assert len(str(caught.value).splitlines()) == 1
    preregister(
        load_benchmark(write_benchmark_file(tmp_path, text.replace("  rloo:", "  more: {}\n  rloo:")))
    )


def mark_finished(spec):
    """Mark every run as done, so that nothing is left to run."""
    for run in spec.run_specs():
        config = run.config
        run_dir = Path(config.run.output_dir)
        shared_dir = spec.output_dir / "shared" / f"seed-{run.seed}-{reuse_key(run.resolved)[:12]}"
        training_hash = config_hash(config, without=EVALUATION_SECTIONS)
        for folder, key in ((run_dir, training_hash), (shared_dir, reuse_key(run.resolved))):
            folder.mkdir(parents=True, exist_ok=True)
            run_info = {"schema": "paretune/run/2", "status": "done", "config_hash": key}
            (folder / "run.json").write_text(json.dumps(run_info))
        (run_dir / "config").mkdir()
        (run_dir / "config" / "resolved.yaml").write_text(resolved_yaml(config))


@pytest.mark.parametrize(("used", "code"), [({}, 0), ({"gdpo": 57_000, "rloo": 66_000}, 2)])
def test_command_exits_with_2_if_a_method_is_not_ranked(tmp_path, capsys, used, code):
    path = write_benchmark_file(tmp_path)
    spec = load_benchmark(path)
    make_runs(spec, used=used)
    mark_finished(spec)
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(path)])
    output = capsys.readouterr()
    assert caught.value.code == code, output.err
    assert [line.split(":")[0] for line in output.err.splitlines()] == list(used)
    assert "hypervolume" in output.out
    numbers = json.loads((spec.output_dir / "benchmark.json").read_text())
    assert numbers["schema"] == "paretune/benchmark/3"
    rows = [json.loads(line) for line in (spec.output_dir / "costs.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["shared"] * 3 + ["run"] * 12
    assert {
        "rollout_tokens",
        "trained_tokens",
        "reward_calls",
        "judge_calls",
        "seconds",
        "peak_memory",
    } <= rows[-1].keys()
    assert (spec.output_dir / "report.html").exists()


def test_output_dir_with_runs_of_another_benchmark_is_refused(tmp_path, capsys):
    path = write_benchmark_file(tmp_path)
    spec = load_benchmark(path)
    make_runs(spec)
    mark_finished(spec)
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(path), "overrides.training.learning_rate=0.5"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 12


ONE = FILE.replace("seeds: [0, 1, 2]", "seeds: [0]")


def entries_of(results, method="gdpo"):
    return results["methods"][method]["scores"]["equal"]


def run_entries(tmp_path, method="gdpo"):
    folder = tmp_path / "benchmark" / method / "equal" / "seed-0" / "eval" / "final"
    return json.loads((folder / "eval.json").read_text())["objectives"]


def test_one_seed_has_the_numbers_and_words_of_the_page_of_its_run(tmp_path):
    # Changes of +0.014 that are nearly shown: another bootstrap would call some of them better.
    means = dict.fromkeys(MEANS, (0.43, 0.57, 0.36, 0.66))
    results = results_of(tmp_path, ONE.format(folder=tmp_path / "benchmark"), means=means, prompts=32)
    words = set()
    for method in MEANS:
        for name, entry in run_entries(tmp_path, method).items():
            change = entries_of(results, method)[name]["change_from_initial"]
            assert change == {key: entry[key] for key in change}
            words.add(change["verdict"])
    assert words == {"better", "no evidence"}
    assert "One training run: the variance between training seeds is not known." in results["caveats"]


def test_difference_to_the_baseline_of_one_seed_is_that_of_a_paired_evaluation(tmp_path):
    results = results_of(tmp_path, ONE.format(folder=tmp_path / "benchmark"), prompts=40)
    spec = load_benchmark(tmp_path / "fake.yaml")
    tables = {run.method: read_generations(Path(run.config.run.output_dir))[1] for run in spec.run_specs()}
    names = list(run_entries(tmp_path))
    differences = np.stack(
        [(tables[m][o][1] - tables["grpo"][o][1])[:, 0] for m in MEANS if m != "grpo" for o in names], 1
    )
    intervals = simultaneous_intervals(differences, bootstrap_samples=300)
    change = entries_of(results)[names[0]]["change_from_baseline"]
    assert change["low"] == pytest.approx(intervals.low[0])
    assert change["min_detectable_effect"] == pytest.approx(intervals.min_detectable_effect[0])


@pytest.mark.parametrize("text", [FILE, ONE])
def test_lower_is_better_turns_verdicts_ranks_and_fronts_round(tmp_path, text):
    goals = {"goals": dict.fromkeys(OBJECTIVES, Goal("lower"))}
    text = text.format(folder=tmp_path / "benchmark").replace(
        "{politeness: 0, meaningfulness: 0, actionability: 0, safety: 0}",
        "{politeness: 1, meaningfulness: 1, actionability: 1, safety: 1}",
    )
    results = results_of(tmp_path, text, **goals)
    ppo = entries_of(results, "ppo_max")
    lost, won = ppo["safety"]["change_from_baseline"], ppo["politeness"]["change_from_baseline"]
    assert (won["change"] < 0, won["verdict"]) == (True, "better")
    assert (lost["change"] > 0, lost["verdict"]) == (True, "worse")
    assert won["oriented"] == {"change": -won["change"], "low": -won["high"], "high": -won["low"]}
    assert {entry["change_from_initial"]["verdict"] for entry in ppo.values()} == {"worse"}
    assert ppo["politeness"]["rank"] == 1
    assert ppo["politeness"]["mean"] == pytest.approx(MEANS["ppo_max"][0], abs=0.05)
    assert ppo["politeness"]["low"] < ppo["politeness"]["mean"] < ppo["politeness"]["high"]
    volumes = {m: entry["hypervolume"]["value"] for m, entry in results["methods"].items()}
    assert max(volumes, key=volumes.get) == "ppo_max"
    table = benchmark_table(json.loads(json.dumps(results)))
    assert "politeness ↓ lower is better" in table
    assert set(results["objectives"]["safety"]) >= {"goal", "target", "cautions", "judge_quality"}


def test_no_rank_and_no_better_by_a_judge_that_ranks_against_its_labels(tmp_path):
    head = {"num_ratings": 16, "spearman": -0.5}
    quality = judge_quality({"objectives": {"politeness": head}}, "politeness")
    text = ONE.format(folder=tmp_path / "benchmark")
    results = results_of(tmp_path, text, qualities={"politeness": quality})
    for method in MEANS:
        polite = entries_of(results, method)["politeness"]
        assert polite["rank"] is None
        assert polite["change_from_initial"]["verdict"] == "judge unreliable"
        assert polite["change_from_initial"]["cautions"] == run_entries(tmp_path)["politeness"]["cautions"]
        assert (polite["change_from_baseline"] or {}).get("verdict", "judge unreliable") == "judge unreliable"
        assert entries_of(results, method)["safety"]["change_from_initial"]["verdict"] != "judge unreliable"
    reason = "does not rank responses as the labels do (rank correlation −0.50, n = 16)"
    assert results["caveats"][0].startswith(f"Judge unreliable: politeness {reason}.")
    assert f"⚠ Judge unreliable: politeness {reason}" in benchmark_table(json.loads(json.dumps(results)))


def test_equal_methods_have_no_ranks(tmp_path):
    results = results_of(tmp_path, means=dict.fromkeys(MEANS, MEANS["grpo"]))
    assert {entry["rank"] for m in MEANS for entry in entries_of(results, m).values()} == {None}
    assert {entry["hypervolume"]["rank"] for entry in results["methods"].values()} == {None}


def test_ranks_follow_shown_differences_and_never_invert_the_means():
    means = {"a": 3.0, "b": 2.0, "c": 1.0}
    assert ranks_from_pairs(means, set()) == dict.fromkeys(means)
    assert ranks_from_pairs(means, {("a", "c")}) == {"a": 1, "b": 1, "c": 2}
    assert ranks_from_pairs(means, {("a", "b"), ("a", "c"), ("b", "c")}) == {"a": 1, "b": 2, "c": 3}
    assert ranks_from_pairs(means, {("a", "b")}) == {"a": 1, "b": 1, "c": 1}, "c is not above b"


def test_target_is_compared_by_the_distance_and_shown_as_it_is(tmp_path):
    goals = {"goals": {"politeness": Goal("target", 0.58)}}
    results = results_of(tmp_path, ONE.format(folder=tmp_path / "benchmark"), prompts=120, **goals)
    ppo = entries_of(results, "ppo_max")["politeness"]
    change = ppo["change_from_baseline"]
    assert change["verdict"] == "better", "0.58 is nearer to 0.58 than 0.80"
    assert change["change"] < 0 < change["oriented"]["low"]
    assert ppo["oriented_mean"] < 0 < ppo["mean"]
