"""Evaluation of two policies: eval.json, generations.parquet, warnings and limitations."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from paretune.core.errors import WiringError
from paretune.data.loader import collate
from paretune.data.records import Message, Prompt, Sample
from paretune.evaluate.evaluate import evaluate
from paretune.evaluate.generate import estimate_kl, generate, prompt_clusters
from paretune.evaluate.judging import Judge
from paretune.evaluate.warnings import _overoptimization_warnings, _refusal_warnings
from paretune.models.load import as_policy_model
from paretune.report.formatting import format_verdict
from paretune.rollout.sampler import LocalSampler
from support.tiny_models import tiny_model, tiny_tokenizer


def prompt(text, category="", index=0):
    return Prompt(messages=(Message("user", text),), id=f"p{index}", category=category)


CATEGORIES = ("ordinary", "harmful", "lookalike")
PROMPTS = [prompt(f"question number {i}", CATEGORIES[i % 3], i) for i in range(60)]


class Scripted:
    """A sampler whose responses are a function of (prompt index, sample index)."""

    def __init__(self, respond):
        self.respond = respond

    def __call__(self, prompts, rollout, *, seed, step, prompt_index=None):
        pairs = [
            (p, i, j)
            for p, i in zip(prompts, prompt_index, strict=True)
            for j in range(rollout.num_generations)
        ]
        texts = [self.respond(i, j) for _, i, j in pairs]
        ids = [list(range(3, 3 + len(text.split()))) for text in texts]
        batch = collate([[1]] * len(ids), ids, list(range(len(ids))), [False] * len(ids), (), 0)
        samples = tuple(
            Sample(prompt=p, response=t, truncated=not t) for (p, _, _), t in zip(pairs, texts, strict=True)
        )
        return batch.replace(rollout_logprobs=torch.zeros(batch.input_ids.shape)), samples


class WordCounts:
    """Counts "please" and words; an empty response is unscored."""

    names = ("politeness", "content")

    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, samples):
        rows = [
            [self.gain * s.response.split().count("please"), float(len(s.response.split()))]
            if s.response
            else [math.nan] * 2
            for s in samples
        ]
        return torch.tensor(rows)


def arms(num_generations=1, after=lambda i, j: f"please do {i} and please do {i % 7} now"):
    before = generate(
        Scripted(lambda i, j: f"do {i} {'please' if i % 3 == j else 'now'}"),
        PROMPTS,
        num_generations=num_generations,
        prompts_per_batch=7,
    )
    return before, generate(Scripted(after), PROMPTS, num_generations=num_generations, prompts_per_batch=64)


def judge(name="a judge", **fields):
    return Judge(name=name, scorer=WordCounts(), **fields)


def test_eval_json_and_parquet_have_the_documented_content(tmp_path):
    before, after = arms()
    evaluation = evaluate(
        before,
        after,
        [judge(weights_hash="j")],
        objectives=("politeness", "safety"),
        reward_judges=[judge(weights_hash="r")],
        kl={"k1": 1.0, "k3": 1.2, "low": 0.9, "high": 1.1, "per_token": 0.3, "unit": "nats/response"},
    )
    evaluation.save(tmp_path / "eval" / "final")
    results = json.loads((tmp_path / "eval" / "final" / "eval.json").read_text())
    polite = results["objectives"]["politeness"]
    assert set(polite) >= {"num_scored", "before", "after", "change", "low", "high", "verdict", "judge"}
    assert (polite["num_scored"], polite["verdict"], polite["judge"]) == (60, "better", "a judge")
    assert polite["before"] == pytest.approx(1 / 3)
    assert polite["std"] == polite["reward"]["std"] == pytest.approx(math.sqrt(2) / 3)
    assert polite["after"] == 2.0
    assert polite["change"] == pytest.approx(5 / 3)
    assert polite["low"] < 5 / 3 < polite["high"]
    safety = results["objectives"]["safety"]
    assert (safety["num_scored"], safety["verdict"], safety["judge"]) == (0, "not measured", "none")
    assert safety["low"] is None
    assert results["kl"]["k3"] == 1.2
    assert results["length"]["before"] == 3
    assert results["length"]["after"] == 8
    assert set(results["refusal_rate"]["harmful"]) >= {"num_prompts", "before", "after", "low", "high"}
    assert results["categories"]["lookalike"]["objectives"]["politeness"]["num_scored"] == 20
    assert any("2.7 times as long" in line for line in results["warnings"])
    rows = pq.read_table(tmp_path / "eval" / "final" / "generations.parquet").to_pylist()
    assert len(rows) == 60
    assert rows[5]["prompt_id"] == "p5"
    assert rows[5]["after/politeness"] == 2.0
    assert rows[5]["reward/after/politeness"] == 2.0


def test_evaluation_is_deterministic():
    texts = [json.dumps(evaluate(*arms(2), [judge()], objectives=("politeness",)).results) for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "reward",
    [judge(weights_hash="same"), judge(weights_hash="other", data_hashes=frozenset({"d1", "d2"}))],
    ids=["same weights", "common data"],
)
def test_judge_that_overlaps_with_the_reward_never_yields_better(reward):
    own_judge = judge(weights_hash="same", data_hashes=frozenset({"d2"}))
    results = evaluate(*arms(), [own_judge], objectives=("politeness",), reward_judges=[reward]).results
    polite = results["objectives"]["politeness"]
    assert polite["low"] > 0
    assert polite["verdict"] == "no evidence"
    assert not polite["independent"]
    # What is wrong with the policy as a whole comes first: here, one answer for every prompt.
    assert results["warnings"][0].startswith("The policy collapsed")
    assert "Judge not independent" in results["warnings"][1]
    assert results["warnings"][1].endswith("fix: give the recipe a `judge:` fitted on other data.")
    assert results["objectives"]["politeness"]["reward"]["change"] > 0


def test_missing_judgments_are_counted_and_prevent_better():
    before, after = arms(after=lambda i, j: "" if i < 6 else f"please {i} please")
    polite = evaluate(before, after, [judge()], objectives=("politeness",)).results["objectives"][
        "politeness"
    ]
    assert polite["num_scored"] == 54
    bounds = {key: polite["missing"].pop(key) for key in ("low", "high")}
    assert polite["missing"] == {"before": 0, "after": 6, "fraction": 0.05, "unequal": False}
    assert bounds["low"] < polite["low"] < polite["high"] <= bounds["high"]
    assert polite["verdict"] == "inconclusive"
    worse = evaluate(after, before, [judge()], objectives=("politeness",)).results
    assert worse["objectives"]["politeness"]["verdict"] == "worse"
    assert any("politeness got worse" in line for line in worse["warnings"])


def test_rising_reward_with_constant_judge_is_overoptimization():
    class Constant(WordCounts):
        def __call__(self, samples):
            return super().__call__(samples) * 0.0

    before, after = arms()
    held_out = Judge(name="held out", scorer=Constant())
    results = evaluate(before, after, [held_out], objectives=("politeness",), reward_judges=[judge()]).results
    matches = [line for line in results["warnings"] if "overoptimization" in line]
    assert matches == [
        "The training reward of politeness rose by 1.7 while no score of the judge changed: "
        "overoptimization is likely."
    ]
    assert results["objectives"]["politeness"]["verdict"] == "no evidence"
    assert format_verdict(results["objectives"]["politeness"]) == "no evidence (no score changed)"


def reward_rise(change, std, /, **judge):
    """An objective whose training reward rose significantly by `change`, with this std at the start."""
    reward = {"change": change, "low": change / 2, "high": 2 * change}
    reward = reward | {"std": std, "oriented": reward}
    summary = {
        "num_scored": 60,
        "independent": True,
        "reward": reward,
        "verdict": "no evidence",
        "missing": {},
    }
    defaults = {"change": 0.0, "low": -0.1, "high": 0.1, "min_detectable_effect": 0.2, "std": 1.0}
    entry = summary | defaults | judge
    return {"o": entry | {"oriented": {key: entry[key] for key in ("change", "low", "high")}}}


@pytest.mark.parametrize(
    ("objectives", "warns"),
    [
        (reward_rise(0.0005, 0.2), False),  # a negligible rise
        (reward_rise(0.15, 1.0), False),  # the judge can detect 0.2 standard deviations only
        (reward_rise(0.3, 1.0), True),
        (reward_rise(0.03, 0.1), True),  # units of the reward do not matter
        (reward_rise(0.3, 1.0, std=0.5), False),  # nor do those of the judge
        (reward_rise(0.15, 1.0, min_detectable_effect=0.01), True),
        (reward_rise(0.05, 1.0, min_detectable_effect=0.01), False),
        (reward_rise(0.15, 1.0, low=-0.3, high=-0.1), True),  # the judge shows a fall
        (reward_rise(0.15, 0.0), True),
        (reward_rise(0.3, 1.0, low=0.01), False),  # the judge rose too
        (reward_rise(0.3, 1.0, independent=False), False),
    ],
)
def test_only_a_rise_that_the_judge_can_detect_is_overoptimization(objectives, warns):
    assert bool(_overoptimization_warnings(objectives)) == warns


def test_refusal_warnings_and_limitations():
    before, after = arms(after=lambda i, j: "no" if i % 3 == 2 else f"yes {i}")
    results = evaluate(
        before,
        after,
        [judge()],
        objectives=("politeness",),
        refusal_detector=lambda t: t == "no",
        refusal_categories={"harmful": "up", "lookalike": "down", "absent": "up"},
    ).results
    assert results["refusal_rate"]["lookalike"]["before"] == 0
    assert results["refusal_rate"]["lookalike"]["after"] == 1
    assert results["refusal_rate"]["lookalike"]["low"] > 0.5
    assert results["refusal_rate"]["harmful"]["after"] == 0
    assert any(line.startswith("Refusals on lookalike prompts rose") for line in results["warnings"])
    assert any("collapse" in line for line in results["warnings"]) == (
        results["unique_fraction"]["after"] < 0.7
    )
    assert any("KL" in line for line in results["limitations"])
    assert not any("phrases" in line for line in results["limitations"])
    assert [line for line in results["limitations"] if "category" in line] == [
        "No test prompts of the category “absent”: their refusals were not measured."
    ]


@pytest.mark.parametrize(
    ("categories", "change", "warns"),
    [
        ({"c": "up"}, -0.3, True),
        ({"c": "up"}, 0.3, False),
        ({"c": "down"}, -0.3, False),
        ({"c": "down"}, 0.3, True),
        ({}, 0.3, True),  # ordinary prompts should be answered
        ({}, 0.08, False),  # the interval contains 0
        ({"c": "down"}, 0.1, False),
    ],
)
def test_refusal_warning_follows_the_direction_of_the_category(categories, change, warns):
    rate = {
        "num_prompts": 60,
        "before": 0.5,
        "after": 0.5 + change,
        "low": change - 0.1,
        "high": change + 0.1,
    }
    assert bool(_refusal_warnings({"c": rate}, categories)) == warns


def test_duplicate_prompts_are_one_cluster():
    prompts = [
        prompt("Hello  there"),
        prompt("hello there!"),
        prompt("other"),
        Prompt(messages=()),
        Prompt(messages=()),
    ]
    assert prompt_clusters(prompts).tolist() == [0, 0, 1, 2, 3]


def test_different_prompts_and_duplicate_judges_are_rejected():
    before, after = arms()
    short = generate(Scripted(lambda i, j: "x"), PROMPTS[:3])
    with pytest.raises(WiringError, match="different prompts"):
        evaluate(before, short, [judge()], objectives=("politeness",))
    with pytest.raises(WiringError, match="two judges"):
        evaluate(before, after, [judge(), judge()], objectives=("politeness",))


@pytest.fixture(scope="module")
def policy():
    tokenizer = tiny_tokenizer()
    return as_policy_model(tiny_model("llama", len(tokenizer), seed=1), tokenizer)


def test_generation_depends_on_the_seed_and_not_on_the_batch_size(policy):
    sampler = LocalSampler(policy=policy, objectives=())
    first = generate(sampler, PROMPTS[:5], num_generations=2, max_new_tokens=6, prompts_per_batch=2)
    second = generate(sampler, PROMPTS[:5], num_generations=2, max_new_tokens=6, prompts_per_batch=5)
    other = generate(sampler, PROMPTS[:5], num_generations=2, max_new_tokens=6, seed=1)
    assert [s.response for s in first.samples] == [s.response for s in second.samples]
    assert [s.response for s in first.samples] != [s.response for s in other.samples]
    assert first.samples[3].prompt == PROMPTS[1]
    assert sum(first.response_lengths) == sum(int(batch.response_mask.sum()) for batch in first.batches)


def test_kl_from_itself_is_zero_and_from_another_policy_positive(policy):
    after = generate(
        LocalSampler(policy=policy, objectives=()), PROMPTS[:8], num_generations=2, max_new_tokens=5
    )
    same = estimate_kl(after, policy.model)
    assert same["k1"] == pytest.approx(0, abs=1e-5)
    assert same["k3"] == pytest.approx(0, abs=1e-5)
    other = tiny_model("llama", len(policy.tokenizer), seed=2)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(3)
    kl = estimate_kl(after, other)
    assert kl["k3"] > 0
    assert kl["low"] <= kl["k1"] <= kl["high"]
    assert kl["per_token"] == pytest.approx(kl["k3"] * 16 / sum(after.response_lengths))
