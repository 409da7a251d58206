"""Metrics of a training step, and the timer of its phases.

Every key is in the dictionary of metrics (`run/metrics.py`). A number that cannot be computed (no response
was scored, there is no reference) is left out.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from paretune.core import ranks
from paretune.core.batch import Batch, Outputs
from paretune.core.kl import k1, k3
from paretune.core.reductions import group_index, group_std
from paretune.credit.base import Metrics
from paretune.loss.base import WeightedLoss
from paretune.loss.policy import clamp_log_ratio
from paretune.run.system import peak_rss_bytes

STEP_PHASES = ("rollout", "score", "model_passes", "update", "checkpoint")
"""Sampling, scoring, passes without gradient, optimizer steps; the checkpoint written before the step."""

PROB_DIFF_KEY = "rollout/prob_diff_max"
"""Largest difference of token probabilities between sampler and trainer."""


GLOBAL_METRICS = ("grad_norm", "loss/AuxiliaryLm")
"""Metrics of an update that each rank has for all rows, where it has other losses for its own rows."""


class PhaseTimer:
    """Seconds, tokens and floating-point operations of each phase since the last reading."""

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        self.on_phase = on_phase
        """Called with the name of each phase when it begins."""
        self._reset()

    def _reset(self) -> None:
        self.seconds = dict.fromkeys(STEP_PHASES, 0.0)
        self._tokens: dict[str, int] = defaultdict(int)
        self._flops: dict[str, float] = defaultdict(float)
        self._work_seconds: dict[str, float] = {}
        self._sampling: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a block, up to the end of the work that it queued on an accelerator."""
        if self.on_phase is not None:
            self.on_phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def record_work(self, phase: str, *, flops: float, tokens: int = 0) -> None:
        """Count work of a phase; NaN: unknown, and then that of the whole phase is unknown too."""
        self._tokens[phase] += tokens
        self._flops[phase] += flops

    def record_work_seconds(self, phase: str, seconds: float) -> None:
        """Seconds in which the work of a phase was done, if not in this phase of this step; 0: unknown."""
        self._work_seconds[phase] = seconds

    def record_sampling(self, seconds: float) -> None:
        """Seconds in which the responses of the next step were sampled."""
        self._sampling = {"sampling": seconds}

    def read_and_reset(self, total_seconds: float) -> dict[str, float]:
        """The phases of a step that took `total_seconds`, with "other" for the rest of it; starts anew.

        Tokens per second and FLOPs are included for the phases that have some.
        """
        seconds, tokens, flops, sampling = self.seconds, self._tokens, self._flops, self._sampling
        work_seconds = seconds | self._work_seconds
        self._reset()
        rates = {
            f"tokens_per_second/{phase}": n / work_seconds[phase]
            for phase, n in tokens.items()
            if n and work_seconds[phase]
        }
        known_flops = {f"flops/{phase}": n for phase, n in flops.items() if n and math.isfinite(n)}
        # The checkpoint is written between two steps and is no part of `total_seconds`.
        in_step = sum(seconds.values()) - seconds["checkpoint"]
        # Not below 0 by the rounding of the sum.
        other = max(total_seconds - in_step, 0.0)
        return {**seconds, "other": other, **sampling, **rates, **known_flops}


def rollout_metrics(batch: Batch) -> Metrics:
    """Scores, response length and truncation, over all rows of the rollout."""
    metrics: Metrics = {}
    for k, name in enumerate(batch.objectives):
        known = batch.scores[:, k][~batch.scores[:, k].isnan()].double()
        metrics[f"score/{name}/unscored_fraction"] = 1 - len(known) / max(len(batch), 1)
        metrics |= _mean_and_std(f"score/{name}", known)
    metrics["responses/length"] = float(batch.response_mask.sum(-1).double().mean())
    metrics["responses/truncated"] = float(batch.truncated.double().mean())
    return metrics


def staleness_metrics(batch: Batch, step: int) -> Metrics:
    """Training steps by which the weights that sampled the rollout are older than those of the step."""
    return {"rollout/staleness": float((step - batch.require("weight_version")).double().mean())}


def failed_prompt_metrics(batch: Batch, num_prompts: int) -> Metrics:
    """The number of prompts without any response in the rollout; nothing if there are none."""
    failed = num_prompts - len(batch.group.unique())
    return {"rollout/failed_prompts": float(failed)} if failed else {}


def reward_metrics(batch: Batch) -> Metrics:
    """The rewards after the reward steps, and the fraction of groups whose rewards are all equal."""
    known = batch.rewards[~batch.rewards.isnan()].double()
    moments = _mean_and_std("reward", known) if batch.rewards.shape[-1] == 1 else {}
    index, num_groups = group_index(batch.group)
    if num_groups == len(batch):
        return moments  # groups of one response have no variance to report
    zero_variance = (group_std(batch.rewards, batch.group) == 0).all(-1)
    # All rows of a group have the same value, so it does not matter which one `scatter_` writes last.
    per_group = zero_variance.new_zeros(num_groups).scatter_(0, index, zero_variance)
    return moments | {"groups/zero_variance": float(per_group.double().mean())}


def kl_metrics(batch: Batch) -> Metrics:
    """KL estimates of sampler and reference, over the sampled response tokens."""
    if batch.rollout_logprobs is None or batch.ref_logprobs is None:
        return {}
    log_ratio = clamp_log_ratio((batch.rollout_logprobs - batch.ref_logprobs).double())
    log_ratio = log_ratio[batch.response_mask]
    return {"kl/k1": float(k1(log_ratio).mean()), "kl/k3": float(k3(log_ratio).mean())}


def advantage_metrics(batch: Batch) -> Metrics:
    """The advantages that the losses read."""
    if batch.advantages is None:
        return {}
    return {"advantages/max_abs": float(batch.advantages.abs().max())}


def finite_metrics(metrics: Metrics) -> Metrics:
    """The metrics without NaN and infinity, such as variance shares of a constant reward."""
    return {key: x for key, x in metrics.items() if math.isfinite(x)}


def peak_memory_bytes() -> dict[str, int]:
    """Peak memory of this process in bytes, on the host and on the accelerator."""
    peaks = {"peak_memory": peak_rss_bytes()}
    if torch.cuda.is_available():
        peaks["peak_device_memory"] = int(torch.cuda.max_memory_allocated())
    return peaks


def _mean_and_std(key: str, values: Tensor) -> Metrics:
    if not len(values):
        return {}
    std = {f"{key}/std": float(values.std())} if len(values) > 1 else {}
    return {f"{key}/mean": float(values.mean())} | std


class StepMetrics:
    """Collects metrics of the forward passes and updates of one training step, per micro-batch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._per_update: dict[str, float] = defaultdict(float)
        self._updates = 0

    def add_forward_pass(self, losses: Sequence[WeightedLoss], out: Outputs, batch: Batch) -> None:
        """Metrics per token and per group: those of the losses, entropy and KL."""
        for term in losses:
            for key, x in term.loss.metrics(out, batch).items():
                self._add_tokens(key, x, batch)
            for key, x in term.loss.group_metrics(out, batch).items():
                self._add_values(key, x.detach().double())
        if out.entropy is not None:
            self._add_tokens("entropy", out.entropy, batch)
        if batch.ref_logprobs is not None:
            log_ratio = clamp_log_ratio((out.logprobs.detach() - batch.ref_logprobs).double())
            self._add_tokens("kl/k1", k1(log_ratio), batch)
            self._add_tokens("kl/k3", k3(log_ratio), batch)
        if batch.rollout_logprobs is not None and self._updates == 0:
            # Sampler and trainer are the same policy only before the first update.
            log_ratio = clamp_log_ratio((batch.rollout_logprobs - out.logprobs.detach()).double())
            self._add_tokens("kl/rollout", k3(log_ratio), batch)
            prob_diff = batch.rollout_logprobs.double().exp() - out.logprobs.detach().double().exp()
            self._add_tokens(PROB_DIFF_KEY, prob_diff.abs(), batch)

    def add_losses(self, total_loss: Tensor, loss_values: Mapping[str, float]) -> None:
        """The losses of a micro-batch; their sum is the loss of the update."""
        self._per_update["loss/total"] += float(total_loss.detach())
        for name, value in loss_values.items():
            self._per_update[f"loss/{name}"] += value

    def add_update_metric(self, key: str, value: float) -> None:
        """A value per update; the mean over the updates is logged."""
        self._per_update[key] += value

    def finish_update(self, grad_norm: float) -> None:
        """End of one optimizer step."""
        self._per_update["grad_norm"] += grad_norm
        self._updates += 1

    def metrics(self) -> Metrics:
        """Means over the response tokens or groups of the step, and over its updates, of all ranks."""
        self._sum_over_ranks()
        means = {
            key: total if key.endswith("/clamped") else total / max(self._counts[key], 1)
            for key, total in self._sums.items()
        }
        per_update = {key: total / max(self._updates, 1) for key, total in self._per_update.items()}
        return means | self._extremes | per_update

    def _sum_over_ranks(self) -> None:
        """Join what the ranks collected: each saw its own rows, and all of them the same updates."""
        if not ranks.is_distributed():
            return
        own = [self._sums, self._counts, self._extremes, self._per_update]
        self._sums, self._counts, self._per_update = defaultdict(float), defaultdict(int), defaultdict(float)
        self._extremes = {}
        for sums, counts, extremes, per_update in ranks.gather_json(own):
            for key, x in sums.items():
                self._sums[key] += x
            for key, n in counts.items():
                self._counts[key] += n
            for key, x in extremes.items():
                choose = min if key.endswith("/min") else max
                self._extremes[key] = choose(self._extremes.get(key, x), x)
            for key, x in per_update.items():
                # The gradient is that of all ranks already; the losses are shares.
                self._per_update[key] = x if key in GLOBAL_METRICS else self._per_update[key] + x

    def _add_tokens(self, key: str, x: Tensor, batch: Batch) -> None:
        self._add_values(key, x.detach()[batch.response_mask].double())

    def _add_values(self, key: str, values: Tensor) -> None:
        if not len(values):
            return
        if key.endswith("/max") or key == PROB_DIFF_KEY:
            self._extremes[key] = max(self._extremes.get(key, -math.inf), float(values.max()))
            return
        if key.endswith("/min"):
            self._extremes[key] = min(self._extremes.get(key, math.inf), float(values.min()))
            return
        self._sums[key] += float(values.sum())
        self._counts[key] += len(values)
