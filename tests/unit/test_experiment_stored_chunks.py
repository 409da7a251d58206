"""Responses of an evaluation survive a stop, and are those that would have been sampled."""

from contextlib import suppress
from dataclasses import fields, replace

import pytest
import torch

from paretune.data.loader import collate
from paretune.data.records import Message, Prompt, Sample
from paretune.evaluate.generate import generate
from paretune.experiment.stored_chunks import StoredChunks
from paretune.run.folder import Run, read_jsonl

PROMPTS = [Prompt(messages=(Message("user", f"question {i}"),), id=f"p{i}") for i in range(5)]


class CountingSampler:
    """Counts the prompts that it invents responses to; they depend on the seed and the prompt's index."""

    num_prompts = 0

    def __call__(self, prompts, rollout, *, seed, step, prompt_index):
        self.num_prompts += len(prompts)
        rows = [(i, n) for i in range(len(prompts)) for n in range(rollout.num_generations)]
        ids = [[seed, prompt_index[i] + 1, n + 1][: 2 + n] for i, n in rows]
        truncated = [n == 1 for _, n in rows]
        batch = collate([[9]] * len(rows), ids, [i for i, _ in rows], truncated, ("a",), 0)
        logprobs = torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(seed))
        samples = tuple(
            Sample(
                prompt=prompts[i],
                response=f"\ud800 {ids[k]}",
                truncated=truncated[k],
                response_ids=tuple(ids[k]),
            )
            for k, (i, _) in enumerate(rows)
        )
        return batch.replace(rollout_logprobs=logprobs), samples


@pytest.fixture
def attempt(tmp_path):
    """One attempt at the evaluation: the responses, or None if it was stopped, and the prompts sampled."""
    run = Run(tmp_path)

    def _attempt(prompts=PROMPTS, stop_after=None, weights="w", seed=7, store=True):
        counting = CountingSampler()
        sampler = StoredChunks(counting, tmp_path / "chunks", run, weights) if store else counting

        def on_progress(done, total):
            if stop_after is not None and done >= stop_after:
                raise KeyboardInterrupt

        generations = None
        with suppress(KeyboardInterrupt):
            generations = generate(
                sampler, prompts, num_generations=2, seed=seed, prompts_per_batch=2, on_progress=on_progress
            )
        return generations, counting.num_prompts

    return _attempt


def assert_equal(one, other):
    assert replace(one, batches=()) == replace(other, batches=())
    assert [s.response_ids for s in one.samples] == [s.response_ids for s in other.samples]
    for batch, expected in zip(one.batches, other.batches, strict=True):
        for field in fields(batch):
            value, wanted = getattr(batch, field.name), getattr(expected, field.name)
            assert type(value) is type(wanted), field.name
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)
            else:
                assert value == wanted


def test_a_resumed_evaluation_samples_the_rest_only(attempt):
    assert attempt(stop_after=4) == (None, 4)
    resumed, num_sampled = attempt()
    assert num_sampled == 1
    assert_equal(resumed, attempt(store=False)[0])
    assert attempt()[1] == 0


@pytest.mark.parametrize(
    "changes", [{"weights": "other"}, {"seed": 8}, {"prompts": [replace(p, id="q") for p in PROMPTS]}]
)
def test_responses_of_another_evaluation_are_not_reused(attempt, changes):
    attempt()
    generations, num_sampled = attempt(**changes)
    assert num_sampled == len(PROMPTS)
    assert_equal(generations, attempt(**changes, store=False)[0])


def test_a_damaged_chunk_is_told_and_sampled_again(attempt, tmp_path):
    complete, _ = attempt()
    file = tmp_path / "chunks" / "chunk-000002" / "step-000000" / "state.json"
    file.write_bytes(file.read_bytes().replace(b'"response"', b'"respons3"', 1))
    again, num_sampled = attempt()
    assert num_sampled == 2
    assert_equal(again, complete)
    assert [event["type"] for event in read_jsonl(tmp_path / "events.jsonl")] == ["checkpoint_corrupt"]
