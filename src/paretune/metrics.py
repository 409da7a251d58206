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
    "active/{objective}": Metric(
        "share", "responses, or under an order of objectives pairs of them, that the objective decides"
    ),
    "missing/filled": Metric("share", "scores nobody gave that a policy for missing scores filled in"),
    "missing/dropped": Metric("share", "responses left out because a score was missing"),
    "constraint/{objective}": Metric("score", "how far the constraint is broken; negative: it holds", "down"),
    "signal/mean": Metric("signal", "mean of the aggregated signal", "up"),
    "signal/std": Metric("signal", "standard deviation of the aggregated signal"),
    "groups/flat": Metric("share", "prompts whose responses all have the same signal and so teach nothing"),
    "groups/kept": Metric("share", "prompts left after those were dropped whose responses differ too little"),
    "penalty/kl": Metric("signal", "mean price of a response for leaving the reference", "down"),
    "penalty/overlong": Metric("signal", "mean price of a response for nearing the length limit", "down"),
    "signal/cut": Metric("share", "scored signals that lay beyond the clip bounds"),
    "advantages/cut": Metric("share", "advantages of response tokens that lay beyond the clip bounds"),
    "advantage/max": Metric("advantage", "largest magnitude of an advantage"),
    "clip/low": Metric("share", "response tokens whose gradient the lower clip bound cuts off"),
    "clip/high": Metric("share", "response tokens whose gradient the upper clip bound cuts off"),
    "clip/most": Metric("share", "response tokens of negative advantage whose ratio was too large to count"),
    "clip/stale": Metric("share", "response tokens left out because the policy has left them behind"),
    "clip/value": Metric("share", "values of the critic that their clip range held back"),
    "ratio/max": Metric("ratio", "largest probability ratio of trained to sampling policy"),
    "ratio/min": Metric("ratio", "smallest probability ratio of trained to sampling policy"),
    "ratio/weight": Metric("weight", "mean weight that a loss gives response tokens for their ratio"),
    "ratio/clamped": Metric("tokens", "response tokens whose log-ratio was clamped before exp", "down"),
    "importance/mean": Metric("ratio", "mean ratio of trainer to sampler, before the cut"),
    "importance/max": Metric("ratio", "largest ratio of trainer to sampler, before the cut"),
    "importance/min": Metric("ratio", "smallest ratio of trainer to sampler, before the cut"),
    "importance/cut": Metric("share", "response tokens whose ratio of trainer to sampler was cut", "down"),
    "importance/uncertain": Metric("share", "response tokens kept because the policy was undecided there"),
    "entropy": Metric("nats/token", "mean entropy of the policy over response tokens"),
    "kl/k1": Metric("nats/token", "mean of log p(policy) - log p(reference) over response tokens"),
    "kl/k3": Metric("nats/token", "mean of r - 1 - log r, r = p(reference) / p(policy), never negative"),
    "kl/sampler": Metric(
        "nats/token", "k3 between the sampler's own log-probabilities and the trainer's", "down"
    ),
    "sampler/apart/max": Metric(
        "probability", "largest difference between what sampler and trainer give a response token", "down"
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
