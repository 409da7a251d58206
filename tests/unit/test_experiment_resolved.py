"""The resolved run: the algorithm of a recipe with its phases and requirements, and errors at its keys."""

import pytest

from paretune.config import bundled_recipes, load_config
from paretune.core.errors import WiringError
from paretune.experiment import resolved
from paretune.experiment.resolved import resolve


def demo(*overrides):
    return load_config(bundled_recipes()["demo"], overrides)


def test_the_algorithm_and_its_phases_are_built():
    run = resolve(demo("algorithm={name: rto, max_new_tokens: 12, dpo_steps: 5}"))
    assert run.algorithm.name == "rto"
    (phase,) = run.phases
    assert run.specs == (run.algorithm, phase)


def test_requirements_come_from_a_dry_run_on_first_use(monkeypatch):
    run = resolve(demo())
    assert run.requirements.sampler
    assert run.requirements.frozen_roles == ("reference",)

    def reject(spec, objectives):
        raise WiringError("does not fit")

    monkeypatch.setattr(resolved, "check_spec", reject)
    assert run.requirements.sampler, "computed once"
    with pytest.raises(WiringError):
        _ = resolve(demo()).requirements


def test_an_issue_has_the_location_of_the_nearest_enclosing_key():
    run = resolve(demo("run.budget={resource: reward_calls, limit: 9}"))
    assert run.issue(("run", "budget", "limit"), "is low", "raise it") == (
        "(override): run.budget.limit: is low; fix: raise it"
    )
    line = run.issue(("reward", "objectives", "safety", "loss"), "is new", suggestion="mse")
    assert line.startswith(str(bundled_recipes()["demo"]))
    assert line.endswith('reward.objectives.safety.loss: is new; did you mean "mse"?')
