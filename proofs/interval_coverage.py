"""How often the intervals of an evaluation hold, by simulation on differences of known mean.

    python proofs/interval_coverage.py                # 2,000 evaluations of each shape, as Markdown tables
    python proofs/interval_coverage.py 200            # a quick look

One process per core. Evaluations of one size share the bootstrap samples of `SHARED_SEEDS` seeds, which costs
no validity, since the samples do not depend on the differences, and saves most of the time.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from paretune.core.pareto import hypervolume
from paretune.evaluate import bootstrap, statistics
from paretune.evaluate.statistics import (
    bootstrap_means,
    max_t_intervals,
    mean_over_seeds,
    percentile_intervals,
    simultaneous_intervals,
)

Array = NDArray[np.float64]
NUM_OBJECTIVES, CORRELATION, PROMPTS = 4, 0.4, (30, 60, 240)
BOOTSTRAP_SAMPLES, SHARED_SEEDS = 1000, 50
ROUNDING = 1e-12
"""A mean of zero differences may be a rounding error away from zero."""

_log_normal_mean = float(np.exp(0.32))
SHAPES: dict[str, Callable[[Array], Array]] = {
    "normal": lambda z: z,
    "ternary": lambda z: np.sign(z) * (np.abs(z) > stats.norm.ppf(0.7)),
    "heavy-tailed": lambda z: stats.t.ppf(stats.norm.cdf(z), 3),
    "skewed left": lambda z: _log_normal_mean - np.exp(0.8 * z),
    "skewed right": lambda z: np.exp(0.8 * z) - _log_normal_mean,
    "mostly zero": lambda z: np.sign(z) * (np.abs(z) > stats.norm.ppf(0.95)),
}
"""Standard normal numbers -> differences with mean 0."""
UNSEEN_SHAPES: dict[str, Callable[[Array], Array]] = {
    "gamma, skew 2": lambda z: stats.norm.logsf(z) + 1,
    "log-normal, sigma 1.2": lambda z: float(np.exp(0.72)) - np.exp(1.2 * z),
    "85 % zero, the rest skewed left": lambda z: z,
}
"""Shapes that the constants of the interval were not chosen on; all skewed left."""


def draw(shape: str, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Differences of a shape; the last axis holds correlated objectives (a Gaussian copula)."""
    mix = np.linalg.cholesky((1 - CORRELATION) * np.eye(size[-1]) + CORRELATION)
    normal = rng.normal(size=size) @ mix.T
    values = (SHAPES | UNSEEN_SHAPES)[shape](normal)
    if shape.startswith("85 % zero"):
        changed = rng.normal(size=size) @ mix.T > stats.norm.ppf(0.85)
        return np.where(changed, SHAPES["skewed left"](normal), 0.0)
    return np.asarray(values, np.float64)


def symmetric_intervals(differences: Array, weights: Array) -> tuple[Array, Array]:
    """The intervals before they were asymmetric: max-t, its quantile mapped to Student's t."""
    num_prompts = len(differences)
    mean = differences.mean(0)
    residuals = differences - mean
    error = np.sqrt((residuals**2).mean(0) / num_prompts)
    with np.errstate(invalid="ignore", divide="ignore"):
        t_statistics = np.abs(weights @ residuals) / num_prompts / error
    quantile = np.quantile(np.nan_to_num(t_statistics).max(1), 0.95)
    unbiased = error * np.sqrt(num_prompts / (num_prompts - 1))
    reach = stats.t.isf(stats.norm.sf(quantile), num_prompts - 1) * unbiased
    return mean - reach, mean + reach


@functools.lru_cache(maxsize=2 * SHARED_SEEDS)
def _shared_counts(key: int, num_rows: int, num_resamples: int) -> Array:
    return _resample_counts(np.random.Generator(np.random.Philox(key)), num_rows, num_resamples)


_resample_counts = bootstrap.resample_counts


def _share_bootstrap_samples() -> None:
    def shared(rng: np.random.Generator, num_rows: int, num_resamples: int) -> Array:
        return _shared_counts(int(rng.integers(0, SHARED_SEEDS)), num_rows, num_resamples)

    for module in (bootstrap, statistics):
        module.resample_counts = shared  # type: ignore[attr-defined]


def rates(low: Array, high: Array, truth: Array | float = 0.0) -> list[float]:
    """Coverage, false better, false worse (any objective of an evaluation), and both per objective; in %."""
    better, worse = low > truth + ROUNDING, high < truth - ROUNDING
    return [
        100 * float(value)
        for value in (
            (~(better | worse)).all(1).mean(),
            better.any(1).mean(),
            worse.any(1).mean(),
            better.mean(),
            worse.mean(),
        )
    ]


def paired_coverage(shape: str, num_prompts: int, evaluations: int, variant: str = "") -> list[str]:
    """One row of the table of `simultaneous_intervals`, and today's widths as multiples of the former."""
    _share_bootstrap_samples()
    rng = np.random.default_rng([num_prompts, sorted(SHAPES | UNSEEN_SHAPES).index(shape)])
    clusters = np.repeat(np.arange(num_prompts), 2) if variant == "each prompt twice" else None
    bounds, before = [], []
    for evaluation in range(evaluations):
        differences = draw(shape, (num_prompts, NUM_OBJECTIVES), rng)
        weights = _shared_counts(evaluation % SHARED_SEEDS, num_prompts, BOOTSTRAP_SAMPLES)
        before.append(symmetric_intervals(differences, weights))
        if clusters is not None:
            differences = np.repeat(differences, 2, 0)
        if variant == "5 % not scored":
            differences[rng.random(differences.shape) < 0.05] = np.nan
        intervals = simultaneous_intervals(
            differences, clusters=clusters, bootstrap_samples=BOOTSTRAP_SAMPLES, seed=evaluation
        )
        bounds.append((intervals.low, intervals.high))
    low, high = np.moveaxis(np.array(bounds), 1, 0)
    old_low, old_high = np.moveaxis(np.array(before), 1, 0)
    width = np.median(high - low) / np.median(old_high - old_low)
    now, then = rates(low, high), rates(old_low, old_high)
    name = f"{shape}, {variant}" if variant else shape
    pairs = (f"{a:.1f} ({b:.1f})" for a, b in zip(now, then, strict=True))
    return [name, str(num_prompts), *pairs, f"{width:.2f}"]


def resampled_seeds(scores: Sequence[Array], rng: np.random.Generator) -> Array:
    """Replicates as before: seeds and shared prompts resampled with replacement."""
    num_seeds = len(scores)
    means = np.stack([table.mean(0) for table in scores])
    counts = _shared_counts(int(rng.integers(0, SHARED_SEEDS)), len(scores[0]), BOOTSTRAP_SAMPLES)
    within = np.stack([counts @ (table - table.mean(0)) / len(table) for table in scores])
    picks = rng.integers(0, num_seeds, (BOOTSTRAP_SAMPLES, num_seeds))
    between = np.sqrt(num_seeds / (num_seeds - 1)) * (means[picks].mean(1) - means.mean(0))
    return means.mean(0) + between + within[picks, np.arange(BOOTSTRAP_SAMPLES)[:, None]].mean(1)


def seeds_coverage(shape: str, num_seeds: int, evaluations: int, seed_std: float) -> list[str]:
    """One row of the table of means over training seeds: four changes on 60 prompts shared by all seeds."""
    _share_bootstrap_samples()
    rng = np.random.default_rng([num_seeds, int(100 * seed_std), sorted(SHAPES).index(shape)])
    mix = np.linalg.cholesky((1 - CORRELATION) * np.eye(NUM_OBJECTIVES) + CORRELATION)
    bounds: dict[str, list[tuple[Array, Array]]] = {"joint": [], "single": [], "joint before": []}
    for evaluation in range(evaluations):
        tables = seed_tables(shape, num_seeds, seed_std * mix, rng)
        mean = mean_over_seeds(tables)
        replicates = bootstrap_means(
            tables, shared_prompts=True, bootstrap_samples=BOOTSTRAP_SAMPLES, seed=evaluation
        )
        bounds["joint"].append(max_t_intervals(mean, replicates, 0.95))
        bounds["single"].append(percentile_intervals(replicates, 0.95))
        old = resampled_seeds(tables, rng)
        error = old.std(0)
        reach = np.quantile((np.abs(old - mean) / error).max(1), 0.95) * error
        bounds["joint before"].append((mean - reach, mean + reach))
    ends = {name: np.moveaxis(np.array(values), 1, 0) for name, values in bounds.items()}
    now, then = rates(*ends["joint"]), rates(*ends["joint before"])
    single = 100 - sum(rates(*ends["single"])[3:])
    widths = {name: np.median(high - low) for name, (low, high) in ends.items()}
    pairs = (f"{a:.1f} ({b:.1f})" for a, b in zip(now[:3], then[:3], strict=True))
    ratio = widths["joint"] / widths["joint before"]
    return [shape, str(num_seeds), f"{seed_std:g}", *pairs, f"{single:.1f}", f"{ratio:.2f}"]


def seed_tables(shape: str, num_seeds: int, seed_mix: Array, rng: np.random.Generator) -> list[Array]:
    """[60, C] per seed: effects of prompts, of prompts within seeds (half the variance each), of seeds."""
    size = (60, len(seed_mix))
    prompts = draw(shape, size, rng) * np.sqrt(0.5)
    return [
        prompts + draw(shape, size, rng) * np.sqrt(0.5) + seed_mix @ rng.normal(size=len(seed_mix))
        for _ in range(num_seeds)
    ]


def hypervolume_coverage(shape: str, num_seeds: int, evaluations: int, seed_std: float) -> list[str]:
    """One row for the hypervolume of a front of 5 weightings in 2 objectives, and its change to a second."""
    _share_bootstrap_samples()
    rng = np.random.default_rng([num_seeds, int(100 * seed_std), 7])
    angles = np.linspace(0.1, 0.9, 5) * np.pi / 2
    front = 3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    truth = np.concatenate([front.ravel(), (front + 0.2).ravel()])
    corner = np.zeros(2)

    def volumes(row: Array) -> tuple[float, float]:
        first, second = (hypervolume(points, corner) for points in row.reshape(2, 5, 2))
        return first, second - first

    exact = np.array(volumes(truth))
    intervals, errors = [], []
    for evaluation in range(evaluations):
        tables = [truth + table for table in seed_tables(shape, num_seeds, seed_std * np.eye(20), rng)]
        estimate = np.array(volumes(mean_over_seeds(tables)))
        replicates = bootstrap_means(tables, shared_prompts=True, bootstrap_samples=400, seed=evaluation)
        samples = np.array([volumes(row) for row in replicates])
        intervals.append(percentile_intervals(samples, 0.95))
        errors.append(estimate - exact)
    low, high = np.moveaxis(np.array(intervals), 1, 0)
    row = [shape, str(num_seeds), f"{seed_std:g}"]
    for column in range(2):
        misses = 100 * np.mean(low[:, column] > exact[column]), 100 * np.mean(high[:, column] < exact[column])
        bias = np.mean([error[column] for error in errors]) / exact[0]
        row += [f"{100 - sum(misses):.1f}", f"{misses[0]:.1f} / {misses[1]:.1f}", f"{100 * bias:+.2f} %"]
    return row


Job = tuple[Callable[..., list[str]], tuple[object, ...]]
RATES = ("coverage %", "false better %", "false worse %")
TABLES: dict[str, tuple[tuple[str, ...], list[Job]]] = {
    "Paired differences": (
        ("shape", "prompts", *RATES, "better, per objective %", "worse, per objective %", "width"),
        [(paired_coverage, (shape, n, 1.0)) for n in PROMPTS for shape in SHAPES]
        + [
            (paired_coverage, ("normal", 60, 0.25, "each prompt twice")),
            (paired_coverage, ("skewed left", 60, 0.25, "each prompt twice")),
            (paired_coverage, ("normal", 60, 0.25, "5 % not scored")),
            (paired_coverage, ("skewed left", 60, 0.25, "5 % not scored")),
        ],
    ),
    "Means over training seeds": (
        ("shape", "seeds", "std of seeds", *RATES, "single coverage %", "width"),
        [
            (seeds_coverage, (shape, seeds, 0.1, std))
            for seeds in (3, 5)
            for std in (0.0, 0.15, 0.5)
            for shape in ("normal", "skewed left", "skewed right", "mostly zero")
        ],
    ),
    "Hypervolume": (
        (
            *("shape", "seeds", "std of seeds", "coverage %", "misses low / high %", "bias"),
            *("change: coverage %", "change: misses low / high %", "change: bias"),
        ),
        [(hypervolume_coverage, ("normal", 3, 0.1, std)) for std in (0.0, 0.15, 0.5)],
    ),
    "Shapes that nothing was chosen on": (
        ("shape", "prompts", *RATES, "better, per objective %", "worse, per objective %", "width"),
        [(paired_coverage, (shape, n, 0.25)) for n in PROMPTS for shape in UNSEEN_SHAPES],
    ),
}
"""Table -> its header and rows; the third argument of a row is its share of the evaluations."""


def _row(job: Job, evaluations: int) -> list[str]:
    function, (shape, size, share, *rest) = job
    return function(shape, size, max(1, int(float(str(share)) * evaluations)), *rest)


def main() -> None:
    """Print all tables."""
    evaluations = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    start = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for title, (header, jobs) in TABLES.items():
            print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{' --- |' * len(header)}", flush=True)
            for cells in pool.map(_row, jobs, [evaluations] * len(jobs)):
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{evaluations} evaluations a row, {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
