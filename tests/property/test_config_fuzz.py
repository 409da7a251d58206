"""Whatever a recipe holds, `load_config` returns a config or reports one line `file:line...` per mistake."""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretune.config import Config, find_recipe, load_config
from paretune.config.issues import _suggest_key
from paretune.config.schema_keys import all_keys
from paretune.core.errors import ConfigError

LINE = re.compile(r"^(?:[^:]+:\d+(?::\d+)?: \S.*|\.\.\. and \d+ more)$")


MORE = int(os.environ.get("PARETUNE_FUZZ", "1"))
"""Factor on the number of cases; above 1 the cases are different in every run."""


def num_cases(count: int) -> settings:
    return settings(
        max_examples=count * MORE,
        deadline=None,
        derandomize=MORE == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


FILES = {
    "data": {"prompts": {"a": {"file": "p"}}, "test_prompts": {"a": {"file": "t", "where": {"c": [1, "x"]}}}},
    "policy": {"path": "own/model", "lora": {"r": 4, "target_modules": ["q", "k"]}},
    "reward": {
        "objectives": {"safety": {"loss": "huber", "huber_delta": 2.0}, "helpful": {"loss": "bradley_terry"}},
        "ratings": {"r": {"file": "r", "labels": {"safety": {"from": "toxic", "scale": -1}}}},
        "pairs": {"q": {"file": "q", "objective": "helpful", "max_length": 9, "overlong": "truncate"}},
    },
    "objectives": {"safety": {"weight": 1.0}, "helpful": {"gate": "safety >= 0.5", "gate_fallback": -3.0}},
    "algorithm": {"name": "grpo", "num_generations": 4},
    "run": {"max_steps": 3, "output_dir": "x"},
}
DEMO = yaml.safe_load(find_recipe("demo").read_text())
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(
        ["world", "policy", "safety >= 1", "hf:a/b", "..", "ground_truth", "bradley_terry", 1e400, {}]
    ),
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ptrq":
        Path(name).touch()


def load_or_reject(text: str | bytes, overrides: list[str] | None = None) -> Config | None:
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        return load_config("r.yaml", overrides or [])
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert LINE.match(line), repr(line)
            assert line.isprintable(), repr(line)
        return None


def key_paths(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from key_paths(value, (*path, key))


@num_cases(120)
@given(st.data())
def test_mutated_recipes(data: st.DataObject) -> None:
    recipe = copy.deepcopy(data.draw(st.sampled_from([DEMO, FILES])))
    for _ in range(data.draw(st.integers(0, 3))):
        paths = list(key_paths(recipe))
        if not paths:
            break
        path = data.draw(st.sampled_from(paths))
        section = recipe
        for part in path[:-1]:
            section = section[part]
        match data.draw(st.sampled_from(["value", "delete", "rename", "add"])):
            case "value":
                section[path[-1]] = data.draw(ODD)
            case "delete":
                del section[path[-1]]
            case "rename" if isinstance(section, dict):
                section[data.draw(st.text(max_size=6)) + str(path[-1])] = section.pop(path[-1])
            case "add" if isinstance(section, dict):
                section[data.draw(st.text(min_size=1, max_size=6))] = data.draw(ODD)
    load_or_reject(yaml.safe_dump(recipe, allow_unicode=True, default_flow_style=data.draw(st.booleans())))


@num_cases(100)
@given(st.data())
def test_mangled_text(data: st.DataObject) -> None:
    text = find_recipe("demo").read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        text = (
            text[:at]
            + data.draw(st.text("{}[]:,&*!|>'\"#\t\n -?%@`ab1\u2028\x85\ufeff", max_size=4))
            + text[at + cut :]
        )
    load_or_reject(text)


@num_cases(60)
@given(st.binary(max_size=60))
def test_noise(noise: bytes) -> None:
    assert load_or_reject(noise) is None
    load_or_reject(b"name: x\nrun: " + noise)


@num_cases(60)
@given(
    st.lists(st.text(max_size=12), max_size=3),
    st.sampled_from(["run.max_steps", "policy", "a.b", "objectives.x"]),
    ODD,
)
def test_odd_overrides(texts: list[str], key: str, value: Any) -> None:
    try:
        shown = json.dumps(value)
    except ValueError:
        shown = "x"
    load_or_reject(json.dumps(FILES), [*texts, f"{key}={shown}", *(f"{key}={text}" for text in texts)])


def test_the_templates_load() -> None:
    assert load_or_reject(json.dumps(FILES)) is not None
    assert load_or_reject(yaml.safe_dump(DEMO)) is not None


def test_one_edit_typos_get_the_right_suggestion() -> None:
    tried = right = 0
    for path in set(all_keys(Config)):
        key = str(path[-1])
        if len(key) < 3:
            continue
        swaps = {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)} - {key}
        drops = {key[:i] + key[i + 1 :] for i in range(len(key))}
        twice = {key[:i] + key[i] + key[i:] for i in range(len(key))}
        for typo in swaps | drops | twice:
            tried += 1
            right += _suggest_key(path[:-1], typo, Config, {}) == ".".join(map(str, path))
    assert tried > 1000
    assert right / tried >= 0.95
