"""Rollout sources (on-policy, frozen policy, stored responses), and the sampler on the training weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.core.batch import Batch
from paretune.core.errors import DataError, WiringError, join_issues
from paretune.core.requirements import Requirements
from paretune.core.rng import numpy_generator
from paretune.data.chat import decode_generation, encode_prompt
from paretune.data.loader import collate
from paretune.data.prompt_formats import PromptFormat, add_format_instruction, format_instructions_for
from paretune.data.records import Prompt, Sample
from paretune.models.load import PolicyModel, context_length
from paretune.rollout.decoding import MAX_ROWS, decode

Rollout = tuple[Batch, Sequence[Sample]]
"""The batch of a training step and its texts, row by row."""


@runtime_checkable
class RolloutContext(Protocol):
    """The part of a training context that rollout sources read."""

    @property
    def sampler(self) -> "Sampler":
        """Samples from the policy that is trained."""
        ...

    @property
    def frozen_policy_sampler(self) -> "Sampler | None":
        """Samples from the policy as it was before the first update."""
        ...

    @property
    def stored_rollouts(self) -> Callable[[int], Rollout] | None:
        """Stored responses with their scores, by step."""
        ...

    @property
    def prompts_for_step(self) -> Callable[[int], Sequence[Prompt]]:
        """The prompts of a step, a function of the step alone."""
        ...


@runtime_checkable
class RolloutSource(Protocol):
    """Where the responses of a training step come from: a frozen dataclass that is its own configuration."""

    @property
    def num_generations(self) -> int | None:
        """Responses per prompt; None: as many as the data has."""
        ...

    @property
    def max_new_tokens(self) -> int | None:
        """Longest response in tokens; None: as in the data."""
        ...

    @property
    def temperature(self) -> float:
        """Sampling temperature, at which log-probabilities are computed too."""
        ...

    @property
    def prompt_format(self) -> PromptFormat:
        """Format instruction appended to the prompt."""
        ...

    @property
    def generates(self) -> bool:
        """Responses are sampled and scored during training; else they are read together with their scores."""
        ...

    def requirements(self) -> Requirements:
        """What the source needs of the run."""
        ...

    def sampler(self, context: RolloutContext) -> "Sampler | None":
        """The sampler that it uses; None: no response is sampled."""
        ...

    def rollout(self, context: RolloutContext, *, seed: int, step: int) -> Rollout:
        """The responses of one training step. Scores are NaN if the source generates.

        Args:
            context: Samplers, stored responses and prompts.
            seed: Seed of the run.
            step: Training step; with the seed it fixes every random draw.
        """
        ...

    def replace(self, **changes: Any) -> "RolloutSource":
        """The same source with some fields replaced."""
        ...

    def describe(self) -> str:
        """The responses to one prompt, as a noun phrase."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicy:
    """Sample `num_generations` responses per prompt from the policy, `max_new_tokens` tokens at most."""

    num_generations: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    """Logits are divided by it, in sampling and in training."""
    prompt_format: PromptFormat = ""
    """Format instruction appended to the prompt; scorers see the prompt without it."""
    generates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_generations < 1 or self.max_new_tokens < 1:
            raise WiringError(
                f"{type(self).__name__} got num_generations={self.num_generations} and "
                f"max_new_tokens={self.max_new_tokens}; both must be at least 1"
            )
        if not 0.0 < self.temperature < float("inf"):
            raise WiringError(
                f"{type(self).__name__} got temperature={self.temperature}; it must be above 0, since greedy "
                "decoding has no log-probabilities to train on, and finite"
            )

    def requirements(self) -> Requirements:
        """A sampler of the policy, and scorers."""
        return Requirements(sampler=True, scorers=True)

    def sampler(self, context: RolloutContext) -> "Sampler":
        """The sampler of the policy."""
        return context.sampler

    def rollout(self, context: RolloutContext, *, seed: int, step: int) -> Rollout:
        """Sample responses to the prompts of the step."""
        batch, samples = self.sampler(context)(context.prompts_for_step(step), self, seed=seed, step=step)
        return with_weight_version(batch, step), samples

    def replace(self, **changes: Any) -> "OnPolicy":
        """The same source with some fields replaced."""
        return replace(self, **changes)

    def describe(self) -> str:
        """See `RolloutSource`."""
        return f"{self.num_generations} responses of up to {self.max_new_tokens} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPolicy(OnPolicy):
    """As `OnPolicy`, but all responses are sampled from the policy as it was before the first update.

    Offline methods use it if there is no data set: a step has the same responses whenever it is repeated.
    They are sampled when they are needed instead of all beforehand.
    """

    def requirements(self) -> Requirements:
        """A sampler of the initial policy, and scorers."""
        return Requirements(initial_policy_sampler=True, scorers=True)

    def sampler(self, context: RolloutContext) -> "Sampler":
        """The sampler of the initial policy."""
        if context.frozen_policy_sampler is None:
            raise WiringError("FrozenPolicy needs a sampler of the initial policy, and the context has none")
        return context.frozen_policy_sampler

    def rollout(self, context: RolloutContext, *, seed: int, step: int) -> Rollout:
        """Sample responses to the prompts of the step, without log-probabilities of the sampler."""
        batch, samples = OnPolicy.rollout(self, context, seed=seed, step=step)
        # They belong to the initial policy: as old log-probabilities of the trained one they are wrong.
        return with_weight_version(batch.replace(rollout_logprobs=None), 0), samples


def with_weight_version(batch: Batch, version: int) -> Batch:
    """The batch, sampled by the weights after so many training steps."""
    return batch.replace(weight_version=torch.full((len(batch),), version))


@dataclass(frozen=True, slots=True)
class StoredResponses:
    """Read responses and their scores from a data set; nothing is sampled."""

    num_generations: ClassVar[None] = None
    max_new_tokens: ClassVar[None] = None
    temperature: ClassVar[float] = 1.0
    """Nothing was sampled at a temperature, so the logits stay as they are."""
    prompt_format: ClassVar[PromptFormat] = ""
    generates: ClassVar[bool] = False

    def requirements(self) -> Requirements:
        """Stored responses."""
        return Requirements(stored_responses=True)

    def sampler(self, context: RolloutContext) -> None:
        """Nothing is sampled."""

    def rollout(self, context: RolloutContext, *, seed: int, step: int) -> Rollout:
        """The stored responses of the step, with scores."""
        if context.stored_rollouts is None:
            raise WiringError("StoredResponses needs stored responses, and the context has none")
        return context.stored_rollouts(step)

    def replace(self, **changes: Any) -> "StoredResponses":
        """Refuse every change: the responses are what they are.

        Raises:
            WiringError: There is something to change.
        """
        if changes:
            raise WiringError(f"stored responses have no {', '.join(changes)}")
        return self

    def describe(self) -> str:
        """See `RolloutSource`."""
        return "stored responses"


@runtime_checkable
class Sampler(Protocol):
    """Turns prompts into responses."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """Sample `rollout.num_generations` responses per prompt, in order; `group` is the index in `prompts`.

        The batch is on the CPU and carries `rollout_logprobs`. A response depends on the policy, its prompt
        and (seed, step, prompt_index, number of the sample) alone, not on the rest of the batch.

        Args:
            prompts: The prompts to respond to.
            rollout: Number of responses, length, temperature and prompt format.
            seed: Seed of the run.
            step: Training step.
            prompt_index: A number per prompt, the same wherever the prompt appears; default: its index.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalSampler:
    """Batched sampling from the training weights; the exact reference for other samplers."""

    policy: PolicyModel
    objectives: tuple[str, ...]
    max_rows: int = MAX_ROWS
    """Responses decoded at one time with continuous batching; affects memory and speed only."""

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
            DataError: A prompt is empty, leaves no room for a response, or cannot take the prompt format.
        """
        prompt_ids = encode_rollout_prompts(self.policy, prompts, rollout)
        index = range(len(prompt_ids)) if prompt_index is None else prompt_index
        # Prompts of similar length are decoded together, so that their KV tables have little padding.
        by_length = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
        rows = [(i, j) for i in by_length for j in range(rollout.num_generations)]
        self.policy.model.eval()
        # A generator per response: its random numbers do not depend on the other prompts of the step.
        uniform = np.stack(
            [
                numpy_generator(seed, step, "sample", index[i], j).random(rollout.max_new_tokens)
                for i, j in rows
            ]
        )
        out = decode(
            self.policy.model,
            prompt_ids,
            [i for i, _ in rows],
            uniform,
            eos_ids=self.policy.eos_ids,
            temperature=rollout.temperature,
            pad_id=self.policy.pad_id,
            max_rows=self.max_rows,
        )
        responses = dict(zip(rows, zip(out.token_ids, out.logprobs, out.truncated, strict=True), strict=True))
        in_prompt_order = sorted(responses)
        group = [i for i, _ in in_prompt_order]
        sampled = [responses[row] for row in in_prompt_order]
        return build_batch(
            self.policy, self.objectives, prompts, prompt_ids, group, sampled, rollout.prompt_format
        )


def build_batch(
    policy: PolicyModel,
    objectives: tuple[str, ...],
    prompts: Sequence[Prompt],
    encoded_prompts: Sequence[list[int]],
    group: Sequence[int],
    responses: Sequence[tuple[list[int], NDArray[np.float32], bool]],
    prompt_format: PromptFormat,
) -> tuple[Batch, tuple[Sample, ...]]:
    """The batch of token ids as sampled, and the decoded texts for scorers.

    Args:
        policy: The policy that was sampled from.
        objectives: Columns of the scores, all NaN.
        prompts: The prompts of the step.
        encoded_prompts: Token ids of each.
        group: Index of the prompt of each response.
        responses: Token ids, log-probabilities, and whether the length limit ended it.
        prompt_format: Format instruction that the encoded prompts have.
    """
    truncated = [is_truncated for _, _, is_truncated in responses]
    prompt_ids, response_ids = [encoded_prompts[i] for i in group], [ids for ids, _, _ in responses]
    batch = collate(prompt_ids, response_ids, group, truncated, objectives, policy.pad_id)
    logprobs = torch.zeros(batch.input_ids.shape, dtype=torch.float32)
    logprobs[batch.response_mask] = torch.from_numpy(np.concatenate([x for _, x, _ in responses]))
    samples = tuple(
        Sample(
            # The prompt without the format instruction.
            prompt=prompts[i],
            response=decode_generation(policy.tokenizer, ids, policy.eos_ids, prompt_format),
            truncated=is_truncated,
            response_ids=tuple(ids),
        )
        for i, (ids, _, is_truncated) in zip(group, responses, strict=True)
    )
    return batch.replace(rollout_logprobs=logprobs), samples


def encode_rollout_prompts(
    policy: PolicyModel, prompts: Sequence[Prompt], rollout: OnPolicy, max_length: int | None = None
) -> list[list[int]]:
    """Token ids of the prompts with their format instruction; errors as `encode_prompts`."""
    instructions = format_instructions_for(policy.tokenizer)
    formatted = [add_format_instruction(prompt, rollout.prompt_format, instructions) for prompt in prompts]
    return encode_prompts(policy, formatted, max_new_tokens=rollout.max_new_tokens, max_length=max_length)


def encode_prompts(
    policy: PolicyModel, prompts: Sequence[Prompt], *, max_new_tokens: int, max_length: int | None = None
) -> list[list[int]]:
    """Token ids of the prompts.

    Args:
        policy: Its tokenizer and context length.
        prompts: The prompts.
        max_new_tokens: Length of the longest response.
        max_length: Longest prompt and response together, if it is less than the model's context.

    Raises:
        DataError: There are no prompts, or some are empty or leave no room for `max_new_tokens`; all of these
            are listed.
    """
    max_length = min(context_length(policy.model), max_length or context_length(policy.model))
    max_prompt_length = max_length - max_new_tokens
    prompt_ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    issues = []
    for index, (prompt, ids) in enumerate(zip(prompts, prompt_ids, strict=True)):
        name = f'prompt "{prompt.id or index}"'
        if not ids:
            issues.append(f"{name}: the prompt is empty, and the tokenizer has no token that starts a text")
        elif len(ids) > max_prompt_length:
            issues.append(
                f"{name}: {len(ids)} tokens are too long: the model's context of {max_length} tokens minus "
                f"responses of up to {max_new_tokens} leaves {max_prompt_length}; fix: shorten or drop the "
                "prompt, or lower max_new_tokens"
            )
    if not prompt_ids:
        issues.append("no prompts to sample from")
    if issues:
        raise DataError(join_issues(issues))
    return prompt_ids
