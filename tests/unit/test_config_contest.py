"""A comparison file: every mistake at once, and what its runs are."""

from pathlib import Path

import pytest

from madeup_contest import FILE, written
from paretune.config import config_hash, load, resolved, shipped
from paretune.config.contest import load_contest
from paretune.errors import ConfigError


def wrong(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_contest(path, overrides)
    return str(caught.value).splitlines()


def test_every_mistake_is_told_at_once_with_its_place(tmp_path):
    path = written(
        tmp_path,
        """\
name: a
recipe: demo
set: [learn.prompts]
methods:
  grpo: {algorithm: {name: grpo, n: 8}, judge: truth}
  shared: {algorithm: {name: gdpo}, run: {seed: 3}}
seeds: [1, 1]
budget: {currency: dollars, amount: 10}
tuning: {trials: 3, seed: 1, over: {learn.lr: [1e-4]}}
reference: {saftey: 0}
baseline: grop
bugdet: 1
""",
    )
    said = wrong(path)
    assert [line.removeprefix(f"{path}:").split(": ", 2)[:2] for line in said] == [
        ["3:7", '"learn.prompts" is not of the form a.b=c; fix'],
        ["8:10", "budget.currency"],
        ["12:1", "bugdet"],
    ]
    assert 'did you mean "budget"?' in said[2]
    assert "none of rollout_tokens, trained_tokens, reward_calls" in said[1]
    fixed = path.read_text().replace("dollars", "reward_calls").replace("bugdet: 1\n", "")
    path.write_text(fixed.replace("[learn.prompts]", "[]"))
    said = [line.removeprefix(f"{path}:") for line in wrong(path)]
    assert [line.partition(": ")[2].partition(": ")[0] for line in said] == [
        "methods.grpo.judge",
        "methods.shared",
        "methods.shared.run.seed",
        "seeds.1",
        "tuning.trials",
        "tuning.seed",
        "reference.saftey",
        "baseline",
    ]
    assert 'did you mean "safety"?' in said[6]
    assert 'did you mean "grpo"?' in said[7]
    assert "is 3, and there are 1 combinations" in said[4]


def test_mistakes_of_the_recipes_that_it_makes_stand_where_they_were_written(tmp_path):
    text = FILE.format(folder=tmp_path).replace("name: gdpo, n: 8", "name: gdpo, m: 8")
    text = text.replace("{name: rloo, n: 8, max_new: 64}", "{name: rloo}, learn: {lr: -1}")
    path = written(tmp_path, text)
    said = wrong(path)
    assert said == [
        f"{path}:6:34: algorithm.m: unknown key; " + said[0].partition("unknown key; ")[2],
        f"{path}:7:43: learn.lr: -1 must be above 0",
    ]
    elsewhere = wrong(
        written(tmp_path, FILE.format(folder=tmp_path) + "set: {aggregate: {name: worst, x: 1}}\n")
    )
    assert len(elsewhere) == 1, "the same mistake of every method is told once"
    assert wrong(written(tmp_path, text.replace("recipe: demo", "recipe: dem")))[0].startswith(
        f'{path}:2:1: recipe: "dem" there is no such recipe; did you mean "demo"?'
    )


def test_a_method_that_the_budget_never_ends_is_refused(tmp_path):
    text = FILE.format(folder=tmp_path).replace(
        "  rloo: {algorithm: {name: rloo, n: 8, max_new: 64}}",
        "  dpo: {algorithm: {name: dpo, responses: stored}, data: {stored: {pairs: {a: {file: a.jsonl, "
        "objective: safety}}}}}",
    )
    (tmp_path / "a.jsonl").touch()
    said = wrong(written(tmp_path, text + f"set: [data.root={tmp_path}]\n"))
    assert any("methods.dpo: never spends rollout_tokens" in line for line in said), said


def test_a_methods_algorithm_replaces_and_other_sections_are_laid_over(tmp_path):
    path = written(
        tmp_path,
        f"""\
name: two
recipe: demo
folder: {tmp_path}/out
set: [learn.prompts=4, evaluate.n=1]
methods:
  rloo: {{algorithm: {{name: rloo, n: 2}}, learn: {{lr: 0.5}}}}
  listed: [algorithm.name=gdpo, algorithm.n=4, learn.clip=2.0]
  plain:
seeds: [4, 5]
weightings: {{equal: {{}}, safe: {{safety: 3}}}}
budget: {{currency: reward_calls, amount: 64}}
""",
    )
    runs = {entry.label: entry.experiment for entry in load_contest(path).runs()}
    assert len(runs) == 3 * 2 * 2
    one, two, three = (runs[f"{name}/safe/seed-5"] for name in ("rloo", "listed", "plain"))
    assert one.algorithm.arguments["kl"] == 0.05, "that of the demo would be 0.04"
    assert (one.learn.lr, one.learn.prompts, two.learn.lr, two.learn.clip) == (0.5, 4, 3e-4, 2.0)
    assert (two.algorithm.name, two.algorithm.arguments["n"]) == ("gdpo", 4)
    assert (three.algorithm.name, three.algorithm.arguments["kl"]) == ("grpo", 0.04)
    assert one.weights == {"politeness": 1, "meaningfulness": 1, "actionability": 1, "safety": 3}
    assert runs["rloo/equal/seed-4"].weights["safety"] == 1
    assert one.objectives["actionability"].when == "safety >= 0.5"
    assert (one.run.seed, one.run.folder) == (5, f"{tmp_path}/out/rloo/safe/seed-5")
    assert one.run.budget.model_dump() == {"currency": "reward_calls", "amount": 64}
    fewer = load_contest(path, ["seeds=[7]", "budget.amount=128", "set.learn.prompts=2"]).runs()
    assert {entry.seed for entry in fewer} == {7}
    assert fewer[0].experiment.run.budget.amount == 128
    assert fewer[0].experiment.learn.prompts == 2


def test_the_recipe_of_a_run_reads_back_as_the_same_run(tmp_path):
    entry = load_contest(written(tmp_path)).runs()[-1]
    path = tmp_path / "one.yaml"
    path.write_text(resolved(entry.experiment))
    assert config_hash(load(path)) == config_hash(entry.experiment)
    assert f"{tmp_path}/made-up.yaml:8" in path.read_text(), "every value says where it came from"


def test_trials_are_the_same_for_every_method_and_lie_outside_the_seeds(tmp_path):
    more = "tuning: {trials: 3, over: {learn.lr: [1e-4, 1e-3], learn.warmup: [0.0, 0.1]}}\n"
    contest = load_contest(written(tmp_path, FILE.format(folder=tmp_path) + more))
    assert len({tuple(trial.items()) for trial in contest.trials}) == 3
    for method in contest.said.methods:
        trials = contest.tried(method)
        settings = [
            {"learn.lr": t.experiment.learn.lr, "learn.warmup": t.experiment.learn.warmup} for t in trials
        ]
        assert settings == list(contest.trials)
        assert {t.seed for t in trials} == {100}
    assert load_contest(written(tmp_path, FILE.format(folder=tmp_path) + more)).trials == contest.trials
    tuned = contest.runs({"gdpo": {"learn.lr": 0.25}})
    assert {e.experiment.learn.lr for e in tuned if e.method == "gdpo"} == {0.25}
    assert {e.experiment.learn.lr for e in tuned if e.method == "grpo"} == {3e-4}


def test_the_shipped_comparison_is_good_and_is_no_recipe():
    path = shipped()["compare-world"]
    contest = load_contest(path)
    assert contest.folder == Path("runs/compare-world")
    assert contest.said.first == "grpo"
    with pytest.raises(ConfigError, match="is a comparison of methods, not a recipe; fix: paretune compare"):
        load(path)


def test_every_shipped_comparison_reads_back_run_by_run(tmp_path):
    for name in ("compare-methods", "compare-world", "compare-confidence", "compare-thinking"):
        contest = load_contest(shipped()[name], ["seeds=[0]", "tuning=null"])
        for entry in contest.runs():
            path = tmp_path / f"{name}-{entry.method}-{entry.weighting}.yaml"
            path.write_text(resolved(entry.experiment))
            assert config_hash(load(path)) == config_hash(entry.experiment), entry.label


def test_a_recipe_is_no_comparison_and_is_told_so_in_one_line(tmp_path):
    for path in (shipped()["demo"], written(tmp_path, "extends: base.yaml\nrun: {steps: 3}\n")):
        assert wrong(path) == [
            f"{path}:1: is a recipe, not a comparison of methods; fix: paretune run {path}"
        ]
    assert wrong(written(tmp_path, "recipe: demo\npolicy: {}\n"))[0].startswith(f"{tmp_path}")
