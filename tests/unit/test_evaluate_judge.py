import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from paretune.core.errors import WiringError
from paretune.data.loader import collate
from paretune.data.records import Message, Prompt, Sample
from paretune.evaluate.evaluate import Judge, evaluate
from paretune.evaluate.generate import estimate_kl, generate, prompt_clusters
from paretune.evaluate.warnings import _overoptimization_warnings
from paretune.models.load import as_policy_model
from paretune.report.formatting import format_verdict
from paretune.rollout.sampler import LocalSampler
from support.tiny_models import tiny_model, tiny_tokenizer


def ask(text, kind="", number=0):
    return Prompt(messages=(Message("user", text),), id=f"p{number}", category=kind)


KINDS = ("ordinary", "harmful", "lookalike")
PROMPTS = [ask(f"question number {i}", KINDS[i % 3], i) for i in range(60)]


class Scripted:
    """A sampler that answers by a rule on (prompt's number, sample's number)."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, prompts, how, *, seed, step, prompt_index=None):
        pairs = [(p, i, j) for p, i in zip(prompts, prompt_index, strict=True) for j in range(how.n)]
        texts = [self.answer(i, j) for _, i, j in pairs]
        ids = [list(range(3, 3 + len(text.split()))) for text in texts]
        batch = collate([[1]] * len(ids), ids, list(range(len(ids))), [False] * len(ids), (), 0)
        samples = tuple(
            Sample(prompt=p, response=t, truncated=not t) for (p, _, _), t in zip(pairs, texts, strict=True)
        )
        return batch.replace(rollout_logprobs=torch.zeros(batch.input_ids.shape)), samples


class Counts:
    """Scores by words: how often "please" stands in it, and whether it is not empty; empty = cannot say."""

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


def arms(n=1, after=lambda i, j: f"please do {i} and please do {i % 7} now"):
    before = generate(
        Scripted(lambda i, j: f"do {i} {'please' if i % 3 == j else 'now'}"),
        PROMPTS,
        num_generations=n,
        prompts_per_batch=7,
    )
    return before, generate(Scripted(after), PROMPTS, num_generations=n, prompts_per_batch=64)


def judge(name="a judge", **how):
    return Judge(name=name, scorer=Counts(), **how)


def test_eval_json_has_the_promised_form(tmp_path):
    before, after = arms()
    found = evaluate(
        before,
        after,
        [judge(weights="j")],
        objectives=("politeness", "safety"),
        reward_judges=[judge(weights="r")],
        kl={"k1": 1.0, "k3": 1.2, "low": 0.9, "high": 1.1, "unit": "nats/response"},
    )
    found.save(tmp_path / "eval" / "final")
    numbers = json.loads((tmp_path / "eval" / "final" / "eval.json").read_text())
    polite = numbers["objectives"]["politeness"]
    assert set(polite) >= {"n", "before", "after", "change", "low", "high", "verdict", "judge"}
    assert (polite["n"], polite["verdict"], polite["judge"]) == (60, "better", "a judge")
    assert polite["before"] == pytest.approx(1 / 3)
    assert polite["spread"] == polite["reward"]["spread"] == pytest.approx(math.sqrt(2) / 3)
    assert polite["after"] == 2.0
    assert polite["change"] == pytest.approx(5 / 3)
    assert polite["low"] < 5 / 3 < polite["high"]
    safety = numbers["objectives"]["safety"]
    assert (safety["n"], safety["verdict"], safety["judge"]) == (0, "not measured", "none")
    assert safety["low"] is None
    assert numbers["kl"]["k3"] == 1.2
    assert numbers["length"]["before"] == 3
    assert numbers["length"]["after"] == 8
    assert set(numbers["refusals"]["harmful"]) >= {"n", "before", "after", "low", "high"}
    assert numbers["kinds"]["lookalike"]["objectives"]["politeness"]["n"] == 20
    assert any("2.7 times as long" in line for line in numbers["warnings"])
    rows = pq.read_table(tmp_path / "eval" / "final" / "generations.parquet").to_pylist()
    assert len(rows) == 60
    assert rows[5]["prompt_id"] == "p5"
    assert rows[5]["after/politeness"] == 2.0
    assert rows[5]["reward/after/politeness"] == 2.0


def test_asked_twice_it_says_the_same():
    texts = [json.dumps(evaluate(*arms(2), [judge()], objectives=("politeness",)).results) for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "reward",
    [judge(weights="same"), judge(weights="other", data=frozenset({"d1", "d2"}))],
    ids=["same weights", "common data"],
)
def test_a_judge_that_is_the_reward_never_says_better(reward):
    mine = judge(weights="same", data=frozenset({"d2"}))
    numbers = evaluate(*arms(), [mine], objectives=("politeness",), reward_judges=[reward]).results
    polite = numbers["objectives"]["politeness"]
    assert polite["low"] > 0
    assert polite["verdict"] == "no evidence"
    assert not polite["independent"]
    assert "Judge = training reward" in numbers["warnings"][0]
    assert numbers["warnings"][0].endswith("fix: add a `judge:` fitted on other data to the recipe.")
    assert numbers["objectives"]["politeness"]["reward"]["change"] > 0


def test_missing_judgments_are_counted_and_forbid_a_gain():
    before, after = arms(after=lambda i, j: "" if i < 6 else f"please {i} please")
    polite = evaluate(before, after, [judge()], objectives=("politeness",)).results["objectives"][
        "politeness"
    ]
    assert polite["n"] == 54
    assert polite["missing"] == {"before": 0, "after": 6, "share": 0.05, "unequal": False}
    assert polite["verdict"] == "inconclusive"
    worse = evaluate(after, before, [judge()], objectives=("politeness",)).results
    assert worse["objectives"]["politeness"]["verdict"] == "worse"
    assert any("politeness got worse" in line for line in worse["warnings"])


def test_a_reward_that_rises_while_the_judge_does_not_is_told():
    class Flat(Counts):
        def __call__(self, samples):
            return super().__call__(samples) * 0.0

    before, after = arms()
    held_out = Judge(name="held out", scorer=Flat())
    numbers = evaluate(before, after, [held_out], objectives=("politeness",), reward_judges=[judge()]).results
    told = [line for line in numbers["warnings"] if "over-optimisation" in line]
    assert told == [
        "The training reward of politeness rose by 1.7 while no score of its judge changed: "
        "over-optimisation is likely."
    ]
    assert numbers["objectives"]["politeness"]["verdict"] == "no evidence"
    assert format_verdict(numbers["objectives"]["politeness"]) == "no evidence (no score changed)"


def rose(change, spread, /, **judge):
    """An objective whose training reward rose surely by `change`, at a spread of `spread` at the start."""
    reward = {"change": change, "low": change / 2, "high": 2 * change, "spread": spread}
    found = {"n": 60, "independent": True, "reward": reward, "verdict": "no evidence", "missing": {}}
    return {"o": found | {"change": 0.0, "low": -0.1, "high": 0.1, "detectable": 0.2, "spread": 1.0} | judge}


@pytest.mark.parametrize(
    ("objectives", "told"),
    [
        (rose(0.0005, 0.2), False),  # a rise that is nothing
        (rose(0.15, 1.0), False),  # the judge could only have seen 0.2 of its standard deviations
        (rose(0.3, 1.0), True),
        (rose(0.03, 0.1), True),  # the reward's own units do not count
        (rose(0.3, 1.0, spread=0.5), False),  # nor do the judge's
        (rose(0.15, 1.0, detectable=0.01), True),
        (rose(0.05, 1.0, detectable=0.01), False),
        (rose(0.15, 1.0, low=-0.3, high=-0.1), True),  # it saw a fall
        (rose(0.15, 0.0), True),
        (rose(0.3, 1.0, low=0.01), False),  # the judge rose too
        (rose(0.3, 1.0, independent=False), False),
    ],
)
def test_only_a_rise_that_the_judge_should_have_seen_is_over_optimisation(objectives, told):
    assert bool(_overoptimization_warnings(objectives)) == told


def test_refusals_and_what_was_not_checked():
    before, after = arms(after=lambda i, j: "no" if i % 3 == 2 else f"yes {i}")
    numbers = evaluate(
        before, after, [judge()], objectives=("politeness",), refusal_detector=lambda t: t == "no"
    ).results
    assert numbers["refusals"]["lookalike"]["before"] == 0
    assert numbers["refusals"]["lookalike"]["after"] == 1
    assert numbers["refusals"]["lookalike"]["low"] > 0.5
    assert numbers["refusals"]["harmful"]["after"] == 0
    assert any(line.startswith("Refusals on harmless look-alikes rose") for line in numbers["warnings"])
    assert any("collapse" in line for line in numbers["warnings"]) == (numbers["unique"]["after"] < 0.7)
    assert any("KL" in line for line in numbers["not_checked"])
    assert not any("phrases" in line for line in numbers["not_checked"])


def test_prompts_that_say_the_same_are_one_cluster():
    prompts = [
        ask("Hello  there"),
        ask("hello there!"),
        ask("other"),
        Prompt(messages=()),
        Prompt(messages=()),
    ]
    assert prompt_clusters(prompts).tolist() == [0, 0, 1, 2, 3]


def test_two_arms_must_answer_the_same_prompts():
    before, after = arms()
    short = generate(Scripted(lambda i, j: "x"), PROMPTS[:3])
    with pytest.raises(WiringError, match="different prompts"):
        evaluate(before, short, [judge()], objectives=("politeness",))
    with pytest.raises(WiringError, match="2 judges"):
        evaluate(before, after, [judge(), judge()], objectives=("politeness",))


@pytest.fixture(scope="module")
def language():
    tokenizer = tiny_tokenizer()
    return as_policy_model(tiny_model("llama", len(tokenizer), seed=1), tokenizer)


def test_real_policies_are_asked_with_the_same_seeds(language):
    sampler = LocalSampler(policy=language, objectives=())
    one = generate(sampler, PROMPTS[:5], num_generations=2, max_new_tokens=6, prompts_per_batch=2)
    two = generate(sampler, PROMPTS[:5], num_generations=2, max_new_tokens=6, prompts_per_batch=5)
    other = generate(sampler, PROMPTS[:5], num_generations=2, max_new_tokens=6, seed=1)
    assert [s.response for s in one.samples] == [s.response for s in two.samples]
    assert [s.response for s in one.samples] != [s.response for s in other.samples]
    assert one.samples[3].prompt == PROMPTS[1]
    assert sum(one.response_lengths) == sum(int(batch.response_mask.sum()) for batch in one.batches)


def test_the_divergence_of_a_policy_from_itself_is_zero_and_from_another_is_not(language):
    after = generate(
        LocalSampler(policy=language, objectives=()), PROMPTS[:8], num_generations=2, max_new_tokens=5
    )
    same = estimate_kl(after, language.model)
    assert same["k1"] == pytest.approx(0, abs=1e-5)
    assert same["k3"] == pytest.approx(0, abs=1e-5)
    other = tiny_model("llama", len(language.tokenizer), seed=2)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(3)
    apart = estimate_kl(after, other)
    assert apart["k3"] > 0
    assert apart["low"] <= apart["k1"] <= apart["high"]
    assert apart["per_token"] == pytest.approx(apart["k3"] * 16 / sum(after.response_lengths))
