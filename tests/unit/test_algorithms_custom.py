"""Algorithms from parts: every part can be named, and a named algorithm is rebuilt exactly from its parts."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import pytest
import yaml
from pydantic import ValidationError

import paretune.credit
import paretune.loss
from paretune.algorithms import ALGORITHMS
from paretune.algorithms.custom import custom, custom_arguments
from paretune.algorithms.lookup import find_aggregate, find_algorithm
from paretune.algorithms.parts import CREDIT_STEPS, LOSSES
from paretune.algorithms.user_functions import part_arguments
from paretune.config.schema import AlgorithmSection, Config
from paretune.core.errors import ConfigError, WiringError
from paretune.credit.base import Chain, CreditStep, flatten_steps
from paretune.credit.constraints import Constraint
from paretune.experiment import run_description
from paretune.loss.base import Loss
from paretune.loss.pairwise import PairLoss
from paretune.loss.policy import PolicyLoss
from paretune.rl.algorithm_spec import CriticConfig

WEIGHTS = {"polite": 1.0, "safety": 0.5}
WITH_PHASES = {"salsa", "rto", "modpo", "ppo_m", "ppo_c", "essa"}
"""Algorithms that train or average models first, or ask for a format."""


def modules_of(package):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(module.name)


def same_parts(spec):
    return replace(
        spec,
        name="",
        critic=spec.critic if spec.uses_critic else CriticConfig(),  # else it has no effect
        reward_steps=Chain(flatten_steps(spec.reward_steps)),
        credit=Chain(flatten_steps(spec.credit)),
    )


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - WITH_PHASES - {"custom"}))
def test_a_named_algorithm_is_rebuilt_from_its_parts(name):
    needs_constraint = "constraints" in inspect.signature(ALGORITHMS[name]).parameters
    arguments = {"constraints": (Constraint("safety", 0.5),)} if needs_constraint else {}
    spec = ALGORITHMS[name](WEIGHTS, **arguments)
    # As YAML, since that is how a recipe has them.
    values = yaml.safe_load(yaml.safe_dump(custom_arguments(spec, WEIGHTS)))
    assert same_parts(custom(WEIGHTS, **values)) == same_parts(spec)


@pytest.mark.parametrize("name", sorted(WITH_PHASES - {"essa"}))
def test_what_custom_cannot_express_is_said(name):
    with pytest.raises(WiringError, match="custom"):
        custom_arguments(ALGORITHMS[name](WEIGHTS), WEIGHTS)


def test_the_defaults_are_grpo_without_a_penalty():
    grpo = ALGORITHMS["grpo"](WEIGHTS, kl_coef=0.0)
    built = custom(WEIGHTS, loss_aggregation="seq_mean_token_mean")
    # GRPO also computes the KL, to log it.
    assert same_parts(built) == same_parts(grpo.replace(model_passes=grpo.model_passes[:1]))


@pytest.mark.parametrize(
    ("base", "package", "known"),
    [(CreditStep, paretune.credit, CREDIT_STEPS), (Loss, paretune.loss, LOSSES)],
    ids=["credit", "loss"],
)
def test_every_part_can_be_named(base, package, known):
    abstract = {base, Chain, PolicyLoss, PairLoss}
    found = {
        part
        for module in modules_of(package)
        for part in vars(module).values()
        if inspect.isclass(part) and issubclass(part, base) and part not in abstract
    }
    assert found == set(known)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("credit", [{"type": "GroupNormalise"}], "GroupNormalise"),
        ("credit", [{"type": "GroupNormalize", "divide": "std"}], "divide"),
        ("credit", [{"type": "Gae", "lam": "1"}], "lam"),
        ("losses", [{"type": "ClippedSurrogate", "clip_low": float("nan")}], "clip_low"),
        ("losses", [{"clip_low": 0.1}], "type"),
        ("model_passes", [{"type": "RefLogprobs", "role": 1}], "role"),
    ],
)
def test_a_wrong_part_is_refused(key, value, message):
    with pytest.raises(ValidationError, match=message):
        custom(WEIGHTS, **{key: value})


def test_a_divisor_without_effect_is_refused():
    with pytest.raises(WiringError, match="norm_length has no effect"):
        custom(WEIGHTS, norm_length=4)


OWN = """
from paretune.algorithms.grpo import grpo
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import CreditStep

def best_grpo(weights, *, scale: float = 1.0):
    return grpo(weights)

def best_sum(weights, constraints):
    return WeightedSum(weights)

def best_step(scale: float = 1.0):
    return BestStep()

def best_reward(completions):
    return [1.0]

class BestStep(CreditStep):
    def apply(self, batch):
        return batch
"""


@pytest.mark.parametrize(
    ("find", "name", "meant", "others"),
    [
        (find_algorithm, "best_gpro", "best_grpo", "best_grpo"),
        (find_aggregate, "best_smu", "best_sum", "best_sum"),
        (part_arguments, "BestSetp", "BestStep", "BestStep, best_step"),
    ],
)
def test_only_code_of_the_right_kind_is_proposed(find, name, meant, others, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ConfigError) as caught:
        find(f"own.py:{name}")
    message = f'"own.py" has no "{name}"; did you mean "{meant}"?; fix: one of {others}'
    assert str(caught.value) == message
    with pytest.raises(ConfigError, match=r'no file "owm.py"; did you mean "own.py"\?; fix: '):
        find(f"owm.py:{name}")


def test_the_method_line_of_a_function_without_a_docstring_is_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    for name, line in (("own.py:best_grpo", "own.py:best_grpo"), ("grpo", "grpo: gate, aggregate, then")):
        config = Config.model_construct(algorithm=AlgorithmSection.model_construct(name=name))
        (described,) = run_description._describe_method(config)
        assert described.startswith(line)
        assert not described.endswith(":")
