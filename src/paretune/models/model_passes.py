"""Model passes: what the policy, frozen models and the critic compute of a batch before credit assignment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from paretune.core import ranks
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
    """The models of a run. Frozen models are identified by roles, which the parts that use them define."""

    policy: nn.Module
    critic: nn.Module | None = None
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)

    def frozen_model(self, role: str) -> nn.Module:
        """The frozen model of this role.

        Raises:
            WiringError: The run has no such model.
        """
        if role not in self.frozen:
            roles = ", ".join(self.frozen) or "none"
            raise WiringError(f'no frozen model "{role}" in this run; it has {roles}')
        return self.frozen[role]


@runtime_checkable
class ModelPass(Protocol):
    """A forward pass over a batch whose result is written into the batch, without gradients."""

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Return the batch with one more field.

        Args:
            batch: The batch of the step.
            models: The models of the run.
            temperature: The sampling temperature.
            rows_per_pass: Limits each forward pass to as many tokens as this number of padded rows.
        """
        ...


@torch.no_grad()
def response_logprobs(
    model: nn.Module, batch: Batch, *, temperature: float = 1.0, rows_per_pass: int = 32
) -> Float[Tensor, "B T"]:
    """Log-probabilities of the response tokens, 0 elsewhere; see `run_in_passes`."""

    def compute(chunk: Batch) -> Tensor:
        return compute_logprobs(
            model, chunk.input_ids, chunk.attention_mask, chunk.response_mask, temperature=temperature
        )

    return run_in_passes(model, batch, rows_per_pass, compute)


def run_in_passes(
    model: nn.Module, batch: Batch, rows_per_pass: int, compute: Callable[[Batch], Tensor]
) -> Tensor:
    """Apply `compute` to chunks of the batch and return the results in row order, on all ranks.

    Each chunk has at most as many tokens as `rows_per_pass` padded rows. A prefix that rows share counts once
    where the model supports packing; for other models, rows of similar length are grouped.

    Raises:
        RankError: The pass of another rank failed.
    """
    parts = ranks.partition_rows(batch)
    own, result = list(ranks.local_part(parts)), None
    with ranks.fail_together("model passes"):
        if own:
            part = batch.select(torch.tensor(own)) if ranks.is_distributed() else batch
            result = _run_in_own_passes(model, part, rows_per_pass, compute)
    return ranks.gather_rows(parts, result)


def _run_in_own_passes(
    model: nn.Module, batch: Batch, rows_per_pass: int, compute: Callable[[Batch], Tensor]
) -> Tensor:
    if supports_packing(model):
        lengths, max_tokens = (
            batch.attention_mask.sum(-1).tolist(),
            max(rows_per_pass, 1) * batch.input_ids.shape[1],
        )
        passes = plan_passes(
            lengths,
            max_tokens,
            find_prefix_groups(batch.input_ids, batch.attention_mask),
            # Otherwise every pass would recompute a long shared prefix; no activations are kept here.
            strict_token_limit=False,
        )
        chunks = [torch.tensor(rows) for rows in passes]
    else:
        chunks = list(batch.attention_mask.sum(-1).argsort(stable=True).split(max(rows_per_pass, 1)))
    # The last index undoes the permutation of rows.
    return torch.cat([compute(batch.select(rows)) for rows in chunks])[torch.cat(chunks).argsort()]


@dataclass(frozen=True, slots=True)
class OldLogprobs:
    """log pi_old: log-probabilities under the policy that generated the responses.

    Reads: rollout_logprobs, or input_ids, attention_mask, response_mask. Writes: old_logprobs.
    source: "rollout" takes the sampler's log-probabilities, which are exact where sampler and trainer share
    weights and precision; "policy" recomputes them with the policy before its first update.
    Source: Schulman et al. 2017, section 3 (arXiv:1707.06347).
    """

    source: Literal["rollout", "policy"] = "rollout"

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write old_logprobs.

        Raises:
            WiringError: The batch has no rollout_logprobs, as with stored responses.
        """
        if self.source == "rollout":
            return batch.replace(old_logprobs=batch.require("rollout_logprobs"))
        logprobs = response_logprobs(
            models.policy, batch, temperature=temperature, rows_per_pass=rows_per_pass
        )
        return batch.replace(old_logprobs=logprobs)


@dataclass(frozen=True, slots=True)
class RefLogprobs:
    """log pi_ref: log-probabilities under the frozen reference policy of the KL penalty.

    Reads: input_ids, attention_mask, response_mask. Writes: ref_logprobs.
    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593). Differs: the model is identified by a role.
    """

    role: str = "reference"

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write ref_logprobs.

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
    """Beta times the log-ratio of a preference-tuned model and its reference, clipped to +-clip; 0 elsewhere.

    Source: Zhong et al. 2024, RTO, eq. 4.7 (arXiv:2404.18922); the clipping is from its code, after scaling.
    """
    reward = torch.where(response_mask, beta * (tuned_logprobs - ref_logprobs), 0.0)
    return reward if clip is None else reward.clamp(-clip, clip)


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """Token-level reward: the log-ratio of a preference-tuned model and the model it was tuned from.

        r_t = beta (log p_tuned(y_t) - log p_ref(y_t)),  clipped to +-clip

    It is added to existing token rewards, and credit steps such as `TerminalReward` and `KlPenalty` add to
    it; with several critic heads, each receives all of it. Both models are evaluated at temperature 1,
    whatever the sampling temperature is. With beta = 0.05, the clip of 0.05 in the published runs is active
    from a probability ratio of e.

    Reads: input_ids, attention_mask, response_mask, token_rewards if present. Writes: token_rewards.

    Source: Zhong et al. 2024, RTO, eq. 4.7 (arXiv:2404.18922); Rafailov et al. 2024 (arXiv:2404.12358).
    Differs: the reference of the tuned model has a role of its own; in the published code it is always the
    reference policy of the KL penalty.
    """

    beta: float = 0.05
    tuned_role: str = "dpo"
    """Role of the frozen preference-tuned model; it has the policy's vocabulary."""
    reference_role: str = "reference"
    """Role of the frozen model it was tuned from."""
    clip: float | None = None
    """Largest absolute reward per token, after scaling by beta."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or (self.clip is not None and not self.clip > 0):
            raise WiringError(
                f"ImplicitReward got beta={self.beta} and clip={self.clip}; both must be above 0"
            )

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write token_rewards.

        Raises:
            WiringError: The run has no frozen model of one of the roles.
        """
        tuned, ref = (
            response_logprobs(models.frozen_model(role), batch, rows_per_pass=rows_per_pass)
            for role in (self.tuned_role, self.reference_role)
        )
        reward = implicit_reward(tuned, ref, batch.response_mask, self.beta, self.clip)[..., None]
        existing = batch.token_rewards
        return batch.replace(token_rewards=reward if existing is None else existing + reward)


@dataclass(frozen=True, slots=True)
class CriticValues:
    """State values estimated by the critic before its first update.

    Reads: input_ids, attention_mask, response_mask. Writes: values.
    Source: Schulman et al. 2016, section 5 (arXiv:1506.02438). Differs: one value per head.
    """

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write values.

        Raises:
            WiringError: The run has no critic.
        """
        critic = models.critic
        if critic is None:
            raise WiringError(
                "CriticValues needs a critic, and the run has none; fix: pass Models(critic=...)"
            )

        def compute(chunk: Batch) -> Tensor:
            return compute_values(critic, chunk.input_ids, chunk.attention_mask, chunk.response_mask)

        with torch.no_grad():
            return batch.replace(values=run_in_passes(critic, batch, rows_per_pass, compute))


@dataclass(frozen=True, slots=True)
class PolicyEntropy:
    """Entropy of the policy's next-token distribution at each response token, in nats.

    Reads: input_ids, attention_mask, response_mask. Writes: entropy.
    Source: Shannon entropy of the distribution from which the token was sampled.
    """

    def __call__(self, batch: Batch, models: Models, temperature: float, rows_per_pass: int) -> Batch:
        """Write entropy."""

        def compute(chunk: Batch) -> Tensor:
            entropy = compute_outputs(
                models.policy, chunk, frozenset({"entropy"}), temperature=temperature
            ).entropy
            assert entropy is not None
            return entropy

        with torch.no_grad():
            return batch.replace(entropy=run_in_passes(models.policy, batch, rows_per_pass, compute))
