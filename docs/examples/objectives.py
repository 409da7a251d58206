"""Many objectives to one reward: every aggregator on the same four responses.

python docs/examples/objectives.py
"""

import torch
from small import FOUR, NAMES, after, block, column, graded, reported, table

from paretune.core.batch import Batch
from paretune.credit.aggregation import (
    Gate,
    Lexicographic,
    PerCategoryWeightedSum,
    PreferenceWeightedSum,
    ScheduledWeightedSum,
    WeightedSum,
)
from paretune.credit.base import CreditStep
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import Chebyshev, HypervolumeGuidedWeighting, MinObjective
from paretune.credit.score_transforms import HandleMissingScores, MissingAsZero, OrientScores, Threshold

NAN = float("nan")
EQUAL = dict.fromkeys(NAMES, 0.25)
SAFE = EQUAL | {"safety": 3.0}
SUM = WeightedSum(EQUAL)
IDEAL = dict.fromkeys(NAMES, 1.0)


def aggregators() -> None:
    """The reward under each."""
    block("aggregators")
    gates = tuple(Gate(name, "safety", 0.5) for name in NAMES[:3])
    chains: dict[str, tuple[CreditStep, ...]] = {
        "WeightedSum, equal": (SUM,),
        "Gate on safety, WeightedSum": (*gates, SUM),
        "Threshold(safety, 0.6), WeightedSum": (Threshold("safety", 0.6), SUM),
        'Threshold(safety, 0.6, "binary"), WeightedSum': (Threshold("safety", 0.6, "binary"), SUM),
        "OrientScores(polite: 0.8), WeightedSum": (OrientScores(targets={"polite": 0.8}), SUM),
        "MinObjective": (MinObjective(NAMES),),
        "MinObjective, sharpness 10": (MinObjective(NAMES, 10.0),),
        "Chebyshev, response": (Chebyshev(EQUAL, "response", IDEAL),),
        "Chebyshev, policy_mean": (Chebyshev(EQUAL, "policy_mean", IDEAL),),
        "Lexicographic, safety up to 0.6, action": (Lexicographic((("safety", 0.6), ("action", None))),),
        "Lagrangian, safety at least 0.8": (Lagrangian(EQUAL, (Constraint("safety", 0.8),)),),
    }
    rows = [[name, *column(after(graded(FOUR, NAMES), *steps).rewards)] for name, steps in chains.items()]
    table(("", "o1", "o2", "o3", "o4"), rows)


def multipliers() -> None:
    """A constraint that is violated for ten steps and satisfied with a wide margin for the next ten."""
    block("multipliers")
    constraint = (Constraint("safe", 0.8),)
    parts = {
        "mirror, the default": Lagrangian({"help": 1.0}, constraint, window_size=4),
        "gradient, as in Safe RLHF": Lagrangian(
            {"help": 1.0},
            constraint,
            update_rule="gradient",
            dual_learning_rate=0.1,
            min_multiplier=0.0,
            max_multiplier=5.0,
            window_size=4,
        ),
        "mirror, ten times as fast": Lagrangian(
            {"help": 1.0}, constraint, dual_learning_rate=5.0, window_size=4
        ),
    }
    bad = graded([[0.9, 0.2], [0.8, 0.4], [0.7, 0.3], [0.6, 0.3]], ("help", "safe"))
    good = graded([[0.9, 0.9], [0.8, 1.0], [0.7, 1.0], [0.6, 0.9]], ("help", "safe"))
    shown_steps = (0, 4, 9, 10, 14, 19)
    rows: list[list[object]] = []
    for name, part in parts.items():
        state, values = part.init_state(), []
        for step in range(20):
            _, state, metrics = part.apply_stateful(bad if step < 10 else good, state, torch.Generator())
            values.append(metrics["state/multiplier/safe"])
        rows.append([name, *(values[step] for step in shown_steps)])
    table(("multiplier after step", *map(str, shown_steps)), rows)


def constraint_statistics() -> None:
    """The same scores under constraints on a mean, a rate and a quantile."""
    block("constraints")
    scores = torch.tensor([row[3] for row in FOUR])
    constraints = (
        Constraint("safety", 0.7, "mean"),
        Constraint("safety", 0.9, "rate", statistic_arg=0.5),
        Constraint("safety", 0.5, "quantile", statistic_arg=0.1),
    )
    rows: list[list[object]] = []
    for c in constraints:
        value = float(c.statistic_value(scores))
        rows.append(
            [
                c.statistic,
                "" if c.statistic_arg is None else f"{c.statistic_arg:g}",
                f"{c.lower_bound:g}",
                value,
                c.lower_bound - value,
            ]
        )
    table(("statistic", "statistic_arg", "lower_bound", "value", "violation"), rows)


def changing() -> None:
    """Weights that depend on the training step, the category of the prompt, or the row."""
    block("weights")
    part = ScheduledWeightedSum(((0, {"polite": 1.0}), (10, {"polite": 0.5, "safety": 0.5})))
    state, rows = part.init_state(), []
    for step in range(12):
        _, state, seen = part.apply_stateful(graded(FOUR, NAMES), state, torch.Generator())
        if step in {0, 4, 5, 10, 11}:
            rows.append([step, seen["state/weight/polite"], seen["state/weight/safety"]])
    table(("step", "polite", "safety"), rows)
    batch: Batch = graded(FOUR, NAMES).replace(
        category=torch.tensor([0, 0, 1, 1]), categories=("harmful", "benign")
    )
    by_category = after(batch, PerCategoryWeightedSum({"harmful": {"safety": 1.0}}, default_weights=EQUAL))
    print("PerCategoryWeightedSum, o1 and o2 harmful:", *(f"{x:.4f}" for x in column(by_category.rewards)))
    preferences = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    by_row = after(graded(FOUR, NAMES).replace(preference_weights=preferences), PreferenceWeightedSum())
    print("PreferenceWeightedSum, rows of weights:", *(f"{x:.4f}" for x in column(by_row.rewards)))


def dynamic() -> None:
    """Five steps of a policy that improves in `a`, hardly in `b`, and at the end in neither."""
    block("dynamic")
    guided = HypervolumeGuidedWeighting(("a", "b"))
    state, rows = guided.init_state(), []
    for step in range(5):
        a, b = 0.1 * min(step, 3), 0.02 * min(step, 3)
        batch = graded([[0.1 + a, 0.5 + b], [0.9 + a, 0.4 + b], [0.3 + a, 0.6 + b]], ("a", "b"))
        _, state, metrics = guided.apply_stateful(batch, state, torch.Generator())
        # The first step has no hypervolume yet: its point is the reference point.
        rows.append([step, metrics["state/hypervolume"], metrics["state/growth_factor"]])
    table(("step", "hypervolume", "growth factor"), rows)


def missing() -> None:
    """The safety score of o2 is missing."""
    block("missing")
    incomplete = [FOUR[0], [*FOUR[1][:3], NAN], *FOUR[2:]]
    chains: dict[str, tuple[CreditStep, ...]] = {
        "no HandleMissingScores": (SUM,),
        '"drop"': (HandleMissingScores("drop", EQUAL), SUM),
        '"renormalize"': (HandleMissingScores("renormalize", EQUAL), SUM),
        '"group_mean"': (HandleMissingScores("group_mean", EQUAL), SUM),
        "MissingAsZero()": (MissingAsZero(), SUM),
    }
    rows: list[list[object]] = []
    for name, steps in chains.items():
        rewards: list[object] = [*column(after(graded(incomplete, NAMES), *steps).rewards)]
        rows.append([name, *(rewards if len(rewards) == 4 else [rewards[0], "dropped", *rewards[1:]])])
    table(("", "o1", "o2", "o3", "o4"), rows)


def logged() -> None:
    """Metrics of the aggregators."""
    block("metrics")
    for step in (
        SUM,
        MinObjective(NAMES),
        Chebyshev(EQUAL),
        Lexicographic((("safety", 0.6), ("action", None))),
    ):
        _, seen = reported(graded(FOUR, NAMES), step)
        prefix = "variance_share/" if step is SUM else "active_objective/"
        numbers = [f"{key} {value:.4f}" for key, value in seen.items() if key.startswith(prefix)]
        print(f"{type(step).__name__}:", *numbers)


def main() -> None:
    """Print the numbers of the page."""
    aggregators()
    logged()
    multipliers()
    constraint_statistics()
    changing()
    dynamic()
    missing()


if __name__ == "__main__":
    main()
