"""Training on responses of a vLLM server: failed requests are missing groups, and a run resumes."""

import copy
from dataclasses import replace

import pytest
import torch

from paretune.core.errors import ResourceError
from paretune.models.load import PolicyModel
from paretune.rl.loop import train
from paretune.rollout import vllm_server
from paretune.rollout.vllm import VllmSampler
from paretune.rollout.vllm_server import VllmServers
from paretune.run.folder import Run, read_jsonl
from support.vllm_server import fake_vllm
from toy import OBJECTIVES, algorithm, toy_recipe, toy_world

STEPS = 3


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "RETRY_PAUSE", 0.0)


def run_on(server, folder, spec, start):
    """Train a copy of the starting policy on the server's responses; its metrics and weights."""
    world = toy_world()
    world.models.policy.load_state_dict(start)
    local = world.sampler.policy
    policy = PolicyModel(
        model=world.models.policy, tokenizer=local.tokenizer, eos_ids=local.eos_ids, pad_id=local.pad_id
    )
    engine = VllmServers([server.url], 20.0)
    sampler = VllmSampler(
        policy=policy, objectives=OBJECTIVES, engine=engine, shared_folder=folder.with_name("weights")
    )
    run = Run(folder)
    try:
        train(spec, replace(world, sampler=sampler), max_steps=STEPS, seed=0, run=run, save_steps=1)
    finally:
        sampler.close()
    return read_jsonl(folder / "metrics.jsonl"), world.models.policy.state_dict()


@pytest.mark.parametrize("name", ["gdpo"])
def test_a_step_without_some_prompts_trains_on_the_others(name, tmp_path):
    spec, world = algorithm(name, num_generations=8, max_new_tokens=6), toy_world()
    start = copy.deepcopy(world.models.policy.state_dict())
    with fake_vllm(world.models.policy, max_model_len=32) as server:
        failing = []

        def fail(body):
            """All requests for the prompt that came first after the probes of the second step."""
            if body["max_tokens"] == 6 and len(failing) < 1 and len(server.requests) > 20:
                failing.append(tuple(body["prompt"]))
            return 500 if tuple(body["prompt"]) in failing and body["max_tokens"] == 6 else None

        server.fail = fail
        metrics, weights = run_on(server, tmp_path / "run", spec, start)
    failed = [line.get("rollout/failed_prompts", 0) for line in metrics]
    assert len(failed) == STEPS
    assert sum(failed) >= 1
    assert failed[0] == 0
    assert all(line["kl/rollout"] < 1e-9 for line in metrics)
    assert any(not torch.equal(weights[k], start[k]) for k in start)


def test_a_run_whose_server_dies_resumes_as_if_it_had_not(tmp_path):
    world = toy_world()
    start = copy.deepcopy(world.models.policy.state_dict())
    with fake_vllm(world.models.policy, max_model_len=32) as server:
        _, expected = run_on(server, tmp_path / "whole", toy_recipe(), start)
        server.restart()
        server.requests.clear()
        server.fail = lambda body: "die" if len(server.requests) > 25 else None
        with pytest.raises(ResourceError, match="no vLLM server is left"):
            run_on(server, tmp_path / "cut", toy_recipe(), start)
        done = len(read_jsonl(tmp_path / "cut" / "metrics.jsonl"))
        assert 0 < done < STEPS
        server.restart()
        server.fail = None
        metrics, weights = run_on(server, tmp_path / "cut", toy_recipe(), start)
    assert [line["step"] for line in metrics] == list(range(STEPS))
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
