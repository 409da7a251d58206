"""Labels before a run: statistics, gates' fallbacks in label units, dwarfed and constant labels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from smallfiles import describe_model, write

from paretune.config import Config, load_config
from paretune.core.errors import ConfigError, DataError
from paretune.data.records import Prompt, Rating
from paretune.evaluate.warnings import few_prompts_warning
from paretune.experiment.dry_run import check, check_run
from paretune.experiment.estimates import format_minutes
from paretune.experiment.label_summary import (
    describe_labels,
    format_bars,
    histogram,
    label_statistics,
    label_warnings,
    rank_correlation,
)
from paretune.experiment.provenance import dataset_warnings
from paretune.experiment.readability import PromptReading, unreadable_issues
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.reward.training import label_scale_and_offset


def ratings(*labels: float) -> list[Rating]:
    prompt = Prompt(messages=())
    return [Rating(prompt=prompt, response="x" * (i + 1), labels={"a": y}) for i, y in enumerate(labels)]


@pytest.mark.parametrize(
    "labels",
    [
        (0.7, (0.7 + 0.7 + 0.7) / 3, sum([0.7] * 10) / 10),
        (float(np.float32(1234.5)), 1234.5 * (1 + 1e-7), 1234.5),
        (0.0, 1.4e-17, -2.8e-17),
    ],
    ids=["means of equal votes", "float32", "around zero"],
)
def test_a_label_that_is_constant_but_for_rounding_is_refused(labels: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="but for rounding"):
        label_scale_and_offset(ratings(*labels), ["a"])


def test_a_small_spread_that_is_no_rounding_is_kept() -> None:
    (scale,), (offset,) = label_scale_and_offset(ratings(1000.0, 1000.1), ["a"])
    assert (scale, offset) == (pytest.approx(0.05), pytest.approx(1000.05))


def test_statistics_of_labels() -> None:
    s = label_statistics([*ratings(-2, 0, 2, 2), *ratings(math.nan)], ["a"])["a"]
    assert (s.num_labels, s.num_missing, s.low, s.high, s.mean) == (4, 1, -2, 2, 0.5)
    assert s.length_correlation == pytest.approx(0.9486832980505138)
    assert format_bars(s.histogram) == "▄▄█"
    assert format_bars(histogram(np.arange(100.0))) == "█" * 10
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    describe_model()
    write("a.jsonl", [{"prompt": f"train {i}"} for i in range(4)])
    write("test.jsonl", [{"prompt": f"test {i}"} for i in range(2)])
    rows = [
        {"prompt": f"rated {i}", "response": f"reply {i}", "safe": (i % 5) - 2, "help": 100 * (i % 3)}
        for i in range(30)
    ]
    write("rated.jsonl", rows)
    labels = {"safety": "safe", "helpful": "help"}
    values = {
        "name": "r",
        "data": {"prompts": {"a": {"file": "a.jsonl"}}, "test_prompts": {"a": {"file": "test.jsonl"}}},
        "policy": {"path": "model"},
        "reward": {
            "objectives": {"safety": {}, "helpful": {}},
            "ratings": {"r": {"file": "rated.jsonl", "labels": labels}},
            "holdout_fraction": 0.3,
        },
        "objectives": {"safety": {}, "helpful": {}},
        "algorithm": {"name": "grpo", "max_new_tokens": 8},
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(values))
    return path


def checked(recipe: Path, *overrides: str) -> Config:
    return check_run(resolve(load_config(recipe, overrides))).run.config


def test_a_gate_falls_back_to_the_worst_label(recipe: Path) -> None:
    assert checked(recipe, "objectives.safety.gate=helpful >= 50").gates == (
        ("safety", "helpful", 50.0, -2.0),
    )
    lowered = ("objectives.safety.gate=helpful >= 50", "objectives.safety.goal=lower")
    assert checked(recipe, *lowered).gates[0][3] == 2.0
    near = ("objectives.safety.gate=helpful <= 50", "objectives.safety.target=1.5")
    assert checked(recipe, *near).gates == (("safety", "helpful", 50.0, -2.0, "<="),), "the farthest label"
    stated = ("objectives.safety.gate=helpful >= 50", "objectives.safety.gate_fallback=-3")
    assert checked(recipe, *stated).gates[0][3] == -3.0


def test_a_stated_fallback_inside_the_range_is_a_warning(recipe: Path) -> None:
    gate = "objectives.safety.gate=helpful >= 50"
    inside = check(load_config(recipe, [gate, "objectives.safety.gate_fallback=0"]))
    assert "0 is inside the labels' range -2" in inside
    assert "gate_fallback" not in check(load_config(recipe, [gate, "objectives.safety.gate_fallback=-2"]))


def test_a_dwarfed_objective_is_told_and_normalizing_mends_it(recipe: Path) -> None:
    text = check(load_config(recipe))
    assert "safety has no say" in text
    assert "normalize: std" in text
    normalized = [f"objectives.{name}.normalize=std" for name in ("safety", "helpful")]
    text = check(load_config(recipe, normalized))
    assert "no say" not in text
    assert text.count("50 %") == 2
    weights = checked(recipe, *normalized).weights
    assert weights["safety"] / weights["helpful"] == pytest.approx(57.7, rel=0.1)


@pytest.mark.parametrize(
    "override", ["algorithm={name: gdpo, max_new_tokens: 8}", "aggregate={name: min_objective}"]
)
def test_normalizing_without_effect_is_an_error(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="normalize: has no effect"):
        load_config(recipe, [override, "objectives.safety.normalize=std"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (34.0, "30 s"), (125.0, "2.1 min"), (6000.0, "1.7 h")]
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert format_minutes(seconds) == text


def reading(num_unreadable: int, num_tight: int) -> PromptReading:
    return PromptReading(
        scorer="judge",
        kind="test",
        context_length=512,
        num_prompts=60,
        num_unreadable=num_unreadable,
        num_tight=num_tight,
        max_policy_tokens=200,
    )


def test_prompts_that_a_scorer_cannot_read_are_counted() -> None:
    assert reading(0, 0).describe() == ""
    text = reading(35, 3).describe()
    assert text.startswith("judge reads 512 tokens: 35 of 60 test prompts are too long for it")
    assert "3 more leave too little room" in text
    assert "max_length: 200" in text
    assert "3 of 60 test prompts leave" in reading(0, 3).describe()


def test_a_scorer_that_can_read_nothing_is_an_error(recipe: Path) -> None:
    write("other.jsonl", [{"prompt": f"other {i}", "response": "reply", "safe": i} for i in range(9)])
    describe_model("small")
    labels = "ratings: {r: {file: other.jsonl, labels: {safety: safe}}}"
    other = f"judge={{init_from: small, objectives: {{safety: {{}}}}, {labels}}}"
    run = resolve(load_config(recipe, [other]))
    (issue,) = unreadable_issues(run, [reading(60, 0), reading(59, 1)])
    assert "judge.init_from: reads 512 tokens, and every one of the 60 test prompts is longer" in issue


def test_the_warning_about_few_prompts_counts_those_that_were_scored() -> None:
    (text,) = few_prompts_warning(60, {"safety": 2})
    assert text.startswith("Only 2 for safety of 60 test prompts were scored")
    assert few_prompts_warning(60, {"safety": 40}) == []
    assert few_prompts_warning(8)[0].startswith("Only 8 test prompts:")


def test_correlations_of_few_responses_are_no_warning() -> None:
    few, many = (label_statistics(ratings(*range(n)), ["a"])["a"] for n in (3, 30))
    assert "(only 3 responses)" in "".join(describe_labels(few))
    assert list(label_warnings(few)) == []
    assert len(list(label_warnings(many))) == 1


def test_rows_of_the_same_response_are_not_counted_as_responses() -> None:
    s = label_statistics([*ratings(1, 2, 3), *ratings(2, 2, 4)], ["a"])["a"]
    assert (s.num_labels, s.num_responses) == (6, 3)
    assert next(describe_labels(s)) == "6 rows of 3 responses"


def test_a_single_file_is_split_by_prompt(recipe: Path) -> None:
    write("a.jsonl", [{"prompt": f"train {i // 2}"} for i in range(80)])
    values = json.loads(recipe.read_text())
    del values["data"]["test_prompts"]
    with pytest.raises(ConfigError, match=r"holdout_fraction: 0\.1"):
        resolve_text(recipe, values)
    values["data"]["holdout_fraction"] = 0.25
    dataset = check_run(resolve_text(recipe, values)).dataset
    train, test = dataset.train_prompts["a"], dataset.test_prompts
    assert len(train) + 2 * len(test) == 80
    assert len(test) == 10
    assert {p.messages for p in train}.isdisjoint(p.messages for p in test)
    write("a.jsonl", [{"prompt": "train 1"}] * 3)
    with pytest.raises(DataError, match=r"holdout_fraction: 0\.25 holds out none of 1 prompt: "):
        check_run(resolve_text(recipe, values))
    values["data"]["test_prompts"] = {"a": {"file": "test.jsonl"}}
    with pytest.raises(ConfigError, match="holdout_fraction: has no effect"):
        resolve_text(recipe, values)


def resolve_text(recipe: Path, values: dict[str, object]) -> ResolvedRun:
    recipe.write_text(json.dumps(values))
    return resolve(load_config(recipe))


@pytest.mark.parametrize(
    ("prompt", "response", "text"),
    [
        ("rated", "reply", "the judge is fitted to 27 of the reward's own rows"),
        ("rated", "another", "the judge is fitted to the reward's own prompts"),
        ("other", "another", ""),
    ],
)
def test_a_judge_of_the_rewards_own_rows_is_a_warning(
    recipe: Path, prompt: str, response: str, text: str
) -> None:
    rows = [{"prompt": f"{prompt} {i}", "response": f"{response} {i}", "safety": i % 5} for i in range(30)]
    write("judge.jsonl", rows)
    values = json.loads(recipe.read_text())
    values["reward"]["holdout_fraction"] = 0.1
    ratings_of_judge = {"r": {"file": "judge.jsonl", "labels": {"safety": {}}}}
    values["judge"] = {"objectives": {"safety": {}}, "ratings": ratings_of_judge}
    run = resolve_text(recipe, values)
    warnings = list(dataset_warnings(run, check_run(run).dataset))
    assert [warning[: len(text)] for warning in warnings] == ([text] if text else [])
