"""Requests to a vLLM server, and the answers of the real one, which the fake server is compared with.

`python -m support.vllm_exchanges URL MODEL` writes `vllm_answers.json` again; tests/vllm compares the real
server with it.
"""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

ANSWERS = Path(__file__).with_name("vllm_answers.json")
COMPLETION = {
    "return_token_ids": True,
    "n": 2,
    "max_tokens": 6,
    "temperature": 0.7,
    "seed": 2**62 - 5,
    "stop_token_ids": [2, 0],
    "ignore_eos": True,
    "logprobs": 0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def completion(model, prompt=(5, 6, 7, 8), **changes):
    """A request for responses."""
    return ("POST", "/v1/completions", {"model": model, "prompt": list(prompt), **COMPLETION, **changes})


def rpc(method, *args):
    """A call of the worker extension."""
    return ("POST", "/collective_rpc", {"method": method, "args": list(args)})


def adapter(name, folder):
    """A request to load an adapter."""
    return ("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})


def exchanges(weights, small_adapter, large_adapter):
    """Requests by name, in the order in which they are sent.

    Args:
        weights: Folder of the server's own model.
        small_adapter: Folder of an adapter that it takes.
        large_adapter: Folder of an adapter whose rank is above its limit.
    """
    return {
        "health": ("GET", "/health", None),
        "facts": rpc("paretune_facts"),
        "models": ("GET", "/v1/models", None),
        "completion": completion("base"),
        "completion that stops": completion("base", stop_token_ids=list(range(2048))),
        "completion with excluded ids": completion("base", logit_bias={"16": -100.0}),
        "unknown model": completion("nobody"),
        "prompt too long": completion("base", prompt=[5] * 600),
        "load": rpc("paretune_load_weights", str(weights), "v1"),
        "facts after load": rpc("paretune_facts"),
        "load of no folder": rpc("paretune_load_weights", "/no/folder", "v2"),
        "facts after a failed load": rpc("paretune_facts"),
        "unknown method": rpc("nothing"),
        "reset of the prefix cache": ("POST", "/reset_prefix_cache", None),
        "adapter": adapter("v3", small_adapter),
        "models with an adapter": ("GET", "/v1/models", None),
        "completion by the adapter": completion("v3"),
        "adapter of a known name": adapter("v3", small_adapter),
        "adapter of no folder": adapter("v4", "/no/folder"),
        "adapter above the rank": adapter("v5", large_adapter),
        "unload": ("POST", "/v1/unload_lora_adapter", {"lora_name": "v3"}),
        "unload again": ("POST", "/v1/unload_lora_adapter", {"lora_name": "v3"}),
        "completion by an unloaded adapter": completion("v3"),
        "unknown route": ("GET", "/nowhere", None),
    }


def send(url, method, path, body):
    """Status and answer of one request; JSON where it is JSON."""
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    try:
        data = None if body is None else json.dumps(body)
        link.request(method, path, data, {"Content-Type": "application/json"})
        answer = link.getresponse()
        text = answer.read().decode()
    finally:
        link.close()
    try:
        return answer.status, json.loads(text) if text else None
    except ValueError:
        return answer.status, text


def record(url, weights, small_adapter, large_adapter):
    """Status and answer of every exchange with a server."""
    return {
        name: dict(zip(("status", "answer"), send(url, *request), strict=True))
        for name, request in exchanges(weights, small_adapter, large_adapter).items()
    }


def shape(value):
    """The structure of an answer: keys and types, the first element of a list for all."""
    if isinstance(value, dict):
        skipped = ("top_logprobs", "usage")  # texts of tokens as keys; not read
        return {key: shape(inner) for key, inner in sorted(value.items()) if key not in skipped}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def make_adapters(model, folder):
    """Adapters of rank 8 and 32 with weights that are not 0: (folder, folder)."""
    import torch

    from paretune.models.load import ModelSpec, load_policy
    from paretune.models.lora import LoraSpec

    folders = []
    for rank in (8, 32):
        policy = load_policy(ModelSpec(path=str(model), lora=LoraSpec(r=rank)))
        generator = torch.Generator().manual_seed(rank)
        with torch.no_grad():
            for name, x in policy.model.named_parameters():
                if "lora_B" in name:
                    x.copy_(0.02 * torch.randn(x.shape, generator=generator))
        folders.append(folder / f"rank-{rank}")
        policy.model.save_pretrained(str(folders[-1]))
    return tuple(folders)


def main():
    """Record a server: python -m support.vllm_exchanges URL MODEL."""
    import sys
    import tempfile

    url, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        answers = record(url, model, *make_adapters(model, Path(folder)))
        text = json.dumps(answers, indent=1).replace(folder, "FOLDER").replace(model, "MODEL")
    ANSWERS.write_text(text + "\n")


if __name__ == "__main__":
    main()
