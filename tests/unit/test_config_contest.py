"""A comparison file: every mistake at once, and what its runs are."""

from pathlib import Path

import pytest

from madeup_contest import FILE, written
from paretune.benchmark.spec import load_benchmark
from paretune.config import bundled_recipes, config_hash, load_config, resolved_yaml
from paretune.core.errors import ConfigError


def wrong(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_benchmark(path, overrides)
    return str(caught.value).splitlines()


def test_every_mistake_is_told_at_once_with_its_place(tmp_path):
    path = written(
        tmp_path,
        """\
name: a
recipe: demo
set: [training.prompts_per_step]
methods:
  grpo: {algorithm: {name: grpo, n: 8}, judge: truth}
  shared: {algorithm: {name: gdpo}, run: {seed: 3}}
seeds: [1, 1]
budget: {currency: dollars, amount: 10}
tuning: {trials: 3, seed: 1, over: {training.learning_rate: [1e-4]}}
reference: {saftey: 0}
baseline: grop
bugdet: 1
""",
    )
    said = wrong(path)
    assert [line.removeprefix(f"{path}:").split(": ", 2)[:2] for line in said] == [
        ["3:7", '"training.prompts_per_step" is not of the form a.b=c; fix'],
        ["8:10", "budget.currency"],
        ["12:1", "bugdet"],
    ]
    assert 'did you mean "budget"?' in said[2]
    assert "none of rollout_tokens, trained_tokens, reward_calls" in said[1]
    fixed = path.read_text().replace("dollars", "reward_calls").replace("bugdet: 1\n", "")
    path.write_text(fixed.replace("[training.prompts_per_step]", "[]"))
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
        f"{path}:7:43: training.learning_rate: -1 must be above 0",
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
set: [training.prompts_per_step=4, evaluate.num_generations=1]
methods:
  rloo: {{algorithm: {{name: rloo, n: 2}}, learn: {{lr: 0.5}}}}
  listed: [algorithm.name=gdpo, algorithm.num_generations=4, training.max_grad_norm=2.0]
  plain:
seeds: [4, 5]
weightings: {{equal: {{}}, safe: {{safety: 3}}}}
budget: {{currency: reward_calls, amount: 64}}
""",
    )
    runs = {entry.label: entry.config for entry in load_benchmark(path).run_specs()}
    assert len(runs) == 3 * 2 * 2
    one, two, three = (runs[f"{name}/safe/seed-5"] for name in ("rloo", "listed", "plain"))
    assert one.algorithm.arguments["kl"] == 0.05, "that of the demo would be 0.04"
    assert (
        one.training.learning_rate,
        one.training.prompts_per_step,
        two.training.learning_rate,
        two.training.max_grad_norm,
    ) == (0.5, 4, 3e-4, 2.0)
    assert (two.algorithm.name, two.algorithm.arguments["n"]) == ("gdpo", 4)
    assert (three.algorithm.name, three.algorithm.arguments["kl"]) == ("grpo", 0.04)
    assert one.weights == {"politeness": 1, "meaningfulness": 1, "actionability": 1, "safety": 3}
    assert runs["rloo/equal/seed-4"].weights["safety"] == 1
    assert one.objectives["actionability"].gate == "safety >= 0.5"
    assert (one.run.seed, one.run.output_dir) == (5, f"{tmp_path}/out/rloo/safe/seed-5")
    assert one.run.budget.model_dump() == {"currency": "reward_calls", "amount": 64}
    fewer = load_benchmark(path, ["seeds=[7]", "budget.amount=128", "set.learn.prompts=2"]).run_specs()
    assert {entry.seed for entry in fewer} == {7}
    assert fewer[0].config.run.budget.limit == 128
    assert fewer[0].config.training.prompts_per_step == 2


def test_the_recipe_of_a_run_reads_back_as_the_same_run(tmp_path):
    entry = load_benchmark(written(tmp_path)).run_specs()[-1]
    path = tmp_path / "one.yaml"
    path.write_text(resolved_yaml(entry.config))
    assert config_hash(load_config(path)) == config_hash(entry.config)
    assert f"{tmp_path}/made-up.yaml:8" in path.read_text(), "every value says where it came from"


def test_trials_are_the_same_for_every_method_and_lie_outside_the_seeds(tmp_path):
    more = "tuning: {trials: 3, over: {training.learning_rate: [1e-4, 1e-3], training.warmup_ratio: [0.0, 0.1]}}\n"
    contest = load_benchmark(written(tmp_path, FILE.format(folder=tmp_path) + more))
    assert len({tuple(trial.items()) for trial in contest.trial_settings}) == 3
    for method in contest.config.methods:
        trials = contest.tuning_specs(method)
        settings = [
            {
                "training.learning_rate": t.config.training.learning_rate,
                "training.warmup_ratio": t.config.training.warmup_ratio,
            }
            for t in trials
        ]
        assert settings == list(contest.trial_settings)
        assert {t.seed for t in trials} == {100}
    assert (
        load_benchmark(written(tmp_path, FILE.format(folder=tmp_path) + more)).trial_settings
        == contest.trial_settings
    )
    tuned = contest.run_specs({"gdpo": {"training.learning_rate": 0.25}})
    assert {e.config.training.learning_rate for e in tuned if e.method == "gdpo"} == {0.25}
    assert {e.config.training.learning_rate for e in tuned if e.method == "grpo"} == {3e-4}


def test_the_shipped_comparison_is_good_and_is_no_recipe():
    path = bundled_recipes()["compare-world"]
    contest = load_benchmark(path)
    assert contest.output_dir == Path("runs/compare-world")
    assert contest.config.baseline_method == "grpo"
    with pytest.raises(ConfigError, match="is a comparison of methods, not a recipe; fix: paretune compare"):
        load_config(path)


def test_every_shipped_comparison_reads_back_run_by_run(tmp_path):
    for name in ("compare-methods", "compare-world", "compare-confidence", "compare-thinking"):
        contest = load_benchmark(bundled_recipes()[name], ["seeds=[0]", "tuning=null"])
        for entry in contest.run_specs():
            path = tmp_path / f"{name}-{entry.method}-{entry.weighting}.yaml"
            path.write_text(resolved_yaml(entry.config))
            assert config_hash(load_config(path)) == config_hash(entry.config), entry.label


def test_a_recipe_is_no_comparison_and_is_told_so_in_one_line(tmp_path):
    for path in (bundled_recipes()["demo"], written(tmp_path, "extends: base.yaml\nrun: {steps: 3}\n")):
        assert wrong(path) == [
            f"{path}:1: is a recipe, not a comparison of methods; fix: paretune run {path}"
        ]
    assert wrong(written(tmp_path, "recipe: demo\npolicy: {}\n"))[0].startswith(f"{tmp_path}")
