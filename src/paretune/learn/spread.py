"""Candidates spread over processes: each has a copy of the policy; knobs go out, plain numbers come back."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
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

from paretune.credit.step import State
from paretune.errors import NonFiniteError, ParetuneError, ResourceError
from paretune.learn.candidates import CandidateEvaluator, CandidateScore
from paretune.learn.resume import deserialize_tree, serialize_tree
from paretune.models.singular import LoraSvd

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
