"""Mistakes that beginners and fuzzers make: one line each, with the line to type, and never a traceback."""

import os
from pathlib import Path

import pytest
from config_cases import WORLD, error_lines

from paretune.benchmark.spec import load_benchmark
from paretune.config import find_recipe, load_config
from paretune.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("algorithm=grpo", "write algorithm: {name: grpo}"),
        ("algorithm=[grpo]", "write algorithm: {name: grpo}"),
        ("aggregate=lagrangian", "write aggregate: {name: lagrangian}"),
        ("policy=./model", "write policy: {path: ./model}"),
        ("objectives=[safety, politeness]", "write objectives: {safety: {}, politeness: {}}"),
        ("data.prompts=in/my-rows.jsonl", "write prompts: {my_rows: {file: in/my-rows.jsonl}}"),
        ("reward.ratings={a: {file: r.jsonl, labels: [x, y]}}", "write labels: {x: x, y: y}"),
        ("reward.ratings={a: {file: r.jsonl, labels: x}}", "write labels: {x: x}"),
        ("reward.ratings={a: r.jsonl}", "write a: {file: r.jsonl}"),
        ("policy.sft=3", "its keys are num_train_epochs"),
        ("objectives.safety.weight_schedule=[[1]]", "[1] has too few values; fix: write 2 of them"),
        ("run.seed=[1]", "a list is not a whole number"),
        ("run.max_steps=9223372036854775808", 'run.max_steps: "9223372036854775808" is too large a number'),
        ("policy.lora={r: 99999999999999999999999999}", "policy.lora.r: "),
        ('run.output_dir="\\0x"', "run.output_dir: has the character U+0000, which no file can hold"),
        ('policy.path="\\uD800"', "policy.path: has the character U+D800, which no file can hold"),
        ('policy.path="\\U00110000"', '"\\U00110000"" is not a value'),
        (f"run.output_dir={'a' * 300}", "cannot be made: File name too long; fix: write another folder"),
        ("run.output_dir=file/x", 'cannot be made: "file" is a file; fix: write another folder'),
        (f"policy.path={'a' * 300}", "policy.path: there is no folder"),
        ("a." * 2000 + "b=1", "is more than 50 levels deep"),
    ],
)
def test_a_mistyped_value_is_one_line_with_what_to_write(folder: Path, override: str, fix: str) -> None:
    (folder / "file").touch()
    line = next(line for line in error_lines(WORLD, override) if line.startswith("(override)"))
    assert fix in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["run.max_steps", "=", "3"],
            '1: "run.max_steps = 3" has spaces around =; fix: write run.max_steps=3',
        ),
        (["run.max_steps=", "3"], '1: "run.max_steps= 3" has spaces around =; fix: write run.max_steps=3'),
        (["run.seed=1", "a.b", "=c"], '2: "a.b =c" has spaces around =; fix: write a.b=c'),
        (["run.seed"], '1: "run.seed" is not of the form a.b=c; fix: write it like run.max_steps=100'),
    ],
)
def test_spaces_around_the_equals_sign_are_one_mistake(folder: Path, words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(find_recipe("demo"), words)
    assert str(caught.value) == f"(override):{line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\n", "r.yaml:1:1: has a name at most, and no settings; fix: see `paretune recipes demo`"),
        ('extends: "\\0"\n', "r.yaml:1:10: extends: has the character U+0000, which no file can hold"),
        ('extends: "\\uD800"\n', "r.yaml:1:10: extends: has the character U+D800, which no file can hold"),
        ('x:\n  a: "\\UFFFFFFFF"\n', "r.yaml:2:7: \\UFFFFFFFF is no character"),
        ("extends: /dev/zero\n", 'r.yaml:1:1: extends: "/dev/zero" cannot be read: it is no regular file'),
        ("extends: pipe\n", 'r.yaml:1:1: extends: "pipe" cannot be read: it is no regular file'),
        (f"extends: {'a' * 300}\n", "cannot be read: File name too long"),
        ("# " + "x" * 200_000, "r.yaml:1: is too long; a recipe has at most 200,000 bytes"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_line(folder: Path, text: str, line: str) -> None:
    os.mkfifo(folder / "pipe")
    Path("r.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Path("r.yaml"))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ratings.csv", "rows.jsonl", "rows.jsonl.gz"])
def test_a_data_file_in_the_place_of_a_recipe_is_told(folder: Path, name: str) -> None:
    Path(name).write_bytes(b'a,b\n1,"x: y"\n')
    with pytest.raises(ConfigError, match="is a data file, and a recipe is expected"):
        find_recipe(name)


def test_a_name_that_no_file_can_have_is_no_recipe(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        find_recipe("a" * 300)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scatter_pairs=[[a]]", "has too few values; fix: write 2 of them"),
        ("overrides={training: {learning_rate: a}}", 'training.learning_rate: "a" is not a number'),
        ("overrides={training: [a]}", "training: a list is not a section of keys"),
    ],
)
def test_overrides_of_a_comparison_that_are_mappings_or_short_lists(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_benchmark(find_recipe("compare-methods"), [override]).run_specs()
    assert message in str(caught.value)
