"""Evaluation of candidates: set their singular values in the model, sample responses and score them.

`WorkerPool` splits a generation over processes, each with a copy of the policy: offsets of the singular
values are sent, plain numbers come back.
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

from paretune.core import ranks
from paretune.core.batch import Batch
from paretune.core.errors import NonFiniteError, ParetuneError, ResourceError, ScoringError, WiringError
from paretune.core.rng import torch_generator
from paretune.credit.base import Metrics, State
from paretune.data.records import Sample
from paretune.models.lora_svd import LoraSvd
from paretune.models.model_passes import RefLogprobs
from paretune.rl.context import TrainingContext
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.hooks import FiniteCheckHook, RolloutFlopsHook, StepHooks
from paretune.rl.metrics import PhaseTimer
from paretune.rl.rollout import rollout_and_score
from paretune.rl.user_parts import apply_steps, call_with_user_parts
from paretune.training.checkpoint import deserialize_tree, serialize_tree


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """The evaluation of a candidate: plain numbers, since they may come from another process."""

    fitness: float
    objective_means: tuple[float, ...]
    """Mean score per objective; NaN if nothing was scored."""
    num_response_tokens: int
    """Sampled response tokens."""
    num_responses: int
    """Scored responses."""


@dataclass(frozen=True)
class CandidateRollout:
    """The responses of a candidate and their rewards."""

    score: CandidateScore
    batch: Batch
    """With the rewards whose mean is the fitness."""
    samples: Sequence[Sample]
    reward_state: State
    """State of the reward steps after these responses."""
    metrics: Metrics
    """Metrics of the reward steps."""
    fitness_std_error: float
    """Standard error of the fitness."""


@dataclass(frozen=True)
class CandidateEvaluator:
    """Evaluates candidates one after the other on one copy of the policy."""

    spec: EvolutionSpec
    context: TrainingContext
    lora_svd: LoraSvd
    seed: int
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    """Seconds per phase of the candidates that were evaluated here."""

    @property
    def population_size(self) -> int:
        """Candidates per generation."""
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
        """Sample and score the responses of one candidate to the prompts of a step.

        Args:
            offsets: Offsets of the singular values.
            candidate_index: Index of the candidate; the incumbent has the one after all others.
            step: Step of the run.
            reward_state: State of the reward steps.
            with_reference: Compute reference log-probabilities even if the fitness has no KL penalty.

        Raises:
            NonFiniteError: A score is infinite, or no response has a reward.
            WiringError: A reward step of the user's own failed.
        """
        spec, context = self.spec, self.context
        flops = RolloutFlopsHook(spec, context, self.timer)
        hooks = StepHooks((FiniteCheckHook(step), flops), self.timer)
        self.lora_svd.apply_offsets(context.models.policy, offsets)
        # With independent random numbers every candidate of every step needs a step number of its own.
        independent = spec.random_numbers == "independent"
        turn = step * (self.population_size + 1) + candidate_index if independent else step
        batch, samples = rollout_and_score(spec, context, self.seed, turn, hooks)
        if spec.kl_coef or with_reference:
            ref_logprobs = RefLogprobs()
            with hooks.phase("model_passes"):
                batch = ref_logprobs(batch, context.models, spec.temperature, context.no_grad_rows(batch))
            hooks.on_model_passes(batch, (ref_logprobs,))
        rng = torch_generator(self.seed, step, "worth")
        rewarded, next_state, metrics = call_with_user_parts(
            spec, lambda: apply_steps(spec.reward_steps, batch, reward_state, rng), step
        )
        hooks.on_rewards(rewarded, metrics)
        rewards = kl_penalized_rewards(rewarded, spec.kl_coef)
        score = CandidateScore(
            fitness=float(rewards.mean()),
            objective_means=tuple(float(column.double().nanmean()) for column in batch.scores.T),
            num_response_tokens=int(batch.response_mask.sum()),
            num_responses=len(batch),
        )
        std_error = float(rewards.std() / len(rewards) ** 0.5) if len(rewards) > 1 else 0.0
        return CandidateRollout(score, rewarded, samples, next_state, metrics, std_error)

    def __call__(
        self, offsets: Float[Tensor, "P N"], candidate_indices: Sequence[int], step: int, reward_state: State
    ) -> list[CandidateScore]:
        """The scores of these candidates."""
        return [
            self.rollout(offsets[i], candidate, step, reward_state).score
            for i, candidate in enumerate(candidate_indices)
        ]


def kl_penalized_rewards(batch: Batch, kl_coef: float) -> Float[Tensor, " M"]:
    """The reward of every response that has one, with the KL penalty to the initial policy subtracted.

    f_b = reward_b - kl_coef sum_t (log p(candidate) - log p(initial))
    """
    known = ~batch.rewards[:, 0].isnan()
    rewards = batch.rewards[:, 0].double()
    if kl_coef:
        log_ratio = (batch.require("rollout_logprobs") - batch.require("ref_logprobs")).double()
        rewards = rewards - kl_coef * torch.where(batch.response_mask, log_ratio, 0.0).sum(-1)
    return rewards[known]


SHUTDOWN_TIMEOUT = 5.0
"""Seconds that a process has to exit before it is killed."""
FORWARDED_ERRORS: Mapping[str, type[ParetuneError]] = {
    "NonFiniteError": NonFiniteError,
    "ScoringError": ScoringError,
    "WiringError": WiringError,
}
"""Errors of a worker that keep their class, and so the exit code of the run; others become ResourceError."""


WorkerFactory = Callable[[LoraSvd], CandidateEvaluator]
"""Makes the evaluator of another process; it must be picklable and build the same network, sampler, scorers
and prompts as in the parent."""


class WorkerPool:
    """Evaluates the candidates of a generation in this process and in others.

    Candidate i goes to process i modulo their number; the parent is process 0. The score of a candidate
    depends on its offsets, the step and the seed alone, so that the number of processes changes no result.
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
        # Not "fork": a forked process must not use the parent's accelerator or threads.
        spawn = multiprocessing.get_context("spawn")
        arrays = {name: value.numpy() for name, value in local_evaluator.lora_svd.to_tensors().items()}
        for _ in range(num_workers - 1 if worker_factory is not None else 0):
            connection, worker_end = spawn.Pipe()
            factor_names = tuple(local_evaluator.lora_svd.factors)
            args = (worker_end, worker_factory, arrays, factor_names, torch.get_num_threads())
            process = spawn.Process(target=worker_main, args=args, daemon=True)
            process.start()
            worker_end.close()  # so that the worker reads EOF when the parent is gone
            self.connections.append(connection)
            self.processes.append(process)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(SHUTDOWN_TIMEOUT if exc is None else 0.0)
            if process.is_alive():
                process.kill()
                process.join()

    def __call__(self, offsets: Float[Tensor, "P N"], step: int, reward_state: State) -> list[CandidateScore]:
        """The scores of these candidates, in order; each rank evaluates its share of them.

        Raises:
            ResourceError: A worker process has ended.
            RankError: Another rank failed.
            ParetuneError: The error of a worker.
        """
        share = partition(len(offsets), ranks.world_size())[ranks.rank()]
        with ranks.fail_together("candidates"):
            scores = self._evaluate(offsets, share, step, reward_state)
        gathered = ranks.gather_json([[i, *score_to_json(score)] for i, score in scores.items()])
        scores = {i: score_from_json(values) for part in gathered for i, *values in part}
        return [scores[i] for i in range(len(offsets))]

    def _evaluate(
        self, offsets: Float[Tensor, "P N"], share: Sequence[int], step: int, reward_state: State
    ) -> dict[int, CandidateScore]:
        """The scores of the candidates of this rank, by index."""
        parts = partition(len(share), len(self.connections) + 1)
        local, *remote = [[share[i] for i in part] for part in parts]
        # Send first: the workers compute while this process evaluates its own part.
        for connection, indices in zip(self.connections, remote, strict=True):
            _send_request(connection, offsets[indices], indices, step, reward_state)
        local_scores = self.local_evaluator(offsets[local], local, step, reward_state)
        scores = dict(zip(local, local_scores, strict=True))
        for connection, indices in zip(self.connections, remote, strict=True):
            scores |= zip(indices, _receive_scores(connection), strict=True)
        return scores


def partition(num_items: int, num_parts: int) -> list[list[int]]:
    """The indices from 0 on, distributed round-robin."""
    return [list(range(first, num_items, num_parts)) for first in range(num_parts)]


def _send_request(
    connection: Connection, offsets: Tensor, candidate_indices: Sequence[int], step: int, reward_state: State
) -> None:
    tree, tensors = serialize_tree(reward_state)
    header = {"step": step, "candidate_indices": list(candidate_indices), "reward_state": tree}
    try:
        connection.send_bytes(json.dumps(header).encode())
        connection.send_bytes(save_tensors({"offsets": offsets.contiguous(), **tensors}))
    except OSError as error:
        raise _worker_lost() from error


def _receive_scores(connection: Connection) -> list[CandidateScore]:
    try:
        reply = json.loads(connection.recv_bytes())
    except (EOFError, OSError) as error:
        raise _worker_lost() from error
    if "error" in reply:
        raise FORWARDED_ERRORS.get(reply["error"], ResourceError)(reply["message"])
    return [score_from_json(values) for values in reply["scores"]]


def score_to_json(score: CandidateScore) -> list[Any]:
    """The fields of a score, for another process."""
    return [score.fitness, list(score.objective_means), score.num_response_tokens, score.num_responses]


def score_from_json(values: Sequence[Any]) -> CandidateScore:
    """The inverse of `score_to_json`."""
    fitness, means, tokens, rows = values
    return CandidateScore(fitness, tuple(means), tokens, rows)


def _worker_lost() -> ResourceError:
    return ResourceError(
        "a worker process has ended; fix: repeat the command to resume, with a smaller run.num_workers if "
        "memory is short"
    )


def worker_main(
    connection: Connection,
    worker_factory: WorkerFactory,
    lora_svd_arrays: Mapping[str, NDArray[np.generic]],
    factor_names: tuple[str, ...],
    num_threads: int,
) -> None:
    """Worker loop: evaluate candidates until the pipe is closed.

    Signals are handled by the parent, which finishes its step before it stops.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    try:
        try:
            tensors = {name: torch.from_numpy(array) for name, array in lora_svd_arrays.items()}
            evaluator = worker_factory(LoraSvd.from_tensors(tensors, factor_names))
            initial_state = evaluator.spec.reward_steps.init_state()
            while True:
                header = json.loads(connection.recv_bytes())
                tensors = load_tensors(connection.recv_bytes())
                reward_state = deserialize_tree(header["reward_state"], tensors, initial_state)
                indices = header["candidate_indices"]
                scores = evaluator(tensors["offsets"], indices, header["step"], reward_state)
                rows = [score_to_json(each) for each in scores]
                connection.send_bytes(json.dumps({"scores": rows}).encode())
        except ParetuneError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
            connection.send_bytes(json.dumps(reply).encode())
    except (EOFError, OSError):
        return
