"""Benchmark files: every mistake at once, and the recipes of the runs."""

from pathlib import Path

import pytest

from paretune.benchmark.spec import load_benchmark
from paretune.config import bundled_recipes, config_hash, load_config, resolved_yaml
from paretune.core.errors import ConfigError
from support.fake_benchmark import FILE, write_benchmark_file


def issues_of(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_benchmark(path, overrides)
    return str(caught.value).splitlines()


def test_every_mistake_is_reported_at_once_with_its_location(tmp_path):
    path = write_benchmark_file(
        tmp_path,
        """\
name: a
recipe: demo
overrides: [training.prompts_per_step]
methods:
  grpo: {algorithm: {name: grpo, num_generations: 8}, judge: truth}
  shared: {algorithm: {name: gdpo}, run: {seed: 3}}
seeds: [1, 1]
budget: {resource: dollars, limit: 10}
tuning: {num_trials: 3, seed: 1, search_space: {training.learning_rate: [1e-4]}}
reference_point: {saftey: 0}
baseline: grop
bugdet: 1
""",
    )
    lines = issues_of(path)
    assert [line.removeprefix(f"{path}:").split(": ", 2)[:2] for line in lines] == [
        ["3:13", '"training.prompts_per_step" is not of the form a.b=c; fix'],
        ["8:10", "budget.resource"],
        ["12:1", "bugdet"],
    ]
    assert 'did you mean "budget"?' in lines[2]
    assert "none of rollout_tokens, trained_tokens, reward_calls" in lines[1]
    fixed = path.read_text().replace("dollars", "reward_calls").replace("bugdet: 1\n", "")
    path.write_text(fixed.replace("[training.prompts_per_step]", "[]"))
    lines = [line.removeprefix(f"{path}:") for line in issues_of(path)]
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        "methods.grpo.judge",
        "methods.shared",
        "methods.shared.run.seed",
        "seeds[1]",
        "tuning.num_trials",
        "tuning.seed",
        "reference_point.saftey",
        "baseline",
    ]
    assert 'did you mean "safety"?' in lines[6]
    assert 'did you mean "grpo"?' in lines[7]
    assert "is 3, but the search space has 1 combinations" in lines[4]


def test_mistakes_in_recipes_of_runs_are_located_in_the_benchmark_file(tmp_path):
    text = FILE.format(folder=tmp_path).replace("name: gdpo, num_generations: 8", "name: gdpo, m: 8")
    text = text.replace(
        "{name: rloo, num_generations: 8, max_new_tokens: 64}", "{name: rloo}, training: {learning_rate: -1}"
    )
    path = write_benchmark_file(tmp_path, text)
    lines = issues_of(path)
    assert lines == [
        f"{path}:6:34: algorithm.m: unknown key; " + lines[0].partition("unknown key; ")[2],
        f"{path}:7:46: training.learning_rate: -1 must be above 0",
    ]
    same_everywhere = issues_of(
        write_benchmark_file(
            tmp_path, FILE.format(folder=tmp_path) + "overrides: {aggregate: {name: worst, x: 1}}\n"
        )
    )
    assert len(same_everywhere) == 1, "the same mistake of every method is reported once"
    assert issues_of(write_benchmark_file(tmp_path, text.replace("recipe: demo", "recipe: dem")))[
        0
    ].startswith(f'{path}:2:1: recipe: "dem": no such recipe; did you mean "demo"?')


def test_method_that_never_uses_the_budget_is_refused(tmp_path):
    text = FILE.format(folder=tmp_path).replace(
        "  rloo: {algorithm: {name: rloo, num_generations: 8, max_new_tokens: 64}}",
        "  dpo: {algorithm: {name: dpo, response_source: stored}, data: {stored_responses: {pairs: {a: "
        "{file: a.jsonl, objective: safety}}}}}",
    )
    (tmp_path / "a.jsonl").touch()
    lines = issues_of(write_benchmark_file(tmp_path, text + f"overrides: [data.root={tmp_path}]\n"))
    assert any("methods.dpo: never uses rollout_tokens" in line for line in lines), lines


def test_algorithm_of_a_method_replaces_and_other_sections_are_merged(tmp_path):
    path = write_benchmark_file(
        tmp_path,
        f"""\
name: two
recipe: demo
output_dir: {tmp_path}/out
overrides: [training.prompts_per_step=4, evaluate.num_generations=1]
methods:
  rloo: {{algorithm: {{name: rloo, num_generations: 2}}, training: {{learning_rate: 0.5}}}}
  listed: [algorithm.name=gdpo, algorithm.num_generations=4, training.max_grad_norm=2.0]
  plain:
seeds: [4, 5]
weightings: {{equal: {{}}, safe: {{safety: 3}}}}
budget: {{resource: reward_calls, limit: 64}}
""",
    )
    runs = {run.label: run.config for run in load_benchmark(path).run_specs()}
    assert len(runs) == 3 * 2 * 2
    one, two, three = (runs[f"{name}/safe/seed-5"] for name in ("rloo", "listed", "plain"))
    assert one.algorithm.arguments["kl_coef"] == 0.05, "the default of rloo, not the 0.04 of the demo"
    assert (
        one.training.learning_rate,
        one.training.prompts_per_step,
        two.training.learning_rate,
        two.training.max_grad_norm,
    ) == (0.5, 4, 3e-4, 2.0)
    assert (two.algorithm.name, two.algorithm.arguments["num_generations"]) == ("gdpo", 4)
    assert (three.algorithm.name, three.algorithm.arguments["kl_coef"]) == ("grpo", 0.04)
    assert one.weights == {"politeness": 1, "meaningfulness": 1, "actionability": 1, "safety": 3}
    assert runs["rloo/equal/seed-4"].weights["safety"] == 1
    assert one.objectives["actionability"].gate == "safety >= 0.5"
    assert (one.run.seed, one.run.output_dir) == (5, f"{tmp_path}/out/rloo/safe/seed-5")
    assert one.run.budget.model_dump() == {"resource": "reward_calls", "limit": 64}
    fewer = load_benchmark(
        path, ["seeds=[7]", "budget.limit=128", "overrides.training.prompts_per_step=2"]
    ).run_specs()
    assert {run.seed for run in fewer} == {7}
    assert fewer[0].config.run.budget.limit == 128
    assert fewer[0].config.training.prompts_per_step == 2


def test_recipe_of_a_run_loads_as_the_same_run(tmp_path):
    run = load_benchmark(write_benchmark_file(tmp_path)).run_specs()[-1]
    path = tmp_path / "one.yaml"
    path.write_text(resolved_yaml(run.config))
    assert config_hash(load_config(path)) == config_hash(run.config)
    assert f"{tmp_path}/fake.yaml:8" in path.read_text(), "every value has its origin"


def test_trials_are_the_same_for_every_method_and_use_their_own_seed(tmp_path):
    space = "{training.learning_rate: [1e-4, 1e-3], training.warmup_ratio: [0.0, 0.1]}"
    tuning = f"tuning: {{num_trials: 3, search_space: {space}}}\n"
    spec = load_benchmark(write_benchmark_file(tmp_path, FILE.format(folder=tmp_path) + tuning))
    assert len({tuple(trial.items()) for trial in spec.trial_settings}) == 3
    for method in spec.config.methods:
        trials = spec.tuning_specs(method)
        settings = [
            {
                "training.learning_rate": t.config.training.learning_rate,
                "training.warmup_ratio": t.config.training.warmup_ratio,
            }
            for t in trials
        ]
        assert settings == list(spec.trial_settings)
        assert {t.seed for t in trials} == {100}
    assert (
        load_benchmark(write_benchmark_file(tmp_path, FILE.format(folder=tmp_path) + tuning)).trial_settings
        == spec.trial_settings
    )
    tuned = spec.run_specs({"gdpo": {"training.learning_rate": 0.25}})
    assert {e.config.training.learning_rate for e in tuned if e.method == "gdpo"} == {0.25}
    assert {e.config.training.learning_rate for e in tuned if e.method == "grpo"} == {3e-4}


def test_shipped_benchmark_is_valid_and_is_not_a_recipe():
    path = bundled_recipes()["compare-world"]
    spec = load_benchmark(path)
    assert spec.output_dir == Path("runs/compare-world")
    assert spec.config.baseline_method == "grpo"
    with pytest.raises(ConfigError, match="is a comparison of methods, not a recipe; fix: paretune compare"):
        load_config(path)


def test_recipes_of_every_shipped_benchmark_load_as_the_same_runs(tmp_path):
    for name in ("compare-methods", "compare-world", "compare-confidence", "compare-thinking"):
        spec = load_benchmark(bundled_recipes()[name], ["seeds=[0]", "tuning=null"])
        for run in spec.run_specs():
            path = tmp_path / f"{name}-{run.method}-{run.weighting}.yaml"
            path.write_text(resolved_yaml(run.config))
            assert config_hash(load_config(path)) == config_hash(run.config), run.label


def test_recipe_is_refused_as_a_benchmark_file(tmp_path):
    for path in (
        bundled_recipes()["demo"],
        write_benchmark_file(tmp_path, "extends: base.yaml\nrun: {max_steps: 3}\n"),
    ):
        assert issues_of(path) == [f"{path}:1: is a recipe, not a benchmark file; fix: paretune run {path}"]
    assert issues_of(write_benchmark_file(tmp_path, "recipe: demo\npolicy: {}\n"))[0].startswith(
        f"{tmp_path}"
    )
