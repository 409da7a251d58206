"""What a recipe may say of a method without gradients, and what has no effect there."""

import pytest

from paretune.algorithms.evolution import essa
from paretune.config import load, shipped
from paretune.config.algorithm import recipe_of
from paretune.credit.worst import Chebyshev
from paretune.errors import ConfigError
from paretune.learn.check import check
from paretune.learn.evolution import Evolution
from paretune.learn.search import Cma, Isotropic
from paretune.rollout.sample import FromStart, Offline


def experiment(algorithm="{name: essa}", *more):
    return load(shipped()["demo"], [f"algorithm={algorithm}", *more])


def refused(algorithm, *more):
    with pytest.raises(ConfigError) as caught:
        experiment(algorithm, *more)
    return str(caught.value)


def test_the_defaults_are_those_of_the_paper():
    e = experiment()
    found = recipe_of(e)
    assert isinstance(found, Evolution)
    assert found.search == Cma(population=96)
    assert (found.adapter.r, found.share, found.kl, found.source.n) == (8, 1.0, 0.0, 1)
    assert isinstance(found.fitted.recipe.source, FromStart)
    check(found, tuple(e.objectives))


def test_another_aggregator_is_that_of_the_fit_too():
    found = recipe_of(
        experiment("{name: essa, search: isotropic, population: 8, rate: 0.5}", "aggregate={name: chebyshev}")
    )
    assert found.search == Isotropic(population=8, rate=0.5)
    for worth in (found.worth, found.fitted.recipe.worth):
        assert any(isinstance(step, Chebyshev) for step in worth.steps)


def test_an_adapter_fitted_to_stored_responses():
    found = essa({"safety": 1.0}, warm="stored")
    assert isinstance(found.fitted.recipe.source, Offline)
    said = refused("{name: essa, warm: stored}")
    assert "algorithm.warm: reads stored responses, and there are none" in said


@pytest.mark.parametrize(
    ("algorithm", "more", "wrong"),
    [
        ("{name: essa, r: 4}", ["policy.lora={r: 2}"], "algorithm.r: has no effect beside policy.lora"),
        ("{name: essa, rate: 0.5}", [], "algorithm.rate: has no effect with search cma"),
        (
            "{name: essa}",
            ["run.budget={currency: trained_tokens, amount: 9}"],
            "run.budget.currency: is never spent: essa has no gradient",
        ),
        ("{name: grpo}", ["run.workers=2"], "run.workers: has no effect: grpo tries no candidates"),
        ("{name: essa, population: 3}", [], "algorithm.population: is 3; fix: at least 4"),
        ("{name: essa, share: 0.0}", [], "essa"),
        ("{name: essa, search: sep}", [], "algorithm.search: "),
    ],
)
def test_what_has_no_effect_or_cannot_be(algorithm, more, wrong):
    assert wrong in refused(algorithm, *more)
