"""The batch of responses and the model outputs that losses take.

Shape letters, in every signature of this package:
    B rows (one response each)      T tokens (prompt + response, right-padded)     V vocabulary
    K objectives as scored          J columns of `rewards`                         H heads of the critic
    A columns of `advantages`       G responses of one prompt                      P prompts

Three rules:
    Alignment: entry [b, t] belongs to input_ids[b, t]. A log-probability at [b, t] is
        log p(input_ids[b, t] | input_ids[b, :t]), and a value at [b, t] is that of the state before
        input_ids[b, t] was generated.
    Masks are fields of the batch, never inferred from values.
    The number of dimensions never changes: an aggregated reward is [B, 1], not [B].
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.errors import WiringError
from paretune.core.goals import HIGHER, Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Responses with their scores, log-probabilities, rewards, advantages and loss weights.

    A field that no step has written yet is None; `require` raises an error for it.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    """True for real tokens, False for padding."""
    response_mask: Bool[Tensor, "B T"]
    """True for tokens that the policy generated, EOS included; only they have a loss."""
    group: Int[Tensor, " B"]
    """Rows with equal numbers are responses to the same prompt."""
    truncated: Bool[Tensor, " B"]
    """True if the response reached the length limit before EOS."""
    objectives: tuple[str, ...]
    """Names of the K columns of `scores`."""
    scores: Float[Tensor, "B K"]
    """Raw scores, never changed; NaN = not scored."""
    rewards: Float[Tensor, "B J"]
    """The scores as the reward steps transform them: J = K until an aggregator makes it 1."""
    goals: tuple[Goal, ...] = ()
    """Goals of the K objectives, written by `OrientScores`; empty: higher scores of all are better."""
    format_valid: Bool[Tensor, " B"] | None = None
    """False if the response lacks the format that the scorer view needs; such rows are not scored."""
    rollout_logprobs: Float[Tensor, "B T"] | None = None
    """Log-probabilities of the response tokens as the sampler computed them."""
    weight_version: Int[Tensor, " B"] | None = None
    """Training steps that the weights had made when they sampled the row; None: it was not sampled here."""
    old_logprobs: Float[Tensor, "B T"] | None = None
    """Log-probabilities under the policy before the first update on this batch."""
    ref_logprobs: Float[Tensor, "B T"] | None = None
    """Log-probabilities under the frozen reference policy."""
    values: Float[Tensor, "B T H"] | None = None
    """Value estimates of the critic before the first update."""
    token_rewards: Float[Tensor, "B T H"] | None = None
    """Per-token rewards, such as per-token KL penalties and the terminal reward."""
    returns: Float[Tensor, "B T H"] | None = None
    """Regression targets of the critic."""
    advantages: Float[Tensor, "B T A"] | None = None
    entropy: Float[Tensor, "B T"] | None = None
    """Entropy of the policy before the first update, in nats."""
    importance_weights: Float[Tensor, "B T"] | None = None
    """Factor on the policy loss of each response token, and on no other loss; None = 1."""
    loss_weights: Float[Tensor, "B T"] | None = None
    """Weight of each token in a loss, from `token_weights`; computed over the whole optimizer step."""
    category: Int[Tensor, " B"] | None = None
    """Index into `categories` of the category of the row's prompt."""
    categories: tuple[str, ...] = ()
    preference_weights: Float[Tensor, "B K"] | None = None
    """Weights of the objectives that the row's prompt asks for."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_reward_columns(self) -> int:
        """J, the columns of `rewards`."""
        return self.rewards.shape[-1]

    def require(self, field: str) -> Tensor:
        """The value of a field.

        Raises:
            WiringError: No step has written it.
        """
        value = getattr(self, field)
        if value is None:
            raise WiringError(f"batch.{field} is read, but no earlier step of the algorithm writes it")
        assert isinstance(value, Tensor)
        return value

    def replace(self, **changes: Any) -> "Batch":
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def select(self, index: Int[Tensor, " N"]) -> "Batch":
        """A copy with only these rows, in this order; a row may be repeated."""
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclass_fields(self)}
        return self.replace(**{k: v[index] for k, v in fields.items() if isinstance(v, Tensor)})

    def score_column(self, objective: str) -> Float[Tensor, " B"]:
        """Raw scores of one objective.

        Raises:
            WiringError: The batch has no such objective.
        """
        if objective not in self.objectives:
            raise WiringError(f'no objective "{objective}"; the objectives are {", ".join(self.objectives)}')
        return self.scores[:, self.objectives.index(objective)]

    def goal(self, objective: str) -> Goal:
        """The goal of one objective, which turns numbers in its units into rewards."""
        return self.goals[self.objectives.index(objective)] if self.goals else HIGHER

    def oriented_column(self, objective: str) -> Float[Tensor, " B"]:
        """Scores of one objective, oriented so that higher ones are better; before any score transform.

        Raises:
            WiringError: The batch has no such objective.
        """
        scores = self.score_column(objective)
        return self.goal(objective).orient(scores)

    def minibatches(self, minibatch_size: int, *, by_group: bool, rng: torch.Generator) -> Iterator["Batch"]:
        """Shuffled minibatches of at most `minibatch_size` rows.

        Args:
            minibatch_size: Maximum number of rows.
            by_group: Keep groups whole; a minibatch is then larger if a single group is.
            rng: Generator of the order.
        """
        if not by_group:
            for index in torch.randperm(len(self), generator=rng).split(minibatch_size):
                # Sorted, so that sums run in the order of the batch.
                yield self.select(index.sort().values)
            return
        labels, sizes = self.group.unique(return_counts=True)
        order = torch.randperm(len(labels), generator=rng)
        chunk: list[int] = []
        rows = 0
        for i in order.tolist():
            if chunk and rows + int(sizes[i]) > minibatch_size:
                yield self.select(torch.isin(self.group, labels[chunk]).nonzero().squeeze(-1))
                chunk, rows = [], 0
            chunk.append(i)
            rows += int(sizes[i])
        yield self.select(torch.isin(self.group, labels[chunk]).nonzero().squeeze(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Outputs of the forward pass, aligned to batch.input_ids and 0 outside the response; input of a loss."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None = None
    """Entropy of the next-token distribution, in nats."""
    values: Float[Tensor, "B T H"] | None = None
    ref_policy_kl: Float[Tensor, "B T"] | None = None
    """KL(reference || policy) of the next-token distributions over the whole vocabulary, in nats."""


def require_scalar(batch: Batch, reader: str) -> Float[Tensor, "B 1"]:
    """The rewards, checked to be one number per response.

    Args:
        batch: The batch.
        reader: Name of the step or loss that needs them, for the message.

    Raises:
        WiringError: `rewards` still has one column per objective.
    """
    if batch.rewards.shape[-1] != 1:
        raise WiringError(
            f"{reader} needs one reward per response and got {batch.rewards.shape[-1]} objectives; "
            "fix: add an aggregator (WeightedSum) before it"
        )
    return batch.rewards
