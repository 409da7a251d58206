"""The sampler over the real vLLM, in this process and as a server: weights, samples, faults, ends."""

import json
import os
import signal
import threading
from unittest import mock

import psutil
import pytest
import torch

from paretune.core.errors import ResourceError
from paretune.data.records import Message, Prompt
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import ModelSpec, load_policy
from paretune.models.lora import LoraSpec
from paretune.rollout.sampler import OnPolicy
from paretune.rollout.vllm import VllmSampler
from paretune.rollout.vllm_engine import InProcessEngine
from paretune.rollout.vllm_server import VllmServer, VllmServers
from shared import shared
from support.vllm_exchanges import ANSWERS, make_adapters, record, shape
from support.vllm_process import MAX_LEN, vllm_server

PROMPTS = [
    Prompt(messages=(Message("user", text),), id=str(i))
    for i, text in enumerate(["hello", "a longer request, with commas", "x", "two words"])
]
RANK = 8


@torch.no_grad()
def move(policy, step):
    """As an optimizer step would."""
    generator = torch.Generator().manual_seed(step)
    for x in policy.model.parameters():
        if x.requires_grad:
            x.add_(0.02 * torch.randn(x.shape, generator=generator))


def gap(policy, batch, temperature):
    """The largest difference to the trainer's log-probabilities."""
    with torch.no_grad():
        ours = compute_logprobs(
            policy.model,
            batch.input_ids,
            batch.attention_mask,
            batch.response_mask,
            temperature=temperature,
        )
    return float((ours - batch.require("rollout_logprobs"))[batch.response_mask].abs().max())


def check_transfer(policy, sampler):
    """Ten steps with the probe, the log-probabilities of the samples, and the same samples asked apart."""
    for step in range(10):
        move(policy, step)
        assert sampler.sync(step)["sync/probe_gap"] < 1e-4
    assert sampler.sync(10) == {}
    for temperature in (1.0, 0.7):
        how = OnPolicy(num_generations=4, max_new_tokens=24, temperature=temperature)
        batch, samples = sampler(PROMPTS, how, seed=1, step=3)
        assert gap(policy, batch, temperature) < 1e-4
        assert len(samples) == 16
        ends = [s.response_ids[-1] in policy.eos_ids for s in samples]
        assert [not end for end in ends] == batch.truncated.tolist()
        for i in (3, 1):
            part, _ = sampler([PROMPTS[i]], how, seed=1, step=3, prompt_index=[i])
            whole = [s.response_ids for s in samples if s.prompt.id == str(i)]
            assert [
                tuple(row[m].tolist()) for row, m in zip(part.input_ids, part.response_mask, strict=True)
            ] == whole


def check_fault(policy, sampler, fault):
    """The probe tells the fault, and without it the next transfer is right."""
    sampler.sync(0)
    move(policy, 50)
    with fault, pytest.raises(ResourceError, match=r"does not sample from the weights .*safetensors"):
        sampler.sync(1)
    move(policy, 51)
    assert sampler.sync(2)["sync/probe_gap"] < 1e-4


def make_policy(folder, lora):
    return load_policy(ModelSpec(path=str(folder), lora=LoraSpec(r=RANK) if lora else None))


def in_process(folder, lora, **settings):
    return InProcessEngine(
        str(folder),
        device="cpu",
        lora_rank=RANK if lora else None,
        dtype="float32",
        gpu_memory_utilization=0.08,
        max_model_len=MAX_LEN,
        **settings,
    )


@pytest.mark.parametrize("lora", [True, False])
def test_in_process(model_folder, tmp_path, lora):
    policy, engine = make_policy(model_folder, lora), in_process(model_folder, lora)
    sampler = VllmSampler(policy=policy, objectives=("a",), engine=engine, shared_folder=tmp_path)
    check_transfer(policy, sampler)
    if lora:
        from vllm.lora.request import LoRARequest

        def known_id(weights):
            engine._adapter = LoRARequest("again", engine._adapter.lora_int_id, str(weights.folder))

        check_fault(policy, sampler, mock.patch.object(engine, "_load_adapter", known_id))
    else:
        check_fault(policy, sampler, mock.patch.object(engine._llm, "reset_prefix_cache", return_value=True))

        def reload_alone(method, *args):
            return engine._llm.collective_rpc("reload_weights", kwargs={"weights_path": args[0]})

        check_fault(policy, sampler, mock.patch.object(engine, "_call", reload_alone))
        engine.takes_tensors = True  # as on an accelerator
        move(policy, 60)
        assert sampler.sync(3)["sync/probe_gap"] < 1e-4
    many = OnPolicy(num_generations=64, max_new_tokens=8)
    batch, _ = sampler(PROMPTS * 8, many, seed=0, step=4, prompt_index=range(32))
    assert len(batch) == 32 * 64, "more prompts than one batch of the engine holds"
    assert gap(policy, batch, 1.0) < 1e-4
    sampler.close()


def test_servers(model_folder, tmp_path):
    with vllm_server(model_folder, tmp_path / "server.log") as (url, process):
        for lora in (True, False):  # full weights last: they replace the model that adapters belong to
            engine, policy = VllmServers([url], 120.0), make_policy(model_folder, lora)
            sampler = VllmSampler(policy=policy, objectives=("a",), engine=engine, shared_folder=tmp_path)
            check_transfer(policy, sampler)
            if lora:
                check_fault(policy, sampler, mock.patch.object(VllmServer, "_load_adapter"))
                sampler.close()
        many = OnPolicy(num_generations=32, max_new_tokens=400)
        core = next(
            p for p in psutil.Process(process.pid).children(recursive=True) if "EngineCore" in p.name()
        )
        threading.Timer(1.0, os.kill, (core.pid, signal.SIGKILL)).start()
        with pytest.raises(ResourceError, match="no vLLM server is left"):
            sampler(PROMPTS, many, seed=0, step=0)


def test_the_recorded_answers_are_those_of_the_server(tmp_path):
    model = shared("models", "dialogue-7m")
    with vllm_server(model, tmp_path / "server.log") as (url, _):
        real = record(url, model, *make_adapters(model, tmp_path))
    recorded = json.loads(ANSWERS.read_text())
    assert {k: v["status"] for k, v in real.items()} == {k: v["status"] for k, v in recorded.items()}
    for name, answer in real.items():
        assert shape(answer["answer"]) == shape(recorded[name]["answer"]), name
    for name in ("completion", "completion by the adapter"):
        ours, theirs = (a[name]["answer"]["choices"] for a in (real, recorded))
        assert [c["token_ids"] for c in ours] == [c["token_ids"] for c in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a["logprobs"]["token_logprobs"] == pytest.approx(b["logprobs"]["token_logprobs"], abs=1e-4)
