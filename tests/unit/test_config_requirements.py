"""A budget that the preceding phases of a method may use up is reported before anything is trained."""

import pytest

from paretune.benchmark.plan import describe_benchmark
from paretune.benchmark.spec import load_benchmark
from paretune.config import bundled_recipes, load_config
from paretune.config.requirements import budget_warnings, phase_cost_bounds
from paretune.core.errors import ConfigError
from paretune.experiment.dry_run import check
from paretune.experiment.resolved import resolve
from support.fake_benchmark import write_benchmark_file

RTO = "algorithm={name: rto, max_new_tokens: 12, dpo_steps: 5, dpo_num_generations: 3}"
"""60 responses at 4 prompts a step: of 60 to 720 tokens."""


def load(resource, limit, algorithm=RTO):
    overrides = [
        algorithm,
        "training.prompts_per_step=4",
        "data.world.num_ratings=100",
        "data.world.num_demonstrations=100",
        f"run.budget={{resource: {resource}, limit: {limit}}}",
    ]
    return load_config(bundled_recipes()["demo"], overrides)


def error_line(*arguments):
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    (line,) = str(caught.value).split("\n")
    return line


def test_a_budget_that_the_phases_certainly_use_up_is_an_error():
    assert (
        "run.budget.limit: rto uses at least 60 of 60 rollout_tokens in its preceding phases; fix: raise it"
        in error_line("rollout_tokens", 60)
    )
    assert "run.budget.limit: rto uses 60 of 50 reward_calls in its preceding phases; fix" in error_line(
        "reward_calls", 50
    )
    load("rollout_tokens", 61)
    load("reward_calls", 61)
    searched = "algorithm={name: essa, max_new_tokens: 12, sft_steps: 5, sft_num_generations: 3}"
    assert "essa uses 60 of 60 reward_calls in its preceding phases" in error_line(
        "reward_calls", 60, searched
    )


@pytest.mark.parametrize(
    ("resource", "limit", "bounds"),
    [
        ("rollout_tokens", 61, (60, 720)),
        ("reward_calls", 61, (60, 60)),
        ("trained_tokens", 61, (0, 0)),
    ],
)
def test_the_usage_of_the_phases_is_bounded(resource, limit, bounds):
    e = load(resource, limit)
    assert phase_cost_bounds(e, resolve(e).algorithm) == bounds
    alone = load(resource, limit, "algorithm={name: grpo, max_new_tokens: 12}")
    assert phase_cost_bounds(alone, resolve(alone).algorithm) == (0, 0)


def test_a_check_warns_of_a_budget_that_the_phases_may_use_up():
    e = load("rollout_tokens", 720)
    text = " ".join(check(e).split())
    assert (
        "warning rto uses up to 720 of 720 rollout_tokens in its preceding phases: if nothing is left" in text
    )
    enough = load("rollout_tokens", 721)
    assert list(budget_warnings(enough, resolve(enough).algorithm)) == []


def test_the_plan_of_a_benchmark_reports_both(tmp_path):
    text = """\
name: a
recipe: demo
output_dir: {folder}
overrides: [training.prompts_per_step=4, data.world.num_ratings=100, data.world.num_demonstrations=100]
methods:
  grpo: {{algorithm: {{name: grpo, num_generations: 2, max_new_tokens: 12}}}}
  dense: {{algorithm: {{name: rto, max_new_tokens: 12, dpo_steps: 5, dpo_num_generations: 3}}}}
seeds: [0, 1]
budget: {{resource: rollout_tokens, limit: 700}}
"""
    path = write_benchmark_file(tmp_path, text.format(folder=tmp_path / "cmp"))
    lines = describe_benchmark(load_benchmark(path)).split("\n")
    (line,) = (line for line in lines if "preceding phases" in line)
    assert line.startswith("warning    rto uses up to 720 of 700 rollout_tokens in its preceding phases")
    assert line.endswith("[dense]")
    with pytest.raises(
        ConfigError, match=r"rto uses at least 60 of 50 rollout_tokens in its preceding phases"
    ):
        load_benchmark(path, ["budget.limit=50"])
