"""How far each run was pushed, and whether its judge followed: signs of over-optimisation."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.config.contest import Contest, Entry

Numbers = dict[str, Any]
SIGNS = ("reward", "kl", "similarity", "judge")


def pressure(contest: Contest, entries: Sequence[Entry], evals: Mapping[Any, Numbers]) -> Numbers:
    """Method -> weighting -> each of `SIGNS` -> the start's, in the mean of the seeds, and each seed's after.

    `reward` and `judge` are sums over the objectives, for all methods with the weights of the baseline's
    training (those a schedule ends at; weights by kind and gates are left out). Of objectives in different
    units they order the runs of one weighting and say nothing else. `kl` is in nats a response. What somebody
    did not measure is null.

    Source: Gao et al. 2023 (arXiv:2210.10760), figure 1: the judged score against the divergence; Mukobi et
    al. 2023, SuperHF (arXiv:2310.16763): similarity of responses as a sign of it.
    """
    found: Numbers = {method: {} for method in contest.said.methods}
    first = {e.weighting: e.experiment.last_weights for e in entries if e.method == contest.said.first}
    for method in contest.said.methods:
        for weighting in contest.said.weightings:
            here = [e for e in entries if (e.method, e.weighting) == (method, weighting)]
            each = [_of(first[weighting], evals[e.method, e.weighting, e.seed]) for e in here]
            found[method][weighting] = {
                sign: {
                    "before": _mean([run[sign]["before"] for run in each]),
                    "after": [run[sign]["after"] for run in each],
                }
                for sign in SIGNS
            }
    return found


def _of(weights: Mapping[str, float], numbers: Numbers) -> dict[str, Numbers]:
    objectives = numbers["objectives"]
    judged = {name: objectives[name] for name in weights if name in objectives and weights[name]}
    scored = {name: one["reward"] for name, one in judged.items() if one.get("reward")}
    return {
        "judge": _sums(weights, judged),
        "reward": _sums(weights, scored if scored.keys() == judged.keys() else {}),
        "kl": divergence(numbers),
        "similarity": numbers["similarity"],
    }


def divergence(numbers: Numbers) -> Numbers:
    """The KL of an evaluation, in nats a response: 0 at the start; null after it where nobody measured it."""
    kl = numbers["kl"]
    return {"before": None, "after": None} if kl is None else {"before": 0.0, "after": kl["k3"]}


def _sums(weights: Mapping[str, float], means: Mapping[str, Numbers]) -> Numbers:
    """Weighted sums before and after; null where a mean is not known."""
    found: Numbers = {}
    for arm in ("before", "after"):
        known = bool(means) and all(one[arm] is not None for one in means.values())
        found[arm] = sum(weights[name] * one[arm] for name, one in means.items()) if known else None
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
