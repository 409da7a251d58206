"""What the policy of old and frozen models say of a batch, written into it before credit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.models.forward.logprobs import (
    compute_logprobs,
    compute_outputs,
    compute_values,
    supports_packing,
)
from paretune.models.forward.prefix_sharing import find_prefix_groups, plan_passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The networks of one run; the roles of frozen ones are named by the parts that use them."""

    policy: nn.Module
    critic: nn.Module | None = None
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)

    def frozen_model(self, role: str) -> nn.Module:
        """The frozen model of this role.

        Raises:
            WiringError: The run has none.
        """
        if role not in self.frozen:
            known = ", ".join(self.frozen) or "none"
            raise WiringError(f'a part asks the frozen model "{role}"; the run has {known}')
        return self.frozen[role]


@runtime_checkable
class ModelPass(Protocol):
    """A part that asks models about a batch; nothing it writes carries a gradient."""

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """The batch with one more field; as many tokens as fill `rows_per_pass` rows are asked at a time."""
        ...


@torch.no_grad()
def response_logprobs(
    model: nn.Module, batch: Batch, *, temperature: float = 1.0, rows_per_pass: int = 32
) -> Float[Tensor, "B T"]:
    """Log p of the response tokens, 0 elsewhere; see `by_parts`."""

    def ask(part: Batch) -> Tensor:
        return compute_logprobs(
            model, part.input_ids, part.attention_mask, part.response_mask, temperature=temperature
        )

    return run_in_passes(model, batch, rows_per_pass, ask)


def run_in_passes(
    model: nn.Module, batch: Batch, rows_per_pass: int, compute: Callable[[Batch], Tensor]
) -> Tensor:
    """The answers for all rows in their order, as many tokens at a time as fill `rows_per_pass` rows.

    A prompt counts once for all rows that share it, where the model can be packed; elsewhere rows of like
    length are asked together.
    """
    if supports_packing(model):
        lengths, budget = (
            batch.attention_mask.sum(-1).tolist(),
            max(rows_per_pass, 1) * batch.input_ids.shape[1],
        )
        cut = plan_passes(
            lengths,
            budget,
            find_prefix_groups(batch.input_ids, batch.attention_mask),
            strict_token_limit=False,
        )
        parts = [torch.tensor(part) for part in cut]
    else:
        parts = list(batch.attention_mask.sum(-1).argsort(stable=True).split(max(rows_per_pass, 1)))
    return torch.cat([compute(batch.select(index)) for index in parts])[torch.cat(parts).argsort()]


@dataclass(frozen=True, slots=True)
class OldLogprobs:
    """log pi_old: the policy as it was when it wrote the responses.

    Reads: rollout_logprobs, or input_ids, attention_mask, response_mask. Writes: old_logprobs.
    "sampler" takes the sampler's word, which is exact where sampler and trainer share weights and
    precision; "trainer" asks the policy again, before its first update.
    Source: Schulman et al. 2017, section 3 (arXiv:1707.06347).
    """

    source: Literal["sampler", "trainer"] = "sampler"

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write behaviour_logp.

        Raises:
            WiringError: The sampler left no log-probabilities, as with responses read from a file.
        """
        if self.source == "sampler":
            return batch.replace(old_logprobs=batch.require("rollout_logprobs"))
        logp = response_logprobs(models.policy, batch, temperature=temperature, rows_per_pass=rows_per_pass)
        return batch.replace(old_logprobs=logp)


@dataclass(frozen=True, slots=True)
class RefLogprobs:
    """log pi_ref: a frozen model the policy is to stay near.

    Reads: input_ids, attention_mask, response_mask. Writes: ref_logprobs.
    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593). Differs: the model is named by its role.
    """

    role: str = "reference"

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write reference_logp.

        Raises:
            WiringError: The run has no frozen model of this role.
        """
        model = models.frozen_model(self.role)
        return batch.replace(
            ref_logprobs=response_logprobs(model, batch, temperature=temperature, rows_per_pass=rows_per_pass)
        )


def implicit_reward(
    tuned_logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    beta: float,
    clip: float | None = None,
) -> Float[Tensor, "B T"]:
    """Beta times the log-ratio of a model tuned to preferences and its reference, cut to +-clip; 0 elsewhere.

    Source: Zhong et al. 2024, RTO, eq. 4.7 (arXiv:2404.18922); the cut in its code, after the scaling.
    """
    reward = torch.where(response_mask, beta * (tuned_logprobs - ref_logprobs), 0.0)
    return reward if clip is None else reward.clamp(-clip, clip)


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """A reward on every token: what a model that was tuned to preferences gained over where it started.

        r_t = beta (log p_tuned(y_t) - log p_against(y_t)),  cut to +-clip

    Adds to the rewards that are there, and parts of credit like `EndReward` and `KlPenalty` add to it; with
    several heads, each is paid the whole. Both models are asked at temperature 1, whatever the sampler's.
    With beta = 0.05 a clip of 0.05, which the published runs have, bites from a ratio of e on.

    Reads: input_ids, attention_mask, response_mask, token_rewards where there is one. Writes: token_rewards.

    Source: Zhong et al. 2024, RTO, eq. 4.7 (arXiv:2404.18922); Rafailov et al. 2024 (arXiv:2404.12358).
    Differs: the model that the tuned one is held against has a role of its own; in the published code it is
    always that of the divergence.
    """

    beta: float = 0.05
    tuned_role: str = "dpo"
    """Role of the frozen model that was tuned to preferences; it has the policy's vocabulary."""
    reference_role: str = "reference"
    """Role of the frozen model it was tuned from."""
    clip: float | None = None
    """In the units of the reward."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or (self.clip is not None and not self.clip > 0):
            raise WiringError(
                f"ImplicitReward has beta {self.beta} and clip {self.clip}; both must be above 0"
            )

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write token_reward.

        Raises:
            WiringError: The run has no frozen model of one of the roles.
        """
        tuned, against = (
            response_logprobs(models.frozen_model(r), batch, rows_per_pass=rows_per_pass)
            for r in (self.tuned_role, self.reference_role)
        )
        reward = implicit_reward(tuned, against, batch.response_mask, self.beta, self.clip)[..., None]
        before = batch.token_rewards
        return batch.replace(token_rewards=reward if before is None else before + reward)


@dataclass(frozen=True, slots=True)
class CriticValues:
    """What the critic expects, before its first update.

    Reads: input_ids, attention_mask, response_mask. Writes: values.
    Source: Schulman et al. 2016, section 5 (arXiv:1506.02438). Differs: one value for each head.
    """

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write values.

        Raises:
            WiringError: The run has no critic.
        """
        critic = models.critic
        if critic is None:
            raise WiringError("a part asks the critic; the run has none")

        def ask(part: Batch) -> Tensor:
            return compute_values(critic, part.input_ids, part.attention_mask, part.response_mask)

        with torch.no_grad():
            return batch.replace(values=run_in_passes(critic, batch, rows_per_pass, ask))


@dataclass(frozen=True, slots=True)
class PolicyEntropy:
    """How undecided the policy was at each token it wrote, in nats.

    Reads: input_ids, attention_mask, response_mask. Writes: entropy.
    Source: Shannon's entropy of the distribution the token was drawn from.
    """

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write entropy."""

        def ask(part: Batch) -> Tensor:
            entropy = compute_outputs(
                models.policy, part, frozenset({"entropy"}), temperature=temperature
            ).entropy
            assert entropy is not None
            return entropy

        with torch.no_grad():
            return batch.replace(entropy=run_in_passes(models.policy, batch, rows_per_pass, ask))
