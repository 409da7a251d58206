"""PPO with a critic, and PPO-max: one response by hand, and running reward normalization.

python docs/examples/ppo.py
"""

import torch
from small import after, block, column, graded, shown, table

from paretune.algorithms.ppo import ppo, ppo_max
from paretune.core.batch import Batch
from paretune.credit.base import CreditStep
from paretune.credit.normalization import RunningNormalize, Whiten
from paretune.credit.returns import Gae
from paretune.credit.shaping import ClipReward, KlPenalty, TerminalReward

WEIGHTS = {"polite": 1.0, "safety": 1.0}
STEPS = ([1.0, 2.0, 3.0, 4.0], [5.0, 7.0])
"""Rewards of two training steps."""


def parts() -> None:
    """Both specs, as `paretune check` prints them."""
    block("parts")
    shown(ppo(WEIGHTS))
    block("parts of ppo_max")
    shown(ppo_max(WEIGHTS, auxiliary_lm_coef=0.1))


def responded(gaps: list[float], values: list[float]) -> Batch:
    """One response of reward 1 whose tokens have these log-ratios to the reference, and these values."""
    zero = torch.zeros(1, 1 + len(gaps))
    return graded([1.0], lengths=[len(gaps)]).replace(
        old_logprobs=torch.tensor([[0.0, *gaps]]),
        ref_logprobs=zero,
        values=torch.tensor([[0.0, *values]])[..., None],
    )


def one_response() -> None:
    """Three tokens; and with a fourth position for the reward, as in published code."""
    block("one response")
    penalty = KlPenalty(0.05)
    ours = responded([0.2, -0.1, 0.0], [0.5, 0.4, 0.3])
    theirs = responded([0.2, -0.1, 0.0, 0.0], [0.5, 0.4, 0.3, 0.1])
    rows: list[list[object]] = []
    for name, batch in (("at the last token", ours), ("one position later", theirs)):
        out = after(batch, TerminalReward(), penalty, Gae(1.0, 0.95))
        for what, x in (
            ("reward", out.token_rewards),
            ("advantage", out.advantages),
            ("return", out.returns),
        ):
            assert x is not None
            rows.append([f"{name}: {what}", *column(x[0, 1:])])
    table(("reward", "1", "2", "3", "4"), [row + [""] * (5 - len(row)) for row in rows])
    block("whitened")
    whites: list[tuple[str, CreditStep]] = [
        ('Whiten("sample")', Whiten()),
        ('Whiten("population")', Whiten("population")),
    ]
    found = [
        [name, *column(after(ours, TerminalReward(), penalty, Gae(), step).require("advantages")[0, 1:])]
        for name, step in whites
    ]
    table(("", "A1", "A2", "A3"), found)


def scales() -> None:
    """The reward of PPO-max over two steps, and that of the released script."""
    block("scales")
    rows: list[list[object]] = []
    cut = ClipReward(-0.8, 0.8)
    for name, scale in (("normalize", RunningNormalize()), ("scale", RunningNormalize(shift_mean="none"))):
        state, rng = scale.init_state(), torch.Generator()
        for number, signal in enumerate(STEPS):
            batch, state, _ = scale.apply_stateful(graded(signal), state, rng)
            so_far = [float(state.mean), float(scale.std(state))]
            for was, now, bounded in zip(
                signal, column(batch.rewards), column(after(batch, cut).rewards), strict=True
            ):
                rows.append([name, str(number), *so_far, f"{was:g}", now, bounded])
    table(("reward_scaling", "step", "mean", "std", "reward", "scaled", "clipped to 0.8"), rows)


def main() -> None:
    """Print the numbers of the pages."""
    parts()
    one_response()
    scales()


if __name__ == "__main__":
    main()
