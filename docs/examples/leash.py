"""Descendants of PPO: policy filtration, averaged reference, constraints, token rewards.

python docs/examples/leash.py
"""

import textwrap

import numpy as np
import torch
from small import after, block, column, graded, table

from paretune.algorithms.ppo import pf_ppo, rto, safe_rlhf, salsa
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.returns import RedistributeTokenRewards
from paretune.credit.selection import RankFiltrationStrategy, rank_probabilities, response_probabilities
from paretune.credit.shaping import KlPenalty, TerminalReward
from paretune.evaluate.reward_filtering import r_squared
from paretune.models.merge import merge_state_dicts
from paretune.models.model_passes import implicit_reward
from paretune.rl.algorithm_spec import LABEL_WIDTH, AlgorithmSpec, PretrainPhase

WEIGHTS = {"polite": 1.0, "safety": 1.0}


def parts() -> None:
    """The changes to PPO, as `paretune check` prints them."""
    weights = {"actionability": 1.0, "safety": 0.0}
    specs: dict[str, tuple[AlgorithmSpec, tuple[str, ...]]] = {
        "pf_ppo": (pf_ppo(WEIGHTS), ("rollout", "reward_steps")),
        "salsa": (salsa(WEIGHTS), ("phases", "model_passes")),
        "safe_rlhf": (
            safe_rlhf(weights, constraints=(Constraint("safety", 0.8),)),
            ("reward_steps", "credit"),
        ),
        "rto": (rto(WEIGHTS), ("phases", "model_passes", "credit")),
    }
    for name, (spec, fields) in specs.items():
        block(f"parts of {name}")
        chosen(spec, fields)


def chosen(spec: AlgorithmSpec, fields: tuple[str, ...]) -> None:
    """The lines of these fields; those of a phase are not wrapped."""
    field = ""
    for line in spec.describe():
        field = line.split(maxsplit=1)[0] if line[0] != " " else field
        if field not in fields:
            continue
        if field == "phases" and isinstance(spec.phases[0], PretrainPhase):
            print(line)
        else:
            print(textwrap.fill(line, 110, subsequent_indent=" " * (LABEL_WIDTH + 5), break_long_words=False))


def probabilities() -> None:
    """Sampling probabilities by rank for rewards 5, 4, 3, 2, 1, and by magnitude."""
    block("probabilities")
    rewards = np.array([5.0, 4, 3, 2, 1])
    rows: list[list[object]] = [["uniform", *[0.2] * 5, 3.0, 5.0]]
    each: tuple[RankFiltrationStrategy, ...] = ("best_of_n", "best_random", "best_worst")
    for name in each:
        h = np.array(rank_probabilities(name, 5))
        rows.append([name, *h.tolist(), float(h @ rewards), float(1 / (h**2).sum())])
    table(("strategy", "5", "4", "3", "2", "1", "mean reward", "1 / sum of squares"), rows)
    block("power")
    signal = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])[:, None]
    group = torch.zeros(5, dtype=torch.long)
    powers: list[list[object]] = [
        [f"power {p:g}", *column(response_probabilities(signal, group, "power", p))] for p in (1.0, 2.0)
    ]
    table(("reward", "2", "1", "0", "-1", "-3"), powers)


def fit() -> None:
    """R^2 of a line from reward to ground truth on the kept responses."""
    block("r squared")
    reward, truth = np.array([-2.0, -1, 0, 1, 2]), np.array([0.1, 0.2, 0.7, 0.5, 0.9])
    kept = {"all five": [0, 1, 2, 3, 4], "without the middle": [0, 1, 3, 4], "the two ends": [0, 4]}
    table(("kept", "R^2"), [[name, float(r_squared(reward[i], truth[i]))] for name, i in kept.items()])


def averages() -> None:
    """Weight averages: of plain weights, and KL to the average."""
    block("averages")
    first, second = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, -1.0])}
    for fraction in (0.5, 0.75, 0.0):
        merged = merge_state_dicts([first, second], (1 - fraction, fraction))["w"]
        print(f"(1, 3) and (3, -1), fraction {fraction:g} of the second: {column(merged)}")
    logits = {"initial": 2.0, "second": -0.5, "average": 0.75, "later policy": 1.5}
    p = {name: torch.sigmoid(torch.tensor(x)) for name, x in logits.items()}
    for of, to in (("initial", "average"), ("later policy", "initial"), ("later policy", "average")):
        print(f"KL({of} || {to}) = {_kl(p[of], p[to]):.7f}")


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL between two Bernoulli distributions."""
    return float(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


def constraint() -> None:
    """One multiplier update, and the combined advantages."""
    block("constraint")
    bound = Constraint("safety", 1.0)
    batch = graded([[0.0, 0.5]], objectives=("useful", "safety"))
    batch = batch.replace(advantages=torch.tensor([[[0.0, 0.0], [1.0, -0.5]]]))
    rows: list[list[object]] = []
    for rate in (0.0, 0.1):
        step = Lagrangian(
            {"useful": 1.0, "safety": 0.0}, (bound,), "advantages", rate, "gradient", 1.0, 0.0, 5.0
        )
        out, _, seen = step.apply_stateful(batch, step.init_state(), torch.Generator())
        multiplier = seen["state/multiplier/safety"]
        rows.append(
            [
                f"{rate:g}",
                seen["constraint_violation/safety"],
                multiplier,
                *column(out.require("advantages")[0, 1]),
            ]
        )
    table(("dual_learning_rate", "violation", "multiplier", "advantage of (1, -0.5)"), rows, 6)


def dense() -> None:
    """A response of three tokens and reward 0.8."""
    block("token rewards")
    tuned, reference, policy = (
        torch.tensor([[0.0, *x]]) for x in ([-1.0, -0.5, -2.0], [-1.4, -0.3, -2.2], [-1.2, -0.3, -1.7])
    )
    batch = graded([0.8], lengths=[3]).replace(old_logprobs=policy, ref_logprobs=reference)
    gained = implicit_reward(tuned, reference, batch.response_mask, 0.05)[..., None]
    ppo_steps = (TerminalReward(), KlPenalty(0.01))
    rows: list[list[object]] = []
    for name, start, steps in (
        ("ppo", None, ppo_steps),
        ("rto", gained, ppo_steps),
        ("rto, end", gained, (RedistributeTokenRewards("end"), *ppo_steps)),
        ("rto, shaping", gained, (RedistributeTokenRewards("shaping"), *ppo_steps)),
    ):
        reward = column(after(batch.replace(token_rewards=start), *steps).require("token_rewards")[0, 1:])
        rows.append([name, *reward, sum(reward)])
    table(("", "r1", "r2", "r3", "return"), rows)


def main() -> None:
    """Print the numbers of the pages."""
    parts()
    probabilities()
    fit()
    averages()
    constraint()
    dense()


if __name__ == "__main__":
    main()
