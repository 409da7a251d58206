"""What a candidate is worth: its numbers go into the model, the model responds, responses are scored.

Candidates spread over processes: each has a copy of the policy; knobs go out, plain numbers come back.
"""

import json
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import NonFiniteError, ParetuneError, ResourceError
from paretune.core.rng import torch_generator
from paretune.credit.base import Metrics, State
from paretune.data.records import Sample
from paretune.models.lora_svd import LoraSvd
from paretune.models.model_passes import RefLogprobs
from paretune.rl import throughput
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.loop import TrainingContext, rollout_and_score
from paretune.rl.metrics import PhaseTimer
from paretune.training.checkpoint import deserialize_tree, serialize_tree
from paretune.training.guards import FiniteCheck


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
                throughput.record_model_pass_flops(self.timer, [ask], world.models, batch)
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


SHUTDOWN_TIMEOUT = 5.0
"""Seconds that a process has for leaving."""
FORWARDED_ERRORS: Mapping[str, type[ParetuneError]] = {"TrainingGuard": NonFiniteError}
"""Those whose kind matters to whoever started the run."""


WorkerFactory = Callable[[LoraSvd], CandidateEvaluator]
"""Makes the candidates of a process of its own, out of what can be sent there: the same network, sampler,
scorers and prompts as everybody's."""


class WorkerPool:
    """The candidates of every generation, dealt out to this process and to others.

    Candidate i goes to process i modulo their number, and the parent's is number 0. A candidate's worth
    depends on nothing but its knobs, the step and the seed, so the number of processes changes no result.
    """

    def __init__(
        self,
        local_evaluator: CandidateEvaluator,
        worker_factory: WorkerFactory | None = None,
        num_workers: int = 1,
    ) -> None:
        self.local_evaluator = local_evaluator
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        there = multiprocessing.get_context("spawn")
        arrays = {name: value.numpy() for name, value in local_evaluator.lora_svd.to_tensors().items()}
        for _ in range(num_workers - 1 if worker_factory is not None else 0):
            wire, far = there.Pipe()
            given = (
                far,
                worker_factory,
                arrays,
                tuple(local_evaluator.lora_svd.factors),
                torch.get_num_threads(),
            )
            process = there.Process(target=worker_main, args=given, daemon=True)
            process.start()
            far.close()
            self.connections.append(wire)
            self.processes.append(process)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for wire in self.connections:
            wire.close()
        for process in self.processes:
            process.join(SHUTDOWN_TIMEOUT if exc is None else 0.0)
            if process.is_alive():
                process.kill()
                process.join()

    def __call__(self, offsets: Float[Tensor, "P N"], step: int, reward_state: State) -> list[CandidateScore]:
        """What these candidates are worth, in their order.

        Raises:
            ResourceError: A process is gone.
            ParetuneError: What one of them had to say.
        """
        shares = partition(len(offsets), len(self.connections) + 1)
        for wire, share in zip(self.connections, shares[1:], strict=True):
            _send_request(wire, offsets[share], share, step, reward_state)
        found = dict(
            zip(
                shares[0],
                self.local_evaluator(offsets[shares[0]], shares[0], step, reward_state),
                strict=True,
            )
        )
        for wire, share in zip(self.connections, shares[1:], strict=True):
            found |= zip(share, _receive_scores(wire), strict=True)
        return [found[i] for i in range(len(offsets))]


def partition(num_items: int, num_parts: int) -> list[list[int]]:
    """Numbers from 0 on, dealt out like cards."""
    return [list(range(first, num_items, num_parts)) for first in range(num_parts)]


def _send_request(
    connection: Connection, offsets: Tensor, candidate_indices: Sequence[int], step: int, reward_state: State
) -> None:
    tree, tensors = serialize_tree(reward_state)
    head = {"step": step, "share": list(candidate_indices), "worth": tree}
    try:
        connection.send_bytes(json.dumps(head).encode())
        connection.send_bytes(save_tensors({"points": offsets.contiguous(), **tensors}))
    except OSError as error:
        raise _worker_lost() from error


def _receive_scores(connection: Connection) -> list[CandidateScore]:
    try:
        reply = json.loads(connection.recv_bytes())
    except (EOFError, OSError) as error:
        raise _worker_lost() from error
    if "error" in reply:
        raise FORWARDED_ERRORS.get(reply["error"], ResourceError)(reply["text"])
    return [
        CandidateScore(fitness, tuple(means), tokens, rows)
        for fitness, means, tokens, rows in reply["judged"]
    ]


def _worker_lost() -> ResourceError:
    return ResourceError(
        "a process that tries candidates has ended; fix: give the same command again, with fewer run.num_workers "
        "if memory is short"
    )


def worker_main(
    connection: Connection,
    worker_factory: WorkerFactory,
    lora_svd_arrays: Mapping[str, NDArray[np.generic]],
    factor_names: tuple[str, ...],
    num_threads: int,
) -> None:
    """Try candidates until nobody is at the other end; whoever is there decides about signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    try:
        try:
            knobs = LoraSvd.from_tensors(
                {k: torch.from_numpy(v) for k, v in lora_svd_arrays.items()}, factor_names
            )
            own = worker_factory(knobs)
            while True:
                head = json.loads(connection.recv_bytes())
                tensors = load_tensors(connection.recv_bytes())
                worth = deserialize_tree(head["worth"], tensors, own.spec.reward_steps.init_state())
                judged = own(tensors["points"], head["share"], head["step"], worth)
                rows = [
                    [j.fitness, list(j.objective_means), j.num_response_tokens, j.num_responses]
                    for j in judged
                ]
                connection.send_bytes(json.dumps({"judged": rows}).encode())
        except ParetuneError as error:
            connection.send_bytes(json.dumps({"error": type(error).__name__, "text": str(error)}).encode())
    except (EOFError, OSError):
        return
