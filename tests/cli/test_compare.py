"""A small comparison from end to end: killed, gone on with, its runs as if each had been made alone."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny import ENVIRONMENT, PROGRAM, SMALL, fingerprint

from paretune.cli import main
from paretune.run.folder import read_json, read_jsonl

FILE = """\
name: tiny
recipe: demo
folder: {folder}
set: [{small}]
methods:
  grpo: {{algorithm: {{name: grpo, n: 2, max_new: 12}}}}
  rloo: {{algorithm: {{name: rloo, n: 4, max_new: 12}}, learn: {{prompts: 2}}}}
seeds: [0, 1]
budget: {{currency: reward_calls, amount: 24}}
reference: {{politeness: 0, safety: 0}}
draws: 200
jobs: 2
"""
SETTINGS = [word for word in SMALL if not word.startswith(("algorithm.", "run.max_steps"))]


def compare(folder, *more):
    path = folder.parent / "tiny.yaml"
    path.write_text(FILE.format(folder=folder, small=", ".join(SETTINGS)))
    return [*PROGRAM, "compare", str(path), *more]


def said(arguments):
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole comparison, after it was killed with the runs of its first method under way."""
    folder = tmp_path_factory.mktemp("compare") / "tiny"
    with subprocess.Popen(
        compare(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        lines = folder / "grpo" / "recipe" / "seed-0" / "metrics.jsonl"
        while process.poll() is None and (not lines.exists() or b'"align"' not in lines.read_bytes()):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "compare.json").exists()
    return folder, said(compare(folder))


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ranks(finished):
    folder, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(folder / "compare.json")
    assert found["refused"] == []
    assert {entry["ledger"]["reward_calls"] for entry in found["methods"].values()} == {24}
    assert sorted(entry["hypervolume"]["rank"] for entry in found["methods"].values()) in ([1, 2], [1, 1])
    ledger = read_jsonl(folder / "ledger.jsonl")
    assert [row["kind"] for row in ledger] == ["shared"] * 2 + ["run"] * 4
    assert all(
        row["peak_memory"] > 1e8 and row["judge_calls"] == 24 for row in ledger if row["kind"] == "run"
    )
    assert "hypervolume" in done.stdout
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_that_took_over_shared_stages_is_byte_for_byte_the_one_made_alone(finished, tmp_path):
    folder, _ = finished
    recipe = folder / "recipes" / "grpo-recipe-seed-0.yaml"
    alone = said([*PROGRAM, "run", str(recipe), f"run.output_dir={tmp_path / 'alone'}"])
    assert alone.returncode == 0, alone.stderr
    shared = folder / "grpo" / "recipe" / "seed-0"
    assert fingerprint(shared) == fingerprint(tmp_path / "alone")
    books = [read_json(run / "run.json") for run in (shared, tmp_path / "alone")]
    assert books[0]["config_hash"] == books[1]["config_hash"]
    generations = [run / "eval" / "final" / "generations.parquet" for run in (shared, tmp_path / "alone")]
    assert generations[0].read_bytes() == generations[1].read_bytes()
    weights = "policy/model.safetensors"
    links = [run / "recipe" / "seed-0" / weights for run in (folder / "grpo", folder / "rloo")]
    assert links[0].samefile(links[1]), "linked, not copied"


def here(capsys, folder, *more):
    """The command in this process, which has loaded everything already: exit code, output, errors."""
    with pytest.raises(SystemExit) as caught:
        main(compare(folder, *more)[len(PROGRAM) :])
    return caught.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_the_same_command_again_makes_nothing_and_says_the_same(finished, capsys):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "compare.json", folder / "ledger.jsonl")}
    code, out, errors = here(capsys, folder)
    assert code == 0, errors
    assert "4 runs, 4 of them complete before" in out
    assert {path: path.read_bytes() for path in before} == before
    code, _, errors = here(capsys, folder, "budget.amount=32")
    assert code == 2
    assert "budget: was declared before the first run" in errors


def test_a_check_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    code, out, errors = here(capsys, tmp_path / "tiny", "--check")
    assert code == 0, errors
    assert "runs       4: 2 methods x 1 weightings (recipe) x 2 seeds (0, 1)" in out
    assert "shared     2 times policy, reward and judge" in out
    assert "budget     24 reward_calls a run, 96 in all" in out
    assert "warning" not in out
    assert not (tmp_path / "tiny").exists()
    _, out, _ = here(capsys, tmp_path / "tiny", "--check", "budget={currency: rollout_tokens, amount: 100}")
    assert "a step takes up to 96 rollout_tokens with grpo" in out


def test_stages_of_another_recipe_are_not_taken_over(tmp_path):
    from paretune.config import bundled_recipes, load_config
    from paretune.core.errors import ConfigError
    from paretune.experiment.reuse import reuse_key, reuse_stages
    from paretune.run.folder import Run

    e = load_config(bundled_recipes()["demo"], ["run.seed=1"])
    with pytest.raises(ConfigError, match="cannot be taken over: holds no run"):
        reuse_stages(Run(tmp_path / "run"), tmp_path / "nothing", e)
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "run.json").write_text(json.dumps({"status": "done", "config_hash": "other"}))
    with pytest.raises(ConfigError, match="cannot be taken over: made otherwise"):
        reuse_stages(Run(tmp_path / "run"), source, e)
    (source / "run.json").write_text(json.dumps({"status": "stopped", "config_hash": reuse_key(e)}))
    with pytest.raises(ConfigError, match="its stages are not finished"):
        reuse_stages(Run(tmp_path / "run"), source, e)
    (source / "run.json").write_text(json.dumps({"status": "done", "config_hash": reuse_key(e)}))
    (source / "data" / "manifest.json").write_text('{"records": {"reward train": "others"}}')
    with pytest.raises(ConfigError, match="made from other records"):
        reuse_stages(Run(tmp_path / "run"), source, e)


def test_only_what_the_algorithm_does_not_decide_is_shared():
    from paretune.config import bundled_recipes, load_config
    from paretune.experiment.reuse import reuse_key

    def key(*more):
        return reuse_key(load_config(bundled_recipes()["demo"], more))

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
    thinks = "data.world.thinking=true"  # the start knows the tags; who is asked for them is decided later
    assert key() != key(thinks) == key(thinks, "thinking.invalid_format=worst")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_a_trial_is_known_by_what_its_policy_answers_afterwards(finished, tmp_path, capsys, method):
    """Also where a method never samples from the policy that learns."""
    from paretune.benchmark.costs import run_costs
    from paretune.benchmark.tuning import judge_score, training_reward

    folder, _ = finished
    recipe, run = folder / "recipes" / "grpo-recipe-seed-0.yaml", tmp_path / "trial"
    [made] = (folder / "shared").glob("seed-0-*")
    algorithm = f"algorithm={{name: {method}, n: 2, max_new: 12}}"
    more = [f"run.output_dir={run}", algorithm, "--shared", str(made), "--until"]

    def trial(until):
        with pytest.raises(SystemExit) as caught:
            main(["run", str(recipe), *more, until])
        assert caught.value.code == 0, capsys.readouterr().err
        return read_json(run / "eval" / "trial" / "trial.json")

    found = trial("trial")
    assert found["prompts"] == 240
    assert found["mean"].keys() == {"politeness", "meaningfulness", "actionability", "safety"}
    assert not (run / "eval" / "final").exists(), "no judge was asked"
    weights = {"safety": 2.0, "politeness": 1.0}
    expected = 2 * found["mean"]["safety"] + found["mean"]["politeness"]
    assert training_reward(run, weights) == pytest.approx(expected)
    assert training_reward(tmp_path / "elsewhere", weights) is None
    assert judge_score(run, weights) is None
    assert run_costs(run)["judge_calls"] == 0
    # The finished trial once more, and now the judge is asked of the same answers.
    asked = trial("judged-trial")
    judged = asked.pop("judge")
    assert asked == found
    assert judged["name"] == "the true scorer"
    assert judged["mean"].keys() == found["mean"].keys()
    assert judged["mean"] != found["mean"]
    assert set(judged["unscored"].values()) == {0.0}
    expected = 2 * judged["mean"]["safety"] + judged["mean"]["politeness"]
    assert judge_score(run, weights) == pytest.approx(expected)
    assert run_costs(run)["judge_calls"] == 240
    assert not (run / "eval" / "final").exists(), "no prompt of the evaluation was asked"


@pytest.mark.slow
def test_runs_of_one_start_are_mixed_and_every_mixture_evaluated(finished, tmp_path, capsys):
    folder, _ = finished
    runs = [str(folder / name / "recipe" / "seed-0") for name in ("grpo", "rloo")]
    written = set()
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(["soup", *runs, "--steps", "2", "--folder", str(tmp_path / "soup")])
        out, errors = capsys.readouterr()
        assert caught.value.code == 0, errors
        assert "0.5 : 0.5" in out
        written.add((tmp_path / "soup" / "soup.json").read_text())
    assert len(written) == 1, "the second call made nothing new"
    found = json.loads(written.pop())
    assert [each["shares"] for each in found["mixtures"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    # A mixture that is one of the runs is that run: same weights, same answers, same judgment.
    for run, name in zip(runs, ("100-0", "0-100"), strict=True):
        own, mixed = (
            read_json(f / "eval" / "final" / "eval.json") for f in (Path(run), tmp_path / "soup" / name)
        )
        assert own["objectives"] == mixed["objectives"]
        assert (tmp_path / "soup" / name / "report.html").exists()
    assert found["start"].keys() == set(own["objectives"])
    volume = found["hypervolume"]
    assert 0 <= volume["runs"] <= volume["soups"]
    with pytest.raises(SystemExit):
        main(["soup", runs[0], str(folder / "rloo" / "recipe" / "seed-1"), "--folder", str(tmp_path / "s")])
    assert "has another start, seed, reward, judge or evaluation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["soup", runs[0], "--folder", str(tmp_path / "s")])
    assert "two or more different runs" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_soups_mixtures_share_one_in_equal_steps():
    from paretune.experiment.merge import merge_dir_name, merge_grid

    assert list(merge_grid(2, 4)) == [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]
    three = list(merge_grid(3, 2))
    assert len(three) == 6
    assert all(sum(each) == 1 for each in three)
    assert merge_dir_name((0.125, 0.875)) == "12.5-87.5"
