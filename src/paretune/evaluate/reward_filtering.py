"""Reliability of a reward on filtered responses: the choice of a filter for PF-PPO before training."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from paretune.core.errors import ConfigError, WiringError
from paretune.credit.selection import RankFiltrationStrategy, rank_probabilities

STRATEGIES: tuple[RankFiltrationStrategy, ...] = ("best_of_n", "best_random", "best_worst")
MIN_POINTS = 3
"""Fewest points of a linear fit: a line through two points is always exact."""

FloatArray = NDArray[np.float64]


def r_squared(x: ArrayLike, y: ArrayLike) -> float:
    """Coefficient of determination of the least-squares line of y on x.

    NaN for fewer than three points, or where x or y is constant.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    dx, dy = x - x.mean() if len(x) else x, y - y.mean() if len(y) else y
    variances = float((dx**2).sum() * (dy**2).sum())
    return float((dx * dy).sum() ** 2 / variances) if len(x) >= MIN_POINTS and variances > 0 else float("nan")


def reward_r2_by_filter(rewards: ArrayLike, true_scores: ArrayLike, num_groups: int = 10) -> dict[str, float]:
    """R^2 of reward and true score among the responses that each filter keeps, the best filter first.

    The kept responses are split by their reward into groups of equal weight; each group is a point (mean
    reward, mean true score), and R^2 is that of the least-squares line through the points. The first key is
    the strategy to choose for `ResampleByRank`; "all" means that no filter helps.

    Args:
        rewards: [P, n] rewards of the responses to P prompts; NaN = unscored.
        true_scores: [P, n] the quantity that the reward stands for, such as the fraction of passed tests;
            NaN = unknown.
        num_groups: Number of groups, at least 3.

    Raises:
        WiringError: Fewer than 3 groups, or tables of different shapes.

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957). Differs: the expectation over draws instead of
    draws; groups by quantile.
    """
    r, t = np.asarray(rewards, np.float64), np.asarray(true_scores, np.float64)
    if num_groups < MIN_POINTS:
        raise WiringError(f"num_groups is {num_groups}; a linear fit needs at least {MIN_POINTS} groups")
    if r.shape != t.shape or r.ndim != 2:
        raise WiringError(f"rewards have the shape {r.shape}, true_scores {t.shape}; both must be [P, n]")
    results = {"all": _grouped_r_squared(r, t, np.where(np.isnan(r) | np.isnan(t), 0.0, 1.0), num_groups)}
    for strategy in STRATEGIES:
        results[strategy] = _grouped_r_squared(r, t, _selection_weights(r, t, strategy), num_groups)
    return dict(sorted(results.items(), key=lambda item: -np.nan_to_num(item[1], nan=-1.0)))


def compare_reward_filters(output_dir: Path, arm: Literal["before", "after"]) -> dict[str, dict[str, float]]:
    """`reward_r2_by_filter` for every objective that both the training reward and another judge scored.

    Args:
        output_dir: Folder of a run with a complete evaluation.
        arm: Responses of the starting policy, or of the trained one.

    Raises:
        ConfigError: There is no evaluation that this version reads, too few responses per prompt, or no judge
            besides the reward.
    """
    file = output_dir / "eval" / "final" / "generations.parquet"
    if not file.is_file():
        raise ConfigError(f"{output_dir}: no complete evaluation; fix: name the folder of a finished run")
    table = pq.read_table(file).to_pydict()
    if "sample_index" not in table:
        raise ConfigError(f"{file}: written by another version: no sample_index; fix: run the recipe again")
    n = max(table["sample_index"], default=0) + 1
    if n < MIN_POINTS:
        raise ConfigError(
            f"{output_dir}: evaluate.num_generations: {n} responses per prompt, and a filter needs at least "
            f"{MIN_POINTS}; fix: run with evaluate.num_generations=5"
        )
    results = {}
    for name in [key.removeprefix(f"{arm}/") for key in table if key.startswith(f"{arm}/")]:
        judged, reward = (
            np.array(table.get(key, []), np.float64) for key in (f"{arm}/{name}", f"reward/{arm}/{name}")
        )
        # Equal columns: the judge of this objective is the training reward itself.
        if len(reward) and not np.array_equal(judged, reward, equal_nan=True):
            results[name] = reward_r2_by_filter(reward.reshape(-1, n), judged.reshape(-1, n))
    if not results:
        raise ConfigError(
            f"{output_dir}: no judge besides the training reward itself; "
            "fix: run with a `judge` that is fitted on other data"
        )
    return results


def _selection_weights(
    rewards: FloatArray, true_scores: FloatArray, strategy: RankFiltrationStrategy
) -> FloatArray:
    """[P, n] probability of each response when one is drawn per prompt."""
    weights = np.zeros_like(rewards)
    for p, (r, t) in enumerate(zip(rewards, true_scores, strict=True)):
        known = (~np.isnan(r) & ~np.isnan(t)).nonzero()[0]
        if len(known):
            # A stable sort: of tied rewards, the first response is the best.
            order = known[np.argsort(-r[known], kind="stable")]
            weights[p, order] = rank_probabilities(strategy, len(known))
    return weights


def _grouped_r_squared(
    rewards: FloatArray, true_scores: FloatArray, weights: FloatArray, num_groups: int
) -> float:
    kept = (weights > 0).nonzero()
    if not len(kept[0]):
        return float("nan")
    r, t, w = rewards[kept], true_scores[kept], weights[kept]
    order = np.argsort(r, kind="stable")
    r, t, w = r[order], t[order], w[order]
    # The group of a response is the quantile of the middle of its weight.
    group = np.floor((w.cumsum() - w / 2) / w.sum() * num_groups).astype(np.int64)
    mass = np.bincount(group, w, num_groups)
    x, y = (np.bincount(group, w * v, num_groups)[mass > 0] / mass[mass > 0] for v in (r, t))
    return r_squared(x, y)
