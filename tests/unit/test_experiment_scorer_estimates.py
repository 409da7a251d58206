"""What `paretune check` tells of scorers: time, memory, requests, and prompts that they cannot read."""

import math
from dataclasses import replace

import pytest
import torch

from paretune.config import judges, load_config
from paretune.data.records import Message, Prompt
from paretune.experiment import estimates, scoring_models
from paretune.experiment import scorers as typed_scorers
from paretune.experiment.dataset import Dataset
from paretune.experiment.readability import prompt_readings, unreadable_issues
from paretune.experiment.request_estimates import RequestEstimate, request_estimates
from paretune.experiment.resolved import resolve
from paretune.experiment.scorers import scorer_problems
from paretune.experiment.scoring_models import Lengths
from paretune.models.flops import ModelFlops
from support.tiny_classifiers import save_classifier

RUBRIC = """\
criteria:
  polite: {text: "Is it polite?", levels: {no: 0, yes: 1}}
  clear: {text: "Is it clear?", levels: {no: 0, yes: 1}}
"""
JUDGE = "type: llm_judge, base_url: http://127.0.0.1:9/v1, model: m, rubric: rubric.yaml"


def resolved(folder, scorers, objectives, *, judges="{}", steps=6, tokens=20):
    """A run of the built-in world with these scorers."""
    (folder / "rubric.yaml").write_text(RUBRIC)
    path = folder / "r.yaml"
    path.write_text(
        "name: x\ndata: {world: {}}\npolicy: {path: world, sft: {}}\n"
        f"algorithm: {{name: grpo, num_generations: 4, max_new_tokens: {tokens}}}\n"
        f"training: {{prompts_per_step: 3}}\nrun: {{max_steps: {steps}}}\n"
        f"scorers: {{{scorers}}}\njudges: {judges}\nobjectives: {{{objectives}}}\n"
        "evaluate: {num_generations: 2}\n"
    )
    return resolve(load_config(path))


def dataset(*texts):
    """As many training as test prompts."""
    prompts = tuple(Prompt(messages=(Message("user", text),)) for text in texts)
    return Dataset(train_prompts={"p": prompts}, test_prompts=prompts)


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Its own, on a machine of a known rate."""
    monkeypatch.chdir(tmp_path)
    for module in (estimates, scoring_models):
        monkeypatch.setattr(module, "layer_throughput", lambda *shape: 1e9)


@pytest.mark.parametrize(
    ("family", "reads", "kind"),
    [
        ("bert", "response", "encoder"),
        ("deberta-v2", "prompt_and_response", "encoder"),
        ("distilbert", "response", "encoder"),
        ("llama", "conversation", "causal"),
    ],
)
def test_classifiers_count_in_time_and_memory(family, reads, kind, tmp_path):
    save_classifier(tmp_path / "m", family, num_hidden_layers=3)
    scorers = f"tox: {{type: classifier, path: m, label: toxic, reads: {reads}}}"
    run = resolved(tmp_path, scorers, "tox: {}")
    (model,) = scoring_models.scoring_models(run.config, torch.device("cpu"))
    assert model.in_training
    assert model.size is not None
    assert model.size.is_causal == (kind == "causal")
    assert model.num_bytes == 4 * model.size.num_params > 0
    lengths = Lengths(prompt=30.0, response=10.0)
    model = replace(model, rate=1.0)  # seconds are operations
    flops = model.seconds(2, 8, lengths, 1e9)
    weights = 2 * model.size.flops.trainable_params
    num_tokens = {"response": 80, "prompt_and_response": 320, "conversation": 2 * 30 + 80}[reads]
    assert weights * num_tokens < flops < 2 * weights * num_tokens
    assert model.seconds(2, 16, lengths, 1e9) > flops


def test_a_large_scorer_raises_the_estimates_of_a_run(tmp_path):
    data = dataset("question one", "question two")
    rule = resolved(tmp_path, "brief: {type: rule, rule: length, max: 9}", "brief: {}")
    before = estimates.estimate_run(rule, data)
    save_classifier(tmp_path / "m", "bert", hidden_size=256, intermediate_size=1024, num_hidden_layers=8)
    classifier = "{type: classifier, path: m, label: toxic}"
    after = estimates.estimate_run(resolved(tmp_path, f"tox: {classifier}", "tox: {}"), data)
    judged = resolved(
        tmp_path, "brief: {type: rule, rule: length, max: 9}", "brief: {}", judges=f"{{tox: {classifier}}}"
    )
    assert before is not None
    assert after is not None
    (model,) = scoring_models.scoring_models(judged.config, torch.device("cpu"))
    assert not model.in_training
    assert after.memory.peak - before.memory.peak == pytest.approx(model.num_bytes, rel=0.01)
    assert after.seconds["training"] > before.seconds["training"]
    estimate = estimates.estimate_run(judged, data)
    assert estimate is not None
    assert estimate.memory.peak >= before.memory.peak


def test_a_scorer_of_unknown_size_leaves_the_time_unknown(tmp_path, monkeypatch):
    save_classifier(tmp_path / "m", "llama", ("score",))
    run = resolved(tmp_path, "rm: {type: reward_model, path: m}", "rm: {}")

    def fail(model):
        raise AttributeError

    monkeypatch.setattr(ModelFlops, "from_model", fail)
    estimate = estimates.estimate_run(run, dataset("a question"))
    assert estimate is not None
    assert math.isnan(estimate.seconds["training"])
    assert math.isnan(estimate.memory.peak)


def test_requests_of_a_judge_are_one_per_response(tmp_path):
    run = resolved(
        tmp_path,
        f"rater: {{{JUDGE}, input_price: 1.0, output_price: 4.0}}",
        "polite: {}, clear: {}",
        judges=f"{{other: {{{JUDGE}}}}}",
    )
    scorer, judge = request_estimates(run, dataset("one", "two", "three"))
    # 6 steps x 3 prompts x 4 responses; 2 policies x 3 prompts x 2 responses; both criteria in one request.
    assert (scorer.in_training, scorer.in_evaluation) == (72, 12)
    assert (judge.in_training, judge.in_evaluation) == (0, 12)
    assert judge.describe() == "judges.other: up to 12 (0 in the training, 12 in the evaluation)"
    assert 100e-6 < scorer.cost_per_request < 1000e-6  # some 300 tokens
    assert scorer.describe().startswith(
        "scorers.rater: up to 84 (72 in the training, 12 in the evaluation), "
    )
    assert list(scorer.warnings()) == []


@pytest.mark.parametrize(
    ("caps", "found"),
    [
        ({"max_requests": 84}, []),
        ({"max_requests": 36}, ["max_requests is 36, and the run asks up to 84 requests: after 50 % of the"]),
        ({"max_requests": 80}, ["max_requests is 80, and the run asks up to 84 requests: in the evaluation"]),
        ({"max_cost": 0.84}, []),
        (
            {"max_cost": 0.18},
            ["max_cost is 0.18, and the requests of the run cost about 0.84: after 25 % of"],
        ),
        ({"max_requests": 1, "max_cost": 0.01}, ["max_requests is 1, ", "max_cost is 0.01, "]),
    ],
)
def test_a_cap_that_the_run_must_hit_is_told(caps, found):
    estimate = RequestEstimate(
        scorer="scorers.rater",
        in_training=72,
        in_evaluation=12,
        cost_per_request=0.01,
        **({"max_requests": None, "max_cost": None} | caps),
    )
    texts = list(estimate.warnings())
    assert len(texts) == len(found)
    assert all(text.startswith(f"scorers.rater.{start}") for text, start in zip(texts, found, strict=True))


def test_prompts_that_do_not_fit_into_a_scorer_are_counted(tmp_path):
    save_classifier(tmp_path / "bert", "bert")  # 128 tokens, one per byte
    save_classifier(tmp_path / "llama", "llama", ("score",))
    data = dataset("a", "b" * 110, "c" * 200)
    pair = "{type: classifier, path: bert, label: toxic, reads: prompt_and_response}"
    run = resolved(
        tmp_path,
        f"pair: {pair}, rm: {{type: reward_model, path: llama}}",
        "pair: {}, rm: {}",
        judges=f"{{j: {pair}}}",
    )
    readings = {(r.scorer, r.kind): (r.num_unreadable, r.num_tight) for r in prompt_readings(run, data)}
    assert readings == {
        ("scorers.pair", "training"): (1, 1),
        ("scorers.pair", "test"): (1, 1),
        ("scorers.rm", "training"): (2, 0),  # the chat template adds a few dozen tokens
        ("scorers.rm", "test"): (2, 0),
        ("judges.j", "test"): (1, 1),
    }
    (issue, *_) = unreadable_issues(run, list(prompt_readings(run, dataset("d" * 300))))
    assert "scorers.pair.path: reads 128 tokens, and every one of the 1 training prompts is longer" in issue


@pytest.mark.parametrize(("tokens", "told"), [(120, False), (126, False), (127, True), (400, True)])
def test_a_classifier_of_responses_alone_is_told_of_responses_that_are_too_long(tokens, told, tmp_path):
    save_classifier(tmp_path / "m", "bert")
    scorers = "tox: {type: classifier, path: m, label: toxic}"
    run = resolved(tmp_path, scorers, "tox: {}", tokens=tokens)
    (reading,) = prompt_readings(run, dataset("x" * 500, "y"))
    text = reading.describe()
    assert bool(text) == told
    if told:
        assert text.startswith(f"scorers.tox reads 128 tokens, and responses may have {tokens}: longer ones")
        assert "algorithm.max_new_tokens" in text


def test_a_rubric_is_parsed_once_and_again_after_a_change(tmp_path, monkeypatch):
    parsed = []
    parse = judges.parse_yaml
    monkeypatch.setattr(judges, "parse_yaml", lambda *a: parsed.append(a) or parse(*a))
    judges._parse_rubric.cache_clear()
    run = resolved(tmp_path, f"rater: {{{JUDGE}}}", "polite: {}, clear: {}")
    path, name, section = ("scorers", "rater"), "rater", run.config.scorers["rater"]
    assert list(scorer_problems(path, name, section, ())) == []
    request_estimates(run, dataset("one"))
    assert len(parsed) == 1
    (tmp_path / "rubric.yaml").write_text(RUBRIC.replace("clear", "short"))
    assert judges.load_rubric("rubric.yaml").objectives == ("polite", "short")
    assert len(parsed) == 2


@pytest.mark.parametrize("columns", [{}, {"answer": 4}])
def test_a_function_is_loaded_once_by_a_check(columns, tmp_path, monkeypatch):
    (tmp_path / "f.py").write_text("def f(completions, answer): return [1.0]\n")
    run = resolved(tmp_path, 'f: {type: python, function: "f.py:f"}', "f: {}")
    loaded = []
    load = typed_scorers.load_section_function
    monkeypatch.setattr(typed_scorers, "load_section_function", lambda s: loaded.append(s) or load(s))
    prompt = Prompt(messages=(Message("user", "2 + 2"),), columns=columns)
    found = list(scorer_problems(("scorers", "f"), "f", run.config.scorers["f"], (prompt,)))
    assert len(found) == (0 if columns else 1)
    assert len(loaded) == 1
