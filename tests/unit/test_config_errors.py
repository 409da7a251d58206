"""Invalid recipes: one line per mistake, all at once, with location, key, nearest name and fix."""

import os
import time
from pathlib import Path

import pytest
from config_cases import (
    ALL_CASES,
    FILES,
    OVER_FILES,
    OVER_WORLD,
    WORLD,
    Case,
    at_key,
    case_lines,
    error_lines,
    load_sections,
)

from paretune.algorithms import ALGORITHMS
from paretune.config import find_recipe, load_config
from paretune.config.arguments import algorithm_arguments
from paretune.core.errors import ConfigError

SNAPSHOT = Path(__file__).parent / "snapshots" / "config_errors.txt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("p.jsonl", "t.jsonl", "r.jsonl", "q.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_base_recipes_of_the_cases_are_valid(folder: Path) -> None:
    for sections in (WORLD, FILES):
        load_sections(sections)


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    wrong = FILES | {
        "data": "{prompts: {a: {file: pp.jsonl}}, test_prompts: {a: {file: t.jsonl, mots: 3}}}",
        "objectives": "{safety: {weight: heavy, gate: safety > 3}}",
        "algorithm": "{name: grop}",
    }
    lines = error_lines(wrong, "run.stpes=3", "training.learning_rate=0")
    assert lines[:2] == [
        '(override):1: run.stpes: unknown key; did you mean "run.max_steps"?; '
        "fix: this section has output_dir, max_steps, budget, ... (9; see docs/recipe.md)",
        "(override):2: training.learning_rate: 0 must be above 0",
    ]
    text = "\n".join(lines)
    assert 'r.yaml:1:22: data.prompts.a.file: there is no file "pp.jsonl"; did you mean "p.jsonl"?' in text
    assert (
        'r.yaml:1:74: data.test_prompts.a.mots: unknown key; did you mean "data.test_prompts.a.max_rows"?'
        in text
    )
    assert 'r.yaml:4:23: objectives.safety.weight: "heavy" is not a number' in text
    assert (
        'objectives.safety.gate: "safety > 3" is not a gate; fix: > must be >=: write "safety >= 3"' in text
    )
    assert 'algorithm.name: "grop" is not an algorithm; did you mean "grpo"?' in text
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml:1:1: is empty"),
        ("{}", "r.yaml:1:1: is empty"),
        ("- a\n", "r.yaml:1:1: is not a mapping"),
        ("a: b: c\n", "r.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a: 1\na: 2\n", "r.yaml:2:1: a: is given twice; the first one is in line 1"),
        ("a: [1\n", "r.yaml:2:1: not YAML"),
        ("a: \x07\n", "r.yaml:1:4: character U+0007 is not allowed"),
        ("run:\n\tsteps: 3\n", "r.yaml:2:1: not YAML: a tab; fix: indent with spaces"),
        ("a: 1\n\tb: 2\n", "r.yaml:2:1: not YAML: a tab; fix: indent with spaces"),
        ("? [a]\n: 1\n", "r.yaml:1:3: a key must be a single word"),
        ("a: !!python/object/apply:os.system ['touch hacked']\n", "r.yaml:1:4: has the tag"),
        ("a: !include x\n", "r.yaml:1:4: has the tag"),
        ("a: " + "[" * 60 + "]" * 60 + "\n", "is more than 50 levels deep"),
        ("a: &a {b: *a}\n", "grows without end"),
        ("a: &a 1\nb: [" + "*a, " * 101 + "]\n", "has more than 100 aliases"),
        ("x: " + "y" * 300_000 + "\n", "a recipe has at most 200,000"),
        ("run: {seed: " + "9" * 5000 + "}\n", "is too large a number"),
        ("a: 1\n---\nb: 2\n", "not YAML: but found another document"),
    ],
)
def test_text_that_is_not_a_recipe_is_rejected_with_its_location(
    folder: Path, text: str, expected: str
) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("r.yaml")
    assert expected in str(caught.value)
    assert not (folder / "hacked").exists()


@pytest.mark.parametrize("text", ["run:\n\tsteps: 3\n", "- a\n", "", "extends: gone.yaml\n", "extends: 3\n"])
def test_an_unreadable_recipe_is_not_reported_as_incomplete(folder: Path, text: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("r.yaml", ["run.max_steps=3", "run.stpes=4"])
    (line,) = str(caught.value).split("\n")
    assert line.startswith("r.yaml:")


def test_an_unreadable_base_recipe_is_not_reported_as_incomplete(folder: Path) -> None:
    Path("base.yaml").write_text("run:\n\tsteps: 3\n")
    (line,) = error_lines({"extends": "base.yaml"}, "run.max_steps=3")
    assert line.startswith("base.yaml:2:1: not YAML: a tab")


def test_exponential_aliases_are_rejected_quickly(folder: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 10))
    Path("r.yaml").write_text(f"l0: &l0 x\n{levels}")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="grows without end"):
        load_config("r.yaml")
    assert time.monotonic() - start < 10  # an expansion would take days


def test_files_that_are_not_text_are_rejected(folder: Path) -> None:
    Path("r.yaml").write_bytes(b"name: a\nrun: \xff\n")
    with pytest.raises(ConfigError, match=r"r\.yaml:2:6: is not UTF-8 text"):
        load_config("r.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml:1: cannot be read: No such file"):
        load_config("gone.yaml")


@pytest.mark.parametrize("mistake", OVER_FILES, ids=lambda case: case.key)
def test_a_mistake_in_a_recipe_over_files_is_reported_at_its_key(folder: Path, mistake: Case) -> None:
    assert_reported(case_lines(FILES, mistake), mistake)


@pytest.mark.parametrize("mistake", OVER_WORLD, ids=lambda case: case.key)
def test_a_mistake_in_a_recipe_over_the_built_in_world_is_reported_at_its_key(
    folder: Path, mistake: Case
) -> None:
    assert_reported(case_lines(WORLD, mistake), mistake)


def assert_reported(lines: list[str], mistake: Case) -> None:
    matches = [line for line in at_key(lines, mistake.key) if all(word in line for word in mistake.words)]
    assert matches, lines


def test_the_sentences_of_the_errors_are_those_of_the_snapshot(folder: Path) -> None:
    """Update it with `PARETUNE_UPDATE_SNAPSHOTS=1 pytest tests/unit/test_config_errors.py -k snapshot`."""
    text = "".join(
        "\n".join([f"# {name}: {mistake.section}: {mistake.value!r}", *case_lines(base, mistake), "\n"])
        for name, base, mistakes in ALL_CASES
        for mistake in mistakes
    ).replace(str(find_recipe("demo").parent), "recipes")
    if os.environ.get("PARETUNE_UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")


OUT_OF_BOUNDS = {
    "num_generations": (-3, ""),
    "max_new_tokens": (0, "must be at least 1"),
    "temperature": (-1, "must be above 0"),
    "kl_coef": (-1, "must be at least 0"),
    "minibatch_size": (0, "must be at least 1"),
    "num_iterations": (0, "must be at least 1"),
    "clip_range": (-0.1, "must be at least 0"),
    "clip_low": (-0.1, "must be at least 0"),
    "clip_high": (-0.1, "must be at least 0"),
    "min_std_ratio": (-1, "must be at least 0"),
    "overlong_buffer_fraction": (2, "must be at most 1"),
    "max_is_weight": (-0.5, "must be "),
    "multiplier_max": (-0.5, "must be "),
    "tau_pos": (0, "must be above 0"),
    "tau_neg": (-1, "must be above 0"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_arguments_out_of_bounds_are_reported_at_their_keys(folder: Path, name: str) -> None:
    keys = [key for key in algorithm_arguments(ALGORITHMS[name]) if key in OUT_OF_BOUNDS]
    text = "".join(f"  {key}: {OUT_OF_BOUNDS[key][0]}\n" for key in keys)
    lines = error_lines(WORLD | {"algorithm": f"\n  name: {name}\n{text}".rstrip()})
    assert len(lines) == len(keys)
    for row, (key, line) in enumerate(zip(keys, lines, strict=True), 7):
        value, bound = OUT_OF_BOUNDS[key]
        assert line.startswith(f"r.yaml:{row}:3: algorithm.{key}: ")
        assert not bound or f": {value} {bound}" in line


def test_an_override_out_of_bounds_is_reported_at_the_override(folder: Path) -> None:
    assert error_lines(WORLD, "run.max_steps=3", "algorithm.temperature=-1") == [
        "(override):2: algorithm.temperature: -1 must be above 0"
    ]


def test_an_invalid_name_does_not_hide_other_mistakes(folder: Path) -> None:
    first, second = error_lines(WORLD, "name=Mine", "algorithm.kl_coef=-1")
    assert first.startswith("(override):1: name: ")
    assert second == "(override):2: algorithm.kl_coef: -1 must be at least 0"


def test_a_pretrained_reward_must_provide_the_objectives(folder: Path) -> None:
    (folder / "rm").mkdir()
    (folder / "rm" / "config.json").write_text('{"id2label": {"0": "safety_score"}}')
    (line,) = error_lines(FILES | {"reward": "{path: rm}"})
    assert line == (
        'r.yaml:4:14: objectives.safety: no model provides it; did you mean "safety_score"?; '
        "fix: the model in reward.path has safety_score"
    )


def test_a_pretrained_reward_without_label_names_is_one_mistake_with_an_example(folder: Path) -> None:
    (folder / "rm").mkdir()
    (folder / "rm" / "config.json").write_text("{}")
    (line,) = error_lines(FILES | {"reward": "{path: rm}", "objectives": "{safety: {}, polite: {}}"})
    assert line.startswith(
        'r.yaml:3:10: reward.path: "rm/config.json" does not name the objective of each output'
    )
    assert line.endswith('in the order of the outputs: {"id2label": {"0": "safety", "1": "polite"}}')


def test_a_fix_lists_every_objective_once(folder: Path) -> None:
    judged = "{objectives: {safety: {}}, ratings: {x: {file: q.jsonl, labels: {safety: s}}}}"
    (line,) = error_lines(FILES | {"judge": judged, "evaluate": "{non_inferiority_margin: {kind: 0.1}}"})
    assert line.endswith('"kind" is not in objectives; fix: one of safety')


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", '(override):1: "steps" is not of the form a.b=c'),
        ("run..steps=1", "is not of the form a.b=c"),
        ("run.max_steps=[1", '(override):1: run.max_steps: "[1" is not a value'),
        ("algorithm.name.x=1", "algorithm.name is"),
        ("run.max_steps={a: 1, a: 2}", "run.max_steps.a: is given twice"),
        ("run.output_dir=!!str x", "is not a value"),
    ],
)
def test_invalid_overrides_are_rejected(folder: Path, override: str, expected: str) -> None:
    assert expected in "\n".join(error_lines(WORLD, override))


def test_extends_is_limited_to_one_level(folder: Path) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n")
    assert any("extends: is limited to" in line for line in error_lines(WORLD, extra="extends: a.yaml\n"))
    assert any("r.yaml:6:1: extends:" in line for line in error_lines(WORLD, extra="extends: gone.yaml\n"))


def test_a_mistake_in_the_base_recipe_is_reported_at_its_own_location(folder: Path) -> None:
    Path("base.yaml").write_text("".join(f"{k}: {v}\n" for k, v in WORLD.items()) + "run: {stpes: 3}\n")
    (line,) = error_lines({"extends": "base.yaml"})
    assert line.startswith('base.yaml:6:7: run.stpes: unknown key; did you mean "run.max_steps"?')


def test_schema_errors_do_not_hide_unrelated_rule_violations(folder: Path) -> None:
    lines = error_lines(
        FILES | {"objectives": "{safety: {gate: saftey >= 1}}"}, "run.stpes=3", "algorithm.num_generations=x"
    )
    assert len(lines) == 3
    sentence = 'objectives.safety.gate: "saftey" is not in objectives; did you mean "safety"?'
    assert any(sentence in line for line in lines)


def test_consequences_of_a_mistake_are_not_reported(folder: Path) -> None:
    """A misspelled section is one mistake; the keys that are missing because of it are not reported."""
    (line,) = error_lines(FILES | {"reward": "{objectives: {safety: {}}, ratigns: {}}"})
    assert 'did you mean "reward.ratings"?' in line
    (line,) = error_lines(FILES | {"data": "{rot: x, prompts: {a: {file: p}}, test_prompts: {a: {file: q}}}"})
    assert 'did you mean "data.root"?' in line
