"""What `paretune check` says of a recipe, and that it tries everything and writes nothing."""

import json
from pathlib import Path

import pytest
from smallfiles import describe_model, rate, write

from paretune.config import Config, load_config
from paretune.core.errors import ConfigError, WiringError
from paretune.experiment import dry_run as stage
from paretune.experiment.dry_run import check

RECIPE = {
    "name": "r",
    "data": {
        "prompts": {"a": {"file": "a.jsonl", "max_tokens": 40, "longer": "drop"}, "b": {"file": "b.jsonl"}},
        "test": {"a": {"file": "test.jsonl"}},
    },
    "policy": {"path": "model"},
    "reward": {
        "objectives": {"safety": {}},
        "ratings": {"r": {"file": "rated.csv", "labels": {"safety": "safe"}}},
        "held_out": 0.5,
    },
    "objectives": {"safety": {}},
    "algorithm": {"name": "grpo", "max_new": 8},
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


def experiment(*overrides: str) -> Config:
    Path("r.yaml").write_text(json.dumps(RECIPE))
    return load_config("r.yaml", overrides)


def test_check_counts_what_was_read_and_says_what_was_not_tried(here: Path) -> None:
    e = experiment()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    lines = check(e).split("\n")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    assert lines[:3] == ["r: ok", "prompts    4 a, 3 b; 2 unseen", "policy     model, as it is"]
    reward = next(line for line in lines if line.startswith("reward "))
    fitted, reported = (int(word) for word in reward.split() if word.isdigit())
    assert fitted + reported == 12
    assert "notes      1 rows of a left out: longer than 40 tokens" in lines
    assert "algorithm  grpo" in lines
    assert "worth      WeightedSum(weights={'safety': 1.0})" in lines
    assert lines[-2:] == [
        "not tried  the weights of model: not read",
        "           whether the memory of this machine suffices",
    ]


def test_check_finds_bad_rows_and_bad_models_and_bad_wiring_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def objects(recipe: object, objectives: object) -> None:
        raise WiringError('recipe "grpo": does not fit')

    monkeypatch.setattr(stage, "dry_run", objects)
    with pytest.raises(WiringError, match="does not fit"):
        check(experiment())
    write("b.jsonl", [{"prompt": "x" * 200}, {"prompt": 3}])
    with pytest.raises(ConfigError) as caught:
        check(experiment("policy.lora={targets: [w_q]}"))
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[:2] for line in lines] == [
        ['recipe "grpo"', "does not fit"],
        ["(override)", "policy.lora.target_modules"],
        ["b.jsonl:1", "prompt"],
        ["b.jsonl:2", "prompt"],
    ]


def test_check_says_which_pool_a_short_run_does_not_come_to() -> None:
    lines = check(experiment("run.max_steps=1", "training.prompts_per_step=1")).split("\n")
    assert lines[2] in {f"           no prompt of {name} comes up in 1 steps of 1" for name in "ab"}
    assert not any("comes up" in line for line in check(experiment()).split("\n"))


def told(part: str, lines: list[str]) -> list[str]:
    """The lines of a part, without its name."""
    begin = next(at for at, line in enumerate(lines) if line.startswith(f"{part:<10} "))
    end = next((at for at in range(begin + 1, len(lines)) if lines[at][0] != " "), len(lines))
    return [line[11:] for line in lines[begin:end]]


def test_check_says_that_nobody_else_judges_the_reward() -> None:
    lines = check(experiment()).split("\n")
    assert told("judge", lines) == ["none: the reward judges itself, no gain will be called better"]
    rate("other.csv", [(f"other {i}", f"reply {i}", i) for i in range(12)])
    own = "judge={objectives: {safety: {}}, held_out: 0.5, "
    judged = own + "ratings: {r: {file: other.csv, labels: {safety: safe}}}}"
    assert "to fit" in told("judge", check(experiment(judged)).split("\n"))[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), ["at most 60 steps x 16 prompts x 8 responses of up to 8 tokens"]),
        (
            (
                "run.max_steps=1200",
                "run.budget={currency: rollout_tokens, amount: 20000}",
                "algorithm.num_generations=4",
            ),
            [
                "at most 1,200 steps x 16 prompts x 4 responses of up to 8 tokens, "
                "or until 20,000 rollout_tokens are spent"
            ],
        ),
        (
            ("algorithm={name: dpo, max_new: 8, responses: start, n: 4}",),
            ["at most 60 steps x 16 prompts x 4 responses of up to 8 tokens"],
        ),
        (
            (
                "algorithm={name: dpo, max_new: 8, responses: stored}",
                "data.stored_responses.ratings={r: {file: stored.csv, labels: {safety: safe}}}",
            ),
            ["at most 60 steps x 16 prompts with their stored responses"],
        ),
        (
            ("algorithm={name: essa, max_new: 8, population: 16, warm_steps: 20}",),
            [
                "beforehand warm: 20 steps x 16 prompts x 8 responses of up to 8 tokens",
                "some candidates beforehand, to find the first step size",
                "at most 60 steps x 17 candidates x 16 prompts x 1 responses of up to 8 tokens",
            ],
        ),
    ],
    ids=["online", "budget", "start", "stored", "search"],
)
def test_check_says_how_much_there_is_to_do(overrides: tuple[str, ...], said: list[str]) -> None:
    rate("stored.csv", [(f"asked {i // 2}", f"reply {i}", i) for i in range(12)])
    lines = check(experiment(*overrides, "evaluate.num_generations=3")).split("\n")
    assert told("size", lines) == [*said, "then 2 x 6 answers of up to 8 tokens to be judged"]
