"""A small benchmark end to end: killed, resumed, its runs identical to runs made on their own."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked import begun, done
from tiny import SMALL, fingerprint

from paretune import __version__
from paretune.benchmark.processes import CLI_COMMAND
from paretune.cli import main
from paretune.run.folder import read_json, read_jsonl

FILE = """\
name: tiny
recipe: demo
output_dir: {folder}
overrides: [{small}]
methods:
  grpo: {{algorithm: {{name: grpo, num_generations: 2, max_new_tokens: 12}}}}
  rloo:
    algorithm: {{name: rloo, num_generations: 4, max_new_tokens: 12}}
    training: {{prompts_per_step: 2}}
seeds: [0, 1]
budget: {{resource: reward_calls, limit: 24}}
reference_point: {{politeness: 0, safety: 0}}
bootstrap_samples: 200
num_processes: 2
"""
SETTINGS = [word for word in SMALL if not word.startswith(("algorithm.", "run.max_steps"))]


def compare_command(folder, *more):
    path = folder.parent / "tiny.yaml"
    path.write_text(FILE.format(folder=folder, small=", ".join(SETTINGS)))
    return ["compare", str(path), *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The finished benchmark, which was killed during the first method's runs and then resumed."""
    folder = tmp_path_factory.mktemp("compare") / "tiny"
    process = begun(compare_command(folder))
    metrics = folder / "grpo" / "recipe" / "seed-0" / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or b'"align"' not in metrics.read_bytes()):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "benchmark.json").exists()
    return folder, done(compare_command(folder))


def test_the_command_of_a_job_is_this_program():
    """The jobs of `finished` are forks, so that they need not import everything again."""
    found = subprocess.run([*CLI_COMMAND, "--version"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, f"paretune {__version__}\n"), found.stderr


@pytest.mark.slow
def test_killed_benchmark_resumes_and_ranks(finished):
    folder, resumed = finished
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    found = read_json(folder / "benchmark.json")
    assert found["unranked"] == []
    assert {entry["costs"]["reward_calls"] for entry in found["methods"].values()} == {24}
    ranks = [entry["hypervolume"]["rank"] for entry in found["methods"].values()]
    assert ranks in ([1, 2], [2, 1], [None, None]), "ranks are given only where a difference is shown"
    costs = read_jsonl(folder / "costs.jsonl")
    assert [row["kind"] for row in costs] == ["shared"] * 2 + ["run"] * 4
    assert all(row["peak_memory"] > 1e8 and row["judge_calls"] == 24 for row in costs if row["kind"] == "run")
    assert "hypervolume" in resumed.stdout
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_run_with_reused_stages_equals_a_run_on_its_own(finished, tmp_path):
    folder, _ = finished
    recipe = folder / "recipes" / "grpo-recipe-seed-0.yaml"
    alone = done(["run", str(recipe), f"run.output_dir={tmp_path / 'alone'}"])
    assert alone.returncode == 0, alone.stderr
    reusing = folder / "grpo" / "recipe" / "seed-0"
    assert fingerprint(reusing) == fingerprint(tmp_path / "alone")
    books = [read_json(each / "run.json") for each in (reusing, tmp_path / "alone")]
    assert books[0]["config_hash"] == books[1]["config_hash"]
    generations = [each / "eval" / "final" / "generations.parquet" for each in (reusing, tmp_path / "alone")]
    assert generations[0].read_bytes() == generations[1].read_bytes()
    weights = "sft/model.safetensors"
    links = [each / "recipe" / "seed-0" / weights for each in (folder / "grpo", folder / "rloo")]
    assert links[0].samefile(links[1]), "linked, not copied"


def run_in_process(capsys, folder, *more):
    """Run the command in this process, which has torch loaded: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(compare_command(folder, *more))
    return caught.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_finished_benchmark_again_changes_nothing(finished, capsys):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "benchmark.json", folder / "costs.jsonl")}
    code, out, errors = run_in_process(capsys, folder)
    assert code == 0, errors
    assert "4 runs, 4 of them complete before" in out
    assert {path: path.read_bytes() for path in before} == before
    code, _, errors = run_in_process(capsys, folder, "budget.limit=32")
    assert code == 2
    assert "budget: differs from the value preregistered before the first run" in errors


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    code, out, errors = run_in_process(capsys, tmp_path / "tiny", "--dry-run")
    assert code == 0, errors
    assert "runs       4: 2 methods x 1 weighting (recipe) x 2 seeds (0, 1)" in out
    assert "shared     2 x initial policy, reward model and judge" in out
    assert "budget     24 reward_calls per run, 96 in total" in out
    assert "warning" not in out
    assert not (tmp_path / "tiny").exists()
    _, out, _ = run_in_process(
        capsys, tmp_path / "tiny", "--dry-run", "budget={resource: rollout_tokens, limit: 100}"
    )
    assert "a step uses up to 96 rollout_tokens with grpo" in out


def test_stages_of_another_recipe_are_not_reused(tmp_path):
    from paretune.config import bundled_recipes, load_config
    from paretune.core.errors import ConfigError
    from paretune.experiment.resolved import resolve
    from paretune.experiment.reuse import reuse_key, reuse_stages
    from paretune.run.folder import Run

    e = resolve(load_config(bundled_recipes()["demo"], ["run.seed=1"]))
    with pytest.raises(ConfigError, match="cannot be reused: it holds no run"):
        reuse_stages(Run(tmp_path / "run"), tmp_path / "nothing", e)
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "run.json").write_text(json.dumps({"status": "done", "config_hash": "other"}))
    with pytest.raises(ConfigError, match="cannot be reused: its recipe differs"):
        reuse_stages(Run(tmp_path / "run"), source, e)
    (source / "run.json").write_text(json.dumps({"status": "stopped", "config_hash": reuse_key(e)}))
    with pytest.raises(ConfigError, match="its stages are not complete"):
        reuse_stages(Run(tmp_path / "run"), source, e)
    (source / "run.json").write_text(json.dumps({"status": "done", "config_hash": reuse_key(e)}))
    (source / "data" / "manifest.json").write_text('{"records": {"reward train": "others"}}')
    with pytest.raises(ConfigError, match="its records differ"):
        reuse_stages(Run(tmp_path / "run"), source, e)


def test_only_stages_independent_of_the_algorithm_are_shared():
    from paretune.config import bundled_recipes, load_config
    from paretune.experiment.resolved import resolve
    from paretune.experiment.reuse import reuse_key

    def key(*more):
        return reuse_key(resolve(load_config(bundled_recipes()["demo"], more)))

    assert (
        key()
        == key("algorithm.name=gdpo")
        == key("training.learning_rate=0.5", "run.max_steps=9", "objectives.safety.weight=2")
    )
    assert (
        len(
            {
                key(),
                key("run.seed=1"),
                key("reward.training.learning_rate=1e-3"),
                key("policy.sft.num_train_epochs=1"),
            }
        )
        == 4
    )
    # The initial policy learns the thinking tags; the algorithm decides later who is asked for them.
    thinking = "data.world.thinking=true"
    assert key() != key(thinking) == key(thinking, "thinking.invalid_format=penalize")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_trial_is_scored_on_responses_of_its_trained_policy(finished, tmp_path, capsys, method):
    """Also for a method that never samples from the trained policy."""
    from paretune.benchmark.costs import run_costs
    from paretune.benchmark.tuning import judge_score, training_reward

    folder, _ = finished
    recipe, run_dir = folder / "recipes" / "grpo-recipe-seed-0.yaml", tmp_path / "trial"
    [shared_dir] = (folder / "shared").glob("seed-0-*")
    algorithm = f"algorithm={{name: {method}, num_generations: 2, max_new_tokens: 12}}"
    more = [f"run.output_dir={run_dir}", algorithm, "--reuse-from", str(shared_dir), "--until"]

    def trial(until):
        with pytest.raises(SystemExit) as caught:
            main(["run", str(recipe), *more, until])
        assert caught.value.code == 0, capsys.readouterr().err
        return read_json(run_dir / "eval" / "tuning_trial" / "scores.json")

    found = trial("tuning-trial")
    assert found["num_prompts"] == 240
    assert found["mean"].keys() == {"politeness", "meaningfulness", "actionability", "safety"}
    assert not (run_dir / "eval" / "final").exists(), "no judge calls"
    weights = {"safety": 2.0, "politeness": 1.0}
    expected = 2 * found["mean"]["safety"] + found["mean"]["politeness"]
    assert training_reward(run_dir, weights) == pytest.approx(expected)
    assert training_reward(tmp_path / "elsewhere", weights) is None
    assert judge_score(run_dir, weights) is None
    assert run_costs(run_dir)["judge_calls"] == 0
    # The finished trial again: now the judge scores the same responses.
    scores = trial("judged-tuning-trial")
    judged = scores.pop("judge")
    assert scores == found
    assert judged["name"] == "the ground truth"
    assert judged["mean"].keys() == found["mean"].keys()
    assert judged["mean"] != found["mean"]
    assert set(judged["unscored_fraction"].values()) == {0.0}
    expected = 2 * judged["mean"]["safety"] + judged["mean"]["politeness"]
    assert judge_score(run_dir, weights) == pytest.approx(expected)
    assert run_costs(run_dir)["judge_calls"] == 240
    assert not (run_dir / "eval" / "final").exists(), "no evaluation prompt is used"


@pytest.mark.slow
def test_runs_of_one_initial_policy_are_merged_and_evaluated(finished, tmp_path, capsys):
    folder, _ = finished
    runs = [str(folder / name / "recipe" / "seed-0") for name in ("grpo", "rloo")]
    written = set()
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(["merge", *runs, "--grid-steps", "2", "--output-dir", str(tmp_path / "merge")])
        out, errors = capsys.readouterr()
        assert caught.value.code == 0, errors
        assert "0.5 : 0.5" in out
        written.add((tmp_path / "merge" / "merge.json").read_text())
    assert len(written) == 1, "the second call changes nothing"
    found = json.loads(written.pop())
    assert [each["weights"] for each in found["merges"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    # A merge with weight 1 on one run is that run: same weights, responses and scores.
    for run_dir, name in zip(runs, ("100-0", "0-100"), strict=True):
        of_run, of_merge = (
            read_json(each / "eval" / "final" / "eval.json")
            for each in (Path(run_dir), tmp_path / "merge" / name)
        )
        assert of_run["objectives"] == of_merge["objectives"]
        assert (tmp_path / "merge" / name / "report.html").exists()
    assert found["initial"].keys() == set(of_run["objectives"])
    volume = found["hypervolume"]
    assert 0 <= volume["runs"]["value"] <= volume["merges"]["value"]
    with pytest.raises(SystemExit):
        main(
            [
                "merge",
                runs[0],
                str(folder / "rloo" / "recipe" / "seed-1"),
                "--output-dir",
                str(tmp_path / "s"),
            ]
        )
    assert "initial policy, seed, reward, judge or evaluation is not that of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge", runs[0], "--output-dir", str(tmp_path / "s")])
    assert "two or more different runs" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_merge_grid_weights_sum_to_one():
    from paretune.experiment.merge import merge_dir_name, merge_grid

    assert list(merge_grid(2, 4)) == [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]
    three = list(merge_grid(3, 2))
    assert len(three) == 6
    assert all(sum(each) == 1 for each in three)
    assert merge_dir_name((0.125, 0.875)) == "12.5-87.5"
