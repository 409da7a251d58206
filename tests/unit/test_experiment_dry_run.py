"""`paretune check` describes a run, checks everything that needs no weights, and writes nothing."""

import json
from pathlib import Path

import pytest
from smallfiles import describe_model, rate, write

from paretune.config import Config, load_config
from paretune.core.errors import ConfigError, WiringError
from paretune.experiment import resolved
from paretune.experiment.dry_run import check
from paretune.experiment.run_description import LABEL_COLUMNS

RECIPE = {
    "name": "r",
    "data": {
        "prompts": {"a": {"file": "a.jsonl", "max_length": 40, "overlong": "drop"}, "b": {"file": "b.jsonl"}},
        "test_prompts": {"a": {"file": "test.jsonl"}},
    },
    "policy": {"path": "model"},
    "reward": {
        "objectives": {"safety": {}},
        "ratings": {"r": {"file": "rated.csv", "labels": {"safety": "safe"}}},
        "holdout_fraction": 0.5,
    },
    "objectives": {"safety": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    describe_model()
    write("a.jsonl", [{"prompt": f"train {i}"} for i in range(4)] + [{"prompt": "x" * 60}])
    write("b.jsonl", [{"prompt": f"more {i}"} for i in range(3)])
    write("test.jsonl", [{"prompt": f"test {i}"} for i in range(2)])
    rate("rated.csv", [(f"rated {i}", f"reply {i}", i) for i in range(12)])
    return tmp_path


def line(label: str, text: str) -> str:
    return f"{label:<{LABEL_COLUMNS}}{text}".rstrip()


def section(label: str, lines: list[str]) -> list[str]:
    """The lines of a section, without its label."""
    start = next(index for index, text in enumerate(lines) if text.split("  ")[0] == label)
    end = next((index for index in range(start + 1, len(lines)) if lines[index][0] != " "), len(lines))
    return [text[LABEL_COLUMNS:] for text in lines[start:end]]


def load(*overrides: str) -> Config:
    Path("r.yaml").write_text(json.dumps(RECIPE))
    return load_config("r.yaml", overrides)


def test_check_counts_records_and_lists_what_was_not_checked(here: Path) -> None:
    e = load()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    lines = check(e, explain=True).split("\n")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    assert lines[:3] == [
        "r: ok",
        line("prompts", "4 a, 3 b; 2 test"),
        line("policy", "model, without fine-tuning"),
    ]
    assert not any("(" in text and "=" in text for text in check(e).split("\n"))
    reward = next(line for line in lines if line.startswith("reward "))
    fitted, reported = (int(word.strip(",")) for word in reward.split() if word.strip(",").isdigit())
    assert fitted + reported == 12
    assert line("notes", "1 rows of a excluded: longer than 40 tokens") in lines
    assert line("method", "grpo: gate, aggregate, then normalize within the group") in lines
    assert f"{'reward_steps':<16} WeightedSum(weights={{'safety': 1.0}})" in lines
    assert line("not checked", "the weights of model: not read") in lines
    assert all(len(text) <= 80 for text in check(e).split("\n"))


def test_check_reports_invalid_rows_models_and_wiring_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(spec: object, objectives: object) -> None:
        raise WiringError('algorithm "grpo": does not fit')

    monkeypatch.setattr(resolved, "check_spec", reject)
    with pytest.raises(WiringError, match="does not fit"):
        check(load())
    write("b.jsonl", [{"prompt": "x" * 200}, {"prompt": 3}])
    with pytest.raises(ConfigError) as caught:
        check(load("policy.lora={target_modules: [w_q]}"))
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[:2] for line in lines] == [
        ['algorithm "grpo"', "does not fit"],
        ["(override)", "policy.lora.target_modules"],
        ["b.jsonl:1", "prompt"],
        ["b.jsonl:2", "prompt"],
    ]


def test_check_reports_a_pool_of_which_a_short_run_samples_nothing() -> None:
    lines = check(load("run.max_steps=1", "training.prompts_per_step=1")).split("\n")
    assert lines[2] in {line("", f"no prompt of {name} is sampled in 1 steps of 1 prompts") for name in "ab"}
    assert not any("is sampled in" in line for line in check(load()).split("\n"))


def test_check_notes_that_the_reward_judges_itself() -> None:
    lines = check(load()).split("\n")
    told = " ".join(text.strip() for text in section("judge", lines))
    assert told == "none: the training reward judges itself, so no gain will be called better"
    rate("other.csv", [(f"other {i}", f"reply {i}", i) for i in range(12)])
    own = "judge={objectives: {safety: {}}, holdout_fraction: 0.5, "
    judged = own + "ratings: {r: {file: other.csv, labels: {safety: safe}}}}"
    assert "fitted to" in section("judge", check(load(judged)).split("\n"))[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ["at most 60 steps x 16 prompts x 8 responses of up to 8 tokens"]),
        (
            (
                "run.max_steps=1200",
                "run.budget={resource: rollout_tokens, limit: 20000}",
                "algorithm.num_generations=4",
            ),
            [
                "at most 1,200 steps x 16 prompts x 4 responses of up to 8 tokens, "
                "or until 20,000 rollout_tokens are used"
            ],
        ),
        (
            ("algorithm={name: dpo, max_new_tokens: 8, response_source: frozen_policy, num_generations: 4}",),
            ["at most 60 steps x 16 prompts x 4 responses of up to 8 tokens"],
        ),
        (
            (
                "algorithm={name: dpo, max_new_tokens: 8, response_source: stored}",
                "data.stored_responses.ratings={r: {file: stored.csv, labels: {safety: safe}}}",
            ),
            ["at most 60 steps x 16 prompts with their stored responses"],
        ),
        (
            ("algorithm={name: essa, max_new_tokens: 8, population_size: 16, sft_steps: 20}",),
            [
                "phase warm: 20 steps x 16 prompts x 8 responses of up to 8 tokens",
                "some candidates first, to calibrate the step size",
                "at most 60 steps x 17 candidates x 16 prompts x 1 responses of up to 8 tokens",
            ],
        ),
    ],
    ids=["online", "budget", "start", "stored", "search"],
)
def test_check_describes_the_workload(overrides: tuple[str, ...], expected: list[str]) -> None:
    rate("stored.csv", [(f"asked {i // 2}", f"reply {i}", i) for i in range(12)])
    lines = check(load(*overrides, "evaluate.num_generations=3")).split("\n")
    assert " ".join(text.strip() for text in section("training", lines)) == " ".join(expected)
    assert section("evaluation", lines) == ["2 x 6 responses of up to 8 tokens, before and after"]
