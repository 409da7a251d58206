"""The dictionary of metrics: every number a run may write has a unit, a meaning and a better direction."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in metrics.jsonl means."""

    unit: str
    description: str
    direction: str = ""
    """"up", "down", or "" where neither direction is good in itself."""


METRICS: dict[str, Metric] = {
    "score/{objective}/mean": Metric("score", "mean of the objective as scored, over the scored rows", "up"),
    "score/{objective}/std": Metric("score", "standard deviation of the objective over the scored rows"),
    "score/{objective}/unscored_fraction": Metric(
        "share", "rows nobody could score on the objective", "down"
    ),
    "weighted_score/{objective}/mean": Metric("signal", "mean of weight * gate * score", "up"),
    "variance_share/{objective}": Metric(
        "share", "the objective's part in the signal's spread within groups: Cov(part, signal) / Var(signal)"
    ),
    "active_objective/{objective}": Metric(
        "share", "responses, or under an order of objectives pairs of them, that the objective decides"
    ),
    "responses/resampled": Metric("share", "responses that were drawn by their rank, once or more often"),
    "missing_scores/filled": Metric("share", "scores nobody gave that a policy for missing scores filled in"),
    "missing_scores/dropped": Metric("share", "responses left out because a score was missing"),
    "constraint_violation/{objective}": Metric(
        "score", "how far the constraint is broken; negative: it holds", "down"
    ),
    "reward/mean": Metric("signal", "mean of the aggregated signal", "up"),
    "reward/std": Metric("signal", "standard deviation of the aggregated signal"),
    "groups/zero_variance": Metric(
        "share", "prompts of several responses that all have the same signal and so teach nothing"
    ),
    "groups/kept": Metric("share", "prompts left after those were dropped whose responses differ too little"),
    "responses/kept": Metric("share", "responses left after all but the best of their prompts were dropped"),
    "penalty/kl": Metric("signal", "mean price of a response for leaving the reference", "down"),
    "penalty/overlong": Metric("signal", "mean price of a response for nearing the length limit", "down"),
    "reward/clipped": Metric("share", "scored signals that lay beyond the clip bounds"),
    "advantages/clipped": Metric("share", "advantages of response tokens that lay beyond the clip bounds"),
    "advantages/max_abs": Metric("advantage", "largest magnitude of an advantage"),
    "clip_fraction/low": Metric("share", "response tokens whose gradient the lower clip bound cuts off"),
    "clip_fraction/high": Metric("share", "response tokens whose gradient the upper clip bound cuts off"),
    "clip_fraction/dual": Metric(
        "share", "response tokens of negative advantage whose ratio was too large to count"
    ),
    "clip_fraction/off_policy_mask": Metric(
        "share", "response tokens left out because the policy has left them behind"
    ),
    "clip_fraction/value": Metric("share", "values of the critic that their clip range held back"),
    "ratio/max": Metric("ratio", "largest probability ratio of trained to sampling policy"),
    "ratio/min": Metric("ratio", "smallest probability ratio of trained to sampling policy"),
    "ratio/mean_loss_weight": Metric(
        "weight", "mean weight that a loss gives response tokens for their ratio"
    ),
    "ratio/clamped": Metric("tokens", "response tokens whose log-ratio was clamped before exp", "down"),
    "importance_weights/mean": Metric("ratio", "mean ratio of trainer to sampler, before the cut"),
    "importance_weights/max": Metric("ratio", "largest ratio of trainer to sampler, before the cut"),
    "importance_weights/min": Metric("ratio", "smallest ratio of trainer to sampler, before the cut"),
    "importance_weights/truncated": Metric(
        "share", "response tokens whose ratio of trainer to sampler was cut", "down"
    ),
    "top_entropy_tokens/kept": Metric("share", "response tokens kept because the policy was undecided there"),
    "entropy": Metric("nats/token", "mean entropy of the policy over response tokens"),
    "kl/k1": Metric("nats/token", "mean of log p(policy) - log p(reference) over response tokens"),
    "kl/k3": Metric("nats/token", "mean of r - 1 - log r, r = p(reference) / p(policy), never negative"),
    "kl/full": Metric(
        "nats/token", "mean over response tokens of KL(reference || policy), all words counted"
    ),
    "kl/rollout": Metric(
        "nats/token", "k3 between the sampler's own log-probabilities and the trainer's", "down"
    ),
    "rollout/prob_diff_max": Metric(
        "probability", "largest difference between what sampler and trainer give a response token", "down"
    ),
    "pairs/missing": Metric(
        "share", "prompts without a better and a worse response, which teach nothing", "down"
    ),
    "pairs/margin": Metric(
        "reward", "mean implicit reward of the chosen response over the rejected one", "up"
    ),
    "pairs/accuracy": Metric("share", "pairs whose chosen response has the larger implicit reward", "up"),
    "pairs/chosen/logprob": Metric("nats", "mean log-probability of a chosen response; it may fall too"),
    "pairs/rejected/logprob": Metric("nats", "mean log-probability of a rejected response"),
    "pairs/chosen/length": Metric("tokens", "mean length of a chosen response"),
    "pairs/rejected/length": Metric("tokens", "mean length of a rejected response"),
    "pairs/chosen/kl": Metric(
        "nats", "mean over chosen responses of KL(reference || policy), tokens added up"
    ),
    "pairs/rejected/kl": Metric("nats", "the same over rejected responses"),
    "ranking/missing": Metric("share", "prompts without two scored responses, which teach nothing", "down"),
    "ranking/ties": Metric("share", "responses that are no better than any ranked below them", "down"),
    "ranking/accuracy": Metric("share", "pairs of unequal signal that the policy ranks the same way", "up"),
    "truncated": Metric("share", "responses that ran into the length limit", "down"),
    "length": Metric("tokens", "mean response length, the stop token included"),
    "responses/answer_length": Metric(
        "words", "mean length of the answers behind thoughts that could be read"
    ),
    "responses/thinking_length": Metric("words", "mean length of those thoughts"),
    "responses/format_invalid": Metric(
        "share", "responses without the form in which scorers are shown them", "down"
    ),
    "budget/used": Metric("share", "part of the run's budget that all steps so far took"),
    "fitness/mean": Metric("signal", "mean fitness of the candidates of a generation", "up"),
    "fitness/best": Metric("signal", "fitness of its luckiest candidate, which is not the one that is kept"),
    "fitness/std": Metric("signal", "standard deviation of the fitness over the candidates"),
    "fitness/incumbent": Metric("signal", "fitness of the mean of the search before the generation", "up"),
    "fitness/ties": Metric("share", "candidates that are worth exactly what another one is worth", "down"),
    "candidates/{objective}/mean": Metric("score", "mean of the objective over all candidates", "up"),
    "search/sigma": Metric("singular value", "step size of the search after the generation"),
    "search/distance": Metric(
        "singular value", "Euclidean distance of the incumbent from the fitted adapter"
    ),
    "search/sign_flips": Metric("values", "singular values that the incumbent has turned negative"),
    "grad_norm": Metric("norm", "norm of the gradient before clipping"),
    "lr": Metric("1", "learning rate of the step; 0 while the critic learns alone"),
    "learning_rate/critic": Metric("1", "learning rate of the critic"),
    "loss/total": Metric("loss", "the loss that was descended"),
    "loss/{term}": Metric("loss", "one term of the loss, its coefficient not applied"),
    "state/{part}": Metric("1", "a number a stateful part carries: a multiplier, a running scale"),
    "fit/loss": Metric("loss", "loss of a supervised fit", "down"),
    "fit/{objective}/loss": Metric("loss", "loss of one head of the reward model", "down"),
    "fit/test_loss": Metric("loss", "loss of a supervised fit on held-out records", "down"),
    "fit/tokens": Metric("tokens", "tokens that carried loss in the step"),
}
"""Every number a run may write, by key; `{...}` stands for a name."""

TIMINGS: dict[str, Metric] = {
    "seconds": Metric("s", "of the whole step", "down"),
    "sample": Metric("s", "drawing responses, or reading stored ones", "down"),
    "score": Metric("s", "scoring them", "down"),
    "measure": Metric("s", "asking frozen models, and the policy as it was, about them", "down"),
    "learn": Metric("s", "passes with gradient, and the optimiser", "down"),
    "save": Metric("s", "writing the checkpoint before the step", "down"),
    "idle": Metric("s", "what no other phase accounts for", "down"),
    "tokens": Metric("tokens", "prompts and responses of the step, every row for itself"),
    "rollout_tokens": Metric("tokens", "response tokens sampled"),
    "trained_tokens": Metric("tokens", "tokens that had a gradient, every row and epoch for itself"),
    "reward_calls": Metric("responses", "responses scored"),
    "memory": Metric("bytes", "of main memory that the process held at most so far", "down"),
    "device_memory": Metric("bytes", "of the accelerator's memory that it held at most so far", "down"),
    "tokens_per_second/{phase}": Metric(
        "tokens/s", "tokens sampled or trained in a second of the phase", "up"
    ),
    "flops/{phase}": Metric(
        "FLOP", "operations that the phase had to do: nothing padded, nothing twice that rows have in common"
    ),
}
"""Every number of timing.jsonl, by key: all that may differ between two equal runs."""


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
