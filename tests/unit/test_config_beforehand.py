"""A budget that goes on what a method makes before its own loop begins: told before anything is made."""

import pytest

from madeup_contest import written
from paretune.benchmark.plan import describe_benchmark
from paretune.benchmark.spec import load_benchmark
from paretune.config import bundled_recipes, load_config
from paretune.config.build import build_spec
from paretune.config.requirements import budget_warnings, phase_cost_bounds
from paretune.core.errors import ConfigError
from paretune.experiment.dry_run import check

RTO = "algorithm={name: rto, max_new: 12, dpo_steps: 5, dpo_n: 3}"
"""60 responses at 4 prompts a step: of 60 to 720 tokens."""


def experiment(currency, amount, algorithm=RTO):
    more = [
        algorithm,
        "training.prompts_per_step=4",
        f"run.budget={{currency: {currency}, amount: {amount}}}",
    ]
    return load_config(bundled_recipes()["demo"], more)


def said(*more):
    with pytest.raises(ConfigError) as caught:
        experiment(*more)
    (line,) = str(caught.value).split("\n")
    return line


def test_what_is_certain_is_an_error():
    assert "run.budget.limit: rto takes at least 60 of 60 rollout_tokens beforehand; fix: raise it" in said(
        "rollout_tokens", 60
    )
    assert "run.budget.limit: rto takes 60 of 50 reward_calls beforehand; fix" in said("reward_calls", 50)
    experiment("rollout_tokens", 61)
    experiment("reward_calls", 61)
    searched = "algorithm={name: essa, max_new: 12, warm_steps: 5, warm_n: 3}"
    assert "essa takes 60 of 60 reward_calls beforehand" in said("reward_calls", 60, searched)


@pytest.mark.parametrize(
    ("currency", "amount", "bounds"),
    [
        ("rollout_tokens", 61, (60, 720)),
        ("reward_calls", 61, (60, 60)),
        ("trained_tokens", 61, (0, 0)),
    ],
)
def test_what_it_takes_is_bounded_as_far_as_the_recipe_knows(currency, amount, bounds):
    e = experiment(currency, amount)
    assert phase_cost_bounds(e, build_spec(e)) == bounds
    alone = experiment(currency, amount, "algorithm={name: grpo, max_new: 12}")
    assert phase_cost_bounds(alone, build_spec(alone)) == (0, 0)


def test_a_check_warns_of_what_is_possible():
    e = experiment("rollout_tokens", 720)
    (line,) = (line for line in check(e).split("\n") if line.startswith("warning"))
    assert line.startswith(
        "warning    rto takes up to 720 of 720 rollout_tokens beforehand: if nothing is left"
    )
    enough = experiment("rollout_tokens", 721)
    assert list(budget_warnings(enough, build_spec(enough))) == []


def test_the_plan_of_a_comparison_says_both(tmp_path):
    text = """\
name: a
recipe: demo
folder: {folder}
set: [training.prompts_per_step=4]
methods:
  grpo: {{algorithm: {{name: grpo, n: 2, max_new: 12}}}}
  dense: {{algorithm: {{name: rto, max_new: 12, dpo_steps: 5, dpo_n: 3}}}}
seeds: [0, 1]
budget: {{currency: rollout_tokens, amount: 700}}
"""
    path = written(tmp_path, text.format(folder=tmp_path / "cmp"))
    lines = describe_benchmark(load_benchmark(path)).split("\n")
    (line,) = (line for line in lines if "beforehand" in line)
    assert line.startswith("warning    rto takes up to 720 of 700 rollout_tokens beforehand")
    assert line.endswith("[dense]")
    with pytest.raises(ConfigError, match=r"rto takes at least 60 of 50 rollout_tokens beforehand"):
        load_benchmark(path, ["budget.amount=50"])
