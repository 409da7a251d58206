"""Metric definitions: unit, description and better direction of every number that a run may write."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """Definition of one metric."""

    unit: str
    description: str
    direction: str = ""
    """"up" or "down", whichever is better; "" if neither is."""


METRICS: dict[str, Metric] = {
    "score/{objective}/mean": Metric("score", "mean raw score of the objective over the scored rows", "up"),
    "score/{objective}/std": Metric("score", "standard deviation of the raw score over the scored rows"),
    "score/{objective}/unscored_fraction": Metric(
        "fraction", "rows without a score for the objective", "down"
    ),
    "scorer/{scorer}/{metric}": Metric(
        "as logged", "number that a scorer logged: cost of a judge, metric of a function"
    ),
    "weighted_score/{objective}/mean": Metric("reward", "mean of weight * gate * score", "up"),
    "variance_share/{objective}": Metric(
        "fraction",
        "share of the within-group reward variance: Cov(weighted score, reward) / Var(reward)",
    ),
    "active_objective/{objective}": Metric(
        "fraction",
        "responses (pairs of responses with lexicographic aggregation) whose reward the objective decides",
    ),
    "responses/resampled": Metric("fraction", "responses that rank-based resampling selected at least once"),
    "missing_scores/filled": Metric("fraction", "missing scores replaced by the missing-score policy"),
    "missing_scores/dropped": Metric("fraction", "responses dropped because a score was missing"),
    "constraint_violation/{objective}": Metric(
        "score", "violation of the constraint; negative if it is satisfied", "down"
    ),
    "reward/mean": Metric("reward", "mean of the aggregated reward", "up"),
    "reward/std": Metric("reward", "standard deviation of the aggregated reward"),
    "groups/zero_variance": Metric(
        "fraction", "groups of several responses with equal rewards, whose advantages are 0"
    ),
    "groups/kept": Metric("fraction", "groups left after those with too little reward variance were dropped"),
    "responses/kept": Metric("fraction", "responses left after best-of-n selection"),
    "penalty/kl": Metric("reward", "mean KL penalty of a response", "down"),
    "penalty/overlong": Metric("reward", "mean length penalty of a response", "down"),
    "reward/clipped": Metric("fraction", "scored rewards outside the clip range"),
    "advantages/clipped": Metric("fraction", "advantages of response tokens outside the clip range"),
    "advantages/max_abs": Metric("advantage", "largest absolute advantage"),
    "clip_fraction/low": Metric(
        "fraction", "response tokens without gradient because of the lower clip bound"
    ),
    "clip_fraction/high": Metric(
        "fraction", "response tokens without gradient because of the upper clip bound"
    ),
    "clip_fraction/dual": Metric(
        "fraction", "response tokens with negative advantage beyond the dual-clip bound"
    ),
    "clip_fraction/off_policy_mask": Metric("fraction", "response tokens masked as too far off-policy"),
    "clip_fraction/value": Metric("fraction", "value predictions clipped by the value clip range"),
    "ratio/max": Metric("ratio", "largest probability ratio of the current to the old policy"),
    "ratio/min": Metric("ratio", "smallest probability ratio of the current to the old policy"),
    "ratio/mean_loss_weight": Metric(
        "weight", "mean weight that the ratio gives a response token in the policy loss"
    ),
    "ratio/clamped": Metric("tokens", "response tokens whose log-ratio was clamped before exp", "down"),
    "importance_weights/mean": Metric(
        "ratio", "mean ratio of trainer to sampler probabilities, before truncation"
    ),
    "importance_weights/max": Metric("ratio", "largest ratio of trainer to sampler probabilities"),
    "importance_weights/min": Metric("ratio", "smallest ratio of trainer to sampler probabilities"),
    "importance_weights/truncated": Metric(
        "fraction", "response tokens whose ratio of trainer to sampler probabilities was truncated", "down"
    ),
    "top_entropy_tokens/kept": Metric("fraction", "response tokens kept for their high policy entropy"),
    "entropy": Metric("nats/token", "mean policy entropy over response tokens"),
    "kl/k1": Metric("nats/token", "mean of log p(policy) - log p(reference) over response tokens"),
    "kl/k3": Metric("nats/token", "mean of r - 1 - log r with r = p(reference) / p(policy), at least 0"),
    "kl/full": Metric(
        "nats/token", "mean over response tokens of KL(reference || policy), summed over the vocabulary"
    ),
    "kl/rollout": Metric("nats/token", "k3 estimate between sampler and trainer log-probabilities", "down"),
    "rollout/prob_diff_max": Metric(
        "probability", "largest difference of a response token's probability in sampler and trainer", "down"
    ),
    "rollout/failed_prompts": Metric(
        "prompts", "prompts of the step without responses, because their requests failed", "down"
    ),
    "rollout/staleness": Metric(
        "steps",
        "mean over the responses of the training steps by which the weights that sampled them are older",
        "down",
    ),
    "sync/probe_gap": Metric(
        "nats", "largest log-probability difference between engine and trainer, on probe tokens", "down"
    ),
    "sync/bytes": Metric("bytes", "weights that were handed over to the sampling engine"),
    "pairs/missing": Metric("fraction", "prompts without a chosen and a rejected response", "down"),
    "pairs/margin": Metric("reward", "mean implicit reward of the chosen minus the rejected response", "up"),
    "pairs/accuracy": Metric("fraction", "pairs whose chosen response has the larger implicit reward", "up"),
    "pairs/chosen/logprob": Metric("nats", "mean log-probability of a chosen response; it may fall too"),
    "pairs/rejected/logprob": Metric("nats", "mean log-probability of a rejected response"),
    "pairs/chosen/length": Metric("tokens", "mean length of a chosen response"),
    "pairs/rejected/length": Metric("tokens", "mean length of a rejected response"),
    "pairs/chosen/kl": Metric(
        "nats", "mean over chosen responses of KL(reference || policy), summed over tokens"
    ),
    "pairs/rejected/kl": Metric(
        "nats", "mean over rejected responses of KL(reference || policy), summed over tokens"
    ),
    "ranking/missing": Metric("fraction", "prompts with fewer than two scored responses", "down"),
    "ranking/ties": Metric("fraction", "responses with the same reward as a lower-ranked one", "down"),
    "ranking/accuracy": Metric("fraction", "pairs of unequal reward that the policy ranks correctly", "up"),
    "responses/truncated": Metric("fraction", "responses that reached the length limit", "down"),
    "responses/length": Metric("tokens", "mean response length, EOS included"),
    "responses/answer_length": Metric("words", "mean length of the answers after well-formed thinking"),
    "responses/thinking_length": Metric("words", "mean length of well-formed thinking"),
    "responses/format_invalid": Metric("fraction", "responses that do not have the requested format", "down"),
    "budget/used": Metric("fraction", "fraction of the budget used by all steps so far"),
    "fitness/mean": Metric("reward", "mean fitness of the candidates of a generation", "up"),
    "fitness/best": Metric("reward", "fitness of the best candidate, which the search does not keep"),
    "fitness/std": Metric("reward", "standard deviation of the fitness over the candidates"),
    "fitness/incumbent": Metric("reward", "fitness of the search mean before the generation", "up"),
    "fitness/ties": Metric("fraction", "candidates with exactly the fitness of another one", "down"),
    "candidates/{objective}/mean": Metric("score", "mean score of the objective over all candidates", "up"),
    "search/sigma": Metric("singular value", "step size of the search after the generation"),
    "search/distance": Metric(
        "singular value", "Euclidean distance of the incumbent from the initial adapter"
    ),
    "search/sign_flips": Metric("values", "singular values that are negative in the incumbent"),
    "grad_norm": Metric("norm", "gradient norm before clipping"),
    "learning_rate": Metric("1", "learning rate of the policy; 0 during the critic warmup"),
    "learning_rate/critic": Metric("1", "learning rate of the critic"),
    "loss/total": Metric("loss", "sum of the loss terms with their coefficients"),
    "loss/{term}": Metric("loss", "one loss term without its coefficient"),
    "state/{part}": Metric("1", "state of a stateful step, such as a multiplier or a running scale"),
    "eval/{objective}/mean": Metric("score", "mean score of the judge on held-out prompts, after the step"),
    "eval/{objective}/change": Metric("score", "its change from the initial policy, on the same prompts"),
    "eval/{objective}/low": Metric("score", "lower bound of that change, for all objectives at once"),
    "eval/{objective}/high": Metric("score", "upper bound of that change, for all objectives at once"),
    "eval/{objective}/reward": Metric("score", "mean training reward of the same responses", "up"),
    "eval/kl": Metric("nats/response", "KL(policy || initial policy) of these responses, estimated by k3"),
    "eval/gain": Metric(
        "standard deviations", "weighted mean of the changes, each in standard deviations of the judge", "up"
    ),
    "eval/gain/low": Metric("standard deviations", "lower bound of that gain", "up"),
    "eval/gain/reward": Metric("standard deviations", "the same gain of the training reward", "up"),
    "fit/loss": Metric("loss", "training loss of a supervised fit", "down"),
    "fit/{objective}/loss": Metric("loss", "training loss of one reward head", "down"),
    "fit/test_loss": Metric("loss", "loss of a supervised fit on held-out records", "down"),
    "fit/tokens": Metric("tokens", "tokens with loss in the step"),
}
"""Keys of metrics.jsonl; `{...}` stands for a name."""

TIMINGS: dict[str, Metric] = {
    "seconds": Metric("s", "whole step", "down"),
    "rollout": Metric("s", "generating responses, or reading stored ones", "down"),
    "sampling": Metric(
        "s", "with max_staleness: sampling the next step's responses, waited for in the phase rollout", "down"
    ),
    "score": Metric("s", "scoring responses", "down"),
    "model_passes": Metric("s", "forward passes of the old policy, the reference and the critic", "down"),
    "update": Metric("s", "forward and backward passes of training, and the optimizer", "down"),
    "checkpoint": Metric("s", "writing the checkpoint before the step", "down"),
    "evaluate": Metric("s", "evaluating the policy after the step", "down"),
    "other": Metric("s", "rest of the step", "down"),
    "tokens": Metric("tokens", "prompt and response tokens of the step, shared prefixes counted per row"),
    "rollout_tokens": Metric("tokens", "response tokens generated"),
    "trained_tokens": Metric("tokens", "tokens with gradient, counted per row and epoch"),
    "reward_calls": Metric("responses", "responses scored"),
    "peak_memory": Metric("bytes", "peak resident memory of the process so far", "down"),
    "peak_device_memory": Metric("bytes", "peak accelerator memory of the process so far", "down"),
    "tokens_per_second/{phase}": Metric(
        "tokens/s", "tokens generated or trained per second of the phase", "up"
    ),
    "flops/{phase}": Metric(
        "FLOP", "required operations of the phase: without padding, shared prefixes counted once"
    ),
}
"""Keys of timing.jsonl: everything that may differ between two identical runs."""


_KeyPatterns = tuple[tuple[re.Pattern[str], Metric], ...]


def _key_patterns(metrics: dict[str, Metric]) -> _KeyPatterns:
    return tuple(
        (re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(key)), re.DOTALL), metric)
        for key, metric in metrics.items()
        if "{" in key
    )


_PATTERNS, _TIMING_PATTERNS = _key_patterns(METRICS), _key_patterns(TIMINGS)


def find_metric(key: str) -> Metric | None:
    """The entry of METRICS for a key, or None."""
    return _find(METRICS, _PATTERNS, key)


def find_timing(key: str) -> Metric | None:
    """The entry of TIMINGS for a key, or None."""
    return _find(TIMINGS, _TIMING_PATTERNS, key)


def _find(metrics: dict[str, Metric], patterns: _KeyPatterns, key: str) -> Metric | None:
    if key in metrics:
        return metrics[key]
    return next((entry for pattern, entry in patterns if pattern.fullmatch(key)), None)
