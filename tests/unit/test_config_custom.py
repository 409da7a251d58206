"""Algorithms from parts and of one's own in a recipe: what they build, and mistakes at their keys."""

import json
from pathlib import Path

import pytest
import torch
from config_cases import GATED, WORLD, error_lines
from test_algorithms_custom import WITH_PHASES, same_parts

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.lookup import find_algorithm
from paretune.cli import main
from paretune.config import Config, load_config, resolved_yaml
from paretune.config.arguments import algorithm_files
from paretune.config.build import build_spec
from paretune.core.errors import ConfigError, WiringError
from paretune.credit.aggregation import Gate, WeightedSum
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import MinObjective
from paretune.experiment.explain import custom_section, explain, section_yaml
from toy import WEIGHTS, graded

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_algorithm.py"
OWN = '''
from dataclasses import dataclass

from own_helper import HALF
from paretune.algorithms.grpo import grpo
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import CreditStep


@dataclass(frozen=True)
class Scale(CreditStep):
    """Multiply rewards."""

    weights: dict[str, float]
    factor: float = HALF

    def apply(self, batch):
        return batch.replace(rewards=batch.rewards * self.factor)


class Raises(CreditStep):
    def apply(self, batch):
        raise KeyError("nothing")


class Forgets(CreditStep):
    def apply(self, batch):
        return None


def method(weights, *, gates=(), strength: float = 0.5, rounds: int):
    return grpo(weights, gates=gates, kl_coef=strength, num_iterations=rounds)


def without_gates(weights):
    return grpo(weights)


def fails(weights, *, gates=()):
    raise ValueError("no idea")


def number(weights, *, gates=()):
    return 3


def keywords(weights, **kwargs):
    return grpo(weights, **kwargs)


def squared(weights, constraints, *, power: float = 2.0):
    return WeightedSum({name: weight**power for name, weight in weights.items()})
'''


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: a second module called helper elsewhere would be another module of that name."""
    path = tmp_path_factory.mktemp("own")
    (path / "own.py").write_text(OWN, encoding="utf-8")
    (path / "own_helper.py").write_text("HALF = 0.5\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(own_folder)
    return own_folder


def load(text: str = "{name: custom}", **sections: str) -> Config:
    lines = GATED | {"algorithm": text} | sections
    Path("r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return load_config("r.yaml")


WRONG = [
    ("credit: [{type: GroupNormalise}]", "credit[0].type", '"GroupNormalise" is none of', '"GroupNormalize"'),
    ("credit: [{type: Whiten, x: 1}]", "credit[0].x", "unknown key"),
    ("losses: [{type: SoftClip, tau_po: 1}]", "losses[0].tau_po", '"algorithm.losses[0].tau_pos"'),
    ("losses: [{type: SoftClip}, {type: Dpo, beta: x}]", "losses[1].beta", '"x" is not a number'),
    ("losses: [SoftClip]", "losses[0]", "write {type: SoftClip}"),
    ("losses: SoftClip", "losses", "is not a list"),
    ("losses: [{coefficient: 1}]", "losses[0].type", "write type into algorithm.losses[0]"),
    ("reward_steps: [{type: Threshold, threshold: 1}]", "reward_steps[0].objective", "is missing"),
    ("losses: [{type: OffPolicyMask, loss: {type: EntropyBonus}}]", "losses[0].loss.type", "ClippedIsWeight"),
    ("reward_steps: [{type: WeightedSum}, {type: BestOfN, x: 1}]", "reward_steps[1].x", "unknown key"),
    ("losses: [{type: ClippedSurrogate, clip_low: -1}]", "losses[0]", "clip_low"),
    ("credit: [{type: TerminalReward}, {type: BroadcastToTokens}]", "credit[0]", "Gae or ReturnToGo"),
    ("model_passes: [{type: OldLogprobs}, {type: RefLogprobs, role: soup}]", "", 'model "soup"'),
    ("credit: [{type: python, function: own.py:Scal}]", "credit[0].function", "one of Forgets"),
    ("credit: [{type: python, function: no.py:Scale}]", "credit[0].function", 'no file "no.py"'),
    ("credit: [{type: python}]", "credit[0].function", "is missing"),
    (
        "credit: [{type: python, function: own.py:Scale, arguments: {facto: 1}}]",
        "credit[0].arguments.facto",
        '"algorithm.credit[0].arguments.factor"',
    ),
    (
        "credit: [{type: python, function: own.py:Scale, arguments: {factor: a}}]",
        "credit[0].arguments.factor",
        '"a" is not a number',
    ),
    ("losses: [{type: python, function: own.py:Scale}]", "losses[0]", "must return a Loss"),
    ("reward_steps: [{type: python, function: own.py:Raises}]", "reward_steps[0]", "KeyError: 'nothing'"),
    ("reward_steps: [{type: python, function: own.py:Forgets}]", "reward_steps[0]", "Forgets"),
]


@pytest.mark.parametrize(("text", "key", "words"), [(t, k, w) for t, k, *w in WRONG])
def test_a_wrong_part_is_one_line_at_its_key(folder: Path, text: str, key: str, words: list[str]) -> None:
    (line,) = error_lines(WORLD | {"algorithm": f"\n  name: custom\n  {text}"})
    place = f"r.yaml:{7 if key else 5}:"
    assert line.startswith(place), line
    assert f": algorithm{'.' * bool(key)}{key}: " in line, line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own.py:fails", 'algorithm: "own.py:fails" raised ValueError: no idea (own.py:'),
        ("own.py:number", "returns a int, and must return a AlgorithmSpec or EvolutionSpec"),
        ("own.py:keywords", "takes **kwargs"),
        ("own.py:squared", 'algorithm.name: "own.py:squared" has the positional arguments'),
        ("own.py:HALF", "is a float"),
        ("own.py:without_gates", "takes no gates, and actionability has one"),
        ("own.py:method", "algorithm.rounds: is missing; fix: write rounds into algorithm"),
        ("own.py:metod", 'has no "metod"'),
    ],
)
def test_a_wrong_function_is_one_line(folder: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"{{name: '{name}'}}")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("r.yaml:5:")
    assert words in line


def test_arguments_of_a_function_are_checked_and_filled_in(folder: Path) -> None:
    config = load("{name: 'own.py:method', rounds: 2}")
    spec = ALGORITHMS["grpo"](config.weights, gates=config.gates, kl_coef=0.5, num_iterations=2)
    assert build_spec(config) == spec
    assert config.algorithm.arguments == {"rounds": 2, "strength": 0.5}
    Path("again.yaml").write_text(resolved_yaml(config))
    assert load_config("again.yaml").model_dump() == config.model_dump()
    with pytest.raises(ConfigError, match=r'algorithm.rounds: "x" is not a whole number'):
        load("{name: 'own.py:method', rounds: x}")
    with pytest.raises(
        ConfigError, match=r'algorithm.strengt: unknown key; did you mean "algorithm.strength"'
    ):
        load("{name: 'own.py:method', rounds: 1, strengt: 1}")


def test_an_aggregator_of_ones_own_replaces_the_weighted_sum(folder: Path) -> None:
    objectives = "{safety: {weight: 3}, actionability: {}}"
    config = load("{name: grpo}", aggregate="{name: 'own.py:squared'}", objectives=objectives)
    (step,) = build_spec(config).reward_steps.steps
    assert step == WeightedSum({"safety": 9.0, "actionability": 1.0})
    with pytest.raises(ConfigError, match=r"r.yaml:6:\d+: aggregate.powe: unknown key"):
        load("{name: grpo}", aggregate="{name: 'own.py:squared', powe: 1}")


def test_a_part_of_ones_own_gets_the_weights_and_its_files_are_known(folder: Path) -> None:
    part = "{type: python, function: 'own.py:Scale', arguments: {factor: 0.25}}"
    config = load(f"{{name: custom, reward_steps: [{{type: WeightedSum}}, {part}]}}")
    *_, step = build_spec(config).reward_steps.steps
    assert step.weights == config.weights
    assert step.apply(graded([1.0, 2.0])).rewards.flatten().tolist() == [0.25, 0.5]
    assert algorithm_files(config) == [folder / "own.py", folder / "own_helper.py"]
    assert algorithm_files(load("{name: 'own.py:method', rounds: 1}")) == [
        folder / "own.py",
        folder / "own_helper.py",
    ]
    assert algorithm_files(load()) == []
    Path("again.yaml").write_text(resolved_yaml(config))
    assert load_config("again.yaml").model_dump() == config.model_dump()


def test_objectives_act_on_a_custom_algorithm(folder: Path) -> None:
    gate = Gate("actionability", "safety", 0.5)
    assert build_spec(load()).reward_steps.steps == (gate, WeightedSum({"safety": 1.0, "actionability": 1.0}))
    (_, step) = build_spec(load(aggregate="{name: min_objective}")).reward_steps.steps
    assert isinstance(step, MinObjective)
    at_least = "{safety: {at_least: 0.9}, actionability: {}}"
    constraints = (Constraint("safety", 0.9),)
    (step,) = build_spec(load(objectives=at_least, aggregate="{name: lagrangian}")).reward_steps.steps
    assert step.constraints == constraints
    own = "{name: custom, reward_steps: [{type: Lagrangian, window_size: 64}]}"
    (step,) = build_spec(load(own, objectives=at_least)).reward_steps.steps
    assert step == Lagrangian({"safety": 1.0, "actionability": 1.0}, constraints, window_size=64)


@pytest.mark.parametrize(
    ("steps", "sections", "message"),
    [
        ("WeightedSum", {"objectives": "{safety: {at_least: 0.9}}"}, "algorithm.reward_steps: has no step"),
        ("Chebyshev", {"aggregate": "{name: min_objective}"}, "aggregate: MinObjective has no WeightedSum"),
        (
            "Chebyshev",
            {"objectives": "{safety: {cap: 0.9}}"},
            "objectives.safety.cap: it acts on a WeightedSum",
        ),
        ("Chebyshev", {"objectives": "{safety: {weight_schedule: [[0, 1.0]]}}"}, "safety.weight_schedule: "),
        ("Lagrangian", {"objectives": "{safety: {}}"}, r"reward_steps\[0\]: there is no constraint"),
    ],
)
def test_objectives_that_a_custom_algorithm_cannot_follow_are_refused(
    folder: Path, steps: str, sections: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(f"{{name: custom, reward_steps: [{{type: {steps}}}]}}", **sections)


OBJECTIVES = {
    "safe_rlhf": "{safety: {at_least: 0.5}, actionability: {}}",
    "lagrangian_grpo": "{safety: {at_least: 0.5}, actionability: {gate: safety >= 0.5}}",
    "modpo": "{safety: {}, actionability: {}}",
}


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - WITH_PHASES - {"custom"}))
def test_pasting_what_explain_prints_gives_the_same_algorithm(folder: Path, name: str) -> None:
    objectives = OBJECTIVES.get(name, GATED["objectives"])
    config = load(f"{{name: {name}}}", objectives=objectives)
    printed = explain(config).partition("algorithm:\n")[2]
    assert f"algorithm:\n{printed}".strip() == section_yaml(custom_section(config)).strip()
    pasted = load(f"\n{printed.rstrip()}", objectives=objectives)
    assert same_parts(build_spec(pasted)) == same_parts(build_spec(config))


def test_explain_says_what_parts_do_and_why_there_is_no_block(folder: Path) -> None:
    text = explain(load())
    assert "                   Normalize rewards within each prompt's group, per objective.\n" in text
    assert text.endswith("The section algorithm has the parts already: edit them there.")
    text = explain(load("{name: rto}"))
    assert text.endswith("rto trains further models first, or asks for a format; custom does neither.")
    assert "PretrainPhase" in text
    assert explain(load("{name: essa}")).endswith("essa is gradient-free, and custom has losses.")
    own = load(
        "{name: custom, reward_steps: [{type: WeightedSum}, {type: python, function: 'own.py:Scale'}]}"
    )
    assert "Multiply rewards." in explain(own)


def test_the_examples_ranks_are_by_group_and_without_missing_scores() -> None:
    rank = find_algorithm(f"{EXAMPLE}:rank_grpo")(WEIGHTS, scale=2.0).credit.steps[0]
    rewards = rank.apply(graded([3.0, 1.0, 2.0, torch.nan, 5.0, 5.0], group=[0, 0, 0, 0, 1, 1])).rewards
    assert rewards.flatten().tolist()[:3] == [2.0, -2.0, 0.0]
    assert rewards[3].isnan()
    assert rewards[4:].flatten().tolist() == [0.0, 0.0]


def test_a_part_of_another_kind_is_refused(folder: Path) -> None:
    part = {"type": "python", "function": "own.py:method", "arguments": {"rounds": 1}}
    with pytest.raises(WiringError, match="returns a AlgorithmSpec, and must return a CreditStep"):
        ALGORITHMS["custom"]({"safety": 1.0}, credit=[part])


def test_the_commands_print_the_parts_and_the_schema(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load("{name: rloo}")
    for command in (["explain", "r.yaml"], ["schema"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 0
    explained, brace, schema = capsys.readouterr().out.partition("\n{\n")
    assert explained == explain(config)
    assert "custom" in json.loads(brace + schema)["$defs"]["algorithm_custom"]["title"]
