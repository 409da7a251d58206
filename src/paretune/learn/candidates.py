"""What a candidate is worth: its numbers go into the model, the model responds, responses are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.chance import torch_generator
from paretune.credit.step import Metrics, State
from paretune.data.records import Sample
from paretune.learn import effort
from paretune.learn.clock import PhaseTimer
from paretune.learn.descend import TrainingContext, rollout_and_score
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.guard import FiniteCheck
from paretune.models.measure import RefLogprobs
from paretune.models.singular import LoraSvd


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """What is known of a candidate afterwards: plain numbers, since they may come from another process."""

    fitness: float
    objective_means: tuple[float, ...]
    """Mean of each objective as scored; NaN where nothing was."""
    num_response_tokens: int
    """Response tokens sampled."""
    num_responses: int
    """Responses scored."""


@dataclass(frozen=True)
class CandidateRollout:
    """The responses of a candidate, and what they were worth."""

    score: CandidateScore
    batch: Batch
    """With the signal that the fitness is the mean of."""
    samples: Sequence[Sample]
    reward_state: State
    """What the aggregation remembers after these responses."""
    metrics: Metrics
    """What it has to report."""
    fitness_std_error: float
    """Standard error of the fitness."""


@dataclass(frozen=True)
class CandidateEvaluator:
    """One copy of the policy, on which candidates are tried one after the other."""

    spec: EvolutionSpec
    context: TrainingContext
    lora_svd: LoraSvd
    seed: int
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    """Where the seconds of the candidates that were tried here went."""

    @property
    def population_size(self) -> int:
        """Candidates of a generation."""
        return self.spec.strategy.population_size

    @torch.inference_mode()
    def rollout(
        self,
        offsets: Float[Tensor, " N"],
        candidate_index: int,
        step: int,
        reward_state: State,
        *,
        with_reference: bool = False,
    ) -> CandidateRollout:
        """Let one candidate respond to the prompts of a step.

        Args:
            offsets: Offsets of the singular values.
            candidate_index: Of the candidate; the incumbent comes after all others.
            step: Of the run.
            reward_state: What the aggregation remembers of the steps before.
            with_reference: Whether the start is asked about the responses, even if the fitness has no use for it.

        Raises:
            TrainingGuard: A score is infinite, or no response has a signal.
        """
        e, world = self.spec, self.context
        self.lora_svd.apply_offsets(world.models.policy, offsets)
        turn = step if e.random_numbers == "common" else step * (self.population_size + 1) + candidate_index
        batch, samples = rollout_and_score(e, world, self.seed, turn, self.timer)
        guard = FiniteCheck.from_batch(step, batch, samples)
        guard.check_rollout(batch)
        if e.kl_coef or with_reference:
            with self.timer.phase("measure"):
                rows, ask = world.no_grad_rows(batch), RefLogprobs()
                batch = ask(batch, world.models, e.rollout.temperature, rows)
                effort.record_model_pass_flops(self.timer, [ask], world.models, batch)
        rng = torch_generator(self.seed, step, "worth")
        after, memory, metrics = e.reward_steps.apply_stateful(batch, reward_state, rng)
        guard.check_rewards(after)
        each = kl_penalized_rewards(after, e.kl_coef)
        judged = CandidateScore(
            fitness=float(each.mean()),
            objective_means=tuple(float(column.double().nanmean()) for column in batch.scores.T),
            num_response_tokens=int(batch.response_mask.sum()),
            num_responses=len(batch),
        )
        error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0
        return CandidateRollout(judged, after, samples, memory, metrics, error)

    def __call__(
        self, offsets: Float[Tensor, "P N"], candidate_indices: Sequence[int], step: int, reward_state: State
    ) -> list[CandidateScore]:
        """What these candidates are worth."""
        return [
            self.rollout(offsets[i], number, step, reward_state).score
            for i, number in enumerate(candidate_indices)
        ]


def kl_penalized_rewards(batch: Batch, kl_coef: float) -> Float[Tensor, " M"]:
    """The signal of every response that has one, less the price of what it is likelier than under the start.

    f_b = signal_b - kl sum_t (log p(candidate) - log p(start))
    """
    known = ~batch.rewards[:, 0].isnan()
    signal = batch.rewards[:, 0].double()
    if kl_coef:
        gap = (batch.require("rollout_logprobs") - batch.require("ref_logprobs")).double()
        signal = signal - kl_coef * torch.where(batch.response_mask, gap, 0.0).sum(-1)
    return signal[known]
