"""Valid recipes: loading, overrides, extends, the resolved recipe and the hash."""

import textwrap
from pathlib import Path

import pytest

from paretune.config import (
    Config,
    bundled_recipes,
    config_hash,
    find_recipe,
    load_config,
    resolved_yaml,
    source_text,
)
from paretune.core.errors import ConfigError
from paretune.experiment.resolved import resolve

SMALL = """\
data: {world: {num_prompts: 8}}
policy: {path: world, sft: {learning_rate: 1e-3}}
reward: {objectives: {safety: {}, actionability:}}
judge: ground_truth
objectives:
  actionability: {gate: safety >= 0.5}
  safety: {weight: 2}
algorithm: {name: grpo, num_generations: 4}
"""


def write(folder: Path, text: str, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_a_recipe_is_loaded_and_its_defaults_are_filled_in(tmp_path: Path) -> None:
    e = load_config(write(tmp_path, SMALL))
    assert e.name == "small"
    assert e.policy.sft is not None
    assert e.policy.sft.learning_rate == 1e-3
    assert e.weights == {"actionability": 1.0, "safety": 2.0}
    assert e.gates == (("actionability", "safety", 0.5, 0.0),)
    assert e.run.output_dir == "runs/small"
    assert e.algorithm.arguments["num_generations"] == 4
    assert e.algorithm.arguments["clip_range"] == 0.2  # a default of the function
    assert resolve(e).algorithm.name == "grpo"


def test_overrides_replace_values_and_make_sections(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    e = load_config(
        path,
        ["run.max_steps=7", "run.seed=3", "policy.lora={r: 4}", "training.learning_rate=1e-5", "name=other"],
    )
    assert (e.run.max_steps, e.run.seed, e.run.output_dir) == (7, 3, "runs/other-seed-3")
    assert e.policy.lora is not None
    assert e.policy.lora.r == 4
    assert e.training.learning_rate == 1e-5
    assert load_config(path, ["run.output_dir=here"]).run.output_dir == "here"
    assert "# override: 'run.max_steps=7'" in source_text(load_config(path, ["run.max_steps=7"]))
    assert source_text(load_config(path)) == SMALL


def test_extends_merges_one_recipe_over_another(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    top = write(
        tmp_path, "extends: small.yaml\nobjectives: {safety: {weight: 3}}\nrun: {max_steps: 5}\n", "top.yaml"
    )
    e = load_config(top)
    assert e.weights == {"actionability": 1.0, "safety": 3.0}
    assert e.gates
    assert (e.name, e.run.max_steps) == ("top", 5)
    text = resolved_yaml(e)
    assert f"max_steps: 5  # {top}:3" in text
    assert f"num_generations: 4  # {tmp_path / 'small.yaml'}:8" in text


def test_a_null_removes_a_section_of_the_base_recipe(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "training: {learning_rate: 0.5, warmup_ratio: 0.1}\n")
    top = "extends: small.yaml\ntraining: null\nrun: {seed: null}\n"
    with pytest.raises(ConfigError, match=r"top.yaml:3:7: run.seed"):
        load_config(write(tmp_path, top, "top.yaml"))
    e = load_config(write(tmp_path, top.replace("seed: null", "seed: 3"), "top.yaml"))
    assert (e.training.learning_rate, e.training.warmup_ratio) == (None, 0.03), "as if it had not been set"
    assert "learning_rate: null  # default" in resolved_yaml(e)
    e = load_config(tmp_path / "small.yaml", ["training=null"])
    assert (e.training.learning_rate, e.training.warmup_ratio) == (None, 0.03), "as an override too"


def test_the_resolved_recipe_has_every_key_with_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    e = load_config(path, ["run.max_steps=7", "policy.lora={r: 4}"])
    text = resolved_yaml(e)
    assert "max_steps: 7  # override" in text
    assert "r: 4  # override" in text
    assert "bootstrap_samples: 10000  # default" in text
    assert f"path: world  # {path}:2" in text
    again = load_config(write(tmp_path, text, "again.yaml"))
    assert again.model_dump() == e.model_dump()
    assert config_hash(again) == config_hash(e)


def test_the_hash_covers_what_determines_the_numbers_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    one = config_hash(load_config(path))
    assert config_hash(load_config(path, ["run.output_dir=elsewhere"])) == one
    assert config_hash(load_config(path, ["run.device=cuda"])) == one
    assert (
        config_hash(load_config(path, ["run.save_total_limit=9", "run.save_steps=3", "run.num_threads=2"]))
        == one
    )
    assert config_hash(load_config(path, ["run.seed=1", "run.output_dir=runs/small"])) != one


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    e = load_config(
        write(tmp_path, SMALL),
        ["training.learning_rate=1e-5", "run.seed=010", "run.output_dir=no", "training.warmup_ratio=.5"],
    )
    assert (e.training.learning_rate, e.run.seed, e.run.output_dir, e.training.warmup_ratio) == (
        1e-5,
        10,
        "no",
        0.5,
    )


def test_anchors_are_allowed(tmp_path: Path) -> None:
    text = SMALL.replace("{safety: {},", "{safety: &head {loss: huber, huber_delta: 0.5},").replace(
        "actionability:}", "actionability: *head}"
    )
    e = load_config(write(tmp_path, text))
    assert e.reward.objectives["actionability"] == e.reward.objectives["safety"]


def test_a_config_is_frozen(tmp_path: Path) -> None:
    e = load_config(write(tmp_path, SMALL))
    with pytest.raises(ValueError, match="frozen"):
        e.name = "x"
    assert isinstance(e, Config)


def test_shipped_recipes_are_found_by_name() -> None:
    assert {"demo", "paper", "real-small"} <= bundled_recipes().keys()
    assert find_recipe("demo") == bundled_recipes()["demo"]
    with pytest.raises(ConfigError, match='did you mean "demo"'):
        find_recipe("dmo")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("real-smal", 'real-smal:1: no such recipe; did you mean "real-small"?'),
        ("recipes/demo.yml", 'did you mean "demo"?'),
        ("mine/helpdsk.yml", 'did you mean "mine/helpdesk.yaml"?'),
        ("mine/helpdesk.yml", 'did you mean "mine/helpdesk.yaml"?'),
        ("top", 'did you mean "top.yml"?'),
        ("mine", "mine:1: is a folder; fix: name a recipe file in it, such as mine/helpdesk.yaml"),
        ("empty", "empty:1: is a folder; fix: name a recipe file"),
        ("folder.yaml", "folder.yaml:1: is a folder; fix: name a recipe file"),
        (".", ".:1: is a folder; fix: name a recipe file in it, such as top.yml"),
        ("", ":1: is a folder"),
    ],
)
def test_a_missing_recipe_is_reported_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "empty", "folder.yaml"):
        Path(folder).mkdir()
    for file in ("mine/helpdesk.yaml", "top.yml"):
        Path(file).touch()
    with pytest.raises(ConfigError) as caught:
        find_recipe(name)
    assert expected in str(caught.value)


def test_a_folder_does_not_hide_a_shipped_recipe_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert find_recipe("demo") == bundled_recipes()["demo"]


def test_the_demo_recipe_loads_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    e = load_config(find_recipe("demo"), ["run.seed=7"])
    assert set(e.weights) == {"politeness", "meaningfulness", "actionability", "safety"}
    assert e.run.output_dir == "runs/demo-seed-7"
