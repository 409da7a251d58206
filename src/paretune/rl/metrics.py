"""Where the seconds of a training step go, and what was done in them.

What a training step has to say of itself; every key stands in the dictionary of metrics.

A number that nobody knows (no response scored, no reference there) is left out.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.kl import k1, k3
from paretune.core.reductions import group_index, group_std
from paretune.credit.base import Metrics
from paretune.loss.base import WeightedLoss
from paretune.loss.policy import clamp_log_ratio
from paretune.run.system import peak_rss_bytes

STEP_PHASES = ("sample", "score", "measure", "learn", "save")
"""Responses drawn, scored, put to old and frozen models, learnt from; checkpoints written before the step."""


class PhaseTimer:
    """Seconds of each phase since the last reading, tokens and floating-point operations."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.seconds = dict.fromkeys(STEP_PHASES, 0.0)
        self._tokens: dict[str, int] = defaultdict(int)
        self._flops: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside; on an accelerator until it has really happened."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - start

    def record_work(self, phase: str, *, flops: float, tokens: int = 0) -> None:
        """Count what a phase had to do; NaN: nobody can say, and so not of the whole phase either."""
        self._tokens[phase] += tokens
        self._flops[phase] += flops

    def read_and_reset(self, total_seconds: float) -> dict[str, float]:
        """The phases of a step that took `total_seconds` seconds, and begin anew; "idle" is what is left of it.

        Tokens a second and operations stand beside the seconds of a phase where it had any.
        """
        found, tokens, flops = self.seconds, self._tokens, self._flops
        self._reset()
        rates = {
            f"tokens_per_second/{phase}": n / found[phase]
            for phase, n in tokens.items()
            if n and found[phase]
        }
        done = {f"flops/{phase}": n for phase, n in flops.items() if n and math.isfinite(n)}
        # A checkpoint is written between two steps, so it is no part of either.
        return {
            **found,
            "idle": max(total_seconds - sum(found.values()) + found["save"], 0.0),
            **rates,
            **done,
        }


def rollout_metrics(batch: Batch) -> Metrics:
    """Scores as given, response length and truncation, over all rows that were sampled."""
    metrics: Metrics = {}
    for k, name in enumerate(batch.objectives):
        known = batch.scores[:, k][~batch.scores[:, k].isnan()].double()
        metrics[f"score/{name}/unscored_fraction"] = 1 - len(known) / max(len(batch), 1)
        metrics |= _mean_and_std(f"score/{name}", known)
    metrics["length"] = float(batch.response_mask.sum(-1).double().mean())
    metrics["truncated"] = float(batch.truncated.double().mean())
    return metrics


def reward_metrics(batch: Batch) -> Metrics:
    """The signal after `worth`, and of prompts with several responses the share that teaches nothing."""
    known = batch.rewards[~batch.rewards.isnan()].double()
    moments = _mean_and_std("signal", known) if batch.rewards.shape[-1] == 1 else {}
    index, num_groups = group_index(batch.group)
    if num_groups == len(batch):
        return moments  # one response differs from no other, so nothing is said of how many do
    flat = (group_std(batch.rewards, batch.group) == 0).all(-1)
    # Every row of a group says the same; the last one to be written stands for it.
    per_group = flat.new_zeros(num_groups).scatter_(0, index, flat)
    return moments | {"groups/zero_variance": float(per_group.double().mean())}


def kl_metrics(batch: Batch) -> Metrics:
    """How far the sampler is from the reference, over the response tokens that it drew."""
    if batch.rollout_logprobs is None or batch.ref_logprobs is None:
        return {}
    gap = clamp_log_ratio((batch.rollout_logprobs - batch.ref_logprobs).double())[batch.response_mask]
    return {"kl/k1": float(k1(gap).mean()), "kl/k3": float(k3(gap).mean())}


def advantage_metrics(batch: Batch) -> Metrics:
    """The advantages the losses will read."""
    if batch.advantages is None:
        return {}
    return {"advantages/max_abs": float(batch.advantages.abs().max())}


def finite_metrics(metrics: Metrics) -> Metrics:
    """The metrics without those nobody knows, such as shares of a signal that does not vary."""
    return {key: x for key, x in metrics.items() if math.isfinite(x)}


def peak_memory_bytes() -> dict[str, int]:
    """Bytes that this process held at most, so far: of main memory, and of the accelerator's."""
    found = {"memory": peak_rss_bytes()}
    if torch.cuda.is_available():
        found["device_memory"] = int(torch.cuda.max_memory_allocated())
    return found


def _mean_and_std(key: str, values: Tensor) -> Metrics:
    if not len(values):
        return {}
    spread = {f"{key}/std": float(values.std())} if len(values) > 1 else {}
    return {f"{key}/mean": float(values.mean())} | spread


class StepMetrics:
    """Collects what the forward passes of one training step show, micro-batch by micro-batch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._per_update: dict[str, float] = defaultdict(float)
        self._updates = 0

    def add_forward_pass(self, losses: Sequence[WeightedLoss], out: Outputs, batch: Batch) -> None:
        """Everything per token and per group: what the losses watch, entropy, divergences."""
        for term in losses:
            for key, x in term.loss.metrics(out, batch).items():
                self._add_tokens(key, x, batch)
            for key, x in term.loss.group_metrics(out, batch).items():
                self._add_values(key, x.detach().double())
        if out.entropy is not None:
            self._add_tokens("entropy", out.entropy, batch)
        if batch.ref_logprobs is not None:
            gap = clamp_log_ratio((out.logprobs.detach() - batch.ref_logprobs).double())
            self._add_tokens("kl/k1", k1(gap), batch)
            self._add_tokens("kl/k3", k3(gap), batch)
        if batch.rollout_logprobs is not None and self._updates == 0:
            # Only before the first update are sampler and trainer the same policy.
            gap = clamp_log_ratio((batch.rollout_logprobs - out.logprobs.detach()).double())
            self._add_tokens("kl/rollout", k3(gap), batch)
            apart = batch.rollout_logprobs.double().exp() - out.logprobs.detach().double().exp()
            self._add_tokens("rollout/prob_diff_max", apart.abs(), batch)

    def add_losses(self, total_loss: Tensor, loss_values: dict[str, float]) -> None:
        """The losses of a micro-batch; they add up to those of the update."""
        self._per_update["loss/total"] += float(total_loss.detach())
        for name, value in loss_values.items():
            self._per_update[f"loss/{name}"] += value

    def add_update_metric(self, key: str, value: float) -> None:
        """A number of this update; its mean over the updates is logged."""
        self._per_update[key] += value

    def finish_update(self, grad_norm: float) -> None:
        """The end of one optimiser step."""
        self._per_update["grad_norm"] += grad_norm
        self._updates += 1

    def metrics(self) -> Metrics:
        """Means over the response tokens or groups of the step, and over its updates."""
        means = {
            key: total if key.endswith("/clamped") else total / max(self._counts[key], 1)
            for key, total in self._sums.items()
        }
        per_update = {key: total / max(self._updates, 1) for key, total in self._per_update.items()}
        return means | self._extremes | per_update

    def _add_tokens(self, key: str, x: Tensor, batch: Batch) -> None:
        self._add_values(key, x.detach()[batch.response_mask].double())

    def _add_values(self, key: str, values: Tensor) -> None:
        if not len(values):
            return
        if key.endswith("/max"):
            self._extremes[key] = max(self._extremes.get(key, -math.inf), float(values.max()))
            return
        if key.endswith("/min"):
            self._extremes[key] = min(self._extremes.get(key, math.inf), float(values.min()))
            return
        self._sums[key] += float(values.sum())
        self._counts[key] += len(values)
