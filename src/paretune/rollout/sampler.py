"""Where responses come from, and the sampler that draws them from the training weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.core.batch import Batch
from paretune.core.errors import DataError, WiringError, join_issues
from paretune.core.rng import numpy_generator
from paretune.data.chat import (
    PromptFormat,
    add_format_instruction,
    decode_response,
    encode_prompt,
    format_instructions_for,
)
from paretune.data.loader import collate
from paretune.data.records import Prompt, Sample
from paretune.models.load import PolicyModel, context_length
from paretune.rollout.decoding import MAX_ROWS, decode


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicy:
    """Sample `num_generations` responses of each prompt from the policy, of at most `max_new_tokens` tokens."""

    num_generations: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    """Logits are divided by it, when sampling and when training."""
    prompt_format: PromptFormat = ""
    """What is asked of the policy beside the prompt; scorers are shown the prompt as it was."""

    def __post_init__(self) -> None:
        if self.num_generations < 1 or self.max_new_tokens < 1:
            raise WiringError(
                f"Online got n={self.num_generations} and max_new={self.max_new_tokens}; both must be at least 1"
            )
        if not 0.0 < self.temperature < float("inf"):
            raise WiringError(
                f"Online got temperature={self.temperature}; it must be above 0: we only sample"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPolicy(OnPolicy):
    """As `Online`, but the policy as it was before the first update writes all responses.

    It is what offline methods are given where there is no data set: the same responses whenever a step is
    repeated, made when they are asked for instead of all beforehand.
    """


@dataclass(frozen=True, slots=True)
class StoredResponses:
    """Read responses, and what they are worth, from a data set; nobody samples."""


@runtime_checkable
class Sampler(Protocol):
    """Whoever turns prompts into responses."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """Responses in the order of the prompts, `how.n` of each; `group` is the place in `prompts`.

        The batch lies on the CPU and carries `sampler_logp`. A response depends on the policy, its prompt and
        (seed, step, prompt_index, number of the sample) alone, not on what is sampled beside it.

        Args:
            prompts: What to answer.
            rollout: How many responses, how long and how random.
            seed: The run's.
            step: The run's.
            prompt_index: A number for each prompt that stays the same wherever it is asked; else its place.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalSampler:
    """The package's own batched sampler on the training weights, the exact one others are checked against."""

    policy: PolicyModel
    objectives: tuple[str, ...]
    max_rows: int = MAX_ROWS
    """Responses decoded at one time, each in place of one that ended; changes memory and speed only."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """See `Sampler`.

        Raises:
            DataError: A prompt is empty, leaves no room for a response, or cannot take the frame.
        """
        words = format_instructions_for(self.policy.tokenizer)
        asked = [add_format_instruction(prompt, rollout.prompt_format, words) for prompt in prompts]
        ids = encode_prompts(self.policy, asked, max_new_tokens=rollout.max_new_tokens)
        index = range(len(ids)) if prompt_index is None else prompt_index
        # Prompts of like length are beside each other, so that little of their tables is padding.
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        work = [(i, j) for i in by_length for j in range(rollout.num_generations)]
        self.policy.model.eval()
        out = decode(
            self.policy.model,
            ids,
            [i for i, _ in work],
            np.stack(
                [
                    numpy_generator(seed, step, "sample", index[i], j).random(rollout.max_new_tokens)
                    for i, j in work
                ]
            ),
            eos_ids=self.policy.eos_ids,
            temperature=rollout.temperature,
            pad_id=self.policy.pad_id,
            max_rows=self.max_rows,
        )
        done = dict(zip(work, zip(out.token_ids, out.logprobs, out.truncated, strict=True), strict=True))
        keys = sorted(done)
        return self._build_batch(prompts, ids, [i for i, _ in keys], [done[key] for key in keys])

    def _build_batch(
        self,
        prompts: Sequence[Prompt],
        encoded_prompts: Sequence[list[int]],
        group: Sequence[int],
        responses: Sequence[tuple[list[int], NDArray[np.float32], bool]],
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """The batch of token ids as sampled, and their text for scorers."""
        language = self.policy
        truncated = [cut for _, _, cut in responses]
        prompt_ids, response_ids = [encoded_prompts[i] for i in group], [tokens for tokens, _, _ in responses]
        batch = collate(prompt_ids, response_ids, group, truncated, self.objectives, language.pad_id)
        logp = torch.zeros(batch.input_ids.shape)
        logp[batch.response_mask] = torch.from_numpy(np.concatenate([part for _, part, _ in responses]))
        samples = tuple(
            Sample(
                prompt=prompts[i],
                response=decode_response(language.tokenizer, tokens, language.eos_ids),
                truncated=cut,
            )
            for i, (tokens, _, cut) in zip(group, responses, strict=True)
        )
        return batch.replace(rollout_logprobs=logp), samples


def encode_prompts(policy: PolicyModel, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts, all of which leave room for a response.

    Raises:
        DataError: There are no prompts, or some are empty or too long; all that are wrong are named.
    """
    room = context_length(policy.model) - max_new_tokens
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    wrong = []
    for place, (prompt, tokens) in enumerate(zip(prompts, ids, strict=True)):
        name = f'prompt "{prompt.id or place}"'
        if not tokens:
            wrong.append(f"{name}: it is empty, and the tokenizer has no token that begins a text")
        elif len(tokens) > room:
            wrong.append(
                f"{name}: it has {len(tokens)} tokens, and a context of {room + max_new_tokens} with responses of "
                f"up to {max_new_tokens} leaves {room}; fix: shorten or drop it, or lower max_new"
            )
    if not ids:
        wrong.append("no prompts to sample from")
    if wrong:
        raise DataError(join_issues(wrong))
    return ids
