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
from paretune.errors import ParetuneError, ResourceError, TrainingGuard
from paretune.learn.candidates import Candidates, Judged
from paretune.learn.resume import pack, unpack
from paretune.models.singular import SingularLora

PATIENCE = 5.0
"""Seconds that a process has for leaving."""
ERRORS: Mapping[str, type[ParetuneError]] = {"TrainingGuard": TrainingGuard}
"""Those whose kind matters to whoever started the run."""


Hire = Callable[[SingularLora], Candidates]
"""Makes the candidates of a process of its own, out of what can be sent there: the same network, sampler,
scorers and prompts as everybody's."""


class Spread:
    """The candidates of every generation, dealt out to this process and to others.

    Candidate i goes to process i modulo their number, and the parent's is number 0. A candidate's worth
    depends on nothing but its knobs, the step and the seed, so the number of processes changes no result.
    """

    def __init__(self, own: Candidates, hire: Hire | None = None, num: int = 1) -> None:
        self.own = own
        self.wires: list[Connection] = []
        self.processes: list[Any] = []
        there = multiprocessing.get_context("spawn")
        arrays = {name: value.numpy() for name, value in own.knobs.tensors().items()}
        for _ in range(num - 1 if hire is not None else 0):
            wire, far = there.Pipe()
            given = (far, hire, arrays, tuple(own.knobs.factors), torch.get_num_threads())
            process = there.Process(target=serve, args=given, daemon=True)
            process.start()
            far.close()
            self.wires.append(wire)
            self.processes.append(process)

    def __enter__(self) -> "Spread":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for wire in self.wires:
            wire.close()
        for process in self.processes:
            process.join(PATIENCE if error is None else 0.0)
            if process.is_alive():
                process.kill()
                process.join()

    def __call__(self, points: Float[Tensor, "P N"], step: int, worth: State) -> list[Judged]:
        """What these candidates are worth, in their order.

        Raises:
            ResourceError: A process is gone.
            ParetuneError: What one of them had to say.
        """
        shares = dealt(len(points), len(self.wires) + 1)
        for wire, share in zip(self.wires, shares[1:], strict=True):
            _ask(wire, points[share], share, step, worth)
        found = dict(zip(shares[0], self.own(points[shares[0]], shares[0], step, worth), strict=True))
        for wire, share in zip(self.wires, shares[1:], strict=True):
            found |= zip(share, _answer(wire), strict=True)
        return [found[i] for i in range(len(points))]


def dealt(count: int, num: int) -> list[list[int]]:
    """Numbers from 0 on, dealt out like cards."""
    return [list(range(first, count, num)) for first in range(num)]


def _ask(wire: Connection, points: Tensor, share: Sequence[int], step: int, worth: State) -> None:
    tree, tensors = pack(worth)
    head = {"step": step, "share": list(share), "worth": tree}
    try:
        wire.send_bytes(json.dumps(head).encode())
        wire.send_bytes(save_tensors({"points": points.contiguous(), **tensors}))
    except OSError as error:
        raise _gone() from error


def _answer(wire: Connection) -> list[Judged]:
    try:
        reply = json.loads(wire.recv_bytes())
    except (EOFError, OSError) as error:
        raise _gone() from error
    if "error" in reply:
        raise ERRORS.get(reply["error"], ResourceError)(reply["text"])
    return [Judged(fitness, tuple(means), tokens, rows) for fitness, means, tokens, rows in reply["judged"]]


def _gone() -> ResourceError:
    return ResourceError(
        "a process that tries candidates has ended; fix: give the same command again, with fewer run.workers "
        "if memory is short"
    )


def serve(
    wire: Connection,
    hire: Hire,
    arrays: Mapping[str, NDArray[np.generic]],
    order: tuple[str, ...],
    threads: int,
) -> None:
    """Try candidates until nobody is at the other end; whoever is there decides about signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        try:
            knobs = SingularLora.from_tensors({k: torch.from_numpy(v) for k, v in arrays.items()}, order)
            own = hire(knobs)
            while True:
                head = json.loads(wire.recv_bytes())
                tensors = load_tensors(wire.recv_bytes())
                worth = unpack(head["worth"], tensors, own.evolution.worth.start())
                judged = own(tensors["points"], head["share"], head["step"], worth)
                rows = [[j.fitness, list(j.means), j.tokens, j.rows] for j in judged]
                wire.send_bytes(json.dumps({"judged": rows}).encode())
        except ParetuneError as error:
            wire.send_bytes(json.dumps({"error": type(error).__name__, "text": str(error)}).encode())
    except (EOFError, OSError):
        return
