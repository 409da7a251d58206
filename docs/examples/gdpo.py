"""One small batch under the five variants of GDPO.

python docs/examples/gdpo.py
"""

from typing import get_args

from small import after, block, column, graded, table

from paretune.algorithms.grpo import GdpoVariant, gdpo_credit, grpo, mo_grpo

NAN = float("nan")
OBJECTIVES = ("right", "short")
WEIGHTS = {"right": 1.0, "short": 0.5}
SCORES = [[1.0, 0.2], [0.0, 0.9], [0.0, 0.4], [1.0, 0.3], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5]]
GROUP = [0, 0, 0, 0, 1, 1, 1]
LENGTHS = [60, 10, 40, 50, 30, 30, 30]


def advantages(form: GdpoVariant, scores: list[list[float]], group: list[int]) -> list[float]:
    """Of the first token of each response."""
    batch = graded(scores, OBJECTIVES, group, LENGTHS[: len(scores)])
    return column(after(batch, gdpo_credit(WEIGHTS, form)).require("advantages")[:, 1])


def forms(scores: list[list[float]], group: list[int]) -> None:
    """A line for every variant."""
    head = [f"{'AB'[g]}{group[:i].count(g) + 1}" for i, g in enumerate(group)]
    table(("variant", *head), [[form, *advantages(form, scores, group)] for form in get_args(GdpoVariant)])


def distinguished() -> None:
    """Rewards that each order can distinguish."""
    block("distinguished")
    groups = {
        "(0,0) (0,1)": [[0.0, 0.0], [0.0, 1.0]],
        "(0,0) (1,1)": [[0.0, 0.0], [1.0, 1.0]],
        "(1,0) (1,0) (0,1)": [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
        "(1,0,0) (1,0,0) (0,1,0) (0,0,1)": [[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
    }
    rows: list[list[object]] = []
    for name, scores in groups.items():
        objectives = ("right", "short", "polite")[: len(scores[0])]
        equal = dict.fromkeys(objectives, 1.0)
        for recipe in (grpo(equal), mo_grpo(equal)):
            signal = column(after(graded(scores, objectives), recipe.reward_steps, recipe.credit).rewards)
            rows.append([name, recipe.name, *signal, *[""] * (4 - len(signal))])
    table(("scores of a group", "algorithm", "A1", "A2", "A3", "A4"), rows)


def main() -> None:
    """Print the numbers of the page."""
    block("batch")
    rows = zip("AAAABBB", *zip(*SCORES, strict=True), LENGTHS, strict=True)
    table(("prompt", *OBJECTIVES, "tokens"), rows, 1)
    block("complete")
    forms(SCORES, GROUP)
    block("missing")
    forms([*SCORES[:3], [1.0, NAN], *SCORES[4:]], GROUP)
    block("singleton")
    forms(SCORES[:5], GROUP[:5])
    block("neighbors")
    batch = graded(SCORES, OBJECTIVES, GROUP, LENGTHS)
    recipes = {"grpo": grpo(WEIGHTS), "mo_grpo": mo_grpo(WEIGHTS)}
    rows = [
        [name, *column(after(batch, r.reward_steps, r.credit).require("advantages")[:, 1])]
        for name, r in recipes.items()
    ]
    table(("algorithm", "A1", "A2", "A3", "A4", "B1", "B2", "B3"), rows)
    distinguished()


if __name__ == "__main__":
    main()
