"""What a training step has to say of itself; every key stands in the dictionary of metrics.

A number that nobody knows (no response scored, no reference there) is left out.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.credit.step import Metrics
from paretune.divergence import k1, k3
from paretune.loss.ratio import bounded
from paretune.loss.term import Term
from paretune.memory import peak_memory
from paretune.reduce import group_index, group_std


def collected(batch: Batch) -> Metrics:
    """Scores as given, response length and truncation, over all rows that were sampled."""
    metrics: Metrics = {}
    for k, name in enumerate(batch.objectives):
        known = batch.scores[:, k][~batch.scores[:, k].isnan()].double()
        metrics[f"score/{name}/unscored"] = 1 - len(known) / max(len(batch), 1)
        metrics |= _moments(f"score/{name}", known)
    metrics["length"] = float(batch.respond.sum(-1).double().mean())
    metrics["truncated"] = float(batch.truncated.double().mean())
    return metrics


def weighed(batch: Batch) -> Metrics:
    """The signal after `worth`, and of prompts with several responses the share that teaches nothing."""
    known = batch.signal[~batch.signal.isnan()].double()
    moments = _moments("signal", known) if batch.signal.shape[-1] == 1 else {}
    index, num_groups = group_index(batch.group)
    if num_groups == len(batch):
        return moments  # one response differs from no other, so nothing is said of how many do
    flat = (group_std(batch.signal, batch.group) == 0).all(-1)
    # Every row of a group says the same; the last one to be written stands for it.
    per_group = flat.new_zeros(num_groups).scatter_(0, index, flat)
    return moments | {"groups/flat": float(per_group.double().mean())}


def diverged(batch: Batch) -> Metrics:
    """How far the sampler is from the reference, over the response tokens that it drew."""
    if batch.sampler_logp is None or batch.reference_logp is None:
        return {}
    gap = bounded((batch.sampler_logp - batch.reference_logp).double())[batch.respond]
    return {"kl/k1": float(k1(gap).mean()), "kl/k3": float(k3(gap).mean())}


def credited(batch: Batch) -> Metrics:
    """The advantages the losses will read."""
    if batch.advantages is None:
        return {}
    return {"advantage/max": float(batch.advantages.abs().max())}


def known(metrics: Metrics) -> Metrics:
    """The metrics without those nobody knows, such as shares of a signal that does not vary."""
    return {key: x for key, x in metrics.items() if math.isfinite(x)}


def peaks() -> dict[str, int]:
    """Bytes that this process held at most, so far: of main memory, and of the accelerator's."""
    found = {"memory": peak_memory()}
    if torch.cuda.is_available():
        found["device_memory"] = int(torch.cuda.max_memory_allocated())
    return found


def _moments(key: str, known: Tensor) -> Metrics:
    if not len(known):
        return {}
    spread = {f"{key}/std": float(known.std())} if len(known) > 1 else {}
    return {f"{key}/mean": float(known.mean())} | spread


class Seen:
    """Collects what the forward passes of one training step show, micro-batch by micro-batch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._per_update: dict[str, float] = defaultdict(float)
        self._updates = 0

    def forward(self, terms: Sequence[Term], out: Outputs, batch: Batch) -> None:
        """Everything per token and per group: what the losses watch, entropy, divergences."""
        for term in terms:
            for key, x in term.loss.watch(out, batch).items():
                self._add(key, x, batch)
            for key, x in term.loss.watch_groups(out, batch).items():
                self._put(key, x.detach().double())
        if out.entropy is not None:
            self._add("entropy", out.entropy, batch)
        if batch.reference_logp is not None:
            gap = bounded((out.logp.detach() - batch.reference_logp).double())
            self._add("kl/k1", k1(gap), batch)
            self._add("kl/k3", k3(gap), batch)
        if batch.sampler_logp is not None and self._updates == 0:
            # Only before the first update are sampler and trainer the same policy.
            gap = bounded((batch.sampler_logp - out.logp.detach()).double())
            self._add("kl/sampler", k3(gap), batch)
            apart = batch.sampler_logp.double().exp() - out.logp.detach().double().exp()
            self._add("sampler/apart/max", apart.abs(), batch)

    def loss(self, whole: Tensor, terms: dict[str, float]) -> None:
        """The losses of a micro-batch; they add up to those of the update."""
        self._per_update["loss/total"] += float(whole.detach())
        for name, value in terms.items():
            self._per_update[f"loss/{name}"] += value

    def add(self, key: str, value: float) -> None:
        """A number of this update; its mean over the updates is logged."""
        self._per_update[key] += value

    def update(self, norm: float) -> None:
        """The end of one optimiser step."""
        self._per_update["grad_norm"] += norm
        self._updates += 1

    def metrics(self) -> Metrics:
        """Means over the response tokens or groups of the step, and over its updates."""
        means = {
            key: total if key.endswith("/clamped") else total / max(self._counts[key], 1)
            for key, total in self._sums.items()
        }
        per_update = {key: total / max(self._updates, 1) for key, total in self._per_update.items()}
        return means | self._extremes | per_update

    def _add(self, key: str, x: Tensor, batch: Batch) -> None:
        self._put(key, x.detach()[batch.respond].double())

    def _put(self, key: str, inside: Tensor) -> None:
        if not len(inside):
            return
        if key.endswith("/max"):
            self._extremes[key] = max(self._extremes.get(key, -math.inf), float(inside.max()))
            return
        if key.endswith("/min"):
            self._extremes[key] = min(self._extremes.get(key, math.inf), float(inside.min()))
            return
        self._sums[key] += float(inside.sum())
        self._counts[key] += len(inside)
