"""The section `rollout`: engines are checked first, and its correction reaches the algorithm."""

import socket

import pytest

from paretune.config import bundled_recipes, config_hash, load_config
from paretune.core.errors import ConfigError, MissingDependencyError
from paretune.credit.base import flatten_steps
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.experiment import rollout_engine
from paretune.experiment.resolved import resolve
from paretune.experiment.rollout_engine import check_rollout_engine
from paretune.models.model_passes import OldLogprobs
from support.tiny_models import tiny_model
from support.vllm_server import fake_vllm

IN_PROCESS = "rollout={engine: vllm, mode: in_process}"
SERVER = "rollout={engine: vllm, mode: server, base_urls: [http://127.0.0.1:8000]}"
LOCAL = "rollout={engine: local"
STALE = f"{LOCAL}, max_staleness: 1"
NO_LORA = "policy={path: own/model}"


def load(*overrides):
    return load_config(bundled_recipes()["demo"], overrides)


def error_lines(*overrides):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["rollout={engine: vlm}"], "rollout.engine", "vlm"),
        (["rollout={engine: vllm}"], "rollout.mode", "mode"),
        (["rollout={engine: vllm, mode: sever}"], "rollout.mode", "sever"),
        (["rollout={engine: local, timeout: 3}"], "rollout.timeout", "unknown key"),
        (["rollout={engine: vllm, mode: in_process, base_urls: [x]}"], "rollout.base_urls", "unknown key"),
        (["rollout={engine: vllm, mode: server}"], "rollout.base_urls", "is missing"),
        (["rollout={engine: vllm, mode: server, base_urls: []}"], "rollout.base_urls", ""),
        ([SERVER, "rollout.base_urls=[ftp://x]"], "rollout.base_urls[0]", "is no address"),
        ([SERVER, "rollout.base_urls=[127.0.0.1:8000]"], "rollout.base_urls[0]", "is no address"),
        ([SERVER, "rollout.base_urls=['http://h:x']"], "rollout.base_urls[0]", "is no address"),
        (
            [SERVER, "rollout.base_urls=[http://127.0.0.1:1, http://127.0.0.1:1]"],
            "rollout.base_urls[1]",
            "twice",
        ),
        ([SERVER, "rollout.base_urls=['http://gpu-2:8000']"], "rollout.shared_folder", "on another host"),
        ([SERVER, "policy.lora={}"], "rollout.mode", "belongs to that after"),
        ([IN_PROCESS, "rollout.gpu_memory_utilization=1.5"], "rollout.gpu_memory_utilization", "1.5"),
        (
            [IN_PROCESS, "rollout.max_importance_ratio=3"],
            "rollout.max_importance_ratio",
            "has no effect without",
        ),
        (
            [f"{LOCAL}, importance_correction: token}}"],
            "rollout.importance_correction",
            "has no effect: the local",
        ),
        ([f"{LOCAL}, max_importance_ratio: 3}}"], "rollout.max_importance_ratio", "has no effect without"),
        ([f"{STALE}}}", "rollout.max_staleness=2"], "rollout.max_staleness", "must be at most 1"),
        ([f"{STALE}}}", "rollout.max_staleness=-1"], "rollout.max_staleness", "must be at least 0"),
        ([f"{STALE}}}", "algorithm={name: essa}"], "rollout.max_staleness", "has no effect: essa searches"),
        (
            [f"{STALE}}}", "algorithm={name: dpo}"],
            "rollout.max_staleness",
            "has no effect: dpo does not sample",
        ),
        (
            [f"{STALE}, importance_correction: none, max_importance_ratio: 3}}"],
            "rollout.max_importance_ratio",
            "has no effect without",
        ),
        ([IN_PROCESS, "algorithm={name: essa}"], "rollout.engine", "many candidates"),
        ([IN_PROCESS, "algorithm={name: dpo}"], "rollout.engine", "has no effect: dpo does not sample"),
        (
            [IN_PROCESS, "rollout.importance_correction=token", "algorithm={name: dpo}"],
            "rollout.importance_correction",
            "no policy loss on sampled responses",
        ),
    ],
)
def test_a_mistake_is_one_line_at_its_key(overrides, key, words):
    (line,) = error_lines(*overrides)
    assert f": {key}: " in line
    assert words in line


def test_another_host_needs_a_folder_that_both_see():
    load(SERVER, "rollout.base_urls=['http://gpu-2:8000']", "rollout.shared_folder=/shared")
    load(SERVER, f"rollout.base_urls=['http://{socket.gethostname()}:8000', 'http://localhost:1/prefix']")


def test_runs_without_the_section_keep_their_identity_and_addresses_may_change_on_resume():
    plain = config_hash(load())
    assert config_hash(load("rollout={engine: local}")) == plain
    assert config_hash(load(f"{LOCAL}, max_staleness: 0}}")) == plain
    assert config_hash(load(f"{STALE}}}")) != plain
    server = config_hash(load(SERVER))
    assert server != plain
    assert config_hash(load(SERVER, "rollout.base_urls=[http://127.0.0.1:9]", "rollout.timeout=5")) == server
    assert config_hash(load(SERVER, "rollout.importance_correction=token")) != server


@pytest.mark.parametrize("algorithm", ["grpo", "ppo_max", "lagrangian_grpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_correction_compares_engine_and_trainer_in_any_gradient_algorithm(algorithm, level):
    overrides = [IN_PROCESS, f"rollout.importance_correction={level}", "rollout.max_importance_ratio=3"]
    if algorithm == "lagrangian_grpo":
        overrides.append("objectives.safety.at_least=0.5")
    spec = resolve(load(*overrides, f"algorithm={{name: {algorithm}}}")).algorithm
    step = next(s for s in flatten_steps(spec.credit) if isinstance(s, TruncatedImportanceSampling))
    assert (step.level, step.max_ratio) == (level, 3)
    assert OldLogprobs(source="policy") in spec.model_passes
    assert OldLogprobs(source="rollout") not in spec.model_passes
    without = resolve(load(IN_PROCESS, *overrides[3:], f"algorithm={{name: {algorithm}}}")).algorithm
    assert without == resolve(load(*overrides[3:], f"algorithm={{name: {algorithm}}}")).algorithm


@pytest.mark.parametrize(
    ("algorithm", "corrected"),
    [("grpo", True), ("ppo_max", True), ("dpo, response_source: on_policy", False)],
)
def test_stale_responses_are_corrected_by_default_where_there_is_a_policy_loss(algorithm, corrected):
    def spec(*settings):
        section = ", ".join([STALE, *settings])
        return resolve(load(f"{section}}}", f"algorithm={{name: {algorithm}}}")).algorithm

    steps = [s for s in flatten_steps(spec().credit) if isinstance(s, TruncatedImportanceSampling)]
    assert steps == ([TruncatedImportanceSampling(level="token", max_ratio=2.0)] if corrected else [])
    assert (OldLogprobs(source="policy") in spec().model_passes) == corrected
    if corrected:
        assert spec() == spec("importance_correction: token")
    assert spec("importance_correction: none") == resolve(load(f"algorithm={{name: {algorithm}}}")).algorithm


def test_vllm_in_the_process_must_be_installed(monkeypatch):
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"rollout.engine: .*; fix: install it as docs/vllm.md"):
        check_rollout_engine(resolve(load(IN_PROCESS)))
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: object())
    check_rollout_engine(resolve(load(IN_PROCESS)))
    check_rollout_engine(resolve(load()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_model_len": 8}, "takes 8 tokens at most"),
        ({"logprobs_mode": "raw_logprobs"}, "raw_logprobs, which leave out the temperature"),
        ({"chunked_prefill": True}, "start it with --no-enable-chunked-prefill"),
        ({"dev_mode": False}, "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_cannot_serve_the_recipe_is_told_before_the_run(settings, words):
    with fake_vllm(tiny_model("llama", 50), **settings) as server:
        with pytest.raises(ConfigError) as caught:
            check_rollout_engine(resolve(load(SERVER, f"rollout.base_urls=[{server.url}]")))
        (line,) = str(caught.value).split("\n")
        assert ": rollout.base_urls[0]: " in line
        assert words in line


def test_a_server_of_another_model_or_without_adapters_is_told(tmp_path):
    tiny_model("llama", 60, layers=3).save_pretrained(tmp_path)
    recipe = load_config(
        bundled_recipes()["demo"],
        [
            f"policy={{path: {tmp_path}, lora: {{r: 32}}}}",
            "data.world={num_prompts: 600}",
            "rollout={engine: vllm, mode: server, base_urls: [http://127.0.0.1:9]}",
        ],
    )
    run = resolve(recipe)
    with fake_vllm(tiny_model("llama", 50)) as server:
        facts = rollout_engine.VllmServer(server.url, 5.0).facts()
    problems = [problem for problem, _ in rollout_engine._mismatches(run, facts)]
    assert "serves another model: a vocabulary of 50, and policy.path has 60" in problems
    assert "takes adapters up to rank 16, and policy.lora.r is 32" in problems
    with pytest.raises(ConfigError, match=r"rollout.base_urls\[0\]: http://127.0.0.1:9: .*refused"):
        check_rollout_engine(run)
