"""What grew from PPO: drawn responses, a reference in between, a constraint, rewards on every token.

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
from paretune.models.merge import merge_loras, merge_state_dicts
from paretune.models.model_passes import implicit_reward
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase, describe

WEIGHTS = {"polite": 1.0, "safety": 1.0}


def parts() -> None:
    """What each changes of PPO, as `paretune check` prints it."""
    held = {"actionability": 1.0, "safety": 0.0}
    made: dict[str, tuple[AlgorithmSpec, tuple[str, ...]]] = {
        "pf_ppo": (pf_ppo(WEIGHTS), ("source", "worth")),
        "salsa": (salsa(WEIGHTS), ("before", "measure")),
        "safe_rlhf": (safe_rlhf(held, constraints=(Constraint("safety", 0.8),)), ("worth", "credit")),
        "rto": (rto(WEIGHTS), ("before", "measure", "credit")),
    }
    for name, (recipe, fields) in made.items():
        block(f"parts of {name}")
        chosen(recipe, fields)


def chosen(recipe: AlgorithmSpec, fields: tuple[str, ...]) -> None:
    """The lines of these fields; those of a phase as they are."""
    field = ""
    for line in describe(recipe):
        field = line.split(maxsplit=1)[0] if line[0] != " " else field
        if field not in fields:
            continue
        if field == "before" and isinstance(recipe.phases[0], PretrainPhase):
            print(line)
        else:
            print(textwrap.fill(line, 110, subsequent_indent=" " * 15, break_long_words=False))


def odds() -> None:
    """Odds by rank among five rewards 5, 4, 3, 2, 1, and by size."""
    block("odds")
    worth = np.array([5.0, 4, 3, 2, 1])
    rows: list[list[object]] = [["uniform", *[0.2] * 5, 3.0, 5.0]]
    each: tuple[RankFiltrationStrategy, ...] = ("best_of_n", "best_random", "best_worst")
    for name in each:
        h = np.array(rank_probabilities(name, 5))
        rows.append([name, *h.tolist(), float(h @ worth), float(1 / (h**2).sum())])
    table(("odds", "5", "4", "3", "2", "1", "mean reward", "1 / sum of squares"), rows)
    block("power")
    signal = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])[:, None]
    group = torch.zeros(5, dtype=torch.long)
    powers: list[list[object]] = [
        [f"power {p:g}", *column(response_probabilities(signal, group, "power", p))] for p in (1.0, 2.0)
    ]
    table(("reward", "2", "1", "0", "-1", "-3"), powers)


def trust() -> None:
    """How well a line from reward to truth fits what is kept."""
    block("trust")
    reward, truth = np.array([-2.0, -1, 0, 1, 2]), np.array([0.1, 0.2, 0.7, 0.5, 0.9])
    kept = {"all five": [0, 1, 2, 3, 4], "without the middle": [0, 1, 3, 4], "the two ends": [0, 4]}
    table(("kept", "R^2"), [[name, float(r_squared(reward[i], truth[i]))] for name, i in kept.items()])


def soups() -> None:
    """Averages of weights: of plain ones, of a word's odds, of adapters."""
    block("soups")
    first, second = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, -1.0])}
    for share in (0.5, 0.75, 0.0):
        mixed = merge_state_dicts([first, second], (1 - share, share))["w"]
        print(f"(1, 3) and (3, -1), share {share:g} of the second: {column(mixed)}")
    logits = {"start": 2.0, "second": -0.5, "soup": 0.75, "policy later": 1.5}
    p = {name: torch.sigmoid(torch.tensor(x)) for name, x in logits.items()}
    for of, to in (("start", "soup"), ("policy later", "start"), ("policy later", "soup")):
        print(f"KL({of} || {to}) = {_kl(p[of], p[to]):.7f}")
    adapters = [
        {"m.lora_A.weight": torch.tensor([[a]]), "m.lora_B.weight": torch.tensor([[b]])}
        for b, a in ((1.0, 2.0), (3.0, 4.0))
    ]
    both = merge_loras(adapters, (0.5, 0.5), (1.0, 1.0)).tensors
    product = float(both["m.lora_B.weight"] @ both["m.lora_A.weight"])
    print(f"adapters 1 x 2 and 3 x 4: product {product:g}; of averaged factors it would be {2.0 * 3.0:g}")


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL between two words of probability p and q and their opposites."""
    return float(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


def constraint() -> None:
    """One multiplier step, and the advantages it makes."""
    block("constraint")
    held = Constraint("safety", 1.0)
    batch = graded([[0.0, 0.5]], objectives=("useful", "safety"))
    batch = batch.replace(advantages=torch.tensor([[[0.0, 0.0], [1.0, -0.5]]]))
    rows: list[list[object]] = []
    for rate in (0.0, 0.1):
        step = Lagrangian(
            {"useful": 1.0, "safety": 0.0}, (held,), "advantages", rate, "gradient", 1.0, 0.0, 5.0
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
    table(("rate", "broken by", "multiplier", "advantage of (1, -0.5)"), rows, 6)


def dense() -> None:
    """A response of three tokens, worth 0.8."""
    block("dense")
    tuned, reference, policy = (
        torch.tensor([[0.0, *x]]) for x in ([-1.0, -0.5, -2.0], [-1.4, -0.3, -2.2], [-1.2, -0.3, -1.7])
    )
    batch = graded([0.8], lengths=[3]).replace(old_logprobs=policy, ref_logprobs=reference)
    gained = implicit_reward(tuned, reference, batch.response_mask, 0.05)[..., None]
    whole = (TerminalReward(), KlPenalty(0.01))
    rows: list[list[object]] = []
    for name, start, steps in (
        ("ppo", None, whole),
        ("rto", gained, whole),
        ("rto, place: end", gained, (RedistributeTokenRewards("end"), *whole)),
        ("rto, place: shaping", gained, (RedistributeTokenRewards("shaping"), *whole)),
    ):
        reward = column(after(batch.replace(token_rewards=start), *steps).require("token_rewards")[0, 1:])
        rows.append([name, *reward, sum(reward)])
    table(("", "r1", "r2", "r3", "return"), rows)


def main() -> None:
    """Print the numbers of the pages."""
    parts()
    odds()
    trust()
    soups()
    constraint()
    dense()


if __name__ == "__main__":
    main()
