"""One GRPO run on every type of signal at once, a resume, several judges, and scorers that fail."""

import json
import re
from pathlib import Path

import pytest

from paretune.cli import main
from support.judge_server import JudgeServer, serve
from support.tiny_classifiers import save_classifier
from support.tiny_models import tiny_model, tiny_tokenizer

FUNCTIONS = """\
STEPS = []

def correct(completions, answer, trainer_state, log_metric, **kwargs):
    STEPS.append(trainer_state.global_step)
    log_metric("calls", len(STEPS))
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if a is None else float(a in t) for a, t in zip(answer, texts)]

def two(completions, completion_ids, **kwargs):
    return {"vowels": [0.1 * len(ids) for ids in completion_ids], "spaces": [1.0] * len(completions)}

def often(completions, **kwargs):
    raise ValueError("no number found")
"""
RUBRIC = """\
criteria:
  polite: {text: "Is it polite?", levels: {rude: 0, polite: 1}}
"""
RECIPE = """\
name: signals
data:
  prompts: {main: {file: prompts.jsonl}}
  test_prompts: {main: {file: test.jsonl}}
policy: {path: model}
reward:
  objectives: {fitted: {}}
  ratings: {raters: {file: ratings.jsonl, labels: {fitted: score}}}
  allow_weak_heads: true
  training: {num_train_epochs: 1, learning_rate: 1e-3, batch_size: 8}
scorers:
  correct: {type: python, function: "functions.py:correct"}
  both: {type: python, function: "functions.py:two", objectives: [vowels, spaces]}
  brief: {type: rule, rule: length, unit: tokens, max: 4}
  calm: {type: classifier, path: classifier, label: toxic, invert: true}
  ready: {type: reward_model, path: ready, outputs: {helpful: 0, honest: LABEL_1}}
  judge: {type: llm_judge, base_url: "URL", model: judge, rubric: rubric.yaml}
judges:
  strict: {type: rule, rule: length, max: 3, objective: brief}
  lax: {type: rule, rule: length, unit: characters, max: 40, objective: brief}
objectives:
  fitted: {}
  correct: {}
  vowels: {weight: 0.1}
  spaces: {weight: 0.0}
  brevity: {scorer: brief, weight: 0.5}
  brief: {scorer: brief, weight: 0.0}
  calm: {gate: helpful >= 0, gate_fallback: 0}
  helpful: {}
  honest: {}
  polite: {}
algorithm: {name: grpo, num_generations: 2, max_new_tokens: 6}
training: {learning_rate: 1e-3, prompts_per_step: 4}
run: {max_steps: 2, save_steps: 1, num_threads: 1}
evaluate: {bootstrap_samples: 200, verdict: majority}
"""
PAIRWISE = (
    "verdict: majority, "
    'pairwise: {overall: {type: llm_judge, base_url: "URL", model: judge, rubric: rubric.yaml}}'
)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code or 0


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "rubric.yaml").write_text(RUBRIC)
    write(
        folder / "prompts.jsonl",
        [{"prompt": f"item {i}?", "answer": "a" if i % 2 else None} for i in range(8)],
    )
    write(folder / "test.jsonl", [{"prompt": f"item {i + 50}?", "answer": "e"} for i in range(6)])
    write(
        folder / "ratings.jsonl",
        [{"prompt": f"rated {i}", "response": "yes" * (i % 5 + 1), "score": (i % 5) / 4} for i in range(24)],
    )
    tokenizer = tiny_tokenizer()
    tiny_model("llama", len(tokenizer), width=16, heads=2, context=96).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    save_classifier(folder / "classifier", "bert")
    save_classifier(folder / "ready", "llama", ("LABEL_0", "LABEL_1"), problem_type="regression")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    server = JudgeServer()
    with serve(server), pytest.MonkeyPatch.context() as patch:
        (folder / "signals.yaml").write_text(
            RECIPE.replace("verdict: majority", PAIRWISE).replace("URL", server.url)
        )
        patch.chdir(folder)
        assert run("run", "signals.yaml") == 0
    return folder / "runs" / "signals"


def metrics_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_every_signal_has_a_curve(finished):
    line = [line for line in metrics_of(finished) if line["stage"] == "align"][-1]
    for name in ("fitted", "correct", "vowels", "spaces", "brevity", "calm", "helpful", "honest", "polite"):
        assert f"score/{name}/mean" in line, name
    assert line["scorer/correct/calls"] > 0
    assert line["scorer/judge/requests"] > 0
    assert 0 < line["score/correct/unscored_fraction"] < 1, "None is not applicable"
    # One scorer under two names scores both.
    assert line["score/brevity/mean"] == line["score/brief/mean"]


def test_several_judges_have_tables_and_one_verdict(finished):
    results = json.loads((finished / "eval" / "final" / "eval.json").read_text())
    assert set(results["judges"]) == {"strict", "lax"}
    assert set(results["objectives"]["brief"]["verdicts"]) == {"strict", "lax"}
    assert results["agreement"]["brief"]["num_responses"] == 12
    assert results["verdict_rule"] == "majority"
    # Objectives without a judge show the numbers of the training's own scorers, and can never be "better".
    assert results["objectives"]["polite"]["num_scored"] == 6
    assert not results["objectives"]["polite"]["independent"]


def test_pairs_are_compared_after_the_run_and_the_page_says_so(finished, folder, monkeypatch, capsys):
    results = json.loads((finished / "eval" / "final" / "eval.json").read_text())
    entry = results["pairwise"]["overall"]["objectives"]["polite"]
    assert entry["win_rate"]["num_prompts"] == 6
    assert not entry["independent"], "a scorer of the training asks the same model"
    assert "<h2>Pairs of responses</h2>" in (finished / "report.html").read_text()
    monkeypatch.chdir(folder)
    assert run("check", "signals.yaml") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "evaluate.pairwise.overall: up to 12 (0 in the training, 12 in the evaluation)" in output


def test_the_judge_is_asked_once_for_each_response(finished, folder):
    assert (finished / "judge_cache").is_dir()
    manifest = json.loads((finished / "data" / "manifest.json").read_text())
    assert {Path(path).name for path in manifest["scorer_files"]} == {"functions.py", "rubric.yaml"}
    assert {Path(path).name for path in manifest["models"]} == {"model", "classifier", "ready"}


OFTEN = 'scorers:\n  often: {type: python, function: "functions.py:often"}\nobjectives:\n  often: {}\n'


def test_a_scorer_that_fails_too_often_stops_the_run(finished, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    # Without a section reward.
    text = re.sub(r"reward:.*?algorithm:", f"{OFTEN}algorithm:", RECIPE, flags=re.S)
    text = text.replace(", verdict: majority", "").replace("name: signals", "name: often")
    (folder / "often.yaml").write_text(text)
    assert run("run", "often.yaml") == 5
    error = capsys.readouterr().err
    assert "scorers.often did not score 8 of 8 responses (8 x ValueError: no number found" in error
    assert "max_failure_rate is 0.2" in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("functions.py:correct", "functions.py:corect", "scorers.correct.function"),
        ("functions.py:correct", "nofile.py:f", "scorers.correct.function"),
        ("label: toxic", "label: toxik", "scorers.calm.label"),
        ("honest: LABEL_1", "honest: LABEL_9", "scorers.ready.outputs"),
        ("rubric: rubric.yaml", "rubric: rubrik.yaml", "scorers.judge.rubric"),
        ("unit: tokens, max: 4", "unit: tokens", "scorers.brief"),
    ],
)
def test_check_tells_what_is_wrong_at_its_key(folder, monkeypatch, capsys, old, new, message):
    monkeypatch.chdir(folder)
    assert old in RECIPE
    (folder / "wrong.yaml").write_text(RECIPE.replace(old, new).replace("URL", "http://127.0.0.1:9/v1"))
    assert run("check", "wrong.yaml") == 2
    error = capsys.readouterr().err
    lines = (folder / "wrong.yaml").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if new in line)
    assert f"wrong.yaml:{number}" in error
    assert message in error


def test_a_column_that_a_function_needs_must_exist(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "needs.py").write_text("def f(completions, solution):\n    return [1.0] * len(completions)\n")
    text = RECIPE.replace("functions.py:correct", "needs.py:f").replace("URL", "http://127.0.0.1:9/v1")
    (folder / "needs.yaml").write_text(text)
    assert run("check", "needs.yaml") == 2
    error = capsys.readouterr().err
    assert "scorers.correct.function" in error
    assert "solution" in error
    assert "answer" in error
