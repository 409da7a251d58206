"""The JSON Schema of a recipe accepts what loads, and marks what does not."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_cases import ALL_CASES
from jsonschema import Draft202012Validator

from pages import ROOT, pages
from paretune.config import bundled_recipes
from paretune.config.schema_export import recipe_schema
from paretune.config.yaml import parse_yaml

RECIPES = {name: path for name, path in bundled_recipes().items() if not name.startswith("compare")}
SNIPPET = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SNIPPETS = [(page, text) for page in pages() for text in SNIPPET.findall(page.read_text(encoding="utf-8"))]
HEADER = "# yaml-language-server: $schema=recipe.schema.json"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(json.dumps(recipe_schema()))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def values_of(text: str) -> dict[str, Any]:
    return parse_yaml(text, "recipe.yaml").values


def demo(**sections: Any) -> dict[str, Any]:
    return deepcopy(values_of(RECIPES["demo"].read_text(encoding="utf-8")) | sections)


def problems(validator: Draft202012Validator, values: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_valid_and_name_the_schema(validator: Draft202012Validator, name: str) -> None:
    text = RECIPES[name].read_text(encoding="utf-8")
    assert not problems(validator, values_of(text))
    assert text.splitlines()[1] == HEADER


@pytest.mark.parametrize(("page", "text"), SNIPPETS, ids=lambda value: getattr(value, "name", ""))
def test_recipes_on_pages_are_valid(validator: Draft202012Validator, page: Path, text: str) -> None:
    values = values_of(text)
    if {"recipe", "methods"} <= values.keys():
        pytest.skip("a comparison of methods")
    if not values.keys() & {"extends", "algorithm", "objectives", "data", "scorers", "judges"}:
        pytest.skip("not a recipe")
    # A snippet has some sections; those of a recipe that extends another may be any.
    assert not problems(validator, {"extends": "base.yaml", **values}), page.relative_to(ROOT)
    assert not problems(validator, demo(**values)), page.relative_to(ROOT)


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"stpes": 3}, "$"),
        ({"run": {"stpes": 3}}, "$.run"),
        ({"run": {"max_steps": "3"}}, "$.run.max_steps"),
        ({"algorithm": {"name": "gpro"}}, "$.algorithm.name"),
        ({"algorithm": {"kl_coef": 0.1}}, "$.algorithm"),
        ({"algorithm": {"name": "grpo", "kl_coeff": 0.1}}, "$.algorithm"),
        ({"algorithm": {"name": "grpo", "kl_coef": -0.1}}, "$.algorithm.kl_coef"),
        ({"algorithm": {"name": "gdpo", "variant": "verk"}}, "$.algorithm.variant"),
        ({"algorithm": {"name": "custom", "credit": [{"type": "GroupNormalise"}]}}, "$.algorithm.credit[0]"),
        (
            {"algorithm": {"name": "custom", "losses": [{"type": "SoftClip", "x": 1}]}},
            "$.algorithm.losses[0]",
        ),
        ({"algorithm": {"name": "custom", "losses": {"type": "SoftClip"}}}, "$.algorithm.losses"),
        ({"aggregate": {"rho": 1.0}}, "$.aggregate"),
        ({"aggregate": {"name": "chebyshev", "rho": -1.0}}, "$.aggregate.rho"),
        ({"scorers": {"a": {"type": "rules"}}}, "$.scorers.a"),
        ({"objectives": {"safety": {"wieght": 1.0}}}, "$.objectives.safety"),
    ],
)
def test_mistakes_are_marked_at_their_key(
    validator: Draft202012Validator, sections: dict[str, Any], place: str
) -> None:
    (problem,) = problems(validator, demo(**sections))
    assert problem.startswith(f"{place}: ")


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "own.py:method", "anything": 1}},
        {"algorithm": {"name": "custom", "credit": [{"type": "python", "function": "own.py:Step"}]}},
        {"algorithm": {"name": "custom", "losses": [{"type": "SoftClip", "coefficient": 0.5}]}},
        {"aggregate": {"missing": "drop"}},
        {"aggregate": {"name": "lexicographic", "bin_width": 0.1, "missing": "drop"}},
        {"judge": None},
    ],
)
def test_other_forms_are_valid(validator: Draft202012Validator, sections: dict[str, Any]) -> None:
    assert not problems(validator, demo(**sections))


def test_a_recipe_that_extends_another_needs_no_key_and_may_remove_sections(
    validator: Draft202012Validator,
) -> None:
    assert not problems(validator, {"extends": "demo.yaml", "algorithm": {"kl_coef": 0.1}, "thinking": None})
    (problem,) = problems(validator, {"extends": "demo.yaml", "run": {"stpes": 1}})
    assert problem.startswith("$.run: ")
    assert problems(validator, {"algorithm": {"name": "grpo"}})


def test_every_wrong_schema_of_the_cases_is_marked(validator: Draft202012Validator) -> None:
    """Mistakes that concern one key alone; those between keys are for `paretune check`."""
    missed, unknown_keys = [], 0
    for _, base, mistakes in ALL_CASES:
        for mistake in mistakes:
            if not base or "unknown key" not in mistake.words:
                continue
            sections = dict(zip(mistake.section.split("+"), mistake.value.split("|"), strict=True))
            values = {key: yaml.safe_load(value) for key, value in {**base, **sections}.items()}
            unknown_keys += 1
            missed += [] if problems(validator, values) else [mistake]
    assert not missed
    assert unknown_keys >= 3


def test_keys_and_names_are_described(validator: Draft202012Validator) -> None:
    definitions = validator.schema["$defs"]
    names = {
        option.get("const"): option
        for option in definitions["AlgorithmSection"]["properties"]["name"]["anyOf"]
    }
    assert names["grpo"]["description"] == "GRPO: gate, aggregate, then normalize within the group."
    arguments = {name: definitions[f"algorithm_{name}"]["properties"] for name in ("grpo", "dapo")}
    for name, keys in arguments.items():
        missing = [key for key, schema in keys.items() if not schema.get("description")]
        assert missing == ["name"], name
    assert arguments["dapo"]["kl_coef"]["default"] == 0.0
