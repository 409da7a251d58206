"""Which responses a reward can be trusted on: the choice of a filter before training."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from paretune.core.errors import ConfigError, WiringError
from paretune.credit.selection import RankFiltrationStrategy, rank_probabilities

STRATEGIES: tuple[RankFiltrationStrategy, ...] = ("best_of_n", "best_random", "best_worst")
MIN_POINTS = 3
"""Groups that a line is fitted to: through two points a line is always exact."""

FloatArray = NDArray[np.float64]


def r_squared(x: ArrayLike, y: ArrayLike) -> float:
    """Share of the spread of y that a straight line in x explains; NaN for fewer than three points.

    NaN too where x or y do not vary.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    dx, dy = x - x.mean() if len(x) else x, y - y.mean() if len(y) else y
    spread = float((dx**2).sum() * (dy**2).sum())
    return float((dx * dy).sum() ** 2 / spread) if len(x) >= MIN_POINTS and spread > 0 else float("nan")


def reward_r2_by_filter(rewards: ArrayLike, true_scores: ArrayLike, num_groups: int = 10) -> dict[str, float]:
    """How well reward predicts truth among the responses that each way of filtering keeps; the best first.

    The kept responses are cut by their reward into groups that are kept equally often; each group is a point
    (mean reward, mean truth), and the number is R^2 of a straight line through the points. The way that
    `ResampleByRank` should filter is the first key; "all" means that filtering does not help.

    Args:
        rewards: [P, n] of the responses to P prompts; NaN = unscored.
        true_scores: [P, n], what the reward stands for, such as the share of tests passed; NaN = unknown.
        num_groups: At least 3.

    Raises:
        WiringError: Fewer than 3 groups, or tables of different shapes.

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957). Differs: the expectation over draws in
    place of draws; groups by quantile.
    """
    r, t = np.asarray(rewards, np.float64), np.asarray(true_scores, np.float64)
    if num_groups < MIN_POINTS:
        raise WiringError(
            f"num_groups is {num_groups}; a line needs at least {MIN_POINTS} points to be wrong"
        )
    if r.shape != t.shape or r.ndim != 2:
        raise WiringError(f"rewards have the shape {r.shape} and truths {t.shape}; both must be [P, n]")
    found = {"all": _grouped_r_squared(r, t, np.where(np.isnan(r) | np.isnan(t), 0.0, 1.0), num_groups)}
    for strategy in STRATEGIES:
        found[strategy] = _grouped_r_squared(r, t, _selection_weights(r, t, strategy), num_groups)
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1], nan=-1.0)))


def compare_reward_filters(output_dir: Path, arm: Literal["before", "after"]) -> dict[str, dict[str, float]]:
    """`predictability` for every objective that both the training reward and another judge scored.

    Args:
        output_dir: Of a run whose evaluation is complete.
        arm: Whose responses: those of the starting policy, or of the trained one.

    Raises:
        ConfigError: There is no evaluation, too few responses to a prompt, or no judge beside the reward.
    """
    file = output_dir / "eval" / "final" / "generations.parquet"
    if not file.is_file():
        raise ConfigError(
            f"{output_dir}: no complete evaluation lies here; fix: name the folder of a finished run"
        )
    table = pq.read_table(file).to_pydict()
    n = max(table["sample"], default=0) + 1
    if n < MIN_POINTS:
        raise ConfigError(
            f"{output_dir}: evaluate.num_generations: {n} responses to a prompt; a filter chooses among at least {MIN_POINTS}; "
            "fix: run with evaluate.num_generations=5"
        )
    found = {}
    for name in [key.removeprefix(f"{arm}/") for key in table if key.startswith(f"{arm}/")]:
        judged, reward = (
            np.array(table.get(key, []), np.float64) for key in (f"{arm}/{name}", f"reward/{arm}/{name}")
        )
        if len(reward) and not np.array_equal(judged, reward, equal_nan=True):
            found[name] = reward_r2_by_filter(reward.reshape(-1, n), judged.reshape(-1, n))
    if not found:
        raise ConfigError(
            f"{output_dir}: no judge but the training reward itself; fix: run with a `judge` that is fitted on "
            "other data"
        )
    return found


def _selection_weights(
    rewards: FloatArray, true_scores: FloatArray, strategy: RankFiltrationStrategy
) -> FloatArray:
    """How often each response is drawn when one is drawn from each prompt."""
    share = np.zeros_like(rewards)
    for p, (r, t) in enumerate(zip(rewards, true_scores, strict=True)):
        known = (~np.isnan(r) & ~np.isnan(t)).nonzero()[0]
        if len(known):
            order = known[np.argsort(-r[known], kind="stable")]
            share[p, order] = rank_probabilities(strategy, len(known))
    return share


def _grouped_r_squared(
    rewards: FloatArray, true_scores: FloatArray, weights: FloatArray, num_groups: int
) -> float:
    kept = (weights > 0).nonzero()
    if not len(kept[0]):
        return float("nan")
    r, t, w = rewards[kept], true_scores[kept], weights[kept]
    order = np.argsort(r, kind="stable")
    r, t, w = r[order], t[order], w[order]
    place = np.floor((w.cumsum() - w / 2) / w.sum() * num_groups).astype(np.int64)
    mass = np.bincount(place, w, num_groups)
    x, y = (np.bincount(place, w * v, num_groups)[mass > 0] / mass[mass > 0] for v in (r, t))
    return r_squared(x, y)
