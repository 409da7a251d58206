"""What `paretune check` says of an evaluation that will not measure something, and of the run folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from smallfiles import describe_model, rate, write

from paretune.config import Config, load_config
from paretune.core.errors import ConfigError
from paretune.experiment.data import load_data
from paretune.experiment.dataset import Dataset
from paretune.experiment.evaluation_checks import evaluation_notes
from paretune.experiment.output_folder import check_output_folder, describe_next, training_hash
from paretune.experiment.pipeline import run_pipeline
from paretune.experiment.provenance import provenance_files
from paretune.experiment.resolved import resolve
from paretune.run.folder import Run, write_atomic

LABELS = {"safety": "safe", "manners": "safe"}
RECIPE: dict[str, Any] = {
    "name": "r",
    "data": {"prompts": {"a": {"file": "a.jsonl"}}, "holdout_fraction": 0.2},
    "policy": {"path": "model"},
    "reward": {
        "objectives": {name: {} for name in LABELS},
        "ratings": {"r": {"file": "rated.csv", "labels": LABELS}},
        "holdout_fraction": 0.5,
    },
    "objectives": {"safety": {}, "manners": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
    "training": {"learning_rate": 0.001},
    "run": {"max_steps": 2},
}
JUDGE = (
    "judge={objectives: {safety: {}}, holdout_fraction: 0.5, training: {learning_rate: 0.1}, "
    "ratings: {x: {file: other.csv, labels: {safety: safe}}}}"
)
SCORER = "scorers={manners: {type: rule, rule: length, max: 60}}"
TYPED_JUDGE = "judges={brief: {type: rule, rule: length, max: 60, objective: safety}}"


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        describe_model()
        write("a.jsonl", [{"prompt": f"train {i}"} for i in range(40)])
        for name in ("rated.csv", "other.csv"):
            rate(name, [(f"{name} {i}", f"reply {i}", i) for i in range(24)])
        Path("r.yaml").write_text(json.dumps(RECIPE))
        yield


def load(*overrides: str) -> Config:
    return load_config("r.yaml", overrides)


@pytest.fixture(scope="module")
def dataset(here: None) -> Dataset:
    return load_data(resolve(load(JUDGE)))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), []),
        ((JUDGE,), ["manners: no judge scores it, so it will not be measured; fix: add it to "
                    "judge.objectives and judge.ratings"]),
        ((JUDGE, "objectives.manners.weight=0"), []),
        ((JUDGE, "objectives.manners.goal=lower"), ["manners: no judge scores it"]),
        ((JUDGE, SCORER, "objectives.manners.scorer=manners"), []),
        ((TYPED_JUDGE,), ["manners: no judge scores it, so it will not be measured; fix: add a judge of it "
                          "to `judges`"]),
        (("judge={path: labels}",), ["manners: no judge scores it"]),
        (("judge={path: unread}",), []),
    ],
    ids=["none", "missing", "logged_only", "negative", "own_scorer", "typed", "pretrained", "unknown"],
)  # fmt: skip
def test_objectives_that_no_judge_scores(
    overrides: tuple[str, ...], expected: list[str], dataset: Dataset
) -> None:
    for name, content in (("labels", {"id2label": {"0": "safety"}}), ("unread", None)):
        Path(name).mkdir(exist_ok=True)
        Path(name, "config.json").write_text("{" if content is None else json.dumps(content))
    notes = [note for note in evaluation_notes(load(*overrides), dataset) if "no judge" in note]
    assert len(notes) == len(expected)
    assert all(note.startswith(start) for note, start in zip(notes, expected, strict=True))


@pytest.mark.parametrize(
    ("overrides", "num_prompts", "expected"),
    [
        ((), 8, ["only 8 test prompts: with fewer than 30", "fix: raise data.holdout_fraction, or"]),
        ((), 1, ["only 1 test prompt:"]),
        ((), 30, []),
        (("evaluate.max_prompts=5",), 5, ["fix: raise evaluate.max_prompts"]),
        (("data={prompts: {a: {file: a.jsonl}}, test_prompts: {b: {file: rated.csv}}}",), 5,
         ["fix: name more prompts in data.test_prompts"]),
    ],
)  # fmt: skip
def test_few_test_prompts(
    overrides: tuple[str, ...], num_prompts: int, expected: list[str], dataset: Dataset
) -> None:
    few = replace(dataset, test_prompts=(tuple(dataset.test_prompts) * 30)[:num_prompts])
    notes = [note for note in evaluation_notes(load(*overrides), few) if "test prompt" in note]
    assert len(notes) == bool(expected)
    assert all(text in notes[0] for text in expected)


def test_few_test_rows(dataset: Dataset) -> None:
    assert dataset.reward is not None
    notes = [note for note in evaluation_notes(load(JUDGE), dataset) if "to test it on" in note]
    assert [note.split(":")[0] for note in notes] == ["reward", "judge"]
    assert notes[0].startswith(f"reward: only {len(dataset.reward.test)} rows to test it on")
    assert notes[0].endswith("; fix: raise reward.holdout_fraction, or name more rows")
    enough = replace(dataset.reward, test=[*dataset.reward.test] * 20)
    both = replace(dataset, reward=enough, judge=enough)
    assert not [note for note in evaluation_notes(load(JUDGE), both) if "to test it on" in note]


def start(config: Config, stage: str, status: str = "done") -> Path:
    """The folder of a run of this recipe that came to this stage."""
    run = resolve(config)
    with Run.start_or_resume(
        config.run.output_dir,
        name="r",
        config_hash=training_hash(run.config),
        files=provenance_files(run.config),
    ) as folder:
        folder.log_metrics(0, {"reward/mean": 0.5})
        folder.enter_stage(stage)
    folder.update_state(status=status)
    return folder.path


COMMAND = ["paretune", "run", "r.yaml"]


def test_the_folder_of_another_run_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    output = f"run.output_dir={tmp_path / 'mine'}"
    start(load(output, JUDGE), "align")
    Path("torn.jsonl").write_text("{")
    added = load(output, JUDGE, "run.max_steps=3", "data.prompts.a.file=torn.jsonl")
    with pytest.raises(ConfigError, match="holds another run") as caught:
        run_pipeline(added)
    free = f"run.output_dir={tmp_path / 'mine-2'}"
    assert f"fix: write {free}, or remove this one" in str(caught.value)
    assert "run.max_steps is 2 there, 3 here" in str(caught.value)
    assert describe_next(added, [*COMMAND, output]) == " ".join([*COMMAND, free])


def test_next_says_what_a_run_does_with_its_folder(tmp_path: Path) -> None:
    config = load(f"run.output_dir={tmp_path / 'mine'}", JUDGE)
    assert describe_next(config, COMMAND) == "paretune run r.yaml"
    path = start(config, "align", "stopped")
    assert describe_next(config, COMMAND) == f"paretune run r.yaml  # resumes {path}"
    start(config, "report")
    (path / "eval" / "final").mkdir(parents=True)
    write_atomic(path / "eval" / "final" / "eval.json", "{}")
    assert describe_next(config, COMMAND) == f"paretune report {path}  # the run is complete"
    other = load(f"run.output_dir={path}", JUDGE.replace("0.1}", "0.2}"))
    with pytest.raises(ConfigError, match=r"rate is 0.1 there, 0.2 here\); fix: rename .*eval to .*-1"):
        check_output_folder(resolve(other))
    (path / "eval").rename(path / "eval-1")
    check_output_folder(resolve(other))
    assert describe_next(config, COMMAND) == f"paretune run r.yaml  # resumes {path}"
