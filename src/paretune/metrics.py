"""The dictionary of metrics: every number a run may write has a unit, a meaning and a better direction."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in metrics.jsonl means."""

    unit: str
    meaning: str
    better: str = ""
    """"up", "down", or "" where neither direction is good in itself."""


METRICS: dict[str, Metric] = {
    "score/{objective}/mean": Metric("score", "mean of the objective as scored, over the scored rows", "up"),
    "score/{objective}/std": Metric("score", "standard deviation of the objective over the scored rows"),
    "score/{objective}/unscored": Metric("share", "rows nobody could score on the objective", "down"),
    "weighted/{objective}/mean": Metric("signal", "mean of weight * gate * score", "up"),
    "share/{objective}": Metric(
        "share", "the objective's part in the signal's spread within groups: Cov(part, signal) / Var(signal)"
    ),
    "signal/mean": Metric("signal", "mean of the aggregated signal", "up"),
    "signal/std": Metric("signal", "standard deviation of the aggregated signal"),
    "groups/flat": Metric("share", "prompts whose responses all have the same signal and so teach nothing"),
    "advantage/max": Metric("advantage", "largest magnitude of an advantage"),
    "clip/low": Metric("share", "response tokens whose gradient the lower clip bound cuts off"),
    "clip/high": Metric("share", "response tokens whose gradient the upper clip bound cuts off"),
    "ratio/max": Metric("ratio", "largest probability ratio of trained to sampling policy"),
    "ratio/clamped": Metric("tokens", "response tokens whose log-ratio was clamped before exp", "down"),
    "entropy": Metric("nats/token", "mean entropy of the policy over response tokens"),
    "kl/k1": Metric("nats/token", "mean of log p(policy) - log p(reference) over response tokens"),
    "kl/k3": Metric("nats/token", "mean of r - 1 - log r, r = p(reference) / p(policy), never negative"),
    "kl/sampler": Metric(
        "nats/token", "k3 between the sampler's own log-probabilities and the trainer's", "down"
    ),
    "truncated": Metric("share", "responses that ran into the length limit", "down"),
    "length": Metric("tokens", "mean response length, the stop token included"),
    "grad_norm": Metric("norm", "norm of the gradient before clipping"),
    "lr": Metric("1", "learning rate of the step"),
    "loss/total": Metric("loss", "the loss that was descended"),
    "loss/{term}": Metric("loss", "one term of the loss, its coefficient not applied"),
    "state/{part}": Metric("1", "a number a stateful part carries: a multiplier, a running scale"),
    "fit/loss": Metric("loss", "loss of a supervised fit", "down"),
    "fit/{objective}/loss": Metric("loss", "loss of one head of the reward model", "down"),
    "fit/test_loss": Metric("loss", "loss of a supervised fit on held-out records", "down"),
    "fit/tokens": Metric("tokens", "tokens that carried loss in the step"),
}
"""Every number a run may write, by key; `{...}` stands for a name."""

_PATTERNS = tuple(
    (re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(key)), re.DOTALL), metric)
    for key, metric in METRICS.items()
    if "{" in key
)


def metric(key: str) -> Metric | None:
    """The dictionary's entry for a key, or None."""
    if key in METRICS:
        return METRICS[key]
    return next((entry for pattern, entry in _PATTERNS if pattern.fullmatch(key)), None)
