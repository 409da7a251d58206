"""Which trial is taken, by whose scores, and what a comparison says of it."""

import json
from pathlib import Path

import pytest
import torch

from madeup_contest import FILE, make_runs, written
from paretune.benchmark.costs import benchmark_costs
from paretune.benchmark.plan import describe_benchmark
from paretune.benchmark.processes import Job
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.run import _BenchmarkRunner, _is_complete, preregister
from paretune.benchmark.spec import load_benchmark
from paretune.benchmark.tuning import judge_score, select_trials, training_reward
from paretune.config import bundled_recipes, load_config
from paretune.core.errors import ConfigError, DataError, NonFiniteError
from paretune.evaluate.evaluate import Judge
from paretune.experiment.console import make_console
from paretune.experiment.pipeline import pipeline_stages
from paretune.experiment.tuning_trial import _mean_scores, _require_judged_objectives
from paretune.run.io import read_json, to_json
from paretune.training.guards import StopRequest

NAMES = ("politeness", "meaningfulness", "actionability", "safety")
RATES = (1e-4, 5e-4, 2e-3)
REWARDS = (0.5, 0.7, 0.9)
JUDGED = (0.5, 0.6, 0.3)


def contest_by(tmp_path, by, *overrides):
    said = "" if by is None else f", by: {by}"
    more = f"tuning: {{trials: 3, over: {{training.learning_rate: [1e-4, 5e-4, 2e-3]}}{said}}}\n"
    return load_benchmark(written(tmp_path, FILE.format(folder=tmp_path / "cmp") + more), overrides)


def wrong(*arguments):
    with pytest.raises(ConfigError) as caught:
        contest_by(*arguments)
    return str(caught.value).splitlines()


def make_trials(contest, *, judged=True):
    """What three rates ended with: the highest has the most training reward, and by the judge the least."""
    for method in contest.said.methods:
        for trial, reward, judge in zip(contest.tried(method), REWARDS, JUDGED, strict=True):
            write_trial(Path(trial.experiment.run.folder), reward, judge if judged else None)


def write_trial(folder, reward, judge=None):
    nothing = dict.fromkeys(NAMES, 0.0)
    found = {"prompts": 240, "mean": dict.fromkeys(NAMES, reward), "unscored": nothing}
    if judge is not None:
        means = dict.fromkeys(NAMES, judge)
        found["judge"] = {"name": "the true scorer", "mean": means, "unscored": nothing}
    (folder / "eval" / "trial").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / "trial" / "trial.json").write_text(to_json(found))


def test_the_training_reward_chooses_what_over_optimises_it_and_the_judge_does_not(tmp_path):
    contest = contest_by(tmp_path, "reward")
    make_trials(contest, judged=False)
    found = select_trials(contest, {})["grpo"]
    assert (found["by"], found["set"], found["best"]) == (
        "reward",
        {"training.learning_rate": 2e-3},
        pytest.approx(3.6),
    )
    assert all(trial.keys() == {"set", "training_reward"} for trial in found["trials"])
    contest = contest_by(tmp_path, "judge")
    make_trials(contest)
    found = select_trials(contest, {})["grpo"]
    assert (found["by"], found["chosen"], found["set"]) == ("judge", 1, {"training.learning_rate": 5e-4})
    assert (found["best"], found["median"]) == (pytest.approx(2.4), pytest.approx(2.0))
    assert [trial["judge"] for trial in found["trials"]] == pytest.approx([4 * each for each in JUDGED])
    assert [t["training_reward"] for t in found["trials"]] == pytest.approx([4 * each for each in REWARDS])


def test_a_trial_that_stopped_itself_is_not_taken_whoever_chooses(tmp_path):
    contest = contest_by(tmp_path, "judge")
    make_trials(contest)
    folders = [trial.config.run.output_dir for trial in contest.tuning_specs("grpo")]
    found = select_trials(contest, {folders[1]: 4})["grpo"]
    assert found["set"] == {"training.learning_rate": 1e-4}
    assert found["trials"][1] == {
        "set": {"training.learning_rate": 5e-4},
        "training_reward": None,
        "judge": None,
    }
    with pytest.raises(NonFiniteError, match="grpo: every tuning trial stopped itself"):
        select_trials(contest, dict.fromkeys(folders, 4))


def test_a_judge_need_not_know_what_has_no_weight(tmp_path):
    write_trial(tmp_path, 0.5, 0.25)
    assert judge_score(tmp_path, {"safety": 2.0, "politeness": 1.0, "other": 0.0}) == pytest.approx(0.75)
    assert judge_score(tmp_path, {"safety": 2.0, "other": 1.0}) is None
    assert judge_score(tmp_path / "nothing", {"safety": 1.0}) is None
    write_trial(tmp_path, 0.5)
    assert judge_score(tmp_path, {"safety": 1.0}) is None, "the reward's own means are no judgment"
    assert training_reward(tmp_path, {"safety": 1.0}) == pytest.approx(0.5)


def test_a_trial_made_without_the_judge_is_no_judged_one(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "done"}))
    write_trial(tmp_path, 0.5)

    def complete(judged):
        log = tmp_path / "log"
        return _is_complete(
            Job(
                label="a",
                cli_args=(),
                run_dir=tmp_path,
                log_file=log,
                allow_guard_exit=True,
                needs_judge_scores=judged,
            )
        )

    assert complete(False)
    assert not complete(True)
    write_trial(tmp_path, 0.5, 0.4)
    assert complete(True)
    assert complete(False)
    (tmp_path / "run.json").write_text(json.dumps({"status": "failed", "exit_code": 4}))
    (tmp_path / "eval" / "trial" / "trial.json").unlink()
    assert complete(True), "its training stopped itself: there is nothing to judge"


@pytest.mark.parametrize(("by", "until"), [("reward", "trial"), ("judge", "judged-trial")])
def test_a_trial_is_told_what_is_wanted_of_it_and_a_run_is_not(tmp_path, by, until):
    contest = contest_by(tmp_path, by)
    contest.output_dir.mkdir()
    conduct = _BenchmarkRunner(contest, make_console(), StopRequest())
    job = conduct._make_job(contest.tuning_specs("grpo")[0], is_trial=True)
    assert job.cli_args[-2:] == ("--until", until)
    assert job.needs_judge_scores == (by == "judge")
    job = conduct._make_job(contest.run_specs()[0])
    assert "--until" not in job.cli_args
    assert not job.needs_judge_scores


def test_calls_of_the_judge_are_counted_and_the_reader_is_told(tmp_path):
    for by, calls in (("reward", 0), ("judge", 720)):
        home = tmp_path / by
        home.mkdir()
        contest = contest_by(home, by)
        make_runs(contest)
        make_trials(contest, judged=by == "judge")
        entries = contest.run_specs()
        tuned = select_trials(contest, {})
        found = benchmark_results(contest, entries, benchmark_costs(contest, entries, {}), tuned)
        assert found["methods"]["grpo"]["tuning_ledger"]["judge_calls"] == calls
        assert found["methods"]["grpo"]["ledger"]["judge_calls"] == 120, "of the evaluation alone"
        assert found["tuning"]["by"] == by
        told = [line for line in found["cautions"] if line.startswith("The judge chose the settings")]
        assert len(told) == (by == "judge")


def test_what_was_declared_before_there_was_a_choice_holds_for_the_reward(tmp_path):
    contest = contest_by(tmp_path, None)
    contest.output_dir.mkdir()
    preregister(contest)
    path = contest.output_dir / "declared.json"
    assert read_json(path)["tuning"].keys() == {"trials", "seed", "over"}
    preregister(contest_by(tmp_path, "reward"))
    with pytest.raises(ConfigError, match="tuning: was declared before the first run"):
        preregister(contest_by(tmp_path, "judge"))
    path.unlink()
    preregister(contest_by(tmp_path, "judge"))
    assert read_json(path)["tuning"]["by"] == "judge"
    preregister(contest_by(tmp_path, "judge"))
    with pytest.raises(ConfigError, match="tuning: was declared before the first run"):
        preregister(contest_by(tmp_path, None))


def test_who_chooses_is_one_of_two(tmp_path):
    [line] = wrong(tmp_path, "jugde")
    assert line.startswith(f"{tmp_path / 'made-up.yaml'}:14:")
    assert "tuning.by" in line
    assert 'did you mean "judge"?' in line


def test_a_judge_that_is_the_reward_cannot_choose(tmp_path):
    contest_by(tmp_path, "reward", "set.judge=null")
    [line] = wrong(tmp_path, "judge", "set.judge=null")
    assert line.startswith(f"{tmp_path / 'made-up.yaml'}:14:")
    assert line.endswith(
        "tuning.by: judge needs one that is not the training reward, and the recipe has none; "
        "fix: give the recipe a judge, or write tuning.by: reward"
    )


def test_a_judge_that_does_not_score_what_has_a_weight_cannot_choose(tmp_path):
    folder = tmp_path / "judge"
    folder.mkdir()
    heads = {str(i): name for i, name in enumerate(NAMES[:3])}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "id2label": heads}))
    judge = f"set.judge={{path: {folder}}}"
    contest_by(tmp_path, "reward", judge)
    [line] = wrong(tmp_path, "judge", judge)
    assert 'tuning.by: the judge does not score "safety", which has a weight' in line
    assert "it scores politeness, meaningfulness, actionability" in line
    contest_by(tmp_path, "judge", judge, "weightings.equal.safety=0")
    contest_by(tmp_path, "judge", judge, "weightings={kind: {safety: 0}, safe: {safety: 3}}")


def test_a_judge_that_could_not_be_asked_before_is_refused_in_one_line():
    judges = (Judge(name="one", scorer=Given()),)
    _require_judged_objectives({"a": 1.0, "b": 2.0, "c": 0.0}, judges)
    with pytest.raises(DataError, match=r"judge: does not score c, .*\(it scores a, b\); fix: take another"):
        _require_judged_objectives({"a": 1.0, "c": 2.0}, judges)


class Given:
    names = ("a", "b")

    def __call__(self, samples):
        return torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [3.0, torch.nan]])


def test_an_answer_without_a_score_counts_as_the_worst(sample):
    found = _mean_scores((Judge(name="a", scorer=Given()),), [sample] * 3)
    assert found["mean"]["a"] == pytest.approx(5 / 3)
    assert found["mean"]["b"] != found["mean"]["b"], "nobody scored any"
    assert found["unscored"] == {"a": pytest.approx(1 / 3), "b": 1.0}


@pytest.fixture
def sample():
    from paretune.data.records import Message, Prompt, Sample

    return Sample(prompt=Prompt(id="a", messages=(Message("user", "hello"),)), response="hi")


def test_a_judged_trial_needs_a_judge():
    path = bundled_recipes()["demo"]
    names = [name for name, _ in pipeline_stages(load_config(path), "judged-trial")]
    assert names == [name for name, _ in pipeline_stages(load_config(path), "trial")]
    assert names[-1] == "trial"
    with pytest.raises(ConfigError, match=r"judge: is missing: the judge is to score a trial; fix: "):
        pipeline_stages(load_config(path, ["judge=null"]), "judged-trial")


def test_the_plan_says_who_chooses(tmp_path):
    assert "chosen by the judge on training prompts" in describe_benchmark(contest_by(tmp_path, "judge"))
    assert "chosen by" not in describe_benchmark(contest_by(tmp_path, None))
