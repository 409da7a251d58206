"""Requests to an LLM judge: the endpoint, what its replies cost, and why a request failed, in plain words."""

import math
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from paretune.core.errors import first_line
from paretune.reward.judge_messages import ResponseFormat

if TYPE_CHECKING:
    from openai import APIStatusError
    from openai.types.chat import ChatCompletion

NO_KEY = "none"
"""Sent where the recipe names no key: the client would otherwise send OPENAI_API_KEY to any endpoint."""
NOT_REACHED = ("connection refused", "unknown host")
"""Reasons for which a request never left."""
MIN_KEY_PREFIX = 8
"""Characters from which on the beginning of a key is hidden in messages."""
_RETRIED_STATUS = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, kw_only=True)
class JudgeEndpoint:
    """An OpenAI-compatible endpoint, its model, and how they are asked."""

    base_url: str
    """Address of the API, such as http://127.0.0.1:8000/v1."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; None: no key."""
    temperature: float | None = 0.0
    """None: the endpoint's default."""
    max_tokens: int = 512
    response_format: ResponseFormat = "json_schema"
    timeout: float = 60.0
    """Seconds that one request may take."""
    max_retries: int = 3
    """Repeats of a request that failed."""
    max_concurrency: int = 8

    def api_key(self) -> str:
        """The key; `NO_KEY` if there is none."""
        # A key that was read from a file ends with a line break, which no header may hold.
        return os.environ.get(self.api_key_env, NO_KEY).strip() if self.api_key_env else NO_KEY


@dataclass(frozen=True, kw_only=True)
class JudgeLimits:
    """Caps on requests and cost, and the prices that make the cost."""

    max_requests: int | None = None
    max_cost: float | None = None
    input_price: float = 0.0
    """Of a million input tokens."""
    output_price: float = 0.0
    """Of a million output tokens."""

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Cost of so many tokens."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class RequestError(Exception):
    """A request got no usable answer; the message is the reason."""

    def __init__(
        self,
        reason: str,
        *,
        retry: bool,
        wait: float | None = None,
        answered: bool = True,
        billed: bool = True,
        status: int = 0,
    ) -> None:
        super().__init__(reason)
        self.retry, self.wait = retry, wait
        self.answered = answered
        """The endpoint is there."""
        self.billed = billed
        """It may have cost something: not if the endpoint answered with an error or was not reached."""
        self.status = status


def reply_text(completion: "ChatCompletion") -> str:
    """The text of a reply.

    Raises:
        RequestError: The judge refused, or the body is not that of a chat completion.
    """
    # The library checks no types, so a body may lack anything.
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise RequestError("broken reply", retry=True)
    if getattr(message, "refusal", None) or getattr(choice, "finish_reason", None) == "content_filter":
        raise RequestError("refused", retry=False)
    content = getattr(message, "content", None)
    return content if isinstance(content, str) else ""


def status_error(error: "APIStatusError", secret: str) -> RequestError:
    """The failure behind an HTTP status of 400 or more; its message does not hold the secret."""
    status, retry = int(error.status_code), True
    if status == 429:
        retry = error.code != "insufficient_quota"
        reason = "rate limit (429)" if retry else "out of quota (429)"
    elif status >= 500 or status in _RETRIED_STATUS:
        reason = f"server error {status}" if status >= 500 else f"error {status}"
    else:
        message = _api_message(error, secret)
        retry, reason = False, f"error {status}{f', such as: {message}' if message else ''}"
    wait = retry_after(error.response.headers)
    return RequestError(reason, retry=retry, wait=wait, billed=False, status=status)


def without_key(text: str, secret: str) -> str:
    """A text without the key, and without any beginning of it of `MIN_KEY_PREFIX` characters or more.

    Endpoints quote a key cut, or with its middle replaced by stars.
    """
    if secret in {"", NO_KEY}:
        return text
    if len(secret) <= MIN_KEY_PREFIX:
        return text.replace(secret, "[key]")
    parts, position = [], 0
    while (start := text.find(secret[:MIN_KEY_PREFIX], position)) >= 0:
        end = start + MIN_KEY_PREFIX
        while end < len(text) and end - start < len(secret) and text[end] == secret[end - start]:
            end += 1
        parts += [text[position:start], "[key]"]
        position = end
    return "".join([*parts, text[position:]])


def _api_message(error: "APIStatusError", secret: str) -> str:
    """The endpoint's own message, on one line and without the key."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    # Before any cut, which could leave a part of the key that is not recognised any more.
    text = without_key(message if isinstance(message, str) else error.response.text, secret)
    text = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    return text if len(text) <= 160 else text[:157] + "..."


def connection_problem(error: BaseException) -> str:
    """Why an endpoint could not be reached, in plain words."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    text = " ".join(first_line(each) for each in causes)
    if any(isinstance(each, ConnectionRefusedError) for each in causes) or "refused" in text:
        return "connection refused"
    if re.search(r"Name or service not known|name resolution|getaddrinfo|nodename", text):
        return "unknown host"
    if any(isinstance(each, ConnectionResetError) for each in causes) or "disconnected" in text:
        return "connection closed by the endpoint"
    if any("All connection attempts failed" in first_line(each) for each in causes):
        return "connection refused"
    return "connection failed"


def retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None if there is none."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def endpoint_identity(endpoint: JudgeEndpoint) -> dict[str, Any]:
    """What determines an endpoint's replies, as plain data."""
    names = ("base_url", "model", "temperature", "response_format")
    return {name: asdict(endpoint)[name] for name in names}
