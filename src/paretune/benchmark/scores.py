"""The judged scores of all runs of a comparison, read from their folders, and a bootstrap of their means.

How far each run was pushed, and whether its judge followed: signs of over-optimisation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.core.errors import DataError
from paretune.evaluate.statistics import bootstrap_means, mean_over_seeds


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Judged scores of all runs, and the bootstrap of their means."""

    objectives: tuple[str, ...]
    index: Mapping[tuple[str, str, str], int]
    """(method, weighting, objective) -> cell."""
    seed_means: NDArray[np.float64]
    """[S, C]: the mean of every seed."""
    mean: NDArray[np.float64]
    bootstrap_samples: NDArray[np.float64]
    """[D, C]"""
    initial_mean: NDArray[np.float64]
    """[C]: the mean of the policies that the runs of a cell began with, on the same prompts."""
    initial_bootstrap_samples: NDArray[np.float64]
    """[D, C], drawn together with `bootstrap_samples`: pairs stay pairs."""
    num_prompts: tuple[int, ...]
    """Of each seed."""
    same_prompts: bool
    """Every seed was evaluated on the same prompts."""


def load_scores(spec: BenchmarkSpec, run_specs: Sequence[RunSpec]) -> BenchmarkScores:
    """Read the judged scores of every run, and draw their bootstrap."""
    said, seeds, scores, ids = spec.config, spec.config.seeds, [], []
    objectives: tuple[str, ...] = ()
    for seed in seeds:
        tables = [(e, *read_arm(e), read_arm(e, "before")[1]) for e in run_specs if e.seed == seed]
        first, objectives = tables[0][1], tuple(tables[0][2])
        for entry, prompts, columns, _ in tables:
            if prompts != first or tuple(columns) != objectives:
                raise DataError(
                    f"{entry.config.run.output_dir}: was evaluated on other prompts or objectives than "
                    f"{tables[0][0].config.run.output_dir}; fix: choose another name for the comparison"
                )
        after = [columns[o] for _, _, columns, _ in tables for o in objectives]
        before = [columns[o] for _, _, _, columns in tables for o in objectives]
        scores.append(np.stack([*after, *before], 1))
        ids.append(first)
    order = [(e.method, e.weighting, o) for e in run_specs if e.seed == seeds[0] for o in objectives]
    crossed = len(seeds) > 1 and all(prompts == ids[0] for prompts in ids)
    whole, drawn = (
        mean_over_seeds(scores),
        bootstrap_means(scores, shared_prompts=crossed, bootstrap_samples=said.bootstrap_samples, seed=0),
    )
    count = len(order)
    return BenchmarkScores(
        objectives=objectives,
        index={key: place for place, key in enumerate(order)},
        seed_means=np.stack([mean_over_seeds([part[:, :count]]) for part in scores]),
        mean=whole[:count],
        bootstrap_samples=drawn[:, :count],
        initial_mean=whole[count:],
        initial_bootstrap_samples=drawn[:, count:],
        num_prompts=tuple(len(part) for part in scores),
        same_prompts=crossed,
    )


def read_arm(run_spec: RunSpec, arm: str = "after") -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Prompt ids, and objective -> mean over the samples of each prompt, of one arm of an evaluation."""
    table = pq.read_table(Path(run_spec.config.run.output_dir) / "eval" / "final" / "generations.parquet")
    names = [name for name in table.column_names if name.startswith(f"{arm}/")]
    n = int(max(table["sample"].to_pylist())) + 1
    found = {}
    for name in names:
        values = np.array(table[name].to_pylist(), dtype=np.float64).reshape(-1, n)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            found[name.removeprefix(f"{arm}/")] = np.where(known, values, 0.0).sum(1) / known.sum(1)
    # Prompts of files may have no ids of their own; then the text tells them apart.
    pairs = zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    return [f"{name} {text}" for name, text in pairs][::n], found


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
