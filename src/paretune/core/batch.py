"""The values that flow through the package.

Shape letters, everywhere in this package:
    B rows (one response each)      T tokens (prompt + response, right-padded)     V vocabulary
    K objectives as scored          J objectives still apart in `signal`           H heads of the critic
    A objectives in `advantages`    G responses of one prompt                      P prompts

Three laws. Aligned: entry [b, t] speaks of tokens[b, t], so a log-probability at [b, t] is
log p(tokens[b, t] | tokens[b, :t]) and a value at [b, t] is that of the state in which tokens[b, t] was
chosen. Carried: masks are fields, never inferred from values. Ranks never change: an aggregated signal
is [B, 1], not [B].
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.errors import WiringError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Responses, what they are worth, and what to learn from them."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    """A real token, not padding."""
    response_mask: Bool[Tensor, "B T"]
    """Written by the policy, and credited."""
    group: Int[Tensor, " B"]
    """Rows with equal numbers answer the same prompt."""
    truncated: Bool[Tensor, " B"]
    """The response ran into the length limit before it ended."""
    objectives: tuple[str, ...]
    """Names of the K columns of `scores`."""
    scores: Float[Tensor, "B K"]
    """As scored; never changed; NaN = nobody could say."""
    rewards: Float[Tensor, "B J"]
    """Working copy of the scores: J = K until an aggregator makes it 1."""
    format_valid: Bool[Tensor, " B"] | None = None
    """The response has the form in which scorers are shown it; where it has not, it is unscored."""
    rollout_logprobs: Float[Tensor, "B T"] | None = None
    old_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T H"] | None = None
    token_rewards: Float[Tensor, "B T H"] | None = None
    returns: Float[Tensor, "B T H"] | None = None
    advantages: Float[Tensor, "B T A"] | None = None
    entropy: Float[Tensor, "B T"] | None = None
    """Of the policy as it was before the first update, in nats."""
    importance_weights: Float[Tensor, "B T"] | None = None
    """Factor on the policy loss of each response token, and on no other loss; None: 1."""
    loss_weights: Float[Tensor, "B T"] | None = None
    category: Int[Tensor, " B"] | None = None
    """Place in `categories` of the kind of the row's prompt."""
    categories: tuple[str, ...] = ()
    preference_weights: Float[Tensor, "B K"] | None = None
    """Weight of every objective that the row's prompt asks for."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def require(self, field: str) -> Tensor:
        """The field, or a WiringError that says nobody wrote it."""
        value = getattr(self, field)
        if value is None:
            raise WiringError(f"a part reads batch.{field}, but no earlier part of the recipe wrote it")
        assert isinstance(value, Tensor)
        return value

    def replace(self, **changes: Any) -> "Batch":
        """The same batch with some fields replaced."""
        return replace(self, **changes)

    def select(self, index: Int[Tensor, " N"]) -> "Batch":
        """The same batch, holding only these rows, in this order; a row may be repeated."""
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclass_fields(self)}
        return self.replace(**{k: v[index] for k, v in fields.items() if isinstance(v, Tensor)})

    def score_column(self, objective: str) -> Float[Tensor, " B"]:
        """Scores of one objective, as scored."""
        if objective not in self.objectives:
            raise WiringError(f'no objective "{objective}"; the objectives are {", ".join(self.objectives)}')
        return self.scores[:, self.objectives.index(objective)]

    def minibatches(self, minibatch_size: int, *, by_group: bool, rng: torch.Generator) -> Iterator["Batch"]:
        """Shuffled parts of at most `minibatch_size` rows; with `by_group` no group is split (parts may be larger)."""
        if not by_group:
            for index in torch.randperm(len(self), generator=rng).split(minibatch_size):
                yield self.select(index.sort().values)
            return
        labels, sizes = self.group.unique(return_counts=True)
        order = torch.randperm(len(labels), generator=rng)
        part: list[int] = []
        rows = 0
        for i in order.tolist():
            if part and rows + int(sizes[i]) > minibatch_size:
                yield self.select(torch.isin(self.group, labels[part]).nonzero().squeeze(-1))
                part, rows = [], 0
            part.append(i)
            rows += int(sizes[i])
        yield self.select(torch.isin(self.group, labels[part]).nonzero().squeeze(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What the forward pass gives a loss; aligned to batch.tokens; 0 outside the response."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T H"] | None = None
    ref_policy_kl: Float[Tensor, "B T"] | None = None
