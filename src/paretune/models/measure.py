"""What the policy of old and frozen models say of a batch, written into it before credit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from paretune.batch import Batch
from paretune.errors import WiringError
from paretune.models.forward import aligned_values, can_pack, run, token_logp
from paretune.models.sharing import plan, sharings


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The networks of one run; the roles of frozen ones are named by the parts that use them."""

    policy: nn.Module
    critic: nn.Module | None = None
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)

    def role(self, name: str) -> nn.Module:
        """The frozen model of this role.

        Raises:
            WiringError: The run has none.
        """
        if name not in self.frozen:
            known = ", ".join(self.frozen) or "none"
            raise WiringError(f'a part asks the frozen model "{name}"; the run has {known}')
        return self.frozen[name]


@runtime_checkable
class Measure(Protocol):
    """A part that asks models about a batch; nothing it writes carries a gradient."""

    def __call__(self, batch: Batch, models: Models, temperature: float, rows: int) -> Batch:
        """The batch with one more field; as many tokens as fill `rows` rows are asked at a time."""
        ...


@torch.no_grad()
def response_logp(
    model: nn.Module, batch: Batch, *, temperature: float = 1.0, rows: int = 32
) -> Float[Tensor, "B T"]:
    """Log p of the response tokens, 0 elsewhere; see `by_parts`."""

    def ask(part: Batch) -> Tensor:
        return token_logp(model, part.tokens, part.attend, part.respond, temperature=temperature)

    return by_parts(model, batch, rows, ask)


def by_parts(model: nn.Module, batch: Batch, rows: int, ask: Callable[[Batch], Tensor]) -> Tensor:
    """The answers for all rows in their order, as many tokens at a time as fill `rows` rows.

    A prompt counts once for all rows that share it, where the model can be packed; elsewhere rows of like
    length are asked together.
    """
    if can_pack(model):
        lengths, budget = batch.attend.sum(-1).tolist(), max(rows, 1) * batch.tokens.shape[1]
        cut = plan(lengths, budget, sharings(batch.tokens, batch.attend), strict=False)
        parts = [torch.tensor(part) for part in cut]
    else:
        parts = list(batch.attend.sum(-1).argsort(stable=True).split(max(rows, 1)))
    return torch.cat([ask(batch.rows(index)) for index in parts])[torch.cat(parts).argsort()]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """log pi_old: the policy as it was when it wrote the responses.

    Reads: sampler_logp, or tokens, attend, respond. Writes: behaviour_logp.
    "sampler" takes the sampler's word, which is exact where sampler and trainer share weights and
    precision; "trainer" asks the policy again, before its first update.
    Source: Schulman et al. 2017, section 3 (arXiv:1707.06347).
    """

    by: Literal["sampler", "trainer"] = "sampler"

    def __call__(self, batch: Batch, models: Models, temperature: float, rows: int) -> Batch:
        """Write behaviour_logp.

        Raises:
            WiringError: The sampler left no log-probabilities, as with responses read from a file.
        """
        if self.by == "sampler":
            return batch.set(behaviour_logp=batch.need("sampler_logp"))
        logp = response_logp(models.policy, batch, temperature=temperature, rows=rows)
        return batch.set(behaviour_logp=logp)


@dataclass(frozen=True, slots=True)
class Reference:
    """log pi_ref: a frozen model the policy is to stay near.

    Reads: tokens, attend, respond. Writes: reference_logp.
    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593). Differs: the model is named by its role.
    """

    role: str = "reference"

    def __call__(self, batch: Batch, models: Models, temperature: float, rows: int) -> Batch:
        """Write reference_logp.

        Raises:
            WiringError: The run has no frozen model of this role.
        """
        model = models.role(self.role)
        return batch.set(reference_logp=response_logp(model, batch, temperature=temperature, rows=rows))


def implicit_reward(
    tuned: Float[Tensor, "B T"],
    reference: Float[Tensor, "B T"],
    respond: Bool[Tensor, "B T"],
    beta: float,
    clip: float | None = None,
) -> Float[Tensor, "B T"]:
    """Beta times the log-ratio of a model tuned to preferences and its reference, cut to +-clip; 0 elsewhere.

    Source: Zhong et al. 2024, RTO, eq. 4.7 (arXiv:2404.18922); the cut in its code, after the scaling.
    """
    reward = torch.where(respond, beta * (tuned - reference), 0.0)
    return reward if clip is None else reward.clamp(-clip, clip)


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """A reward on every token: what a model that was tuned to preferences gained over where it started.

        r_t = beta (log p_tuned(y_t) - log p_against(y_t)),  cut to +-clip

    Adds to the rewards that are there, and parts of credit like `EndReward` and `KlPenalty` add to it; with
    several heads, each is paid the whole. Both models are asked at temperature 1, whatever the sampler's.
    With beta = 0.05 a clip of 0.05, which the published runs have, bites from a ratio of e on.

    Reads: tokens, attend, respond, token_reward where there is one. Writes: token_reward.

    Source: Zhong et al. 2024, RTO, eq. 4.7 (arXiv:2404.18922); Rafailov et al. 2024 (arXiv:2404.12358).
    Differs: the model that the tuned one is held against has a role of its own; in the published code it is
    always that of the divergence.
    """

    beta: float = 0.05
    tuned: str = "dpo"
    """Role of the frozen model that was tuned to preferences; it has the policy's vocabulary."""
    against: str = "reference"
    """Role of the frozen model it was tuned from."""
    clip: float | None = None
    """In the units of the reward."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or (self.clip is not None and not self.clip > 0):
            raise WiringError(
                f"ImplicitReward has beta {self.beta} and clip {self.clip}; both must be above 0"
            )

    def __call__(self, batch: Batch, models: Models, temperature: float, rows: int) -> Batch:
        """Write token_reward.

        Raises:
            WiringError: The run has no frozen model of one of the roles.
        """
        tuned, against = (response_logp(models.role(r), batch, rows=rows) for r in (self.tuned, self.against))
        reward = implicit_reward(tuned, against, batch.respond, self.beta, self.clip)[..., None]
        before = batch.token_reward
        return batch.set(token_reward=reward if before is None else before + reward)


@dataclass(frozen=True, slots=True)
class Values:
    """What the critic expects, before its first update.

    Reads: tokens, attend, respond. Writes: values.
    Source: Schulman et al. 2016, section 5 (arXiv:1506.02438). Differs: one value for each head.
    """

    def __call__(self, batch: Batch, models: Models, temperature: float, rows: int) -> Batch:
        """Write values.

        Raises:
            WiringError: The run has no critic.
        """
        critic = models.critic
        if critic is None:
            raise WiringError("a part asks the critic; the run has none")

        def ask(part: Batch) -> Tensor:
            return aligned_values(critic, part.tokens, part.attend, part.respond)

        with torch.no_grad():
            return batch.set(values=by_parts(critic, batch, rows, ask))


@dataclass(frozen=True, slots=True)
class Undecided:
    """How undecided the policy was at each token it wrote, in nats.

    Reads: tokens, attend, respond. Writes: entropy.
    Source: Shannon's entropy of the distribution the token was drawn from.
    """

    def __call__(self, batch: Batch, models: Models, temperature: float, rows: int) -> Batch:
        """Write entropy."""

        def ask(part: Batch) -> Tensor:
            entropy = run(models.policy, part, frozenset({"entropy"}), temperature=temperature).entropy
            assert entropy is not None
            return entropy

        with torch.no_grad():
            return batch.set(entropy=by_parts(models.policy, batch, rows, ask))
