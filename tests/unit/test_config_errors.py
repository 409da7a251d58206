"""Recipes that are wrong: a line for each mistake, all at once, with place, nearest name and remedy."""

import time
from pathlib import Path

import pytest

from paretune.algorithms import ALGORITHMS
from paretune.config import load_config
from paretune.config.build import algorithm_arguments
from paretune.core.errors import ConfigError

WORLD = {
    "data": "{world: {}}",
    "policy": "{path: world, sft: {}}",
    "reward": "{objectives: {safety: {}, politeness: {}}}",
    "objectives": "{safety: {weight: 1}}",
    "algorithm": "{name: grpo}",
}
FILES = WORLD | {
    "data": "{prompts: {a: {file: p.jsonl}}, test: {a: {file: t.jsonl}}}",
    "policy": "{path: own/model}",
    "reward": "{objectives: {safety: {}}, ratings: {r: {file: r.jsonl, labels: {safety: safe}}}}",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("p.jsonl", "t.jsonl", "r.jsonl", "q.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaints(sections: dict[str, str], *overrides: str, extra: str = "") -> list[str]:
    path = Path("r.yaml")
    path.write_text("".join(f"{key}: {value}\n" for key, value in sections.items()) + extra, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).split("\n")


def test_both_templates_are_right(folder: Path) -> None:
    for sections in (WORLD, FILES):
        path = Path("r.yaml")
        path.write_text("".join(f"{key}: {value}\n" for key, value in sections.items()))
        load_config(path)


def test_every_mistake_is_told_at_once(folder: Path) -> None:
    wrong = FILES | {
        "data": "{prompts: {a: {file: pp.jsonl}}, test: {a: {file: t.jsonl, mots: 3}}}",
        "objectives": "{safety: {weight: heavy, when: safety > 3}}",
        "algorithm": "{name: grop}",
    }
    lines = complaints(wrong, "run.stpes=3", "training.learning_rate=0")
    assert lines[:2] == [
        '(override):1: run.stpes: unknown key; did you mean "run.max_steps"?; '
        "fix: this section has folder, steps, budget, seed, checkpoint_every, keep, threads, workers, device",
        "(override):2: training.learning_rate: 0 must be above 0",
    ]
    text = "\n".join(lines)
    assert 'r.yaml:1:22: data.prompts.a.file: there is no file "pp.jsonl"; did you mean "p.jsonl"?' in text
    assert (
        'r.yaml:1:66: data.test_prompts.a.mots: unknown key; did you mean "data.test_prompts.a.max_rows"?'
        in text
    )
    assert 'r.yaml:4:23: objectives.safety.weight: "heavy" is not a number' in text
    assert 'objectives.safety.gate: "safety > 3" is not a gate; fix: write it like "safety >= 0.5"' in text
    assert 'algorithm.name: "grop" is no algorithm; did you mean "grpo"?' in text
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml:1:1: is empty"),
        ("- a\n", "r.yaml:1:1: is not a mapping"),
        ("a: b: c\n", "r.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a: 1\na: 2\n", "r.yaml:2:1: a: is given twice; the first one is in line 1"),
        ("a: [1\n", "r.yaml:2:1: not YAML"),
        ("a: \x07\n", "r.yaml:1:4: character U+0007 is not allowed"),
        ("run:\n\tsteps: 3\n", "r.yaml:2:1: not YAML: a tab; fix: indent with spaces"),
        ("a: 1\n\tb: 2\n", "r.yaml:2:1: not YAML: a tab; fix: indent with spaces"),
        ("? [a]\n: 1\n", "r.yaml:1:3: a key must be one word of text"),
        ("a: !!python/object/apply:os.system ['touch hacked']\n", "r.yaml:1:4: has the tag"),
        ("a: !include x\n", "r.yaml:1:4: has the tag"),
        ("a: " + "[" * 60 + "]" * 60 + "\n", "is more than 50 levels deep"),
        ("a: &a {b: *a}\n", "grows without end"),
        ("a: &a 1\nb: [" + "*a, " * 101 + "]\n", "has more than 100 aliases"),
        ("x: " + "y" * 300_000 + "\n", "a recipe has at most 200,000"),
        ("run: {seed: " + "9" * 5000 + "}\n", "is no number of this world"),
        ("a: 1\n---\nb: 2\n", "not YAML: but found another document"),
    ],
)
def test_text_that_is_no_recipe(folder: Path, text: str, expected: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("r.yaml")
    assert expected in str(caught.value)
    assert not (folder / "hacked").exists()


@pytest.mark.parametrize("text", ["run:\n\tsteps: 3\n", "- a\n", "", "extends: gone.yaml\n", "extends: 3\n"])
def test_a_recipe_that_cannot_be_read_lacks_nothing(folder: Path, text: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("r.yaml", ["run.max_steps=3", "run.stpes=4"])
    (line,) = str(caught.value).split("\n")
    assert line.startswith("r.yaml:")


def test_a_base_that_cannot_be_read_leaves_nothing_missing(folder: Path) -> None:
    Path("base.yaml").write_text("run:\n\tsteps: 3\n")
    (line,) = complaints({"extends": "base.yaml"}, "run.max_steps=3")
    assert line.startswith("base.yaml:2:1: not YAML: a tab")


def test_a_recipe_that_explodes_through_its_aliases_is_refused_quickly(folder: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 10))
    Path("r.yaml").write_text(f"l0: &l0 x\n{levels}")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="grows without end"):
        load_config("r.yaml")
    assert time.monotonic() - start < 10  # an expansion would take days


def test_bytes_that_are_no_text(folder: Path) -> None:
    Path("r.yaml").write_bytes(b"name: a\nrun: \xff\n")
    with pytest.raises(ConfigError, match=r"r\.yaml:2:6: is not UTF-8 text"):
        load_config("r.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml:1: cannot be read: No such file"):
        load_config("gone.yaml")


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("data", "{}", "data.prompts: is missing"),
        ("data", "{prompts: {a: {file: p.jsonl}}}", "data.test_prompts: is missing"),
        (
            "data",
            "{world: {}, prompts: {a: {file: p.jsonl}}}",
            "data.prompts: has no effect beside data.world",
        ),
        (
            "data",
            "{prompts: {a: {file: p.jsonl}}, test: {b: {file: p.jsonl}}}",
            'data.test_prompts.b.file: has the rows of "a"',
        ),
        (
            "data",
            "{root: nowhere, prompts: {a: {file: p.jsonl}}, test: {b: {file: t.jsonl}}}",
            'no folder "nowhere"',
        ),
        (
            "data",
            "{prompts: {a: {file: p.jsonl, columns: {chosen: c}}}, test: {b: {file: t.jsonl}}}",
            "data.prompts.a.columns.chosen: prompts have no such column",
        ),
        ("policy", "{path: world}", 'policy.path: "world" is the policy of the built-in world'),
        ("policy", "{path: ./gone}", 'policy.path: there is no folder "./gone"'),
        (
            "policy",
            "{path: own/model, sft: {}}",
            "policy.sft.demonstrations: is missing: nothing to learn from",
        ),
        ("policy", "{path: own/model, lora: {r: 0}}", "policy.lora.r: 0 must be at least 1"),
        (
            "policy",
            "{path: own/model, lora: {targets: [a, 3]}}",
            "policy.lora.target_modules.1: 3 is not text; fix: put it in",
        ),
        (
            "policy",
            "{path: own/model, dtype: float16}",
            '"float16" is none of float32, bfloat16; did you mean',
        ),
        ("reward", "{}", "reward.objectives: is missing"),
        (
            "reward",
            "{path: own/reward, fit: {epochs: 9}}",
            "reward.training: has no effect beside reward.path",
        ),
        ("reward", "{objectives: {safety: {}}}", "reward.ratings: is missing"),
        (
            "reward",
            "{objectives: {safety: {}}, ratings: {r: {file: r.jsonl, labels: {saftey: s}}}}",
            'labels.saftey: "saftey" is not in reward.objectives; did you mean "safety"?',
        ),
        (
            "reward",
            "{objectives: {safety: {}, a: {}}, ratings: {r: {file: r.jsonl, labels: {safety: s}}}}",
            "reward.objectives.a: loss mse needs ratings of it, and there are none",
        ),
        (
            "reward",
            "{objectives: {safety: {}}, pairs: {r: {file: r.jsonl, objective: safety}}}",
            "or write loss: bradley_terry, to learn from its pairs",
        ),
        (
            "reward",
            "{objectives: {safety: {delta: 2}}, ratings: {r: {file: r.jsonl, labels: {safety: s}}}}",
            "reward.objectives.safety.huber_delta: has no effect with loss mse",
        ),
        (
            "reward",
            "{objectives: {safety: {}}, held_out: 0.2, ratings: {r: {file: r.jsonl, labels: {safety: s}}}, "
            "test_ratings: {r: {file: t.jsonl, labels: {safety: s}}}}",
            "reward.holdout_fraction: has no effect where there is test data of its own",
        ),
        ("judge", "truth", "judge: the truth is known in the built-in world only"),
        (
            "judge",
            "{objectives: {safety: {}}, ratings: {x: {file: r.jsonl, labels: {safety: s}}}}",
            'judge.ratings.x.file: has the rows of "r": a judge must know other data than the reward',
        ),
        ("objectives", "{}", "objectives: {} must not be empty"),
        ("objectives", "{safety: {weight: 0}}", "objectives: every weight is 0"),
        ("objectives", "{saftey: {}}", 'no model provides it; did you mean "safety"?'),
        (
            "objectives",
            "{safety: {when: kindness >= 1}}",
            'objectives.safety.gate: "kindness" is not in objectives',
        ),
        ("objectives", "{safety: {weight: .nan}}", "nan is not a finite number"),
        ("algorithm", "{name: gpro}", 'algorithm.name: "gpro" is no algorithm; did you mean "grpo"?'),
        (
            "algorithm",
            "{name: safe_rlhf}",
            "algorithm: there is no constraint to keep; fix: give an objective a level by at_least",
        ),
        (
            "data",
            "{prompts: {a: {file: p.jsonl, kind: harmfull}}, test: {a: {file: t.jsonl, kind: ordinary}}}",
            'data.prompts.a.category: "harmfull" is not a kind whose refusals are counted apart; '
            'did you mean "harmful"?; fix: write harmful, or a word less like it',
        ),
        (
            "data",
            "{prompts: {a: {file: p.jsonl}}, test: {a: {file: t.jsonl, kind: Look-alike}}}",
            'data.test_prompts.a.category: "Look-alike" is not a kind whose refusals are counted apart; '
            'did you mean "lookalike"?',
        ),
        ("algorithm", "{name: grpo, m: 3}", "algorithm.m: unknown key"),
        ("algorithm", "{name: grpo, weights: {}}", "algorithm.weights: unknown key"),
        ("algorithm", "{name: grpo, n: many}", 'algorithm.num_generations: "many" is not a whole number'),
        ("algorithm", "{name: grpo, kl: true}", "algorithm.kl_coef: True is not a number"),
        ("algorithm", "{name: grpo, n: 1}", "algorithm.num_generations: is 1: grpo compares the responses"),
        ("name", "Mine", 'name: "Mine" must be a-z, 0-9 and . - _ only, at most 64 of them, and begin'),
        ("name", "My Run!", "and begin with a letter or digit; fix: write my-run"),
        ("evaluate", "{margin: {saftey: 0.1}}", 'did you mean "safety"?'),
        ("run", "{steps: 1.0}", "run.max_steps: 1.0 is not a whole number; fix: write 1"),
        ("run", '{steps: "3"}', 'run.max_steps: "3" is not a whole number; fix: leave out the quotes: 3'),
        ("run", "3", "run: 3 is not a section of keys"),
        ("stpes", "3", "r.yaml:6:1: stpes: unknown key"),
    ],
)
def test_one_mistake_in_a_recipe_over_files(folder: Path, section: str, value: str, expected: str) -> None:
    lines = complaints(FILES | {section: value})
    assert any(expected in line for line in lines), lines


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("policy", "{path: world}", "policy.sft: is missing"),
        ("reward", "{objectives: {safety: {}, kindness: {}}}", "reward.objectives.kindness: nobody rates it"),
        ("reward", "{objectives: {safety: {loss: bradley_terry}}}", "bradley_terry needs pairs"),
        ("judge", "{objectives: {safety: {}}}", "judge: would be fitted on what the reward is fitted on"),
    ],
)
def test_one_mistake_in_a_recipe_over_the_world(
    folder: Path, section: str, value: str, expected: str
) -> None:
    assert any(expected in line for line in complaints(WORLD | {section: value}))


BAD_ARGUMENTS = {
    "max_new": (0, "must be at least 1"),
    "temperature": (-1, "must be above 0"),
    "kl": (-1, "must be at least 0"),
    "minibatch": (0, "must be at least 1"),
    "epochs": (0, "must be at least 1"),
    "clip": (-0.1, "must be at least 0"),
    "clip_high": (-0.1, "must be at least 0"),
    "flat": (-1, "must be at least 0"),
    "overlong": (2, "must be at most 1"),
    "most": (-0.5, "must be "),
    "up": (0, "must be above 0"),
    "down": (-1, "must be above 0"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_arguments_out_of_bounds_are_told_at_their_own_keys(folder: Path, name: str) -> None:
    """All of them at once, whatever the algorithm does with them."""
    known = algorithm_arguments(ALGORITHMS[name])
    numbers = [key for key in known if key == "n" or key in BAD_ARGUMENTS]
    said = {key: -3 if key == "n" else BAD_ARGUMENTS[key][0] for key in numbers}
    text = "".join(f"  {key}: {value}\n" for key, value in said.items())
    lines = complaints(WORLD | {"algorithm": f"\n  name: {name}\n{text}".rstrip()})
    assert len(lines) == len(numbers)
    for at, (key, line) in enumerate(zip(numbers, lines, strict=True), 7):
        assert line.startswith(f"r.yaml:{at}:3: algorithm.{key}: ")
        assert key == "n" or f": {said[key]} {BAD_ARGUMENTS[key][1]}" in line


def test_an_override_out_of_bounds_has_its_place(folder: Path) -> None:
    assert complaints(WORLD, "run.max_steps=3", "algorithm.temperature=-1") == [
        "(override):2: algorithm.temperature: -1 must be above 0"
    ]


def test_mistakes_beside_a_wrong_name_are_told_with_it(folder: Path) -> None:
    first, second = complaints(WORLD, "name=Mine", "algorithm.kl_coef=-1")
    assert first.startswith("(override):1: name: ")
    assert second == "(override):2: algorithm.kl_coef: -1 must be at least 0"


def test_a_ready_made_reward_must_provide_the_objectives(folder: Path) -> None:
    (folder / "rm").mkdir()
    (folder / "rm" / "config.json").write_text('{"id2label": {"0": "safety_score"}}')
    (line,) = complaints(FILES | {"reward": "{path: rm}"})
    assert line == (
        'r.yaml:4:14: objectives.safety: no model provides it; did you mean "safety_score"?; '
        "fix: the model in reward.path has safety_score"
    )


def test_a_ready_made_reward_without_names_is_one_mistake_with_what_to_write(folder: Path) -> None:
    (folder / "rm").mkdir()
    (folder / "rm" / "config.json").write_text("{}")
    (line,) = complaints(FILES | {"reward": "{path: rm}", "objectives": "{safety: {}, polite: {}}"})
    assert line == (
        'r.yaml:3:10: reward.path: "rm/config.json" does not say which objective each output of '
        "the model is; fix: write into it, in the order of the outputs: "
        '{"id2label": {"0": "safety", "1": "polite"}}'
    )


def test_a_remedy_names_an_objective_once(folder: Path) -> None:
    judged = "{objectives: {safety: {}}, ratings: {x: {file: q.jsonl, labels: {safety: s}}}}"
    (line,) = complaints(FILES | {"judge": judged, "evaluate": "{margin: {kind: 0.1}}"})
    assert line.endswith('"kind" is not in objectives; fix: one of safety')


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", '(override):1: "steps" is not of the form a.b=c'),
        ("run..steps=1", "is not of the form a.b=c"),
        ("run.max_steps=[1", '(override):1: run.max_steps: "[1" is not a value'),
        ("algorithm.name.x=1", "algorithm.name is"),
        ("run.max_steps={a: 1, a: 2}", "is not a value"),
        ("run.output_dir=!!str x", "is not a value"),
    ],
)
def test_overrides_that_are_wrong(folder: Path, override: str, expected: str) -> None:
    assert expected in "\n".join(complaints(WORLD, override))


def test_extends_goes_one_level(folder: Path) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n")
    assert any(
        "extends: goes one level only" in line for line in complaints(WORLD, extra="extends: a.yaml\n")
    )
    assert any("r.yaml:6:1: extends:" in line for line in complaints(WORLD, extra="extends: gone.yaml\n"))


def test_a_mistake_in_the_extended_recipe_is_told_with_its_own_place(folder: Path) -> None:
    Path("base.yaml").write_text("".join(f"{k}: {v}\n" for k, v in WORLD.items()) + "run: {stpes: 3}\n")
    (line,) = complaints({"extends": "base.yaml"})
    assert line.startswith('base.yaml:6:7: run.stpes: unknown key; did you mean "run.max_steps"?')


def test_rules_are_told_beside_mistakes_that_have_nothing_to_do_with_them(folder: Path) -> None:
    lines = complaints(
        FILES | {"objectives": "{safety: {when: saftey >= 1}}"}, "run.stpes=3", "algorithm.num_generations=x"
    )
    assert len(lines) == 3
    assert any(
        'objectives.safety.gate: "saftey" is not in objectives; did you mean "safety"?' in x for x in lines
    )


def test_nothing_is_said_that_only_follows_from_another_mistake(folder: Path) -> None:
    """A mistyped section is one mistake, not a mistake and a missing section's worth of others."""
    (line,) = complaints(FILES | {"reward": "{objectives: {safety: {}}, ratigns: {}}"})
    assert 'did you mean "reward.ratings"?' in line
    (line,) = complaints(FILES | {"data": "{rot: x, prompts: {a: {file: p}}, test: {a: {file: q}}}"})
    assert 'did you mean "data.root"?' in line
