"""Judges of pairs: both orders are asked, failures stay missing and bound the verdict, requests count."""

import json
import math
import re
from dataclasses import replace

import pytest

from paretune.api.loading import LoadingContext
from paretune.api.pairwise import load_pairwise_judges
from paretune.config import load_config
from paretune.core.errors import ConfigError, ScoringError, WiringError
from paretune.data.records import Message, Prompt, Sample
from paretune.evaluate.generate import Generations
from paretune.evaluate.judging import Judge
from paretune.evaluate.pairwise_judges import PairwiseScorer, compare_pairs
from paretune.experiment import estimates, scoring_models
from paretune.experiment.dataset import Dataset
from paretune.experiment.request_estimates import request_estimates
from paretune.experiment.resolved import resolve
from paretune.experiment.scorers import scorer_files
from paretune.report.tables import pairwise_phrases
from paretune.reward import judge_client
from paretune.reward.failures import GuardedScorer
from paretune.reward.judge_requests import JudgeEndpoint
from paretune.reward.llm_judge import LlmJudgeScorer
from paretune.reward.pairwise_functions import FunctionComparison
from paretune.reward.rubric import Rubric
from support.judge_server import JudgeServer, completion, serve

CRITERIA = 'criteria:\n  good: {text: "Good?", levels: {no: 0, yes: 1}}\n'
RUBRIC = Rubric.model_validate({"criteria": {"good": {"text": "Good?", "levels": {"no": 0, "yes": 1}}}})
SHOWN = re.compile(r"<(first|second)-\w+>\n(.*?)\n</", re.DOTALL)
NUM_PROMPTS, FEW = 10, {"bootstrap_samples": 200}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_PAUSE", 0.001)


@pytest.fixture
def server():
    with serve(JudgeServer()) as each:
        yield each


def arms(before="poor", after="fine", num_generations=1, num_prompts=NUM_PROMPTS):
    """Responses of both policies to numbered prompts."""
    prompts = tuple(Prompt(messages=(Message("user", f"item {i}"),), id=f"p{i}") for i in range(num_prompts))
    return tuple(
        Generations(
            prompts=prompts,
            num_generations=num_generations,
            samples=tuple(
                Sample(prompt=prompt, response=f"{text} {j}")
                for prompt in prompts
                for j in range(num_generations)
            ),
            response_lengths=tuple(range(num_prompts * num_generations)),
            batches=(),
        )
        for text in (before, after)
    )


def llm_judge(server, folder, **options):
    endpoint = JudgeEndpoint(base_url=server.url, model="judge", timeout=5.0, max_retries=0)
    scorer = LlmJudgeScorer(rubric=RUBRIC, endpoint=endpoint, cache_dir=folder, **options)
    return Judge(name="the judge", scorer=GuardedScorer("pairs", scorer), data_hashes=None, key="pairs")


def answering(choose):
    """A reply of the endpoint by a function of item, and of the texts shown first and second."""

    def reply(body, item):
        shown = dict(SHOWN.findall(body["messages"][1]["content"]))
        answer = choose(item, shown["first"], shown["second"])
        return answer if isinstance(answer, tuple) else (200, completion(json.dumps({"good": answer})), {})

    return reply


def fine_wins(item, first, second):
    return "first" if first.startswith("fine") else "second"


def test_the_better_policy_wins_and_both_orders_are_asked_once(server, tmp_path):
    server.reply = answering(fine_wins)
    judge = llm_judge(server, tmp_path)
    assert isinstance(judge.scorer.scorer, PairwiseScorer)
    result = compare_pairs(arms(num_generations=2, num_prompts=8), [judge], **FEW)["pairs"]
    assert (result["num_pairs"], len(server.bodies)) == (16, 32)
    entry = result["objectives"]["good"]
    assert (entry["verdict"], entry["win_rate"]["rate"], entry["win_rate"]["num_prompts"]) == (
        "better", 1.0, 8,
    )  # fmt: skip
    assert 0.6 < entry["win_rate"]["low"] < 1
    assert (entry["win_rate"]["disagreement_rate"], entry["position_bias"]) == (0, 0)
    compare_pairs(arms(num_generations=2, num_prompts=8), [judge], **FEW)
    assert len(server.bodies) == 32, "replies come from the cache"


@pytest.mark.parametrize(("place", "bias"), [("first", 1.0), ("second", -1.0)])
def test_a_judge_that_prefers_a_place_finds_no_evidence(server, tmp_path, place, bias):
    server.reply = answering(lambda *_: place)
    entry = compare_pairs(arms(), [llm_judge(server, tmp_path)], **FEW)["pairs"]["objectives"]["good"]
    assert (entry["verdict"], entry["win_rate"]["rate"]) == ("no evidence", 0.5)
    assert (entry["win_rate"]["disagreement_rate"], entry["position_bias"], entry["tie_rate"]) == (1, bias, 1)


@pytest.mark.parametrize(
    "failure",
    [
        (200, completion("A is better, I think."), {}),
        (200, completion(json.dumps({"good": "neither"})), {}),
        (400, {"error": {"message": "no"}}, {}),
    ],
)
def test_what_cannot_be_read_is_missing_with_a_reason_and_no_tie(server, tmp_path, failure):
    server.reply = answering(
        lambda item, first, second: (
            failure if item < 1 and first.startswith("poor") else fine_wins(item, first, second)
        )
    )
    reported = []
    judge = llm_judge(server, tmp_path)
    judge.scorer.on_failures = lambda name, counts: reported.append(counts)
    entry = compare_pairs(arms(), [judge], **FEW)["pairs"]["objectives"]["good"]
    assert (entry["win_rate"]["rate"], entry["tie_rate"]) == (1.0, 0.0)
    assert (entry["missing"]["before_first"], entry["missing"]["after_first"]) == (1, 0)
    assert entry["missing"]["fraction"] == pytest.approx(0.1)
    assert entry["missing"]["low"] == pytest.approx(entry["win_rate"]["low"] - 0.1)
    assert entry["verdict"] == "inconclusive", "10 % are missing"
    assert reported[0].reasons.total() == 1


def test_too_many_failures_stop_and_other_judges_give_no_number(server, tmp_path):
    server.reply = lambda body, item: (400, {"error": {"message": "no"}}, {})
    with pytest.raises(ScoringError, match="max_failure_rate"):
        compare_pairs(arms(), [llm_judge(server, tmp_path)], **FEW)
    entry = compare_pairs(arms(), [llm_judge(server, tmp_path, max_failure_rate=1.0)], **FEW)["pairs"]
    entry = entry["objectives"]["good"]
    assert (entry["verdict"], entry["missing"]["fraction"]) == ("not measured", 1.0)
    assert (entry["missing"]["low"], entry["missing"]["high"]) == (0.0, 1.0)


def test_a_judge_that_is_the_training_reward_never_says_better(server, tmp_path):
    server.reply = answering(fine_wins)
    judge = replace(llm_judge(server, tmp_path), weights_hash="model")
    reward = Judge(name="reward", scorer=GuardedScorer("r", judge.scorer.scorer), weights_hash="model")
    entry = compare_pairs(arms(), [judge], reward_judges=[reward], **FEW)["pairs"]["objectives"]["good"]
    assert not entry["independent"]
    assert entry["verdict"] != "better"
    assert entry["cautions"]


def longer(prompt, first, second):
    return "first" if len(first) > len(second) else "second" if len(second) > len(first) else "tie"


def test_a_function_is_a_judge_of_pairs():
    context = LoadingContext(prompts=arms()[0].prompts, tokenizer=None)
    (judge,) = load_pairwise_judges({"length": longer}, context)
    results = {"pairwise": compare_pairs(arms(after="a longer one"), [judge], **FEW)}
    entry = results["pairwise"]["length"]["objectives"]["preference"]
    assert (entry["verdict"], entry["win_rate"]["rate"]) == ("better", 1.0)
    (line,) = pairwise_phrases(results)
    assert line.startswith("preference in pairs by length: ▲ better, wins 100 %")
    with pytest.raises(WiringError, match="compares no pairs"):
        load_pairwise_judges({"x": 3}, context)


def test_a_function_without_a_preference_leaves_the_pair_missing():
    scorer = FunctionComparison(function=lambda prompt, first, second: None if "1" in prompt else "tie")
    preferred = scorer.preferences(list(zip(*(arm.samples for arm in arms(num_prompts=3)), strict=True)))
    assert preferred[:, :, 0].isnan().tolist() == [[False, True, False]] * 2
    assert scorer.failures.reasons == {"None": 2}


def recipe(folder, pairwise):
    (folder / "rubric.yaml").write_text(CRITERIA)
    path = folder / "r.yaml"
    path.write_text(
        "name: x\ndata: {world: {}}\npolicy: {path: world, sft: {}}\nobjectives: {len: {}}\n"
        "algorithm: {name: grpo, num_generations: 4, max_new_tokens: 20}\n"
        "scorers: {len: {type: rule, rule: length, target: 9}}\n"
        f"evaluate: {{num_generations: 2, pairwise: {{overall: {{{pairwise}}}}}}}\n"
    )
    return load_config(path)


PAIRWISE = "type: llm_judge, base_url: http://127.0.0.1:9/v1, model: m, rubric: rubric.yaml"


def test_check_counts_two_requests_per_pair_and_their_cost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (estimates, scoring_models):
        monkeypatch.setattr(module, "layer_throughput", lambda *shape: 1e9)
    prompts = tuple(Prompt(messages=(Message("user", f"question {i}"),)) for i in range(5))
    run = resolve(recipe(tmp_path, f"{PAIRWISE}, input_price: 1000, max_requests: 7"))
    (estimate,) = request_estimates(run, Dataset(train_prompts={"p": prompts}, test_prompts=prompts))
    assert (estimate.scorer, estimate.in_training, estimate.in_evaluation) == (
        "evaluate.pairwise.overall",
        0,
        20,
    )
    assert estimate.cost > 0
    assert "evaluate.pairwise.overall.max_requests is 7" in next(estimate.warnings())
    assert [path.name for path in scorer_files(run.config)] == ["rubric.yaml"]


@pytest.mark.parametrize(
    ("pairwise", "key"),
    [
        ("type: rule, rule: length, target: 9", "evaluate.pairwise.overall.type"),
        (PAIRWISE.replace("rubric.yaml", "none.yaml"), "evaluate.pairwise.overall.rubric"),
    ],
)
def test_mistakes_of_a_pairwise_judge_are_told_at_its_key(tmp_path, monkeypatch, pairwise, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, pairwise)
    assert "none.yaml" in str(caught.value) if "none.yaml" in pairwise else key in str(caught.value)


def test_no_pair_at_all_is_not_measured():
    judge = Judge(name="f", scorer=GuardedScorer("f", FunctionComparison(function=longer)), key="f")
    entry = compare_pairs(arms(num_prompts=0), [judge], **FEW)["f"]["objectives"]["preference"]
    assert entry["verdict"] == "not measured"
    assert math.isnan(entry["win_rate"]["rate"])
