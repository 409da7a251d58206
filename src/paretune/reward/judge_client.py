"""Client of an LLM judge: questions to an endpoint with deadlines, retries, caps and a cache of replies."""

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from paretune.core.errors import MissingDependencyError
from paretune.reward.judge_messages import JudgeQuestion, ReplyError
from paretune.reward.judge_requests import (
    NOT_REACHED,
    JudgeEndpoint,
    JudgeLimits,
    RequestError,
    connection_problem,
    reply_text,
    status_error,
)
from paretune.reward.reply_cache import ReplyCache, Usage
from paretune.reward.rubric import Answer
from paretune.reward.scorers import is_refusal

if TYPE_CHECKING:
    import ssl

    from openai import APIStatusError, AsyncOpenAI
    from openai.types.chat import ChatCompletion

T = TypeVar("T")
Json = dict[str, Any]

FIRST_PAUSE, MAX_PAUSE = 0.5, 8.0
"""Seconds before the first repeat of a request, doubled each time; without a Retry-After header."""
MAX_RETRY_AFTER = 120.0
"""Seconds; an endpoint that asks for a longer pause has run out of quota, and the run should not wait."""
CAP_POLL = 0.02
"""Seconds between looks whether requests in flight cost less than was reserved for them."""
MAX_UNANSWERED = 20
"""Requests in a row without any answer after which a call asks no more: the endpoint is gone."""
LIST_TIMEOUT = 10.0
"""Seconds to wait for the list of models at the start."""
_STANDARD_HEADERS = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's answers, or the reason why there are none."""

    answers: dict[str, Answer] | None
    reason: str = ""
    cached: bool = False


def require_openai() -> None:
    """Import the client library.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        problem = "llm_judge needs the package openai, which is missing or too old here"
        raise MissingDependencyError(f"{problem}; fix: pip install 'paretune[judge]'") from error


@cache
def _certificates() -> "ssl.SSLContext":
    """The system's certificates; reading them takes longer than several requests."""
    from httpx2 import create_ssl_context

    return create_ssl_context()


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


@dataclass(kw_only=True)
class JudgeClient:
    """Asks questions concurrently; every reply is on disk before the next one is asked for.

    Not for use by several threads at once.
    """

    endpoint: JudgeEndpoint
    limits: JudgeLimits
    cache: ReplyCache
    scope: str = ""
    """Whose requests and cost the caps count: one judge of one run."""
    counts: Counter[str] = field(default_factory=Counter)
    """Requests, replies from the cache, retries and repairs since the last `take_counts`."""
    _in_flight: int = 0
    _unanswered: int = 0
    _token_limit_key: str = "max_tokens"
    _status_reasons: dict[int, str] = field(default_factory=dict)
    _random: random.Random = field(default_factory=random.Random)  # pauses only, never a number of a run

    def ask(self, questions: Sequence[JudgeQuestion], *, repeat: int = 0, fresh: bool = False) -> list[Reply]:
        """The reply to each question; equal questions are asked once.

        Args:
            questions: At most `max_concurrency` are asked at the same time.
            repeat: Number of the repeat; each repeat has replies of its own.
            fresh: Do not take replies from the cache.

        Raises:
            ResourceError: The cache cannot be written.
        """
        by_key = {self._key(question, repeat): question for question in questions}
        self._unanswered = 0
        replies = run_async(self._ask_all(by_key, fresh))
        return [replies[self._key(question, repeat)] for question in questions]

    def take_counts(self) -> Counter[str]:
        """The counts so far, which start again from 0."""
        counts, self.counts = self.counts, Counter()
        return counts

    def _key(self, question: JudgeQuestion, repeat: int) -> str:
        """Hash of everything that determines a reply; `max_tokens` does not, as cut replies are not kept."""
        endpoint = self.endpoint
        content = {
            "base_url": endpoint.base_url.rstrip("/"),
            "model": endpoint.model,
            "temperature": endpoint.temperature,
            "response_format": endpoint.response_format,
            "messages": [dict(message) for message in question.messages],
            "answers": {name: dict(schema) for name, schema in question.answers.items()},
            "repeat": repeat,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    async def _ask_all(self, by_key: dict[str, JudgeQuestion], fresh: bool) -> dict[str, Reply]:
        replies = {} if fresh else self._cached(by_key)
        missing = [key for key in by_key if key not in replies]
        if missing:
            slots = asyncio.Semaphore(self.endpoint.max_concurrency)
            async with self.connect() as client:

                async def ask_one(key: str) -> Reply:
                    async with slots:
                        return await self._ask_one(client, by_key[key], key)

                results = await asyncio.gather(*(ask_one(key) for key in missing))
            replies |= dict(zip(missing, results, strict=True))
        return replies

    def _cached(self, by_key: dict[str, JudgeQuestion]) -> dict[str, Reply]:
        replies = {}
        for key, question in by_key.items():
            if (content := self.cache.get(key)) is not None:
                with suppress(ReplyError):  # kept by a version that read replies differently
                    replies[key] = Reply(question.read(content), cached=True)
        self.counts["cached"] += len(replies)
        return replies

    def connect(self, timeout: float | None = None) -> "AsyncOpenAI":
        """A client of the endpoint, to be closed; it repeats nothing by itself."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Omit

        # The library's headers about the operating system and the Python version are nobody's business.
        headers: Any = {f"X-Stainless-{name}": Omit() for name in _STANDARD_HEADERS}
        endpoint = self.endpoint
        return AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key(),
            timeout=timeout or endpoint.timeout,
            max_retries=0,
            default_headers=headers,
            http_client=DefaultAsyncHttpxClient(verify=_certificates()),
        )

    async def _ask_one(self, client: "AsyncOpenAI", question: JudgeQuestion, key: str) -> Reply:
        messages, reason = question.messages, ""
        for is_repair in (False, True):
            try:
                content, answers, problem = await self.request(client, question, messages, key)
            except RequestError as failure:
                return Reply(None, str(failure))
            if problem is None:
                return Reply(answers)
            reason = "refused" if problem.reason == "not JSON" and is_refusal(content) else problem.reason
            if not is_repair:
                self.counts["repairs"] += 1
                messages = question.repair_messages(content, problem)
        return Reply(None, reason)

    async def request(
        self, client: "AsyncOpenAI", question: JudgeQuestion, messages: Sequence[Any], key: str
    ) -> tuple[str, dict[str, Answer] | None, ReplyError | None]:
        """One reply, after repeats of failed requests: its text, and its answers or what is wrong with it.

        Raises:
            RequestError: No reply, or a cap was reached.
        """
        for attempt in range(self.endpoint.max_retries + 1):
            try:
                return await self._send(client, question, messages, key)
            except RequestError as error:
                self._unanswered = 0 if error.answered else self._unanswered + 1
                if not error.retry or attempt == self.endpoint.max_retries:
                    raise
                if error.wait is not None and error.wait > MAX_RETRY_AFTER:
                    raise
                self.counts["retries"] += 1
                pause = min(FIRST_PAUSE * 2**attempt, MAX_PAUSE) * self._random.uniform(0.5, 1.0)
                await asyncio.sleep(max(pause, error.wait or 0.0))
        raise AssertionError  # the last attempt returns or raises

    async def _send(
        self, client: "AsyncOpenAI", question: JudgeQuestion, messages: Sequence[Any], key: str
    ) -> tuple[str, dict[str, Answer] | None, ReplyError | None]:
        if self._unanswered >= MAX_UNANSWERED:
            raise RequestError("endpoint does not answer", retry=False, answered=False)
        body = self._body(question, messages)
        # A token is at least one byte, so this is more than the request can cost.
        reserved = self.limits.cost(len(json.dumps(body).encode()), self.endpoint.max_tokens)
        await self._reserve(reserved)
        spent = Usage(cost=reserved)  # what a request without an answer may have cost
        content, answers, problem = "", None, None
        try:
            completion = await self._complete(client, body)
            self._unanswered = 0
            spent = self._usage(completion, reserved)
            content = reply_text(completion)
            try:
                answers = question.read(content)
            except ReplyError as error:
                problem = error
                if getattr(completion.choices[0], "finish_reason", None) == "length":
                    problem = ReplyError("cut at max_tokens", "it was too long and was cut")
        except RequestError as error:
            if not error.billed:
                spent = Usage()
            raise
        finally:
            self._in_flight -= 1
            self.cache.settle(self.scope, spent, reserved, key, content if answers is not None else None)
        return content, answers, problem

    async def _reserve(self, cost: float) -> None:
        """Raises: RequestError, if a cap is reached, whatever the requests in flight turn out to cost."""
        limits = self.limits
        while cap := self.cache.reserve(self.scope, cost, limits.max_requests, limits.max_cost):
            if cap == "requests":
                raise RequestError(f"cap of {limits.max_requests:,} requests reached", retry=False)
            if not self._in_flight:
                raise RequestError(f"cap of {limits.max_cost:g} on the cost reached", retry=False)
            await asyncio.sleep(CAP_POLL)
        self._in_flight += 1
        self.counts["requests"] += 1

    def _body(self, question: JudgeQuestion, messages: Sequence[Any]) -> Json:
        endpoint = self.endpoint
        body: Json = {
            "model": endpoint.model,
            "messages": [dict(message) for message in messages],
            self._token_limit_key: endpoint.max_tokens,
        }
        if endpoint.temperature is not None:
            body["temperature"] = endpoint.temperature
        if endpoint.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif endpoint.response_format == "json_schema":
            schema = {"name": "answers", "strict": True, "schema": question.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _complete(self, client: "AsyncOpenAI", body: Json) -> "ChatCompletion":
        """The endpoint's reply; its failures as `RequestError`."""
        import openai

        try:
            async with asyncio.timeout(self.endpoint.timeout):
                return await client.chat.completions.create(**body)
        except (openai.APITimeoutError, TimeoutError):
            raise RequestError("timeout", retry=True, answered=False) from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except openai.APIConnectionError as error:
            reason = connection_problem(error)
            billed = reason not in NOT_REACHED
            raise RequestError(reason, retry=True, answered=False, billed=billed) from None
        except (openai.APIError, ValueError):  # the body is not JSON
            raise RequestError("broken reply", retry=True) from None

    def _status_error(self, error: "APIStatusError") -> RequestError:
        """The failure behind an HTTP status of 400 or more."""
        failure = status_error(error, secret=self.endpoint.api_key())
        if failure.retry:
            return failure
        if "max_completion_tokens" in str(failure) and self._token_limit_key == "max_tokens":
            # Reasoning models of OpenAI know the limit by this name alone.
            self._token_limit_key = "max_completion_tokens"
            return RequestError(
                "max_tokens refused", retry=True, wait=0.0, billed=False, status=failure.status
            )
        # Messages have numbers of their own: the first one stands for all of its status.
        reason = self._status_reasons.setdefault(failure.status, str(failure))
        return RequestError(reason, retry=False, billed=False, status=failure.status)

    def _usage(self, completion: "ChatCompletion", reserved: float) -> Usage:
        usage = getattr(completion, "usage", None)
        tokens_in, tokens_out = (getattr(usage, n, None) for n in ("prompt_tokens", "completion_tokens"))
        if (
            not isinstance(tokens_in, int)
            or not isinstance(tokens_out, int)
            or min(tokens_in, tokens_out) < 0
        ):
            return Usage(cost=reserved)
        cost = self.limits.cost(tokens_in, tokens_out)
        return Usage(input_tokens=tokens_in, output_tokens=tokens_out, cost=cost)
