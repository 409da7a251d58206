"""vLLM servers as one engine: requests over HTTP, round robin over prompts, with deadlines and retries."""

import http.client
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from paretune.core.errors import first_line
from paretune.rollout.pending import Cancellation
from paretune.rollout.vllm_engine import (
    EngineError,
    EngineFacts,
    GenerationRequest,
    Response,
    Weights,
    facts_from_json,
)

T = TypeVar("T")

MAX_RETRIES = 2
"""Repeats of a request that failed, on another server where there is one."""
RETRY_PAUSE = 0.5
"""Seconds before a repeat."""
SHORT_TIMEOUT = 10.0
"""Seconds for questions that a healthy server answers at once, also under load."""
MAX_CONCURRENT_REQUESTS = 256
"""Requests in flight, one per prompt; vLLM's own default is 256 sequences at a time."""
_SERVER_FIX = "start it as docs/vllm.md shows"


class VllmServer:
    """One server.

    Args:
        url: Its address, such as http://127.0.0.1:8000.
        timeout: Seconds until a request for responses, or to load weights, counts as failed.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/").removesuffix("/v1"), timeout
        self.model = ""
        """The name to ask for: that of the adapter, or of the base model."""
        self._adapter = ""

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        missing: str = "",
        cancellation: Cancellation | None = None,
    ) -> Any:
        """The answer to a request, read as JSON where it is JSON.

        Args:
            method: GET or POST.
            path: Route.
            body: Sent as JSON.
            timeout: Seconds; default: that of the server.
            missing: How to get the route, if the server does not have it.
            cancellation: Ends the request early.

        Raises:
            EngineError: There is none, or it is no success.
        """
        parts = urlsplit(self.url)
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        link = connect(parts.hostname or "", parts.port, timeout=timeout or self.timeout)
        data = None if body is None else json.dumps(body)
        try:
            link.connect()
            with nullcontext() if cancellation is None else cancellation.guards(link.sock):
                link.request(method, parts.path + path, data, {"Content-Type": "application/json"})
                answer = link.getresponse()
                text = answer.read()
        except TimeoutError as error:
            raise EngineError(f"{self.url}: no answer within {timeout or self.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url}: {first_line(error)}") from error
        finally:
            link.close()
        if answer.status == http.client.NOT_FOUND and missing:
            raise EngineError(f"{self.url}: {path} is missing: {missing}; {_SERVER_FIX}")
        if answer.status != http.client.OK:
            raise EngineError(f"{self.url}: {path} answers {answer.status}: {_message(text)}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            return text.decode(errors="replace")  # the routes of adapters answer with a sentence

    def call(self, method: str, *args: str, timeout: float | None = None) -> Any:
        """The answer of the first worker to a method of the worker extension."""
        missing = "the server runs without VLLM_SERVER_DEV_MODE=1"
        body = {"method": method, "args": list(args)}
        answer = self.send("POST", "/collective_rpc", body, timeout=timeout, missing=missing)
        try:
            return answer["results"][0]
        except (TypeError, KeyError, IndexError) as error:
            raise EngineError(f"{self.url}: {method} has no result") from error

    def facts(self) -> EngineFacts:
        """The model and its limits."""
        try:
            return facts_from_json(self.call("paretune_facts", timeout=SHORT_TIMEOUT))
        except (KeyError, TypeError) as error:
            raise EngineError(f"{self.url}: the worker extension is another; {_SERVER_FIX}") from error

    def is_alive(self) -> bool:
        """Whether it answers."""
        try:
            self.send("GET", "/health", timeout=SHORT_TIMEOUT)
        except EngineError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """The models and adapters that it serves."""
        answer = self.send("GET", "/v1/models", timeout=SHORT_TIMEOUT)
        return list(answer["data"]) if isinstance(answer, dict) and "data" in answer else []

    def load(self, weights: Weights) -> None:
        """Load weights and reset the prefix cache.

        Raises:
            EngineError: It failed.
        """
        if weights.is_adapter:
            self._load_adapter(weights)
        else:
            loaded = self.call("paretune_load_weights", str(weights.folder), weights.version)
            if loaded != [weights.version]:
                raise EngineError(f"{self.url}: loaded {loaded} instead of {weights.version}")
            self.model = self._base_model()
        missing = "the server runs without VLLM_SERVER_DEV_MODE=1"
        answer = self.send("POST", "/reset_prefix_cache", timeout=SHORT_TIMEOUT, missing=missing)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineError(f"{self.url}: kept its prefix cache, which belongs to older weights")

    def _load_adapter(self, weights: Weights) -> None:
        missing = "the server runs without VLLM_ALLOW_RUNTIME_LORA_UPDATING=True or --enable-lora"
        body = {"lora_name": weights.version, "lora_path": str(weights.folder)}
        # The server gives each name an id of its own, so that no older adapter is taken for this one.
        self.send("POST", "/v1/load_lora_adapter", body, missing=missing)
        if self._adapter:
            self.unload_adapter()
        self.model = self._adapter = weights.version

    def unload_adapter(self) -> None:
        """Take the adapter out of the server's list; its memory goes with the next one that is loaded."""
        self.send("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter}, timeout=SHORT_TIMEOUT)
        self._adapter = ""

    def forget_adapter(self) -> None:
        """The server was restarted or lost: it has no adapter of ours."""
        self._adapter = ""

    @property
    def has_adapter(self) -> bool:
        """An adapter was loaded and not unloaded."""
        return bool(self._adapter)

    def _base_model(self) -> str:
        names = [str(model["id"]) for model in self.models() if not model.get("parent")]
        if not names:
            raise EngineError(f"{self.url}: serves no model")
        return names[0]

    def holds(self, version: str) -> bool:
        """Whether it has these weights."""
        if self._adapter:
            return any(model["id"] == version for model in self.models())
        return self.facts().version == version

    def generate(
        self, request: GenerationRequest, cancellation: Cancellation | None = None
    ) -> list[Response]:
        """The responses to one prompt."""
        body = {
            "model": self.model,
            "prompt": list(request.prompt_ids),
            "return_token_ids": True,
            **request.sampling_params(),
        }
        answer = self.send("POST", "/v1/completions", body, cancellation=cancellation)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            responses = [
                Response(c["token_ids"], c["logprobs"]["token_logprobs"], str(c["finish_reason"]))
                for c in choices
            ]
        except (TypeError, KeyError) as error:
            raise EngineError(f"{self.url}: an answer without token ids or log-probabilities") from error
        if len(responses) != request.num_generations:
            raise EngineError(f"{self.url}: {len(responses)} of {request.num_generations} responses")
        return responses


class VllmServers:
    """Several servers with the same weights.

    A server that does not answer is left out until the next `load`.

    Args:
        urls: Their addresses.
        timeout: Seconds until a request for responses, or to load weights, counts as failed.
    """

    is_shared = True
    takes_tensors = False

    def __init__(self, urls: Sequence[str], timeout: float) -> None:
        self.servers = [VllmServer(url, timeout) for url in urls]
        self._lost: dict[str, str] = {}
        self._lock = Lock()

    @property
    def live(self) -> list[VllmServer]:
        """The servers that answered up to now."""
        return [server for server in self.servers if server.url not in self._lost]

    def facts(self) -> EngineFacts:
        """See `Engine`."""
        facts = [server.facts() for server in self.live]
        return replace(
            facts[0],
            max_model_len=min(f.max_model_len for f in facts),
            max_lora_rank=min(f.max_lora_rank for f in facts),
        )

    def generate(
        self, requests: Sequence[GenerationRequest], cancellation: Cancellation | None = None
    ) -> list[list[Response] | EngineError]:
        """See `Engine`."""

        def respond(index: int) -> list[Response] | EngineError:
            return self._generate(index, requests[index], cancellation)

        results = _in_threads(respond, range(len(requests)))
        self._require_live()
        return results

    def _generate(
        self, index: int, request: GenerationRequest, cancellation: Cancellation | None
    ) -> list[Response] | EngineError:
        error = EngineError("no server was left")
        for attempt in range(1 + MAX_RETRIES):
            live = self.live
            if not live or (cancellation is not None and cancellation.requested):
                return error
            server = live[(index + attempt) % len(live)]
            if attempt:
                time.sleep(RETRY_PAUSE)
            try:
                return server.generate(request, cancellation)
            except EngineError as failure:
                error = failure
                cancelled = cancellation is not None and cancellation.requested
                if not cancelled and not server.is_alive():
                    self._lose(server, failure)
        return error

    def load(self, weights: Weights, probes: Sequence[GenerationRequest]) -> dict[str, list[list[Response]]]:
        """See `Engine`. Servers that were lost before are tried again."""

        def load_one(server: VllmServer) -> list[list[Response]] | EngineError:
            try:
                if server.url in self._lost:
                    server.facts()  # quick, where a load would wait for its timeout
                    server.forget_adapter()
                server.load(weights)
                return [server.generate(probe) for probe in probes]
            except EngineError as failure:
                return failure

        results = dict(zip(self.servers, _in_threads(load_one, self.servers), strict=True))
        self._lost = {s.url: str(r) for s, r in results.items() if isinstance(r, EngineError)}
        self._require_live()
        return {s.url: r for s, r in results.items() if not isinstance(r, EngineError)}

    def state(self) -> dict[str, Any]:
        """See `Engine`."""
        return {"lost": self._lost, "models": {server.url: server.model for server in self.servers}}

    def adopt(self, state: dict[str, Any]) -> None:
        """See `Engine`."""
        self._lost = dict(state["lost"])
        for server in self.servers:
            server.model = state["models"][server.url]

    def holds(self, version: str) -> bool:
        """See `Engine`."""
        for server in self.live:
            try:
                if not server.holds(version):
                    return False
            except EngineError as failure:
                self._lose(server, failure)
        return bool(self.live)

    def sleep(self) -> None:
        """Servers have accelerators of their own, whose memory nobody else needs."""

    def close(self) -> None:
        """Unload the adapter; the servers go on."""
        for server in self.live:
            if server.has_adapter:
                try:
                    server.unload_adapter()
                except EngineError:
                    server.forget_adapter()  # it is gone, and so is the adapter

    def _lose(self, server: VllmServer, failure: EngineError) -> None:
        with self._lock:
            self._lost.setdefault(server.url, str(failure))

    def _require_live(self) -> None:
        if not self.live:
            raise EngineError("no vLLM server is left: " + "; ".join(self._lost.values()))


def _in_threads(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    with ThreadPoolExecutor(min(max(len(items), 1), MAX_CONCURRENT_REQUESTS)) as executor:
        return list(executor.map(function, items))


_WORKER_ERROR = re.compile(r"Worker failed with error '(.*)', please check the stack trace", re.DOTALL)


def _message(text: bytes) -> str:
    """The message in the answer to a request that failed, without the words around an error of a worker."""
    try:
        values = json.loads(text)
        error = values.get("error", values)
        message = error.get("message") if isinstance(error, dict) else error
        message = str(message or values.get("detail") or text.decode(errors="replace"))
        inner = _WORKER_ERROR.search(message)
        return first_line(RuntimeError(inner[1] if inner else message))
    except (ValueError, AttributeError):
        return text[:300].decode(errors="replace").strip() or "without a message"
