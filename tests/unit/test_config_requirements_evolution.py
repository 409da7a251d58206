"""A recipe with a gradient-free method builds the right spec; its mistakes are in config_cases.py."""

from paretune.algorithms.evolution import essa
from paretune.config import bundled_recipes, load_config
from paretune.credit.scalarization import Chebyshev
from paretune.experiment.resolved import resolve
from paretune.rl.evolution.search import CmaES, IsotropicES
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import FrozenPolicy, StoredResponses


def resolved(algorithm="{name: essa}", *overrides):
    return resolve(load_config(bundled_recipes()["demo"], [f"algorithm={algorithm}", *overrides]))


def test_the_defaults_are_those_of_the_paper():
    run = resolved()
    spec = run.algorithm
    assert isinstance(spec, EvolutionSpec)
    assert spec.strategy == CmaES(population_size=96)
    assert (spec.adapter.r, spec.singular_value_fraction, spec.kl_coef, spec.rollout.num_generations) == (
        8,
        1.0,
        0.0,
        1,
    )
    assert isinstance(spec.adapter_phase.spec.rollout, FrozenPolicy)
    check_spec(spec, tuple(run.config.objectives))


def test_the_adapter_phase_has_the_same_aggregator():
    algorithm = "{name: essa, strategy: isotropic, population_size: 8, mean_lr: 0.5}"
    spec = resolved(algorithm, "aggregate={name: chebyshev}").algorithm
    assert isinstance(spec, EvolutionSpec)
    assert spec.strategy == IsotropicES(population_size=8, mean_lr=0.5)
    for steps in (spec.reward_steps, spec.adapter_phase.spec.reward_steps):
        assert any(isinstance(step, Chebyshev) for step in steps.steps)


def test_the_adapter_can_be_fitted_to_stored_responses():
    spec = essa({"safety": 1.0}, sft_response_source="stored")
    assert isinstance(spec.adapter_phase.spec.rollout, StoredResponses)
