"""All independent mistakes of a recipe are told in one round, and none that only follows from another."""

import json
from pathlib import Path
from typing import Any

import pytest
from smallfiles import describe_model, rate, write

from paretune.config.load import load_config
from paretune.config.unknown import KnownItems, UnknownValueError
from paretune.core.errors import ParetuneError
from paretune.experiment.all_issues import load_or_tell_all
from paretune.experiment.dry_run import check

RECIPE: dict[str, Any] = {
    "data": {"prompts": {"a": {"file": "a.jsonl"}}, "test_prompts": {"t": {"file": "t.jsonl"}}},
    "policy": {"path": "model"},
    "reward": {
        "objectives": {"safety": {}},
        "ratings": {"r": {"file": "rated.csv", "labels": {"safety": "safe"}}},
    },
    "scorers": {"brief": {"type": "rule", "rule": "length", "max": 60}},
    "objectives": {"safety": {}, "brief": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
    "training": {"learning_rate": 0.001},
    "run": {"max_steps": 2},
}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        describe_model()
        write("a.jsonl", [{"prompt": f"train {i}"} for i in range(30)])
        write("t.jsonl", [{"prompt": f"test {i}"} for i in range(30)])
        rate("rated.csv", [(f"rated {i}", f"reply {i}", i) for i in range(40)])
        Path("functions.py").write_text(
            "def length(completions, **kw):\n    return [1.0] * len(completions)\n"
        )
        Path("r.yaml").write_text(json.dumps(RECIPE, indent=1))
        yield


def told(*overrides: str) -> list[str]:
    """The lines of `paretune check`, without their locations."""
    try:
        check(load_or_tell_all("r.yaml", overrides))
    except ParetuneError as error:
        return [line.split(": ", 1)[1] for line in str(error).splitlines()]
    return []


def keys(*overrides: str) -> list[str]:
    return sorted(line.split(": ")[0] for line in told(*overrides))


MISTAKES = {
    "data.prompts.b={file: gone.jsonl}": "data.prompts.b.file",
    "policy.lora={r: 4, target_modules: [q_prj]}": "policy.lora.target_modules",
    "reward.ratings.r.labels.safety=saef": "labels.safety",
    "scorers.brief.mx=60": "scorers.brief.mx",
    "scorers.cls={type: classifier, path: gone, label: x}": "scorers.cls.path",
    "scorers.fn={type: python, function: 'functions.py:lenth'}": "scorers.fn.function",
    "algorithm.num_generation=4": "algorithm.num_generation",
    "training.per_device_train_batch_size=8": "training.per_device_train_batch_size",
    "run.max_steps='10'": "run.max_steps",
}
USED = ("objectives.cls={}", "objectives.fn={}")


def test_nine_unrelated_mistakes_are_told_in_one_round() -> None:
    assert keys(*MISTAKES, *USED) == sorted(MISTAKES.values())


def test_mistakes_of_later_stages_are_told_beside_each_other() -> None:
    overrides = [o for o in MISTAKES if o.startswith(("policy", "reward", "scorers.fn"))]
    expected = sorted(MISTAKES[o] for o in overrides)
    assert keys(*overrides, "objectives.fn={}") == expected
    room = keys(*overrides, "objectives.fn={}", "algorithm.max_new_tokens=400")
    assert room == sorted([*expected, "algorithm.max_new_tokens"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # Each of these takes something away that other rules need: they must be silent.
        (["scorers.brief.type=rul"], ["scorers.brief.type"]),
        (["scorers.brief.rule=lenght"], ["scorers.brief.rule"]),
        (["policy.path=3"], ["policy.path"]),
        (["policy.path=gone"], ["policy.path"]),
        (["objectives.safety=heavy"], ["objectives.safety"]),
        (["data.prompts.a.file=gone.jsonl"], ["data.prompts.a.file"]),
        (["data.prompts.a.fiel=a.jsonl"], ["data.prompts.a.fiel"]),
        (["reward.objectives.safety.loss=x"], ["reward.objectives.safety.loss"]),
        (["reward.ratings.r.labels.safety=3"], ["reward.ratings.r.labels.safety"]),
        (["algorithm.name=grop"], ["algorithm.name"]),
        (["algorithm.max_new_tokns=400"], ["algorithm.max_new_tokns"]),
        (["run.sed=3"], ["run.sed"]),
        (["data.test_promts={}", "data.test_prompts=null"], ["data.test_promts"]),
        # Two at a time, of different stages.
        (["algorithm.name=grop", "reward.ratings.r.labels.safety=saef"], ["algorithm.name", "labels.safety"]),
        (["policy.path=gone", "scorers.brief.max=no"], ["policy.path", "scorers.brief.max"]),
        (["evaluate.verdict=3", "data.prompts.a.file=no.jsonl"], ["data.prompts.a.file", "evaluate.verdict"]),
    ],
)
def test_consequences_of_a_mistake_are_not_told(overrides: list[str], expected: list[str]) -> None:
    assert keys(*overrides) == expected


def test_a_recipe_without_mistakes_is_loaded_as_ever() -> None:
    assert load_or_tell_all("r.yaml") == load_config("r.yaml")


def test_known_items_end_where_the_unknown_ones_would_follow() -> None:
    items = KnownItems({"a": 1, "b": 2}, {"b"})
    assert items.known() == {"a": 1}
    assert (items["a"], items.get("a"), "a" in items) == (1, 1, True)
    iterator = iter(items.items())
    assert next(iterator) == ("a", 1)
    with pytest.raises(UnknownValueError):
        next(iterator)
    for read in (lambda: items["b"], lambda: items.get("b"), lambda: "b" in items, lambda: len(items)):
        with pytest.raises(UnknownValueError):
            read()
