"""What a recipe may say of a method without gradients, and what has no effect there."""

import pytest

from paretune.algorithms.evolution import essa
from paretune.config import bundled_recipes, load_config
from paretune.config.build import build_spec
from paretune.core.errors import ConfigError
from paretune.credit.scalarization import Chebyshev
from paretune.rl.evolution.search import CmaES, IsotropicES
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import FrozenPolicy, StoredResponses


def experiment(algorithm="{name: essa}", *more):
    return load_config(bundled_recipes()["demo"], [f"algorithm={algorithm}", *more])


def refused(algorithm, *more):
    with pytest.raises(ConfigError) as caught:
        experiment(algorithm, *more)
    return str(caught.value)


def test_the_defaults_are_those_of_the_paper():
    e = experiment()
    found = build_spec(e)
    assert isinstance(found, EvolutionSpec)
    assert found.strategy == CmaES(population_size=96)
    assert (found.adapter.r, found.singular_value_fraction, found.kl_coef, found.rollout.num_generations) == (
        8,
        1.0,
        0.0,
        1,
    )
    assert isinstance(found.adapter_phase.spec.rollout, FrozenPolicy)
    check_spec(found, tuple(e.objectives))


def test_another_aggregator_is_that_of_the_fit_too():
    found = build_spec(
        experiment("{name: essa, search: isotropic, population: 8, rate: 0.5}", "aggregate={name: chebyshev}")
    )
    assert found.strategy == IsotropicES(population_size=8, mean_lr=0.5)
    for worth in (found.reward_steps, found.adapter_phase.spec.reward_steps):
        assert any(isinstance(step, Chebyshev) for step in worth.steps)


def test_an_adapter_fitted_to_stored_responses():
    found = essa({"safety": 1.0}, sft_response_source="stored")
    assert isinstance(found.adapter_phase.spec.rollout, StoredResponses)
    said = refused("{name: essa, warm: stored}")
    assert "algorithm.sft_response_source: reads stored responses, and there are none" in said


@pytest.mark.parametrize(
    ("algorithm", "more", "wrong"),
    [
        ("{name: essa, r: 4}", ["policy.lora={r: 2}"], "algorithm.lora_r: has no effect beside policy.lora"),
        ("{name: essa, rate: 0.5}", [], "algorithm.multiplier_lr: has no effect with search cma"),
        (
            "{name: essa}",
            ["run.budget={currency: trained_tokens, amount: 9}"],
            "run.budget.resource: is never spent: essa has no gradient",
        ),
        ("{name: grpo}", ["run.num_workers=2"], "run.num_workers: has no effect: grpo tries no candidates"),
        ("{name: essa, population: 3}", [], "algorithm.population_size: is 3; fix: at least 4"),
        ("{name: essa, share: 0.0}", [], "essa"),
        ("{name: essa, search: sep}", [], "algorithm.strategy: "),
    ],
)
def test_what_has_no_effect_or_cannot_be(algorithm, more, wrong):
    assert wrong in refused(algorithm, *more)
