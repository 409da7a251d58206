"""LLM judge: rates responses by a rubric, compares pairs in both orders, and is checked by canaries."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import ScoringError
from paretune.data.columns import closest_match
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.failures import CountedScorer
from paretune.reward.judge_canaries import Canary, canary_problem
from paretune.reward.judge_client import LIST_TIMEOUT, JudgeClient, Reply, require_openai, run_async
from paretune.reward.judge_messages import JudgeQuestion, comparison_question, rating_question
from paretune.reward.judge_requests import (
    JudgeEndpoint,
    JudgeLimits,
    RequestError,
    connection_problem,
    endpoint_identity,
)
from paretune.reward.reply_cache import ReplyCache, Usage
from paretune.reward.rubric import Answer, Criterion, Rubric

MAX_LISTED_CANARIES = 3
"""Wrong canaries that the error message shows."""
_TRIAL = ("Good morning! What is the capital of France?", "Good morning! It is Paris.")
"""Prompt and response of the question that shows whether the endpoint can answer at all."""
_ORDER_VALUES = {"first": 1.0, "second": -1.0, "tie": 0.0}


@dataclass(frozen=True, slots=True)
class JudgeProblem:
    """Why a judge cannot be used, and the key of its section that is to blame."""

    key: str
    problem: str
    fix: str = ""
    suggestion: str = ""


@dataclass(frozen=True, kw_only=True)
class PairVerdicts:
    """Verdicts on pairs of responses, each pair asked in both orders."""

    objectives: tuple[str, ...]
    verdicts: Float[Tensor, "N k"]
    """1: the first response won in both orders; -1: the second; 0: a tie, or the order decided; NaN: none."""
    consistency: dict[str, float]
    """Objective -> share of pairs with the same verdict in both orders; NaN without any pair."""
    position_bias: dict[str, float]
    """Objective -> share of verdicts for the response that was shown first minus that for the other one."""


@dataclass(kw_only=True)
class LlmJudgeScorer(CountedScorer):
    """A language model behind an OpenAI-compatible endpoint that rates responses by a rubric.

    What it cannot score is NaN, with a reason in `failures`; failures are not cached.
    """

    rubric: Rubric
    endpoint: JudgeEndpoint
    cache_dir: Path
    limits: JudgeLimits = field(default_factory=JudgeLimits)
    scope: str = ""
    """Whose requests and cost the caps count: one judge of one run, so that caps hold over its resumes."""
    criteria_column: str | None = None
    """Column of the prompts that holds criteria of their own."""
    canaries: tuple[Canary, ...] = ()
    min_canary_accuracy: float = 0.8
    _metrics: dict[str, float] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Another process opens the cache for itself."""
        return {name: value for name, value in vars(self).items() if name != "client"}

    @property
    def names(self) -> tuple[str, ...]:
        """Criteria without class, and classes."""
        return self.rubric.objectives

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the last call: requests, replies from the cache, retries, repairs, tokens and cost."""
        return self._metrics

    @cached_property
    def client(self) -> JudgeClient:
        """The client; opens the cache.

        Raises:
            MissingDependencyError: The package openai is not installed.
            ResourceError: The cache cannot be written.
        """
        require_openai()
        cache = ReplyCache(self.cache_dir)
        return JudgeClient(endpoint=self.endpoint, limits=self.limits, cache=cache, scope=self.scope)

    @cached_property
    def identity(self) -> str:
        """Hash of the endpoint, the model, the rubric and the settings of its replies."""
        content = {**endpoint_identity(self.endpoint), "rubric": self.rubric.model_dump(by_alias=True)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def model_identity(self) -> str:
        """Hash of the endpoint and the model, which stands for weights that nobody here can read."""
        content = json.dumps([self.endpoint.base_url.rstrip("/"), self.endpoint.model])
        return hashlib.sha256(content.encode()).hexdigest()

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One row per sample, one column per objective.

        Raises:
            DataError: A prompt has criteria that are not valid.
            ResourceError: The cache cannot be written.
        """
        rows = [self.rubric.scores(*rated) for rated in self.rate(samples)]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(self.names))

    def rate(
        self, samples: Sequence[Sample], *, repeat: int = 0
    ) -> list[tuple[Mapping[str, Criterion], Mapping[str, Answer]]]:
        """The criteria of each sample and the judge's answers; both empty where there are none.

        Samples whose prompt has no criteria are not asked; those that failed are counted in `failures`.

        Args:
            samples: The responses.
            repeat: Number of the repeat; each has answers of its own.
        """
        criteria = [self.rubric.criteria_of(sample.prompt, self.criteria_column) for sample in samples]
        asked = [i for i, each in enumerate(criteria) if each]
        questions = [rating_question(samples[i].prompt, samples[i].response, criteria[i]) for i in asked]
        results: list[tuple[Mapping[str, Criterion], Mapping[str, Answer]]] = [({}, {})] * len(samples)
        for i, reply in zip(asked, self._ask(questions, repeat=repeat), strict=True):
            if reply.answers is not None:
                results[i] = criteria[i], reply.answers
        return results

    def judge_pairs(self, pairs: Sequence[tuple[Sample, Sample]]) -> PairVerdicts:
        """Which response of each pair is better, by objective; both orders are asked.

        Args:
            pairs: Two responses to the same prompt.

        Raises:
            DataError: A prompt has criteria that are not valid.
            ResourceError: The cache cannot be written.
        """
        return _pair_verdicts(self.names, self.preferences(pairs))

    def preferences(self, pairs: Sequence[tuple[Sample, Sample]]) -> Float[Tensor, "2 N k"]:
        """1 if the response shown first is better, -1 if the other, 0 for a tie, NaN without an answer.

        The first axis is the order: as given, and swapped. The preference by a class is the sign of the
        weighted mean of its criteria.

        Args:
            pairs: Two responses to the same prompt.

        Raises:
            DataError: A prompt has criteria that are not valid.
            ResourceError: The cache cannot be written.
        """
        criteria = [self.rubric.criteria_of(a.prompt, self.criteria_column) for a, _ in pairs]
        asked = [i for i, each in enumerate(criteria) if each]
        orders = [
            [(pairs[i][0].response, pairs[i][1].response) for i in asked],
            [(pairs[i][1].response, pairs[i][0].response) for i in asked],
        ]
        questions = [
            comparison_question(pairs[i][0].prompt, first, second, criteria[i])
            for order in orders
            for i, (first, second) in zip(asked, order, strict=True)
        ]
        replies = self._ask(questions)
        shape = (2, len(pairs), len(self.names))
        # [order, pair, objective]: 1 if the response that was shown first is better.
        preferred = torch.full(shape, torch.nan, dtype=torch.float64)
        for position, reply in enumerate(replies):
            order, row = divmod(position, len(asked))
            if reply.answers is not None:
                preferred[order, asked[row]] = self._preferences(criteria[asked[row]], reply.answers)
        return preferred

    def _preferences(
        self, criteria: Mapping[str, Criterion], answers: Mapping[str, Answer]
    ) -> Float[Tensor, " k"]:
        sums = dict.fromkeys(self.names, math.nan)
        for name, criterion in criteria.items():
            objective, value = criterion.class_name or name, _ORDER_VALUES[str(answers[name])]
            previous = sums[objective]
            sums[objective] = criterion.weight * value + (0.0 if math.isnan(previous) else previous)
        totals = torch.tensor(list(sums.values()), dtype=torch.float64)
        return totals.sign().masked_fill(totals.isnan(), torch.nan)  # the sign of NaN is 0

    def _ask(self, questions: Sequence[JudgeQuestion], *, repeat: int = 0) -> list[Reply]:
        self.client.take_counts()  # what was asked before the run is no part of the call
        before = self.client.cache.usage(self.scope)
        replies = self.client.ask(questions, repeat=repeat)
        self.failures.num_responses += len(replies)
        self.failures.reasons.update(reply.reason for reply in replies if reply.answers is None)
        self._metrics = _metrics(self.client.take_counts(), self.client.cache.usage(self.scope) - before)
        return replies

    def check_endpoint(self) -> JudgeProblem | None:
        """Whether the endpoint is there, takes the key and has the model, by its list of models: free.

        Endpoints without such a list pass.
        """
        return run_async(self._check_endpoint())

    async def _check_endpoint(self) -> JudgeProblem | None:
        import openai

        endpoint, timeout = self.endpoint, min(LIST_TIMEOUT, self.endpoint.timeout)
        try:
            async with self.client.connect(timeout) as client:
                models = [str(model.id) for model in (await client.models.list()).data]
        except openai.APITimeoutError:
            return self._unreachable(f"no answer within {timeout:g} s")
        except openai.APIConnectionError as error:
            return self._unreachable(connection_problem(error))
        except openai.APIStatusError as error:
            return self._list_problem(int(error.status_code))
        except (openai.APIError, ValueError, TypeError, AttributeError):  # the list is no list of models
            return None
        if not models or any(endpoint.model in (name, name.rpartition("/")[2]) for name in models):
            return None
        match = closest_match(endpoint.model, models)
        shown = ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")
        return JudgeProblem("model", f"the endpoint does not serve it; it has {shown}", suggestion=match)

    def _unreachable(self, reason: str) -> JudgeProblem:
        fix = "start the server, or correct the address"
        return JudgeProblem("base_url", f"{self.endpoint.base_url} cannot be reached: {reason}", fix)

    def _list_problem(self, status: int) -> JudgeProblem | None:
        if status in {401, 403}:
            return self._rejected_key(status)
        if status >= 500:
            return self._unreachable(f"it answers with error {status}")
        return None

    def _rejected_key(self, status: int) -> JudgeProblem:
        if self.endpoint.api_key_env is None:
            fix = "name the environment variable that holds it"
            return JudgeProblem("api_key_env", f"the endpoint asks for a key (error {status})", fix)
        return JudgeProblem("api_key_env", f"the endpoint rejects the key (error {status})", "renew the key")

    def check_replies(self) -> JudgeProblem | None:
        """Ask one small question: an endpoint that refuses such requests is known before the run.

        A reply that is not valid, or a failure that passes, is no problem yet: the run counts those.
        """
        criteria = self.rubric.criteria
        if not criteria:
            return None
        prompt = Prompt(messages=(Message("user", _TRIAL[0]),))
        return run_async(self._check_replies(rating_question(prompt, _TRIAL[1], criteria)))

    async def _check_replies(self, question: JudgeQuestion) -> JudgeProblem | None:
        try:
            async with self.client.connect() as client:
                await self.client.request(client, question, question.messages, key="trial")
        except RequestError as error:
            if error.retry or not error.status:
                return None
            if error.status in {401, 403}:
                return self._rejected_key(error.status)
            if error.status == 404:
                fix = "check model, and whether the address must end in /v1"
                return JudgeProblem("base_url", f"the endpoint answers a request with {error}", fix)
            words = str(error).lower()
            about_format = "response_format" in words or "schema" in words or "guided" in words
            if about_format and self.endpoint.response_format != "text":
                fix = "write json_object or text"
                return JudgeProblem("response_format", f"the endpoint refuses it: {error}", fix)
            return JudgeProblem(
                "base_url", f"the endpoint refuses a request: {error}", "change what it names"
            )
        return None

    def check_canaries(self) -> float:
        """Share of the canaries that are answered as known, asked anew each time; NaN without canaries.

        Raises:
            ScoringError: The share is below `min_canary_accuracy`.
        """
        if not self.canaries:
            return math.nan
        questions = [
            rating_question(c.prompt, c.response, {name: self.rubric.criteria[name] for name in c.answers})
            for c in self.canaries
        ]
        replies = self.client.ask(questions, fresh=True)  # the model behind a name may have changed
        wrong = [
            problem
            for canary, reply in zip(self.canaries, replies, strict=True)
            if (problem := canary_problem(canary, reply))
        ]
        accuracy = 1 - len(wrong) / len(self.canaries)
        if accuracy < self.min_canary_accuracy:
            num_right, more = len(self.canaries) - len(wrong), len(wrong) - MAX_LISTED_CANARIES
            shown = "; ".join([*wrong[:MAX_LISTED_CANARIES], *([f"and {more} more"] if more > 0 else [])])
            raise ScoringError(
                f"canaries: {num_right} of {len(self.canaries)} answered as known, less than the share of "
                f"min_canary_accuracy, {self.min_canary_accuracy:g}: {shown}; "
                "fix: take a better model, clarify the rubric, or correct the canaries"
            )
        return accuracy


def _pair_verdicts(objectives: tuple[str, ...], preferred: Float[Tensor, "2 N k"]) -> PairVerdicts:
    """Verdicts from preferences for the response shown first, in the first order and in the second."""
    first, second = preferred[0], -preferred[1]  # both: 1 if the first response of the pair is better
    answered = ~(first.isnan() | second.isnan())
    same = first == second
    verdicts = torch.where(same, first, torch.zeros_like(first)).masked_fill(~answered, torch.nan)
    count = answered.sum(0).double()
    consistency = (same & answered).sum(0) / count
    bias = preferred.sum(0).masked_fill(~answered, 0.0).sum(0) / (2 * count)
    return PairVerdicts(
        objectives=objectives,
        verdicts=verdicts.float(),
        consistency=dict(zip(objectives, consistency.tolist(), strict=True)),
        position_bias=dict(zip(objectives, bias.tolist(), strict=True)),
    )


def _metrics(counts: Counter[str], spent: Usage) -> dict[str, float]:
    names = ("requests", "cached", "retries", "repairs")
    tokens = {"input_tokens": float(spent.input_tokens), "output_tokens": float(spent.output_tokens)}
    return {**{name: float(counts[name]) for name in names}, **tokens, "cost": spent.cost}
