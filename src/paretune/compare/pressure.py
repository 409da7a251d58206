"""How far each run was pushed, and whether its judge followed: signs of over-optimisation."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.config.contest import BenchmarkSpec, RunSpec

JsonDict = dict[str, Any]
OVEROPTIMIZATION_METRICS = ("reward", "kl", "similarity", "judge")


def overoptimization(
    spec: BenchmarkSpec, run_specs: Sequence[RunSpec], evaluations: Mapping[Any, JsonDict]
) -> JsonDict:
    """Method -> weighting -> each of `SIGNS` -> the start's, in the mean of the seeds, and each seed's after.

    `reward` and `judge` are sums over the objectives, for all methods with the weights of the baseline's
    training (those a schedule ends at; weights by kind and gates are left out). Of objectives in different
    units they order the runs of one weighting and say nothing else. `kl` is in nats a response. What somebody
    did not measure is null.

    Source: Gao et al. 2023 (arXiv:2210.10760), figure 1: the judged score against the divergence; Mukobi et
    al. 2023, SuperHF (arXiv:2310.16763): similarity of responses as a sign of it.
    """
    found: JsonDict = {method: {} for method in spec.config.methods}
    first = {
        e.weighting: e.config.final_weights for e in run_specs if e.method == spec.config.baseline_method
    }
    for method in spec.config.methods:
        for weighting in spec.config.weightings:
            here = [e for e in run_specs if (e.method, e.weighting) == (method, weighting)]
            each = [_run_metrics(first[weighting], evaluations[e.method, e.weighting, e.seed]) for e in here]
            found[method][weighting] = {
                sign: {
                    "before": _mean_if_complete([run[sign]["before"] for run in each]),
                    "after": [run[sign]["after"] for run in each],
                }
                for sign in OVEROPTIMIZATION_METRICS
            }
    return found


def _run_metrics(weights: Mapping[str, float], evaluation: JsonDict) -> dict[str, JsonDict]:
    objectives = evaluation["objectives"]
    judged = {name: objectives[name] for name in weights if name in objectives and weights[name]}
    scored = {name: one["reward"] for name, one in judged.items() if one.get("reward")}
    return {
        "judge": _weighted_sums(weights, judged),
        "reward": _weighted_sums(weights, scored if scored.keys() == judged.keys() else {}),
        "kl": kl_before_after(evaluation),
        "similarity": evaluation["similarity"],
    }


def kl_before_after(evaluation: JsonDict) -> JsonDict:
    """The KL of an evaluation, in nats a response: 0 at the start; null after it where nobody measured it."""
    kl = evaluation["kl"]
    return {"before": None, "after": None} if kl is None else {"before": 0.0, "after": kl["k3"]}


def _weighted_sums(weights: Mapping[str, float], means: Mapping[str, JsonDict]) -> JsonDict:
    """Weighted sums before and after; null where a mean is not known."""
    found: JsonDict = {}
    for arm in ("before", "after"):
        known = bool(means) and all(one[arm] is not None for one in means.values())
        found[arm] = sum(weights[name] * one[arm] for name, one in means.items()) if known else None
    return found


def _mean_if_complete(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
