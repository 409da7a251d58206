"""vLLM as a sampler: weights reach the servers, the probe tells faults, failed requests are missing."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from paretune.core.errors import DataError, ResourceError
from paretune.data.records import Message, Prompt
from paretune.models.forward.lm_head import limit_vocab
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import as_policy_model
from paretune.models.lora import LoraSpec, add_lora
from paretune.rollout import vllm_server
from paretune.rollout.sampler import LocalSampler, OnPolicy, Sampler
from paretune.rollout.synced import SyncedSampler, closing_sampler, sleep_sampler, sync_sampler
from paretune.rollout.vllm import VllmSampler
from paretune.rollout.vllm_engine import EngineError, GenerationRequest
from paretune.rollout.vllm_server import VllmServer, VllmServers
from paretune.rollout.vllm_weights import FOLDER_PREFIX, make_weights_folder, weight_checksum
from support.tiny_models import tiny_model, tiny_tokenizer
from support.vllm_exchanges import ANSWERS, record, shape
from support.vllm_server import fake_vllm

TOKENIZER = tiny_tokenizer()
SIZE = len(TOKENIZER)
PROMPTS = [
    Prompt(messages=(Message("user", text),), id=f"p{i}")
    for i, text in enumerate(["hello", "a longer request, with commas", "x", "two words"])
]
ROLLOUT = OnPolicy(num_generations=3, max_new_tokens=10, temperature=0.8)


def base_model(seed=0, **size):
    return tiny_model("llama", SIZE, initial=0.25, seed=seed, context=512, **size)


def make_policy(lora=False):
    model = base_model()
    if lora:
        model = add_lora(model, LoraSpec(r=4), 0)
        move(model, "lora_B")
    return as_policy_model(model, TOKENIZER)


@torch.no_grad()
def move(model, part="", seed=0, size=0.1):
    """As an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        if x.requires_grad and part in name:
            x.add_(size * torch.randn(x.shape, generator=generator))


def make_sampler(policy, *servers, folder, timeout=20.0):
    engine = VllmServers([server.url for server in servers], timeout)
    return VllmSampler(policy=policy, objectives=("a",), engine=engine, shared_folder=folder)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "RETRY_PAUSE", 0.0)


@torch.no_grad()
def max_gap(policy, batch, temperature):
    model = policy.model.eval()
    ours = compute_logprobs(
        model, batch.input_ids, batch.attention_mask, batch.response_mask, temperature=temperature
    )
    return float((ours - batch.require("rollout_logprobs"))[batch.response_mask].abs().max())


@pytest.mark.parametrize("lora", [False, True])
def test_weights_reach_the_servers_at_every_step(lora, tmp_path):
    policy = make_policy(lora)
    with fake_vllm(base_model(), max_model_len=512) as one, fake_vllm(base_model(), max_model_len=512) as two:
        sampler = make_sampler(policy, one, two, folder=tmp_path)
        for step in range(2):
            metrics = sampler.sync(step)
            assert 0 < metrics["sync/probe_gap"] < 1e-4
            assert metrics["sync/bytes"] > 1000
            assert sampler.sync(step) == {}, "nothing changed"
            batch, samples = sampler(PROMPTS, ROLLOUT, seed=1, step=step)
            assert batch.group.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
            assert max_gap(policy, batch, 0.8) < 1e-4
            assert [len(s.response_ids) for s in samples] == batch.response_mask.sum(-1).tolist()
            move(policy.model, seed=step)
        loads = [path for _, path, _ in one.requests if path in ("/collective_rpc", "/v1/load_lora_adapter")]
        assert loads.count("/v1/load_lora_adapter" if lora else "/collective_rpc") >= 2
        assert len(one.adapters) == int(lora), "an old adapter is removed"
        assert [path for server in (one, two) for _, path, _ in server.requests].count(
            "/v1/completions"
        ) == 16
        sampler.close()
        sampler.close()
        assert not one.adapters
    assert not list(tmp_path.iterdir()), "the files of the weights are deleted"


def test_a_response_depends_on_its_prompt_and_index_alone(tmp_path):
    policy = make_policy()
    with fake_vllm(base_model()) as one, fake_vllm(base_model()) as two:
        whole, _ = make_sampler(policy, one, folder=tmp_path)(PROMPTS, ROLLOUT, seed=3, step=2)
        apart = make_sampler(policy, one, two, folder=tmp_path)
        for i in (2, 0):
            part, _ = apart([PROMPTS[i]], ROLLOUT, seed=3, step=2, prompt_index=[i])
            for row, other in zip(part.input_ids, whole.input_ids[whole.group == i], strict=True):
                assert row.tolist() == other[: len(row)].tolist()
        other_step, _ = apart(PROMPTS, ROLLOUT, seed=3, step=3)
    assert not torch.equal(other_step.input_ids[:, : whole.input_ids.shape[1]], whole.input_ids)


@pytest.mark.parametrize(
    ("fault", "lora"),
    [
        ("stale head", False),
        ("stale weights", False),
        ("stale cache", False),
        ("raw logprobs", False),
        ("outside ids", False),
        ("stale adapter", True),
        ("stale cache", True),
    ],
)
def test_the_probe_tells_an_engine_with_other_weights(fault, lora, tmp_path):
    policy = make_policy(lora)
    with fake_vllm(base_model(), max_model_len=512) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        assert sampler.sync(0)["sync/probe_gap"] < 1e-4
        server.faults.add(fault)
        move(policy.model, seed=1)
        with pytest.raises(ResourceError) as error:
            sampler.sync(1)
        line = str(error.value)
        assert "\n" not in line
        assert line.startswith(f"step 1: {server.url} does not sample from the weights")
        file = next(word for word in line.split() if word.endswith("safetensors;"))[:-1]
        sampler.close()
        assert Path(file).stat().st_size > 0, "the evidence stays"


def test_an_old_server_without_a_fault_of_its_own_is_told(tmp_path):
    """An adapter on another base model."""
    policy = make_policy(lora=True)
    with fake_vllm(base_model(seed=5)) as server, pytest.raises(ResourceError, match="does not sample from"):
        make_sampler(policy, server, folder=tmp_path).sync(0)


def test_half_precision_allows_a_larger_gap(tmp_path):
    policy = make_policy()
    with fake_vllm(base_model(), dtype="bfloat16") as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        sampler.sync(0)
        assert sampler._max_gap() == 0.3
    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        sampler.sync(0)
        assert sampler._max_gap() == 1e-3


def test_a_request_that_fails_once_is_repeated(tmp_path):
    policy = make_policy()
    calls = []

    def fail_first(body):
        calls.append(body["seed"])
        return 500 if calls.count(body["seed"]) == 1 else None

    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        expected, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=0)
        server.fail = fail_first
        batch, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=0)
    assert torch.equal(batch.input_ids, expected.input_ids)


@pytest.mark.parametrize("action", [500, 400, "drop", 2.0])
def test_prompts_whose_requests_fail_are_missing_rows(action, tmp_path):
    """An error, a closed connection, or no answer in time: never a response of reward 0."""
    policy = make_policy()
    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        sampler.sync(0)
        expected, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=0)
        lengths = [len(r[2]["prompt"]) for r in server.requests[-4:]]
        assert len(set(lengths)) > 1
        longest = max(lengths)
        if action == 2.0:
            sampler = make_sampler(policy, server, folder=tmp_path / "hurried", timeout=1.0)
            sampler.sync(0)
        server.fail = lambda body: action if len(body["prompt"]) == longest else None
        batch, samples = sampler(PROMPTS, ROLLOUT, seed=0, step=0)
    assert batch.group.tolist() == [0] * 3 + [2] * 3 + [3] * 3
    assert [s.prompt.id for s in samples[::3]] == ["p0", "p2", "p3"]
    kept = expected.input_ids[expected.group != 1]
    width = min(kept.shape[1], batch.input_ids.shape[1])
    assert torch.equal(batch.input_ids[:, :width], kept[:, :width])


def test_another_server_takes_over_from_one_that_dies(tmp_path):
    policy = make_policy()
    with fake_vllm(base_model()) as one, fake_vllm(base_model()) as two:
        sampler = make_sampler(policy, one, two, folder=tmp_path)
        expected, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=0)
        one.fail = lambda body: "die"
        batch, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=0)
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert [s.url for s in sampler.engine.live] == [two.url]
        move(policy.model)
        sampler.sync(1)
        assert [s.url for s in sampler.engine.live] == [two.url]
        one.restart()
        one.fail = None
        move(policy.model)
        sampler.sync(2)
        assert [s.url for s in sampler.engine.live] == [one.url, two.url], "it is back with the next weights"
        batch, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=2)
        assert max_gap(policy, batch, 0.8) < 1e-4


def test_without_any_server_the_run_stops_with_one_line(tmp_path):
    policy = make_policy()
    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        sampler.sync(0)
        server.fail = lambda body: "die"
        with pytest.raises(ResourceError, match=r"no vLLM server is left: .*the run continues") as error:
            sampler(PROMPTS, ROLLOUT, seed=0, step=0)
        assert "\n" not in str(error.value)
        sampler.close()


def test_a_server_that_was_restarted_gets_the_weights_again(tmp_path):
    policy = make_policy()
    move(policy.model)
    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        sampler.sync(0)
        server.restart()
        assert sampler.sync(1)["sync/probe_gap"] < 1e-4
        batch, _ = sampler(PROMPTS, ROLLOUT, seed=0, step=1)
        assert max_gap(policy, batch, 0.8) < 1e-4


@pytest.mark.parametrize("lora", [False, True])
def test_weights_that_no_server_loads_stop_the_run(lora, tmp_path):
    policy = make_policy(lora)
    settings = {"faults": {"never loads"}} if not lora else {"max_lora_rank": 2}
    with fake_vllm(base_model(), **settings) as server, pytest.raises(ResourceError) as error:
        make_sampler(policy, server, folder=tmp_path).sync(0)
    assert ("LoRA rank 4 is greater than max_lora_rank 2" if lora else "out of memory") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_without_the_routes_is_told(tmp_path):
    no_dev_mode = pytest.raises(ResourceError, match="without VLLM_SERVER_DEV_MODE=1")
    with fake_vllm(base_model(), dev_mode=False) as server, no_dev_mode:
        make_sampler(make_policy(), server, folder=tmp_path).sync(0)
    no_adapters = pytest.raises(ResourceError, match="without VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    with fake_vllm(base_model(), lora_routes=False) as server, no_adapters:
        make_sampler(make_policy(lora=True), server, folder=tmp_path).sync(0)


def test_malformed_answers_are_missing_rows(tmp_path):
    policy = make_policy()
    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        sampler.sync(0)
        server.faults = {"no token ids"}
        with pytest.raises(ResourceError, match=r"no prompt got a response .*without token ids"):
            sampler(PROMPTS, ROLLOUT, seed=0, step=0)
        server.faults = {"outside ids"}
        with pytest.raises(ResourceError, match="a token id outside the vocabulary"):
            sampler(PROMPTS, ROLLOUT, seed=0, step=0)


def test_prompts_must_leave_room_in_the_servers_context(tmp_path):
    with fake_vllm(base_model(), max_model_len=24) as server:
        sampler = make_sampler(make_policy(), server, folder=tmp_path)
        with pytest.raises(DataError, match=r'prompt "p1": .* context of 24 tokens'):
            sampler(PROMPTS, ROLLOUT, seed=0, step=0)


def test_ids_that_the_tokenizer_does_not_know_are_never_sampled(tmp_path):
    policy = make_policy()
    limit_vocab(policy.model, SIZE - 5)
    with fake_vllm(base_model()) as server:
        sampler = make_sampler(policy, server, folder=tmp_path)
        batch, _ = sampler(PROMPTS, OnPolicy(num_generations=8, max_new_tokens=20), seed=0, step=0)
    assert int(batch.input_ids[batch.response_mask].max()) < SIZE - 5
    assert max_gap(policy, batch, 1.0) < 1e-4


def test_files_of_processes_that_ended_are_deleted(tmp_path):
    first = make_weights_folder(tmp_path)
    host = first.name.removeprefix(FOLDER_PREFIX).rpartition(f"-{os.getpid()}-")[0]
    gone = tmp_path / f"{FOLDER_PREFIX}{host}-999999999-abc"
    other_host = tmp_path / f"{FOLDER_PREFIX}elsewhere-999999999-abc"
    evidence = tmp_path / f"{FOLDER_PREFIX}{host}-999999998-abc"
    for folder in (gone, other_host, evidence):
        folder.mkdir()
    (evidence / "KEEP").touch()
    make_weights_folder(tmp_path)
    assert first.exists()
    assert other_host.exists()
    assert evidence.exists()
    assert not gone.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot be written \(.*\); fix: .*rollout.shared_folder"):
        make_weights_folder(tmp_path / "file")


def test_the_checksum_changes_with_the_smallest_step():
    model = base_model()
    before = weight_checksum(model)
    assert weight_checksum(model) == before
    with torch.no_grad():
        x = model.model.layers[0].mlp.up_proj.weight
        x[0, 0] = torch.nextafter(x[0, 0], torch.tensor(1.0))
    assert weight_checksum(model) != before


def test_a_sampler_of_ones_own_needs_no_further_methods():
    calls = []

    class Own:
        def __call__(self, prompts, rollout, *, seed, step, prompt_index=None):
            raise AssertionError

    class Closing(Own):
        def close(self):
            calls.append("close")

    assert isinstance(Own(), Sampler)
    assert not isinstance(Own(), SyncedSampler)
    assert sync_sampler(Own(), 0) == {}
    sleep_sampler(Own())
    with closing_sampler(Own()):
        pass
    with pytest.raises(KeyError), closing_sampler(Closing()):
        raise KeyError
    assert calls == ["close"]
    assert sync_sampler(LocalSampler(make_policy(), ("a",)), 0) == {}


def test_the_fake_server_answers_as_the_real_one(tmp_path):
    real = json.loads(ANSWERS.read_text())
    folders = []
    for rank in (4, 32):
        model = add_lora(base_model(), LoraSpec(r=rank), 0)
        model.save_pretrained(str(tmp_path / str(rank)))
        folders.append(tmp_path / str(rank))
    base_model().save_pretrained(tmp_path / "base")
    with fake_vllm(base_model(), max_model_len=512) as server:
        fake = record(server.url, tmp_path / "base", *folders)
    assert {k: v["status"] for k, v in fake.items()} == {k: v["status"] for k, v in real.items()}
    for name, answer in fake.items():
        assert shape(answer["answer"]) == shape(real[name]["answer"]), name


def test_every_wait_has_a_limit():
    with fake_vllm(base_model()) as server:
        server.fail = lambda body: 1.0
        start = time.perf_counter()
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            VllmServer(server.url, 0.2).generate(GenerationRequest([3], 1, 1, 1.0, 0, ()))
        assert time.perf_counter() - start < 2
    with pytest.raises(EngineError, match="refused"):
        VllmServer(server.url, 0.2).facts()
