"""A server with the routes of vLLM on 127.0.0.1, over a small model, with faults to plant."""

import copy
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file

from paretune.models.lora import suppress_peft_warning

HELD_PROMPT = 128
"""Prompts of at least so many tokens are kept by the prefix cache, as vLLM's blocks on a CPU."""


class Failure(Exception):
    """An answer that is no success."""

    def __init__(self, status, message, kind="InternalServerError", param=None):
        super().__init__(message)
        self.status = status
        self.answer = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass
class FakeVllm:
    """What the server holds, its faults, and what it saw."""

    model: object
    """A causal model of transformers, which the server copies."""
    max_model_len: int = 256
    max_lora_rank: int = 16
    logprobs_mode: str = "processed_logprobs"
    dtype: str = "float32"
    chunked_prefill: bool = False
    dev_mode: bool = True
    lora_routes: bool = True
    faults: set = field(default_factory=set)
    """Of "stale head", "stale weights", "stale adapter", "stale cache", "raw logprobs", "no token ids",
    "outside ids", "never loads"."""
    fail: object = None
    """From the body of a request for responses: seconds to wait, an HTTP status, "drop", "die", or None."""
    requests: list = field(default_factory=list)
    version: str = ""
    url: str = ""

    def __post_init__(self):
        self.base = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.adapters = {}
        self.cache = {}
        self.dead = False
        self._lock = threading.Lock()

    def restart(self):
        """The server as it was started: other weights, no adapter."""
        self.base = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.adapters, self.version, self.cache = {}, "", {}
        self.dead = False

    def facts(self):
        """As the worker extension gives them."""
        config = self.base.config
        return {
            "version": self.version,
            "dtype": self.dtype,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "max_model_len": self.max_model_len,
            "max_lora_rank": self.max_lora_rank,
            "logprobs_mode": self.logprobs_mode,
            "device": "cpu",
            "chunked_prefill": self.chunked_prefill,
        }

    def call(self, method, args):
        """A method of the worker extension."""
        if method == "paretune_facts":
            return self.facts()
        if method != "paretune_load_weights":
            raise self.rpc_failure(f"'CPUWorker' object has no attribute '{method}'")
        folder, version = args
        if not Path(folder).is_dir():
            raise self.rpc_failure(f"{folder} does not exist on the engine's host: see rollout.shared_folder")
        if "never loads" in self.faults:
            raise self.rpc_failure("out of memory")
        tensors = {}
        for file in Path(folder).glob("*.safetensors"):
            tensors |= load_file(file)
        if "stale weights" not in self.faults:
            new = copy.deepcopy(self.base)
            new.load_state_dict(tensors, strict=False)
            new.tie_weights()
            if "stale head" in self.faults:
                old_head = self.base.get_output_embeddings().weight.detach().clone()
                new.config.tie_word_embeddings = False
                new.lm_head.weight = torch.nn.Parameter(old_head, requires_grad=False)
            self.base = new
        self.version = version
        return [version]

    @staticmethod
    def rpc_failure(message):
        """As vLLM words it."""
        text = f"Call to collective_rpc method failed: Worker failed with error '{message}', please check the"
        return Failure(500, f"{text} stack trace above for the root cause")

    def load_adapter(self, name, folder):
        """An adapter from a folder."""
        from peft import PeftModel

        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in"
            raise Failure(400, f"{message} place, set 'load_inplace' to True.", "InvalidUserInput")
        file = Path(folder, "adapter_config.json")
        if not file.is_file():
            raise Failure(404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        rank = json.loads(file.read_text())["r"]
        if rank > self.max_lora_rank:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            text = f"Call to add_lora method failed: Worker failed with error '{message}', please check the"
            raise Failure(500, f"{text} stack trace above for the root cause")
        if "stale adapter" in self.faults and self.adapters:
            self.adapters[name] = next(iter(self.adapters.values()))
            return f"Success: LoRA adapter '{name}' added successfully."
        with suppress_peft_warning():
            model = PeftModel.from_pretrained(copy.deepcopy(self.base), folder).eval()
        self.adapters[name] = model
        return f"Success: LoRA adapter '{name}' added successfully."

    def model_named(self, name):
        """The model that answers to a name."""
        if name == "base":
            return self.base
        if name not in self.adapters:
            raise Failure(
                404, f"The model `{name}` does not exist. Valid aliases: base.", "NotFoundError", "model"
            )
        return self.adapters[name]

    def complete(self, body):
        """Responses to one prompt."""
        prompt, model = list(body["prompt"]), self.model_named(body["model"])
        if len(prompt) >= self.max_model_len:
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt "
            )
            raise Failure(
                400, f"{message}contains {len(prompt)} input tokens", "BadRequestError", "input_tokens"
            )
        if len(prompt) >= HELD_PROMPT:
            with self._lock:
                model = self.cache.setdefault((body["model"] == "base", tuple(prompt)), model)
        with self._lock:  # forward passes of several threads would only wait for each other
            choices = self.choices(body, model, prompt)
        num_tokens = sum(len(c["logprobs"]["token_logprobs"]) for c in choices)
        return {
            "id": "cmpl-0",
            "object": "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": "vllm-0.32.0-0",
            "usage": {
                "prompt_tokens": len(prompt),
                "total_tokens": len(prompt) + num_tokens,
                "completion_tokens": num_tokens,
                "prompt_tokens_details": None,
            },
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    @torch.no_grad()
    def choices(self, body, model, prompt):
        """The responses, each sampled with the seed of its number."""
        n, temperature = body["n"], body["temperature"]
        generators = [torch.Generator().manual_seed(body["seed"] + j) for j in range(n)]
        past, feed, ids, logprobs = None, torch.tensor([prompt] * n), [], []
        for _ in range(body["max_tokens"]):
            out = model(input_ids=feed, past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[:, -1].clone()
            for token, bias in body.get("logit_bias", {}).items():
                logits[:, int(token)] += bias
            scaled = (logits / temperature).log_softmax(-1)
            draws = [
                torch.multinomial(row.exp(), 1, generator=g)
                for row, g in zip(scaled, generators, strict=True)
            ]
            feed = torch.stack(draws)
            ids.append(feed[:, 0].tolist())
            told = logits.log_softmax(-1) if "raw logprobs" in self.faults else scaled
            logprobs.append(told.gather(1, feed)[:, 0].tolist())
        columns = zip(range(n), zip(*ids, strict=True), zip(*logprobs, strict=True), strict=True)
        return [self.choice(body, prompt, j, list(row), list(values)) for j, row, values in columns]

    def choice(self, body, prompt, number, ids, logprobs):
        """One response, cut at its first stop."""
        stops = set(body["stop_token_ids"])
        end = next((i + 1 for i, token in enumerate(ids) if token in stops), None)
        ids, logprobs = ids[:end], logprobs[:end]
        if "outside ids" in self.faults:
            ids = [10**6] * len(ids)
        return {
            "index": number,
            "text": "",
            "logprobs": {
                "text_offset": [0] * len(ids),
                "token_logprobs": logprobs,
                "tokens": [""] * len(ids),
                "top_logprobs": [{"": x} for x in logprobs],
            },
            "finish_reason": "stop" if end else "length",
            "stop_reason": ids[-1] if end else None,
            **({} if "no token ids" in self.faults else {"token_ids": ids}),
            "prompt_logprobs": None,
            "prompt_token_ids": prompt,
            "routed_experts": None,
        }

    def models(self):
        """The base model and the adapters."""
        permission = {
            "id": "p",
            "object": "model_permission",
            "created": 0,
            "organization": "*",
            "group": None,
        }
        permission |= dict.fromkeys(
            ("allow_create_engine", "allow_fine_tuning", "is_blocking", "allow_search_indices"), False
        )
        permission |= dict.fromkeys(("allow_sampling", "allow_logprobs", "allow_view"), True)

        def card(name, parent, length):
            return {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "vllm",
                "root": "folder",
                "parent": parent,
                "max_model_len": length,
                "permission": [permission],
            }

        cards = [
            card("base", None, self.max_model_len),
            *(card(name, "base", None) for name in self.adapters),
        ]
        return {"object": "list", "data": cards}

    def answer(self, method, path, body):
        """The answer to a request."""
        match method, path:
            case "GET", "/health":
                return None
            case "GET", "/v1/models":
                return self.models()
            case "POST", "/v1/completions":
                return self.complete(body)
            case "POST", "/collective_rpc" if self.dev_mode:
                return {"results": [self.call(body["method"], body["args"])]}
            case "POST", "/reset_prefix_cache" if self.dev_mode:
                if "stale cache" not in self.faults:
                    self.cache = {}
                return {"success": True}
            case "POST", "/v1/load_lora_adapter" if self.lora_routes:
                return self.load_adapter(body["lora_name"], body["lora_path"])
            case "POST", "/v1/unload_lora_adapter" if self.lora_routes:
                if self.adapters.pop(body["lora_name"], None) is None:
                    message = f"The lora adapter '{body['lora_name']}' cannot be found."
                    raise Failure(404, message, "NotFoundError")
                return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        failure = Failure(404, "")
        failure.answer = {"detail": "Not Found"}
        raise failure


@contextmanager
def fake_vllm(model, **settings):
    """A running server; its `url` is in the value."""
    state = FakeVllm(model, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def handle_one_request(self):
            if state.dead:
                self.close_connection = True
                return
            super().handle_one_request()

        def do_GET(self):
            self.respond("GET")

        def do_POST(self):
            self.respond("POST")

        def respond(self, method):
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(text) if text else None
            state.requests.append((method, self.path, body))
            action = state.fail(body) if state.fail and self.path == "/v1/completions" else None
            if action == "die":
                state.dead = True
            if action in ("drop", "die"):
                self.close_connection = True
                self.connection.close()
                return
            try:
                if isinstance(action, float):
                    time.sleep(action)
                if isinstance(action, int):
                    raise Failure(action, "EngineCore encountered an issue. See stack trace (above)")
                status, answer = 200, state.answer(method, self.path, body)
            except Failure as failure:
                status, answer = failure.status, failure.answer
            data = (
                b""
                if answer is None
                else (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            )
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the client gave up

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
