"""Rollouts one step ahead: which weights sample which step, the same numbers however it runs, and resume."""

import copy
import threading
import time
from dataclasses import replace

import pytest
import torch

from paretune.algorithms.ratio_variants import with_importance_correction
from paretune.core.errors import ConfigError, NonFiniteError, ResourceError, WiringError
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.models.load import PolicyModel
from paretune.rl.context import check_context
from paretune.rl.state import NextRollout
from paretune.rollout import vllm_server
from paretune.rollout.pending import FinishedRollout, ThreadRollout
from paretune.rollout.sampler import LocalSampler
from paretune.rollout.vllm import VllmSampler
from paretune.rollout.vllm_server import VllmServers
from paretune.run.io import read_jsonl
from support.toy import ToyScorer
from support.vllm_server import fake_vllm
from toy import OBJECTIVES, Cut, algorithm, digest, stop_after, toy_recipe, toy_world, trained

STEPS = 3
CORRECTION = TruncatedImportanceSampling(level="token", max_ratio=2.0)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "RETRY_PAUSE", 0.0)


def corrected():
    return with_importance_correction(toy_recipe(), CORRECTION)


def stale_world(**more):
    return toy_world(lr=0.03, max_staleness=1, **more)


class LaggingSampler:
    """Samples each step from the weights that the step before it started from."""

    def __init__(self, inner):
        self.inner, self.before = inner, copy.deepcopy(inner.policy.model)

    def __call__(self, prompts, rollout, **arguments):
        sampled = LocalSampler(replace(self.inner.policy, model=self.before), self.inner.objectives)(
            prompts, rollout, **arguments
        )
        self.before = copy.deepcopy(self.inner.policy.model)
        return sampled


@pytest.mark.parametrize("recipe", [toy_recipe(), corrected()])
def test_a_step_trains_on_responses_of_the_weights_that_the_step_before_started_from(tmp_path, recipe):
    batches = []
    stale, _ = trained(
        tmp_path / "stale", stale_world(), recipe, steps=STEPS, on_step=lambda *rest: batches.append(rest[2])
    )
    world = toy_world(lr=0.03)
    lagging = replace(world, sampler=LaggingSampler(world.sampler))
    assert trained(tmp_path / "lagging", lagging, recipe, steps=STEPS)[0] == stale
    assert trained(tmp_path / "on-policy", toy_world(lr=0.03), recipe, steps=STEPS)[0] != stale
    lines = read_jsonl(tmp_path / "stale" / "metrics.jsonl")
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1]
    assert [batch.weight_version.unique().tolist() for batch in batches] == [[0], [0], [1]]
    assert lines[0]["kl/rollout"] < 1e-9 < lines[1]["kl/rollout"]
    if recipe != toy_recipe():
        assert lines[0]["importance_weights/max"] == pytest.approx(1, abs=1e-4)
        assert lines[2]["importance_weights/max"] > 1.001
    timing = read_jsonl(tmp_path / "stale" / "timing.jsonl")
    assert ["sampling" in line for line in timing] == [True, True, False]
    assert all(line["tokens_per_second/rollout"] > 0 for line in timing)


def test_on_policy_rows_carry_the_version_of_their_step(tmp_path):
    batches = []
    trained(tmp_path, steps=2, on_step=lambda *rest: batches.append(rest[2]))
    assert [batch.weight_version.unique().tolist() for batch in batches] == [[0], [1]]
    assert "rollout/staleness" not in read_jsonl(tmp_path / "metrics.jsonl")[0]


def test_resume_is_bit_exact_with_the_rollout_of_the_next_step_in_the_checkpoint(tmp_path):
    recipe = corrected()
    whole = trained(tmp_path / "whole", stale_world(), recipe, steps=STEPS, every=1)
    for at in (2, 3):  # after the metrics of the step, before its checkpoint
        with pytest.raises(Cut):
            trained(tmp_path / "cut", stale_world(), recipe, steps=STEPS, every=1, on_step=stop_after(at))
    assert (tmp_path / "cut" / "checkpoints" / "step-000002" / "next_rollout.safetensors").is_file()
    resumed = trained(tmp_path / "cut", stale_world(), recipe, steps=STEPS, every=1)
    assert resumed == whole
    last = tmp_path / "cut" / "checkpoints" / f"step-{STEPS:06d}"
    assert last.is_dir()
    assert not (last / "next_rollout.safetensors").exists()


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_checkpoint_of_another_staleness_is_refused(tmp_path, staleness):
    def world(staleness):
        return replace(toy_world(), max_staleness=staleness)

    trained(tmp_path, world(1 - staleness), steps=2)
    with pytest.raises(ConfigError, match=f"max_staleness: .* {1 - staleness}, this run has {staleness}"):
        trained(tmp_path, world(staleness), steps=2)


def test_a_stored_rollout_is_the_one_that_was_sampled():
    world = toy_world()
    prompts = world.prompts_for_step(5)
    batch, samples = world.sampler(prompts, toy_recipe().rollout, seed=1, step=5)
    samples = tuple(replace(sample, original_response="\ud800 whole") for sample in samples)
    again, restored = NextRollout.of(batch, samples).rollout(prompts)
    assert restored == samples
    assert [s.response_ids for s in restored] == [s.response_ids for s in samples]
    for name in batch.__slots__:
        before, after = getattr(batch, name), getattr(again, name)
        if isinstance(before, torch.Tensor):
            torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
        else:
            assert after == before, name


@pytest.mark.parametrize(
    ("staleness", "recipe", "words"),
    [
        (2, toy_recipe(), "must be 0 or 1"),
        (-1, toy_recipe(), "must be 0 or 1"),
        (1, algorithm("dpo", response_source="frozen_policy"), "does not sample from the trained"),
    ],
)
def test_a_staleness_without_effect_is_refused(staleness, recipe, words):
    context = replace(toy_world(), max_staleness=staleness)
    context = replace(context, frozen_policy_sampler=context.sampler)
    with pytest.raises(WiringError, match=words):
        check_context(recipe, context)


def on_server(server, folder, *, steps=STEPS, scorers=None, **more):
    """Train a fresh toy policy on the responses of a server: digest of the weights, lines of the metrics."""
    world = toy_world(lr=0.03, scorers=scorers, max_staleness=1)
    local = world.sampler.policy
    policy = PolicyModel(
        model=world.models.policy, tokenizer=local.tokenizer, eos_ids=local.eos_ids, pad_id=local.pad_id
    )
    sampler = VllmSampler(
        policy=policy,
        objectives=OBJECTIVES,
        engine=VllmServers([server.url], 20.0),
        shared_folder=folder.with_name("weights"),
    )
    world = replace(world, sampler=sampler)
    try:
        trained(folder, world, corrected(), steps=steps, every=1, **more)
    finally:
        sampler.close()
    return digest(world), read_jsonl(folder / "metrics.jsonl")


def test_a_server_samples_while_the_policy_trains_and_gets_new_weights_only_afterwards(tmp_path, monkeypatch):
    events, scored = [], threading.Event()

    class RecordedScorer(ToyScorer):
        def __call__(self, samples):
            events.append("score")
            scored.set()
            return super().__call__(samples)

    with fake_vllm(toy_world().models.policy, max_model_len=32) as server:
        answer = server.answer

        def recorded(method, path, body):
            if path == "/collective_rpc" and body["method"] == "paretune_load_weights":
                events.append("load")
            if path == "/v1/completions" and body["max_tokens"] == 6:
                events.append("request")
                if events.count("request") > 6:  # the first step is scored while the second is sampled
                    assert scored.wait(10)
            return answer(method, path, body)

        monkeypatch.setattr(server, "answer", recorded)
        _, lines = on_server(server, tmp_path / "run", steps=3, scorers=(RecordedScorer(),))
    # Six prompts a step: two steps' responses come from the first weights, the third's from the second.
    assert events[:7] == ["load", *["request"] * 6]
    before_second_load = events[: events.index("load", 1)]
    assert before_second_load.count("request") == 12
    assert "score" in before_second_load
    assert events[events.index("load", 1) :].count("request") == 6
    assert events.count("load") == 2
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1]


def test_concurrent_sampling_and_a_resume_give_the_numbers_of_one_after_the_other(tmp_path, monkeypatch):
    with fake_vllm(toy_world().models.policy, max_model_len=32) as server:
        expected, lines = on_server(server, tmp_path / "concurrent")
        server.restart()
        with pytest.raises(Cut):
            on_server(server, tmp_path / "cut", on_step=stop_after(2))
        server.restart()
        resumed, resumed_lines = on_server(server, tmp_path / "cut")
        server.restart()
        monkeypatch.setattr(VllmServers, "is_shared", False)  # then the sampler asks in the loop's thread
        sequential, sequential_lines = on_server(server, tmp_path / "sequential")
    assert resumed == sequential == expected

    def numbers(lines):
        """Without the hand-over: a resumed run hands its weights over once more."""
        return [{k: v for k, v in line.items() if not k.startswith("sync/")} for line in lines]

    assert numbers(resumed_lines) == numbers(sequential_lines) == numbers(lines)


def test_a_server_that_dies_while_the_policy_trains_ends_the_run_with_its_error(tmp_path):
    with fake_vllm(toy_world().models.policy, max_model_len=32) as server:
        whole, _ = on_server(server, tmp_path / "whole")
        server.restart()
        asked = []

        def die_in_the_third_rollout(body):
            asked.append(body["max_tokens"])
            return "die" if asked.count(6) > 14 else None

        server.fail = die_in_the_third_rollout
        with pytest.raises(ResourceError, match="no vLLM server is left"):
            on_server(server, tmp_path / "cut")
        assert len(read_jsonl(tmp_path / "cut" / "metrics.jsonl")) == 1  # it ended beside the second step
        server.restart()
        server.fail = None
        assert on_server(server, tmp_path / "cut")[0] == whole


def test_an_error_of_the_training_does_not_wait_for_the_server(tmp_path):
    asked, second_step = [], threading.Event()

    def wait_in_second_step(body):
        asked.append(body["max_tokens"])
        if asked.count(6) > 6:
            second_step.set()
            return 20.0
        return None

    class Failing(ToyScorer):
        def __call__(self, samples):
            assert second_step.wait(10)
            raise NonFiniteError("planted")

    with fake_vllm(toy_world().models.policy, max_model_len=32) as server:
        server.fail = wait_in_second_step
        start = time.monotonic()
        with pytest.raises(NonFiniteError, match="planted"):
            on_server(server, tmp_path / "run", scorers=(Failing(),))
    assert time.monotonic() - start < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollout")]


def test_what_a_thread_raises_reaches_the_caller_and_a_cancelled_one_ends():
    ended, stopped = threading.Event(), threading.Event()

    def request():
        stopped.wait(10)
        ended.set()
        raise ResourceError("gone")

    pending = ThreadRollout(request, lambda answers: answers, stopped.set)
    pending.cancel()
    assert ended.is_set()
    with pytest.raises(ResourceError, match="gone"):
        pending.result()
    world = toy_world()
    rollout = world.sampler(world.prompts_for_step(0), toy_recipe().rollout, seed=0, step=0)
    finished = FinishedRollout(lambda: rollout)
    finished.cancel()
    assert finished.result() is rollout
