"""vLLM against the trainer: log-probabilities, weight transfer, planted faults, speed, and a killed engine.

python proofs/vllm_rollouts.py MODEL            vLLM in this process
python proofs/vllm_rollouts.py MODEL URL [PID]  a server, started as docs/vllm.md shows; with the id of
                                                its EngineCore, which is killed last

Results: docs/results/vllm.md.
"""

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from paretune.core.errors import ResourceError
from paretune.data.records import Message, Prompt
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import ModelSpec, PolicyModel, load_policy
from paretune.models.lora import LoraSpec
from paretune.rollout.sampler import LocalSampler, OnPolicy
from paretune.rollout.vllm import VllmSampler
from paretune.rollout.vllm_engine import Engine, InProcessEngine
from paretune.rollout.vllm_server import VllmServer, VllmServers

TEXTS = (
    "Tell me about your day.",
    "What is a good name for a cat?",
    "Describe the sea to somebody who never saw it.",
    "Why is the sky blue?",
    "Write a short story about a lost key.",
    "How do I make tea?",
    "Hello!",
    "Give me three reasons to learn to swim, and explain each of them in a sentence.",
)
PROMPTS = [Prompt(messages=(Message("user", text),), id=str(i)) for i, text in enumerate(TEXTS)]
STEPS = 10
LORA_RANK = 8


@torch.no_grad()
def move(policy: PolicyModel, step: int) -> None:
    """Change what is trained, by 0.3 % of its norm (an adapter's zeros by 0.01)."""
    generator = torch.Generator().manual_seed(step)
    for name, x in policy.model.named_parameters():
        if x.requires_grad:
            noise = torch.randn(x.shape, generator=generator)
            x.add_(noise * (0.01 if "lora_" in name else 0.003 * float(x.std().nan_to_num(0.1))))


def gap(policy: PolicyModel, sampler: VllmSampler, step: int, temperature: float) -> tuple[float, int]:
    """The largest difference to the trainer's log-probabilities, and the number of tokens."""
    how = OnPolicy(num_generations=8, max_new_tokens=64, temperature=temperature)
    batch, _ = sampler(PROMPTS, how, seed=1, step=step)
    mask, sampled = batch.response_mask, batch.require("rollout_logprobs")
    with torch.no_grad():
        ours = compute_logprobs(
            policy.model, batch.input_ids, batch.attention_mask, mask, temperature=temperature
        )
    return float((ours - sampled)[mask].abs().max()), int(mask.sum())


def transfer(policy: PolicyModel, sampler: VllmSampler, kind: str) -> None:
    """Steps of the trained weights, with the probe after each."""
    gaps, seconds, size = [], [], 0.0
    for step in range(STEPS):
        move(policy, step)
        start = time.perf_counter()
        metrics = sampler.sync(step)
        seconds.append(time.perf_counter() - start)
        gaps.append(metrics["sync/probe_gap"])
        size = metrics["sync/bytes"]
    print(f"{kind}: probe after {STEPS} steps: largest {max(gaps):.2g}, all {[f'{g:.1e}' for g in gaps]}")
    print(
        f"{kind}: {size / 1e6:.1f} MB, {statistics.median(seconds):.2f} s a transfer with its probe (median)"
    )
    for temperature in (1.0, 0.7):
        worst, tokens = gap(policy, sampler, STEPS, temperature)
        print(f"{kind}: temperature {temperature}: {tokens:,} tokens, largest gap to the trainer {worst:.2g}")
    how = OnPolicy(num_generations=4, max_new_tokens=32)
    whole, _ = sampler(PROMPTS, how, seed=2, step=5)
    same = 0
    for i in reversed(range(len(PROMPTS))):
        part, _ = sampler([PROMPTS[i]], how, seed=2, step=5, prompt_index=[i])
        ids, mask = whole.input_ids[whole.group == i], whole.attention_mask[whole.group == i]
        same += all(
            torch.equal(a[m], b[n])
            for a, m, b, n in zip(ids, mask, part.input_ids, part.attention_mask, strict=True)
        )
    print(f"{kind}: asked apart, in reverse order: the same samples for {same} of {len(PROMPTS)} prompts")


def planted(policy: PolicyModel, sampler: VllmSampler, name: str, fault: Any) -> None:
    """Whether the probe tells a fault."""
    sampler.sync(0)
    move(policy, 77)
    with fault:
        try:
            metrics = sampler.sync(1)
            print(f"{name}: NOT told, gap {metrics['sync/probe_gap']:.2g}")
        except ResourceError as error:
            print(f"{name}: told: {error}")
    move(policy, 78)
    print(f"{name}: without it again {sampler.sync(2)['sync/probe_gap']:.2g}")


def faults(engine: Engine, lora: bool) -> Iterator[tuple[str, Any]]:
    """Faults of the engine, by name."""
    if isinstance(engine, InProcessEngine):
        yield "stale prefix cache", mock.patch.object(engine._llm, "reset_prefix_cache", return_value=True)
        if lora:
            yield "stale adapter", stale_adapter_in_process(engine)
        else:
            yield "stale head", stale_head(engine)
        return
    assert isinstance(engine, VllmServers)
    send, call = VllmServer.send, VllmServer.call

    def no_reset(self: VllmServer, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        return {"success": True} if "prefix" in path else send(self, method, path, *args, **kwargs)

    def old_adapter(self: VllmServer, weights: Any) -> None:
        pass

    def reload_alone(self: VllmServer, method: str, *args: str, **kwargs: Any) -> Any:
        if method != "paretune_load_weights":
            return call(self, method, *args, **kwargs)
        body = {"method": "reload_weights", "kwargs": {"weights_path": args[0]}}
        self.send("POST", "/collective_rpc", body)
        return [args[1]]

    yield "stale prefix cache", mock.patch.object(VllmServer, "send", no_reset)
    if lora:
        yield "stale adapter", mock.patch.object(VllmServer, "_load_adapter", old_adapter)
    else:
        yield "stale head", mock.patch.object(VllmServer, "call", reload_alone)


def stale_adapter_in_process(engine: InProcessEngine) -> Any:
    """The id of the adapter that is there already, as without a new one each time."""

    def known_id(weights: Any) -> None:
        from vllm.lora.request import LoRARequest

        engine._adapter = LoRARequest("again", engine._adapter.lora_int_id, str(weights.folder))

    return mock.patch.object(engine, "_load_adapter", known_id)


@contextmanager
def stale_head(engine: InProcessEngine) -> Iterator[None]:
    """VLLM's own reload, without what the worker extension does after it."""
    call: Callable[..., Any] = engine._call

    def reload_alone(method: str, *args: Any) -> Any:
        if method == "paretune_load_weights":
            return engine._llm.collective_rpc("reload_weights", kwargs={"weights_path": args[0]})
        return call(method, *args)

    with mock.patch.object(engine, "_call", reload_alone):
        yield


def speed(policy: PolicyModel, sampler: VllmSampler) -> None:
    """Tokens a second beside the sampler on the training weights, in turn."""
    how = OnPolicy(num_generations=8, max_new_tokens=64)
    local = LocalSampler(policy, ("a",))
    rates: dict[str, list[float]] = {"vllm": [], "local": []}
    for turn in range(4):
        for name, each in (("vllm", sampler), ("local", local)):
            start = time.perf_counter()
            batch, _ = each(PROMPTS, how, seed=turn, step=0)
            rates[name].append(int(batch.response_mask.sum()) / (time.perf_counter() - start))
    for name, values in rates.items():
        shown = ", ".join(f"{x:.0f}" for x in values[1:])
        print(
            f"speed: {name} {statistics.median(values[1:]):.0f} tokens/s (of {shown}; without the first turn)"
        )


def killed(policy: PolicyModel, sampler: VllmSampler, pid: int) -> None:
    """Kill -9 of the engine while it responds."""
    long = OnPolicy(num_generations=32, max_new_tokens=400)
    threading.Timer(1.0, lambda: os.kill(pid, signal.SIGKILL)).start()
    start = time.perf_counter()
    try:
        sampler(PROMPTS, long, seed=9, step=9)
        print("kill -9: NOT told: the rollout was complete")
    except ResourceError as error:
        print(f"kill -9 after 1 s: told after {time.perf_counter() - start:.1f} s: {error}")


def main() -> None:
    """All checks."""
    model, *server = sys.argv[1:]
    for lora in (True, False):
        kind = "lora" if lora else "full"
        policy = load_policy(ModelSpec(path=model, lora=LoraSpec(r=LORA_RANK) if lora else None))
        start = time.perf_counter()
        engine: Engine = (
            VllmServers([server[0]], 300.0)
            if server
            else InProcessEngine(
                model,
                device="cpu",
                lora_rank=LORA_RANK if lora else None,
                dtype="float32",
                gpu_memory_utilization=0.05,
                max_model_len=512,
            )
        )
        print(f"{kind}: engine after {time.perf_counter() - start:.0f} s: {engine.facts()}", flush=True)
        sampler = VllmSampler(policy=policy, objectives=("a",), engine=engine)
        transfer(policy, sampler, kind)
        for name, fault in faults(engine, lora):
            planted(policy, sampler, f"{kind}: {name}", fault)
        speed(policy, sampler)
        if server and not lora and len(server) > 1:
            killed(policy, sampler, int(server[1]))
        kept = sampler._folder
        sampler.close()
        print(f"{kind}: files after close: {[str(p) for p in Path(kept or '/').glob('*')] if kept else []}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
