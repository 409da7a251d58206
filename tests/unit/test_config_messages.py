"""What messages say of words for booleans, missing values, near misses, references and long lists."""

import pytest
from config_cases import FILES, WORLD, error_lines

from paretune.config import find_recipe, load_config, location_of
from paretune.config.issues import closest_match, list_names
from paretune.config.trl.convert import convert_trl_config
from paretune.config.yaml import parse_yaml


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in ("p.jsonl", "t.jsonl", "r.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only(key, *overrides, sections=FILES):
    """The one line about a key."""
    (line,) = [each for each in error_lines(sections, *overrides) if f" {key}: " in each]
    return line


def test_words_of_yaml_1_1_are_booleans_for_trl_alone():
    text = "a: yes\nb: Off\nc: 'no'\nd: on\n"
    assert parse_yaml(text, "f", yes_is_true=True).values == {"a": True, "b": False, "c": "no", "d": True}
    assert parse_yaml(text, "f").values == {"a": "yes", "b": "Off", "c": "no", "d": "on"}


@pytest.mark.parametrize(("word", "dtype"), [("yes", "bfloat16"), ("no", "float32"), ("off", "float32")])
def test_trl_booleans_as_its_own_loader_reads_them(folder, word, dtype):
    (folder / "c.yaml").write_text(f"num_generations: 8\nbf16: {word}\nscale_rewards: none\n")
    conversion = convert_trl_config(folder / "c.yaml")
    assert f"dtype: {dtype}" in conversion.recipe_yaml
    assert "scale_rewards -> algorithm.scale_rewards: none" in conversion.mapped
    assert "scale_rewards: none" in conversion.recipe_yaml


@pytest.mark.parametrize("name", ["p.jsonl", "data/other.parquet", "./rows.csv"])
def test_a_file_is_no_data_set_of_the_hub(folder, name):
    (folder / "c.yaml").write_text(f"num_generations: 8\ndataset_name: {name}\neval_strategy: steps\n")
    recipe = convert_trl_config(folder / "c.yaml").recipe_yaml
    assert f"{name.removeprefix('./')}\n" in recipe
    assert "hf:" not in recipe
    assert "holdout_fraction" in recipe


@pytest.mark.parametrize(("word", "value"), [("yes", "true"), ("off", "false"), ("On", "true")])
def test_a_word_for_a_boolean_is_mended(word, value):
    line = only("reward.allow_weak_heads", f"reward.allow_weak_heads={word}")
    assert line.endswith(f"; fix: write {value}")


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("run.max_steps", "write the number of steps"),
        ("policy.path", "write text"),
        ("run.seed", "write a whole number"),
    ],
)
def test_a_key_without_a_value_is_told(key, fix):
    assert f"{key}: has no value; fix: {fix}" in only(key, f"{key}=null")


def test_a_near_miss_of_an_algorithm_hides_no_mistake_of_its_arguments():
    lines = "\n".join(
        error_lines(WORLD, "algorithm={name: GRPO, num_generation: 4, max_completion_length: 9}")
    )
    assert '"GRPO" is not an algorithm; did you mean "grpo"?; fix: one of grpo, dr_grpo, rloo, ...' in lines
    assert 'algorithm.num_generation: unknown key; did you mean "algorithm.num_generations"?' in lines
    assert "algorithm.max_completion_length: unknown key; fix: this is TRL's name" in lines


@pytest.mark.parametrize(("word", "match"), [("GRPO", "grpo"), ("Dapo", "dapo"), ("CUSTM", "custom")])
def test_case_is_no_difference(word, match):
    assert closest_match(word, ["grpo", "dapo", "custom"]) == match


SCORED = {key: value for key, value in FILES.items() if key != "reward"} | {
    "scorers": "{brief: {type: rule, rule: lenght, max: 60}, clean: {type: rule, rule: json}}",
    "objectives": "{brief: {scorer: breif}, clean: {gate: brif > 0.5}}",
}


def test_references_by_name_are_checked_beside_mistakes_of_what_they_name():
    lines = "\n".join(error_lines(SCORED))
    assert 'scorers.brief.rule: "lenght" is none of' in lines
    assert 'objectives.brief.scorer: "breif" is not in scorers; did you mean "brief"?' in lines
    gated = SCORED | {"objectives": "{brief: {weight: heavy}, clean: {gate: brif >= 0.5}}"}
    assert '"brif" is not in objectives; did you mean "brief"?' in "\n".join(error_lines(gated))


@pytest.mark.parametrize("comparison", [">", "<", "==", "=>", "="])
def test_a_gate_with_another_comparison(comparison):
    sections = WORLD | {"objectives": f'{{safety: {{}}, politeness: {{gate: "safety {comparison} 0.5"}}}}'}
    line = only("objectives.politeness.gate", sections=sections)
    meant = "<=" if comparison == "<" else ">="
    assert f'fix: {comparison} must be {meant}: write "safety {meant} 0.5"' in line


def test_long_lists_are_shortened():
    assert list_names("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert list_names("abcdefghi") == "a, b, c, ... (9)"
    assert list_names("abcdefghi", "docs/recipe.md") == "a, b, c, ... (9; see docs/recipe.md)"


@pytest.mark.parametrize("key", ["rollout_n", "rollout-n", "n_samples_per_prompt"])
def test_names_of_other_libraries_in_other_spellings(key):
    assert "here: algorithm.num_generations" in only(f"algorithm.{key}", f"algorithm.{key}=4")


def test_an_issue_of_a_scorer_has_a_column(folder):
    (folder / "base.yaml").write_text(find_recipe("demo").read_text())
    values = "scorers:\n  brief: {type: rule, rule: length, max: 60}\nobjectives: {brief: {}}\n"
    (folder / "demo.yaml").write_text(f"extends: base.yaml\n{values}")
    config = load_config(folder / "demo.yaml")
    assert location_of(config, ("scorers", "brief", "max")).endswith("demo.yaml:3:37")
    assert location_of(config, ("scorers", "brief", "objective")).endswith("demo.yaml:3:3")
    assert location_of(config, ("objectives", "brief")).endswith("demo.yaml:4")
