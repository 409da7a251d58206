"""Ordinal heads in a recipe: what is refused at the door, and the kinds that a section names."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from config_cases import FILES, WORLD, error_lines

from paretune.config.data_schema import RewardSection
from paretune.core.errors import DataError
from paretune.data.raters import LabelSummary, ReadSummary, separate_votes
from paretune.data.records import Prompt, Rating
from paretune.experiment.dataset import RewardData
from paretune.experiment.heads import check_labels, head_kinds
from paretune.reward.heads import bradley_terry, calibrated, huber, mse
from paretune.reward.ordinal import Ordinal

RATINGS = "ratings: {r: {file: r.jsonl, labels: {safety: s}}}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("p.jsonl", "t.jsonl", "r.jsonl", "q.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("{loss: ordinal, levels: [1]}", "an ordinal head has two or more; fix: write all of them"),
        ("{loss: ordinal, levels: []}", "an ordinal head has two or more"),
        ("{loss: ordinal, levels: [1, 3, 2]}", "do not increase; fix: write the lowest first, each once"),
        ("{loss: ordinal, levels: [1, 1.0]}", "do not increase"),
        (f"{{loss: ordinal, levels: {list(range(21))}}}", "more than 20 levels are a number scale"),
        ("{levels: [1, 2]}", "has no effect with loss mse"),
        ("{loss: huber, levels: [1, 2]}", "has no effect with loss huber"),
    ],
)
def test_levels_are_checked_in_the_recipe(head: str, problem: str) -> None:
    lines = error_lines(FILES | {"reward": f"{{objectives: {{safety: {head}}}, {RATINGS}}}"})
    assert len(lines) == 1, lines
    assert ": reward.objectives.safety.levels: " in lines[0]
    assert problem in lines[0]


def test_the_built_in_world_has_no_levels() -> None:
    lines = error_lines(WORLD | {"reward": "{objectives: {safety: {loss: ordinal}}}"})
    expected = "reward.objectives.safety.loss: ordinal needs ratings on levels, and the built-in world has"
    assert expected in lines[0]


def section(head: str = "{}", raters: str = "") -> RewardSection:
    source = {"file": "r.jsonl", "labels": {"a": "a"}} | ({"raters": raters} if raters else {})
    heads = {"a": {"loss": "ordinal"} | json.loads(head)}
    return RewardSection.model_validate({"objectives": heads, "ratings": {"r": source}})


@dataclass
class Case:
    """Labels, or lists of votes, of the training and the test rows."""

    train: list[float | list[float]]
    test: list[float | list[float]]
    head: str = "{}"
    raters: str = ""
    problem: str = ""


def rows(labels: list[float | list[float]]) -> list[Rating]:
    return [
        Rating(
            prompt=Prompt(messages=()),
            response="x",
            labels={"a": sum(y) / len(y) if isinstance(y, list) else y},
            votes={"a": tuple(y)} if isinstance(y, list) else {},
        )
        for y in labels
    ]


def _summary(num_responses: int, num_votes: int) -> LabelSummary:
    return LabelSummary(
        num_responses=num_responses, num_votes=num_votes, num_raters=2, num_missing=0, agreement=0.5
    )


@pytest.mark.parametrize(
    "case",
    [
        Case([1, 2, 3], [3, 1]),
        Case([[1, 2], [3, 3]], [[1, 2], 3], raters="separate"),
        Case([1, 2], [2], '{"levels": [1, 2, 3]}'),
        Case([1, 2, 3], [4], problem="objectives.a: ordinal: 4 is none of the levels 1, 2, 3; fix: name all"),
        Case([1, 2, 4], [3], problem="objectives.a: ordinal: 3 is none of the levels 1, 2, 4; fix: name all"),
        Case([[1, 2], 3], [3], problem="ratings.r.raters: a is ordinal, and the mean of several"),
        Case([[1, 2], 3], [3], raters="median", problem="and the median of several votes need not"),
        Case([1, 2.5], [1], '{"levels": [1, 2, 3]}', problem="objectives.a: ordinal: 2.5 is none of"),
        Case([x / 7 for x in range(21)], [0], problem="objectives.a: ordinal: 21 levels"),
    ],
    ids=lambda case: case.problem or str(case.train),
)  # fmt: skip
def test_labels_that_are_no_levels_are_refused_at_the_door(case: Case) -> None:
    train, test = rows(case.train), rows(case.test)
    num_votes = sum(len(y) if isinstance(y, list) else 1 for y in case.train)
    summary = ReadSummary(labels={"a": _summary(len(train), num_votes)})
    if case.raters == "separate":
        train = list(separate_votes(train))
    data = RewardData(train=train, test=test)

    def run() -> None:
        check_labels("reward", section(case.head, case.raters), data, {"reward r": summary})

    if not case.problem:
        run()
        return
    with pytest.raises(DataError) as found:
        run()
    assert case.problem in str(found.value)
    assert "\n" not in str(found.value)


def test_kinds_of_a_section() -> None:
    heads = {"a": {"loss": "huber", "huber_delta": 0.5}, "b": {}, "c": {"loss": "bradley_terry"}}
    heads |= {"d": {"loss": "calibrated"}, "e": {"loss": "ordinal", "levels": [0, 1]}}
    assert head_kinds(RewardSection.model_validate({"objectives": heads})) == {
        "a": huber(0.5),
        "b": mse(),
        "c": bradley_terry(),
        "d": calibrated(),
        "e": Ordinal(levels=(0.0, 1.0)),
    }
