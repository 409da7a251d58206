"""Selection of tuning trials by the training reward or the judge, and what a benchmark reports about it."""

import json
from pathlib import Path

import pytest
import torch

from paretune.benchmark.costs import benchmark_costs
from paretune.benchmark.plan import describe_benchmark
from paretune.benchmark.processes import Job
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.run import BenchmarkRunner, _is_complete, preregister
from paretune.benchmark.spec import load_benchmark
from paretune.benchmark.tuning import judge_score, select_trials, training_reward
from paretune.config import bundled_recipes, load_config
from paretune.core.errors import ConfigError, DataError, NonFiniteError
from paretune.core.goals import Goal
from paretune.evaluate.judging import Judge
from paretune.experiment.console import make_console
from paretune.experiment.pipeline import pipeline_stages
from paretune.experiment.resolved import resolve
from paretune.experiment.tuning_trial import _mean_scores, _require_judged_objectives
from paretune.run.io import read_json, to_json
from paretune.training.guards import StopRequest
from support.fake_benchmark import FILE, make_runs, write_benchmark_file

NAMES = ("politeness", "meaningfulness", "actionability", "safety")
RATES = (1e-4, 5e-4, 2e-3)
REWARDS = (0.5, 0.7, 0.9)
JUDGE_SCORES = (0.5, 0.6, 0.3)


def benchmark_tuned_by(tmp_path, select_by, *overrides, extra=""):
    choice = "" if select_by is None else f", select_by: {select_by}"
    space = "{training.learning_rate: [1e-4, 5e-4, 2e-3]}"
    tuning = f"tuning: {{num_trials: 3, search_space: {space}{choice}}}\n"
    text = FILE.format(folder=tmp_path / "benchmark") + tuning + extra
    return load_benchmark(write_benchmark_file(tmp_path, text), overrides)


def issues_of(*arguments):
    with pytest.raises(ConfigError) as caught:
        benchmark_tuned_by(*arguments)
    return str(caught.value).splitlines()


def write_trials(spec, *, judged=True):
    """Scores of three learning rates; the highest has the best training reward and the worst judge score."""
    for method in spec.config.methods:
        for trial, reward, judge in zip(spec.tuning_specs(method), REWARDS, JUDGE_SCORES, strict=True):
            write_trial(Path(trial.config.run.output_dir), reward, judge if judged else None)


def write_trial(folder, reward, judge=None):
    zeros = dict.fromkeys(NAMES, 0.0)
    scores = {"num_prompts": 240, "mean": dict.fromkeys(NAMES, reward), "unscored_fraction": zeros}
    if judge is not None:
        means = dict.fromkeys(NAMES, judge)
        scores["judge"] = {"name": "the ground truth", "mean": means, "unscored_fraction": zeros}
    (folder / "eval" / "tuning_trial").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / "tuning_trial" / "scores.json").write_text(to_json(scores))


def test_training_reward_selects_an_overoptimized_trial_and_the_judge_does_not(tmp_path):
    spec = benchmark_tuned_by(tmp_path, "reward")
    write_trials(spec, judged=False)
    results = select_trials(spec, {})["grpo"]
    assert (results["select_by"], results["settings"], results["best_score"]) == (
        "reward",
        {"training.learning_rate": 2e-3},
        pytest.approx(3.6),
    )
    assert all(trial.keys() == {"settings", "training_reward"} for trial in results["trials"])
    spec = benchmark_tuned_by(tmp_path, "judge")
    write_trials(spec)
    results = select_trials(spec, {})["grpo"]
    assert (results["select_by"], results["selected_index"], results["settings"]) == (
        "judge",
        1,
        {"training.learning_rate": 5e-4},
    )
    assert (results["best_score"], results["median_score"]) == (pytest.approx(2.4), pytest.approx(2.0))
    assert [trial["judge_score"] for trial in results["trials"]] == pytest.approx(
        [4 * each for each in JUDGE_SCORES]
    )
    assert [t["training_reward"] for t in results["trials"]] == pytest.approx([4 * each for each in REWARDS])


def test_trial_stopped_by_a_guard_is_not_selected(tmp_path):
    spec = benchmark_tuned_by(tmp_path, "judge")
    write_trials(spec)
    folders = [trial.config.run.output_dir for trial in spec.tuning_specs("grpo")]
    results = select_trials(spec, {folders[1]: 4})["grpo"]
    assert results["settings"] == {"training.learning_rate": 1e-4}
    assert results["trials"][1] == {
        "settings": {"training.learning_rate": 5e-4},
        "training_reward": None,
        "judge_score": None,
    }
    with pytest.raises(NonFiniteError, match="grpo: a training guard stopped every tuning trial"):
        select_trials(spec, dict.fromkeys(folders, 4))


def test_judge_need_not_score_objectives_without_weight(tmp_path):
    write_trial(tmp_path, 0.5, 0.25)
    assert judge_score(tmp_path, {"safety": 2.0, "politeness": 1.0, "other": 0.0}) == pytest.approx(0.75)
    assert judge_score(tmp_path, {"safety": 2.0, "other": 1.0}) is None
    assert judge_score(tmp_path / "nothing", {"safety": 1.0}) is None
    write_trial(tmp_path, 0.5)
    assert judge_score(tmp_path, {"safety": 1.0}) is None, "the means of the reward model are no judge scores"
    assert training_reward(tmp_path, {"safety": 1.0}) == pytest.approx(0.5)


def test_trial_without_judge_scores_is_incomplete_if_the_judge_selects(tmp_path):
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
    (tmp_path / "eval" / "tuning_trial" / "scores.json").unlink()
    assert complete(True), "stopped by a guard: there is no policy to judge"


@pytest.mark.parametrize(
    ("select_by", "until"), [("reward", "tuning-trial"), ("judge", "judged-tuning-trial")]
)
def test_trials_stop_after_their_stage_and_runs_do_not(tmp_path, select_by, until):
    spec = benchmark_tuned_by(tmp_path, select_by)
    spec.output_dir.mkdir()
    runner = BenchmarkRunner(spec, make_console(), StopRequest())
    job = runner._make_job(spec.tuning_specs("grpo")[0], is_trial=True)
    assert job.cli_args[-2:] == ("--until", until)
    assert job.needs_judge_scores == (select_by == "judge")
    job = runner._make_job(spec.run_specs()[0])
    assert "--until" not in job.cli_args
    assert not job.needs_judge_scores


def test_judge_calls_of_trials_are_counted_and_reported(tmp_path):
    for select_by, calls in (("reward", 0), ("judge", 720)):
        home = tmp_path / select_by
        home.mkdir()
        spec = benchmark_tuned_by(home, select_by)
        make_runs(spec)
        write_trials(spec, judged=select_by == "judge")
        entries = spec.run_specs()
        tuned = select_trials(spec, {})
        results = benchmark_results(spec, entries, benchmark_costs(spec, entries, {}), tuned)
        assert results["methods"]["grpo"]["tuning_costs"]["judge_calls"] == calls
        assert results["methods"]["grpo"]["costs"]["judge_calls"] == 120, "of the evaluation alone"
        assert results["tuning"]["select_by"] == select_by
        lines = [line for line in results["caveats"] if line.startswith("The judge selected the settings")]
        assert len(lines) == (select_by == "judge")


def test_preregistration_fixes_the_selection_of_trials(tmp_path):
    spec = benchmark_tuned_by(tmp_path, None)
    spec.output_dir.mkdir()
    preregister(spec)
    path = spec.output_dir / "preregistration.json"
    assert read_json(path)["tuning"].keys() == {"num_trials", "seed", "search_space", "select_by"}
    preregister(benchmark_tuned_by(tmp_path, "reward"))
    with pytest.raises(
        ConfigError, match="tuning: differs from the value preregistered before the first run"
    ):
        preregister(benchmark_tuned_by(tmp_path, "judge"))
    path.unlink()
    preregister(benchmark_tuned_by(tmp_path, "judge"))
    assert read_json(path)["tuning"]["select_by"] == "judge"
    preregister(benchmark_tuned_by(tmp_path, "judge"))
    with pytest.raises(
        ConfigError, match="tuning: differs from the value preregistered before the first run"
    ):
        preregister(benchmark_tuned_by(tmp_path, None))


def test_select_by_is_reward_or_judge(tmp_path):
    [line] = issues_of(tmp_path, "jugde")
    assert line.startswith(f"{tmp_path / 'fake.yaml'}:14:")
    assert "tuning.select_by" in line
    assert 'did you mean "judge"?' in line


def test_judge_that_is_the_reward_cannot_select(tmp_path):
    benchmark_tuned_by(tmp_path, "reward", "overrides.judge=null")
    [line] = issues_of(tmp_path, "judge", "overrides.judge=null")
    assert line.startswith(f"{tmp_path / 'fake.yaml'}:14:")
    assert line.endswith(
        "tuning.select_by: judge needs a judge that is not the training reward, and the recipe has none; "
        "fix: add a judge to the recipe, or set tuning.select_by: reward"
    )


def test_judge_that_misses_a_weighted_objective_cannot_select(tmp_path):
    folder = tmp_path / "judge"
    folder.mkdir()
    heads = {str(i): name for i, name in enumerate(NAMES[:3])}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "id2label": heads}))
    judge = f"overrides.judge={{path: {folder}}}"
    benchmark_tuned_by(tmp_path, "reward", judge)
    [line] = issues_of(tmp_path, "judge", judge)
    assert 'tuning.select_by: the judge does not score "safety", which has a weight' in line
    assert "this one scores politeness, meaningfulness, actionability" in line
    benchmark_tuned_by(tmp_path, "judge", judge, "weightings.equal.safety=0")
    benchmark_tuned_by(tmp_path, "judge", judge, "weightings={mild: {safety: 0}, safe: {safety: 3}}")


def test_judge_without_a_weighted_objective_is_refused():
    judges = (Judge(name="one", scorer=FixedScorer()),)
    _require_judged_objectives({"a": 1.0, "b": 2.0, "c": 0.0}, judges)
    with pytest.raises(DataError, match=r"judge: does not score c, .*\(it scores a, b\); fix: use another"):
        _require_judged_objectives({"a": 1.0, "c": 2.0}, judges)


class FixedScorer:
    names = ("a", "b")

    def __call__(self, samples):
        return torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [3.0, torch.nan]])


def test_unscored_response_counts_as_the_worst(sample):
    judges, samples = (Judge(name="a", scorer=FixedScorer()),), [sample] * 3
    results = _mean_scores(judges, samples, {})
    assert results["mean"]["a"] == pytest.approx(5 / 3)
    lower = _mean_scores(judges, samples, {"a": Goal("lower")})
    assert lower["mean"]["a"] == pytest.approx(-7 / 3), "higher is better, and 3 the worst"
    assert results["mean"]["b"] != results["mean"]["b"], "NaN: no response is scored"
    assert results["unscored_fraction"] == {"a": pytest.approx(1 / 3), "b": 1.0}


@pytest.fixture
def sample():
    from paretune.data.records import Message, Prompt, Sample

    return Sample(prompt=Prompt(id="a", messages=(Message("user", "hello"),)), response="hi")


def test_judged_trial_needs_a_judge():
    path = bundled_recipes()["demo"]
    demo = resolve(load_config(path))
    names = [name for name, _ in pipeline_stages(demo, "judged-tuning-trial")]
    assert names == [name for name, _ in pipeline_stages(demo, "tuning-trial")]
    assert names[-1] == "tuning-trial"
    with pytest.raises(ConfigError, match=r"judge: is missing: .*tuning trial.*; fix: "):
        pipeline_stages(resolve(load_config(path, ["judge=null"])), "judged-tuning-trial")


def test_plan_shows_who_selects_trials(tmp_path):
    # A small world: the plan counts its records, which takes minutes for the usual one under type checks.
    sizes = "{num_prompts: 60, num_test_prompts: 30, num_ratings: 100, num_demonstrations: 100}"
    small = f"overrides: {{data: {{world: {sizes}}}}}\n"
    assert "selected by the judge on training prompts" in describe_benchmark(
        benchmark_tuned_by(tmp_path, "judge", extra=small)
    )
    assert "selected by" not in describe_benchmark(benchmark_tuned_by(tmp_path, None, extra=small))
