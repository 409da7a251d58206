"""Who is ranked, and by what: numbers of runs that nobody made."""

import json
from pathlib import Path

import pytest

from madeup_contest import FILE, MEANS, make_runs, written
from paretune.benchmark.costs import benchmark_costs, budget_violations, run_costs
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.run import preregister
from paretune.benchmark.spec import load_benchmark
from paretune.cli import main
from paretune.config import config_hash, resolved_yaml
from paretune.core.errors import ConfigError, DataError
from paretune.experiment.reuse import reuse_key
from paretune.report.benchmark_page import benchmark_table


def compared(tmp_path, text=None, **how):
    contest = load_benchmark(written(tmp_path, text))
    make_runs(contest, **how)
    entries = contest.run_specs()
    return contest, benchmark_results(contest, entries, benchmark_costs(contest, entries, {}), {})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compared(tmp_path_factory.mktemp("contest"))[1]


def test_spending_by_more_than_two_percent_of_what_was_declared_is_refused():
    fine = {"a": [1000, 1019], "b": [985, 1001]}
    assert budget_violations(fine, 1000, "reward_calls") == {}
    said = budget_violations({"a": [1000, 1021], "b": [979, 1000], "c": [1000]}, 1000, "reward_calls")
    assert said.keys() == {"a", "b"}
    assert said["a"].startswith("a: not ranked: a run spent 1,021 reward_calls, +2.1% of the 1,000 declared")
    assert "fix:" in said["b"]


def test_two_that_are_each_near_enough_and_too_far_from_each_other_are_not_both_ranked():
    said = budget_violations({"a": [1018], "b": [983], "c": [1000]}, 1000, "reward_calls")
    assert said.keys() == {"a"}, "the one that is further from what was declared"
    assert "it spent 1,018 reward_calls a run and b 983: more than 2% apart" in said["a"]


def test_means_intervals_and_ranks(found):
    means = {m: found["methods"][m]["points"]["equal"] for m in MEANS}
    for k, objective in enumerate(found["objectives"]):
        order = sorted(MEANS, key=lambda m, o=objective: -means[m][o]["mean"])
        assert [means[m][objective]["rank"] for m in order] == [1, 2, 3, 4]
        for method in MEANS:
            point = means[method][objective]
            assert point["mean"] == pytest.approx(MEANS[method][k], abs=0.05)
            assert point["low"] < point["mean"] < point["high"]
            assert len(point["seeds"]) == 3
    assert found["crossed"], "all seeds answer the same prompts here"
    assert found["refused"] == []
    assert [line.split(":")[0] for line in found["cautions"]] == ["3 seeds", "No tuning"]


def test_differences_are_paired_and_their_words_follow_the_interval(found):
    grpo, ppo = (found["methods"][m]["points"]["equal"] for m in ("grpo", "ppo_max"))
    assert all(point["difference"] is None for point in grpo.values()), "the baseline"
    lost, won = ppo["politeness"]["difference"], ppo["safety"]["difference"]
    assert (lost["verdict"], won["verdict"]) == ("worse", "better")
    assert lost["change"] == pytest.approx(ppo["politeness"]["mean"] - grpo["politeness"]["mean"])
    assert lost["high"] < 0 < won["low"]
    wide = ppo["politeness"]["high"] - ppo["politeness"]["low"]
    assert lost["high"] - lost["low"] < 2 * wide, "what makes a prompt hard cancels out"


def test_changes_against_the_start_are_paired_with_the_same_run_before_it_was_trained(found):
    for method in MEANS:
        for objective, point in found["methods"][method]["points"]["equal"].items():
            moved = point["from_start"]
            assert moved["change"] == pytest.approx(point["mean"] - found["start"][objective])
            assert moved["low"] < moved["change"] < moved["high"]
            assert moved["verdict"] == "better", "the baseline too: it is compared with where it began"
    grpo = found["methods"]["grpo"]["points"]["equal"]
    moved = grpo["politeness"]["from_start"]
    assert moved["high"] - moved["low"] < 2 * (grpo["politeness"]["high"] - grpo["politeness"]["low"])


def test_a_fall_below_the_start_is_a_word_of_its_own_and_so_is_what_nobody_independent_saw(tmp_path):
    _, found = compared(tmp_path, means=MEANS | {"rloo": (0.2, 0.55, 0.34, 0.64)}, spent={"grpo": 63_000})
    rloo = {o: p["from_start"]["verdict"] for o, p in found["methods"]["rloo"]["points"]["equal"].items()}
    assert rloo == {"politeness": "worse"} | dict.fromkeys(list(rloo)[1:], "no evidence")
    over = found["methods"]["grpo"]["points"]["equal"].values()
    assert found["methods"]["grpo"]["refused"]
    assert {p["from_start"]["verdict"] for p in over} == {"better"}, "its start had no budget"
    (tmp_path / "own").mkdir()
    _, found = compared(tmp_path / "own", independent=False)
    words = {
        p["from_start"]["verdict"] for m in found["methods"].values() for p in m["points"]["equal"].values()
    }
    assert words == {"no evidence"}


def test_few_prompts_are_warned_of(tmp_path):
    _, found = compared(tmp_path, prompts=12)
    assert any(line.startswith("Only 12 test prompts: ") for line in found["cautions"])


def test_the_hypervolume_is_that_of_the_means(found):
    for method, entry in found["methods"].items():
        volume = 1.0
        for point in entry["points"]["equal"].values():
            volume *= point["mean"]
        assert entry["hypervolume"]["value"] == pytest.approx(volume), method
        assert entry["hypervolume"]["low"] < volume < entry["hypervolume"]["high"]
    ranks = {m: e["hypervolume"]["rank"] for m, e in found["methods"].items()}
    assert ranks["gdpo"] == 1
    assert found["methods"]["ppo_max"]["hypervolume"]["difference"]["high"] < 0


def test_how_far_each_run_was_pushed_and_whether_its_judge_followed(found):
    pushed = found["methods"]["gdpo"]["pressure"]["equal"]
    assert pushed["judge"] == {"before": pytest.approx(1.6), "after": [pytest.approx(2.8)] * 3}
    assert pushed["reward"] == {"before": pytest.approx(2.0), "after": [pytest.approx(3.6)] * 3}
    assert pushed["similarity"]["after"] == [0.3] * 3
    assert pushed["kl"]["before"] == 0
    assert all(4 < kl < 6 for kl in pushed["kl"]["after"])
    side = found["methods"]["gdpo"]["side"]["equal"]
    assert side["similarity"] == {"before": 0.25, "after": pytest.approx(0.3)}
    assert side["ece"] == {"before": None, "after": None}, "nobody was asked for a confidence"


def test_one_that_spent_too_much_is_shown_and_not_ranked(tmp_path):
    _, found = compared(tmp_path, spent={"ppo_max": 63_000})
    out = found["methods"]["ppo_max"]
    assert found["refused"] == [out["refused"]]
    assert "+5.0% of the 60,000 declared" in out["refused"]
    assert {point["rank"] for point in out["points"]["equal"].values()} == {None}
    assert {p["difference"]["verdict"] for p in out["points"]["equal"].values()} == {"not ranked"}
    assert out["hypervolume"]["rank"] is None
    left = [found["methods"][m]["points"]["equal"]["safety"]["rank"] for m in ("grpo", "gdpo", "rloo")]
    assert sorted(left) == [1, 2, 3]
    table = benchmark_table(json.loads(json.dumps(found)))
    assert "105.0 % (not ranked)" in table
    assert "⚠ ppo_max: not ranked" in table


def test_without_a_judge_of_its_own_nobody_is_better(tmp_path):
    _, found = compared(tmp_path, independent=False)
    words = {
        p["difference"]["verdict"]
        for m in ("gdpo", "ppo_max")
        for p in found["methods"][m]["points"]["equal"].values()
    }
    assert "better" not in words
    assert found["cautions"][0].startswith("Judge = training reward for politeness, meaningfulness")


def test_without_a_reference_point_there_is_no_hypervolume(tmp_path):
    text = FILE.format(folder=tmp_path / "cmp").replace(
        "reference: {politeness: 0, meaningfulness: 0, actionability: 0, safety: 0}\n", ""
    )
    _, found = compared(tmp_path, text)
    assert {entry["hypervolume"] for entry in found["methods"].values()} == {None}
    assert "–" in benchmark_table(json.loads(json.dumps(found)))


def test_runs_on_other_prompts_are_not_compared(tmp_path):
    contest = load_benchmark(written(tmp_path))
    make_runs(contest)
    make_runs(load_benchmark(written(tmp_path, FILE.format(folder=tmp_path / "other"))), prompts=30)
    strange = tmp_path / "other" / "gdpo" / "equal" / "seed-1" / "eval" / "final" / "generations.parquet"
    strange.replace(tmp_path / "cmp" / "gdpo" / "equal" / "seed-1" / "eval" / "final" / "generations.parquet")
    with pytest.raises(DataError, match="was evaluated on other prompts"):
        benchmark_results(contest, contest.run_specs(), benchmark_costs(contest, contest.run_specs(), {}), {})


def test_what_a_method_makes_beforehand_counts_in_and_what_all_share_does_not(tmp_path):
    lines = [
        {"stage": "reward", "step": 0, "seconds": 5.0, "trained_tokens": 999, "memory": 9e9},
        {
            "stage": "dpo",
            "step": 0,
            "seconds": 2.0,
            "rollout_tokens": 10,
            "trained_tokens": 40,
            "memory": 2e9,
        },
        {"stage": "align", "step": 0, "seconds": 1.0, "rollout_tokens": 30, "reward_calls": 4, "memory": 1e9},
    ]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = run_costs(tmp_path, kind="run")
    assert {key: row[key] for key in ("rollout_tokens", "trained_tokens", "reward_calls")} == {
        "rollout_tokens": 40,
        "trained_tokens": 40,
        "reward_calls": 4,
    }
    assert (row["seconds"], row["peak_memory"], row["judge_calls"], row["steps"]) == (3.0, 2e9, 0, 1)


def test_what_was_declared_before_the_first_run_cannot_be_changed(tmp_path):
    text = FILE.format(folder=tmp_path / "cmp")
    contest = load_benchmark(written(tmp_path, text))
    contest.output_dir.mkdir()
    preregister(contest)
    preregister(contest)
    for was, now in (("safety: 0}", "safety: 0.5}"), ("60000", "70000"), ("draws: 300", "draws: 301")):
        with pytest.raises(ConfigError, match="was declared before the first run") as caught:
            preregister(load_benchmark(written(tmp_path, text.replace(was, now))))
        assert len(str(caught.value).splitlines()) == 1
    preregister(load_benchmark(written(tmp_path, text.replace("  rloo:", "  more: {}\n  rloo:"))))


def finished(contest):
    """Say of every run that it is done, so that nothing is left to be made."""
    for entry in contest.runs():
        e = entry.experiment
        made = contest.folder / "shared" / f"seed-{entry.seed}-{reuse_key(e)[:12]}"
        for folder, of in ((Path(e.run.folder), config_hash(e)), (made, reuse_key(e))):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").write_text(json.dumps({"status": "done", "config_hash": of}))
        (Path(e.run.folder) / "config").mkdir()
        (Path(e.run.folder) / "config" / "resolved.yaml").write_text(resolved_yaml(e))


@pytest.mark.parametrize(("spent", "code"), [({}, 0), ({"gdpo": 57_000, "rloo": 66_000}, 2)])
def test_the_command_ends_with_2_where_it_refuses_to_rank(tmp_path, capsys, spent, code):
    path = written(tmp_path)
    contest = load_benchmark(path)
    make_runs(contest, spent=spent)
    finished(contest)
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(path)])
    said = capsys.readouterr()
    assert caught.value.code == code, said.err
    assert [line.split(":")[0] for line in said.err.splitlines()] == list(spent)
    assert "hypervolume" in said.out
    numbers = json.loads((contest.output_dir / "compare.json").read_text())
    assert numbers["schema"] == "paretune/compare/1"
    ledger = [json.loads(line) for line in (contest.output_dir / "ledger.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in ledger] == ["shared"] * 3 + ["run"] * 12
    assert {
        "rollout_tokens",
        "trained_tokens",
        "reward_calls",
        "judge_calls",
        "seconds",
        "peak_memory",
    } <= ledger[-1].keys()
    assert (contest.output_dir / "report.html").exists()


def test_a_folder_with_runs_of_another_comparison_is_refused_before_anything_is_made(tmp_path, capsys):
    path = written(tmp_path)
    contest = load_benchmark(path)
    make_runs(contest)
    finished(contest)
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(path), "set.learn.lr=0.5"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 12
