"""Choosing a point by a rule: the rule's language, constraints by bounds, and no point at all."""

import json

import numpy as np
import pytest

from paretune.benchmark.choose import Level, _shortfall, choose, describe_choice
from paretune.benchmark.choose_points import load_candidates
from paretune.benchmark.choose_rule import Constraint, parse_rule
from paretune.cli import main
from paretune.core.errors import ConfigError
from paretune.core.goals import Goal
from paretune.run.io import to_json
from support.fake_sweep import fake_sweep, results_of

GOALS = {
    "safety": Goal(),
    "actionability": Goal(),
    "toxicity": Goal("lower"),
    "length": Goal("target", 120.0),
}


@pytest.mark.parametrize(
    ("text", "constraints", "best"),
    [
        ("safety >= 0.8, then actionability", [("safety", ">=", 0.8, False)], ("actionability",)),
        ("safety>=.8 by mean,actionability", [("safety", ">=", 0.8, True)], ("actionability",)),
        ("toxicity ≤ 1e-1, then least toxicity", [("toxicity", "<=", 0.1, False)], ("toxicity",)),
        (
            "safety not worse by 0.05, actionability is not worse, then best length",
            [("safety", "not worse", 0.05, False), ("actionability", "not worse", None, False)],
            ("length",),
        ),
        ("then most safety + actionability", [], ("safety", "actionability")),
        (
            "length >= -3, length <= 200, safety",
            [("length", ">=", -3.0, False), ("length", "<=", 200.0, False)],
            ("safety",),
        ),
    ],
)
def test_rule_is_read(text, constraints, best):
    rule = parse_rule(text, GOALS)
    assert rule.constraints == tuple(Constraint(*each) for each in constraints)
    assert rule.best == best


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "is empty"),
        ("safty >= 0.8, then actionability", 1, 'did you mean "safety"?'),
        ("safety >= 0.8, then actionabilty", 15, 'did you mean "actionability"?'),
        ("safety > 0.8, then actionability", 1, "write >= or <= and a number"),
        ("safety >= high, then actionability", 1, '"safety >= high" is no constraint'),
        ("safety >= 0.8", 1, '"safety >= 0.8" does not say what is best'),
        ("then safety, actionability", 1, "put what is best last"),
        ("safety >= 0.8, then", 15, "does not say what is best"),
        ("then most toxicity", 1, '"most toxicity": lower is better; fix: write "then best toxicity"'),
        ("then least safety", 1, '"least safety": higher is better'),
    ],
)
def test_mistakes_in_a_rule_have_a_place_and_a_fix(text, column, message):
    with pytest.raises(ConfigError) as caught:
        parse_rule(text, GOALS)
    assert str(caught.value).startswith(f"(rule):1:{column}: ")
    assert message in str(caught.value)
    assert "fix: " in str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of five points: safety from 0.6 to 0.95, actionability from 0.3 to 0.7."""
    out = tmp_path_factory.mktemp("sweep") / "swept"
    sweep, shares = fake_sweep(out, points=5)
    (out / "sweep.json").write_text(to_json(results_of(sweep, shares)))
    return out


def test_chosen_point_meets_the_constraint_by_its_lower_bound_and_is_then_best(folder):
    choice = choose(folder, "safety >= 0.75, then most actionability")
    chosen = choice.levels["safety"][choice.index]
    assert chosen.low >= 0.75
    feasible = [i for i, level in enumerate(choice.levels["safety"]) if level.low >= 0.75]
    assert [i for i, each in enumerate(choice.feasible) if each] == feasible
    means = [choice.levels["actionability"][i].mean for i in feasible]
    assert choice.levels["actionability"][choice.index].mean == max(means)
    by_mean = choose(folder, "safety >= 0.75 by mean, then actionability")
    assert sum(by_mean.feasible) >= sum(choice.feasible)
    text = describe_choice(choice)
    assert f"feasible   {len(feasible)} of 5 points" in text
    assert str(choice.run_dir / "final") in text
    assert "5 points on the same prompts" in text
    assert "One training run" in text


def test_intervals_hold_for_all_points_at_once(folder):
    """Wider than that of one mean alone, since the chosen point may be any of them."""
    level = choose(folder, "then safety").levels["safety"][0]
    from paretune.evaluate.stored_scores import read_generations

    _, columns = read_generations(folder / "grpo" / "w1000-0" / "seed-0")
    scores = columns["safety"][1][:, 0]
    alone = 1.96 * scores.std() / np.sqrt(len(scores))
    assert level.mean == pytest.approx(scores.mean())
    assert 1.1 * alone < level.mean - level.low < 2 * alone


def test_not_worse_is_about_the_paired_change_from_the_initial_policy(folder):
    choice = choose(folder, "actionability not worse by 0.02, then safety")
    assert not choice.feasible[0], "all weight on safety: actionability fell from 0.34 to 0.30"
    assert sum(choice.feasible) == 4
    with pytest.raises(ConfigError, match="does not say how large a loss counts"):
        choose(folder, "actionability not worse, then safety")


def test_rule_that_no_point_meets_says_what_fails_by_how_much(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["choose", str(folder), "safety >= 0.99, actionability >= 0.2, then actionability"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "no point of 5 meets the rule" in error
    assert (
        "safety >= 0.99: none meets it; nearest is safety : actionability = 1 : 0 with lower bound" in error
    )
    assert "actionability >= 0.2: 5 points meet it alone" in error
    with pytest.raises(ConfigError) as told:
        choose(folder, "safety >= 0.84, actionability >= 0.65, then safety")
    assert str(told.value).count("it alone") == 2, "each is met, and never both"
    assert "together: nearest is safety : actionability = " in str(told.value)


def test_several_seeds_are_one_point_whose_first_policy_is_exported(tmp_path, monkeypatch, capsys):
    out = tmp_path / "swept"
    sweep, shares = fake_sweep(out, points=3, seeds=[0, 1, 2])
    (out / "sweep.json").write_text(to_json(results_of(sweep, shares)))
    exported = []
    monkeypatch.setattr(
        "paretune.api.exports.export",
        lambda run, output_dir: exported.append((run, output_dir)) or output_dir,
    )
    with pytest.raises(SystemExit) as caught:
        main(["choose", str(out), "safety >= 0.7, then actionability", "--export", str(tmp_path / "to")])
    assert caught.value.code == 0
    assert exported == [(out / "grpo" / "w500-500" / "seed-0", tmp_path / "to")]
    output = capsys.readouterr().out
    assert "the first of 3 training seeds" in output
    assert "One training run" not in output
    with pytest.raises(SystemExit) as caught:
        main(["choose", str(out), "then actionability", "--export", str(tmp_path)])
    assert caught.value.code == 2, "told before anything is chosen"


def test_points_of_comparisons_and_merges(folder, tmp_path):
    runs = folder / "grpo"
    (tmp_path / "grpo").symlink_to(runs)
    (tmp_path / "benchmark.json").write_text(
        json.dumps({"methods": {"grpo": {}}, "weightings": {"w1000-0": {}, "w0-1000": {}}, "seeds": [0]})
    )
    assert choose(tmp_path, "then safety").chosen.label == "grpo w1000-0"
    (tmp_path / "benchmark.json").unlink()
    merges = [
        {"weights": [1.0, 0.0], "dir": "grpo/w1000-0/seed-0"},
        {"weights": [0.5, 0.5], "dir": "grpo/w500-500/seed-0"},
    ]
    (tmp_path / "merge.json").write_text(json.dumps({"merges": merges}))
    assert choose(tmp_path, "safety >= 0.6, then actionability").chosen.label == "merge 0.5 : 0.5"


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path / "nothing"])
def test_folder_without_points_is_refused(tmp_path, make):
    with pytest.raises(ConfigError, match="fix: name the folder of a finished one"):
        load_candidates(make(tmp_path))


def test_cautions_of_the_judge_are_repeated(folder, tmp_path):
    path = folder / "grpo" / "w1000-0" / "seed-0" / "eval" / "final" / "eval.json"
    text = path.read_text()
    values = json.loads(text)
    values["objectives"]["safety"]["cautions"] = ["The judge of safety ranks against its labels."]
    path.write_text(json.dumps(values))
    try:
        assert "The judge of safety ranks against its labels." in choose(folder, "then safety").cautions
    finally:
        path.write_text(text)


def test_upper_bound_counts_where_a_score_must_be_low():
    rule = parse_rule("toxicity <= 0.2, then least toxicity", GOALS)
    levels = [Level(0.1, 0.05, 0.15), Level(0.19, 0.1, 0.25)]
    assert [_shortfall(rule.constraints[0], 0.2, level) > 0 for level in levels] == [False, True]
    assert _shortfall(Constraint("toxicity", "<=", 0.2, by_mean=True), 0.2, levels[1]) <= 0


def test_evaluated_steps_of_a_run_can_be_chosen_but_only_the_kept_one_exported(folder, tmp_path, capsys):
    for step, point in ((20, "w1000-0"), (40, "w500-500")):
        (tmp_path / "eval").mkdir(exist_ok=True)
        target = tmp_path / "eval" / f"step-{step:06d}"
        target.symlink_to(folder / "grpo" / point / "seed-0" / "eval" / "final")
    (tmp_path / "run.json").write_text(json.dumps({"status": "done", "selected_step": 20}))
    choice = choose(tmp_path, "safety >= 0.6, then actionability")
    assert choice.chosen.label == "step 40"
    assert "the run kept the weights of step 20 only" in describe_choice(choice)
    assert choose(tmp_path, "then safety").chosen.missing_policy == ""
    with pytest.raises(SystemExit) as caught:
        main(["choose", str(tmp_path), "then actionability", "--export", str(tmp_path / "to")])
    assert caught.value.code == 2
    assert "step 40 cannot be exported" in capsys.readouterr().err
