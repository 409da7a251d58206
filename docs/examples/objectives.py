"""Many objectives to one signal: what every aggregator makes of the same four responses.

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
from paretune.credit.constraints import Constraint, Lagrangian, solve_dual
from paretune.credit.scalarization import (
    Chebyshev,
    CorrelationTargetWeightedSum,
    HypervolumeGuidedWeighting,
    MinObjective,
)
from paretune.credit.score_transforms import DistanceToTarget, HandleMissingScores, MissingAsZero, Threshold

NAN = float("nan")
EQUAL = dict.fromkeys(NAMES, 0.25)
SAFE = EQUAL | {"safety": 3.0}
SUM = WeightedSum(EQUAL)
IDEAL = dict.fromkeys(NAMES, 1.0)


def aggregators() -> None:
    """The signal under each."""
    block("aggregators")
    gates = tuple(Gate(name, "safety", 0.5) for name in NAMES[:3])
    chains: dict[str, tuple[CreditStep, ...]] = {
        "WeightedSum, equal": (SUM,),
        "Gate on safety, WeightedSum": (*gates, SUM),
        "Threshold(safety, 0.6), WeightedSum": (Threshold("safety", 0.6), SUM),
        'Threshold(safety, 0.6, "pass"), WeightedSum': (Threshold("safety", 0.6, "pass"), SUM),
        "Target(polite, 0.8), WeightedSum": (DistanceToTarget("polite", 0.8), SUM),
        "Worst": (MinObjective(NAMES),),
        "Worst, sharpness 10": (MinObjective(NAMES, 10.0),),
        "Chebyshev, response": (Chebyshev(EQUAL, "response", IDEAL),),
        "Chebyshev, mean": (Chebyshev(EQUAL, "mean", IDEAL),),
        "Lexicographic, safety up to 0.6, action": (Lexicographic((("safety", 0.6), ("action", None))),),
        "Lagrangian, safety at least 0.8": (Lagrangian(EQUAL, (Constraint("safety", 0.8),)),),
    }
    rows = [[name, *column(after(graded(FOUR, NAMES), *steps).rewards)] for name, steps in chains.items()]
    table(("", "o1", "o2", "o3", "o4"), rows)


def multipliers() -> None:
    """A constraint that is broken for ten steps and kept by far for the next ten."""
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
    shown = (0, 4, 9, 10, 14, 19)
    rows: list[list[object]] = []
    for name, part in parts.items():
        state, seen = part.init_state(), []
        for step in range(20):
            _, state, metrics = part.apply_stateful(bad if step < 10 else good, state, torch.Generator())
            seen.append(metrics["state/multiplier/safe"])
        rows.append([name, *(seen[step] for step in shown)])
    table(("multiplier after step", *map(str, shown)), rows)


def kinds_of_constraints() -> None:
    """The same scores against a mean, a rate and a quantile."""
    block("constraints")
    scores = torch.tensor([row[3] for row in FOUR])
    constraints = (
        Constraint("safety", 0.7, "mean"),
        Constraint("safety", 0.9, "rate", statistic_arg=0.5),
        Constraint("safety", 0.5, "quantile", statistic_arg=0.1),
    )
    rows: list[list[object]] = []
    for c in constraints:
        level = float(c.statistic_value(scores))
        rows.append(
            [
                c.statistic,
                "" if c.statistic_arg is None else f"{c.statistic_arg:g}",
                f"{c.lower_bound:g}",
                level,
                c.lower_bound - level,
            ]
        )
    table(("of", "at", "at least", "level", "broken by"), rows)


def offline() -> None:
    """A multiplier from scored responses of the reference alone."""
    block("dual")
    help_, safe = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.1, 0.7, 1.0])
    rows: list[list[object]] = []
    for level in (0.5, 0.7, 0.8, 0.9):
        found = solve_dual(help_, (safe - level)[:, None], torch.zeros(3, dtype=torch.long), beta=0.2)
        rows.append([f"{level:g}", float(found.multipliers), float(found.slacks), found.dual_value])
    table(("safe at least", "multiplier", "margin", "value"), rows)


def changing() -> None:
    """Weights that are not the same for all steps, kinds of prompt, or rows."""
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
    kinds = after(batch, PerCategoryWeightedSum({"harmful": {"safety": 1.0}}, default_weights=EQUAL))
    print("KindSum, o1 and o2 harmful:", *(f"{x:.4f}" for x in column(kinds.rewards)))
    wanted = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    asked = after(graded(FOUR, NAMES).replace(preference_weights=wanted), PreferenceWeightedSum())
    print("PreferenceSum, rows of weights:", *(f"{x:.4f}" for x in column(asked.rewards)))


def dynamic() -> None:
    """Five steps of a policy that gets better at `a`, at `b` hardly, and at the end at neither."""
    block("dynamic")
    guided = HypervolumeGuidedWeighting(("a", "b"))
    target = CorrelationTargetWeightedSum({"a": 1.0, "b": 1.0}, target_correlations={"b": 0.9})
    one, two, rows = guided.init_state(), target.init_state(), []
    for step in range(5):
        a, b = 0.1 * min(step, 3), 0.02 * min(step, 3)
        batch = graded([[0.1 + a, 0.5 + b], [0.9 + a, 0.4 + b], [0.3 + a, 0.6 + b]], ("a", "b"))
        _, one, volume = guided.apply_stateful(batch, one, torch.Generator())
        _, two, seen = target.apply_stateful(batch, two, torch.Generator())
        factor = volume["state/growth_factor"]
        rows.append(
            [step, factor, seen["state/correlation/b"], seen["state/weight/a"], seen["state/weight/b"]]
        )
    table(("step", "growth factor", "correlation of b", "weight a", "weight b"), rows)


def missing() -> None:
    """Nobody scored the safety of o2."""
    block("missing")
    lacking = [FOUR[0], [*FOUR[1][:3], NAN], *FOUR[2:]]
    chains: dict[str, tuple[CreditStep, ...]] = {
        "no policy": (SUM,),
        '"drop"': (HandleMissingScores("drop", EQUAL), SUM),
        '"renormalise"': (HandleMissingScores("renormalise", EQUAL), SUM),
        '"group_mean"': (HandleMissingScores("group_mean", EQUAL), SUM),
        "MissingIsZero()": (MissingAsZero(), SUM),
    }
    rows: list[list[object]] = []
    for name, steps in chains.items():
        signal: list[object] = [*column(after(graded(lacking, NAMES), *steps).rewards)]
        rows.append([name, *(signal if len(signal) == 4 else [signal[0], "gone", *signal[1:]])])
    table(("", "o1", "o2", "o3", "o4"), rows)


def who_decides() -> None:
    """What the aggregators report."""
    block("reports")
    for step in (
        SUM,
        MinObjective(NAMES),
        Chebyshev(EQUAL),
        Lexicographic((("safety", 0.6), ("action", None))),
    ):
        _, seen = reported(graded(FOUR, NAMES), step)
        kind = "share/" if step is SUM else "active/"
        numbers = [f"{key} {value:.4f}" for key, value in seen.items() if key.startswith(kind)]
        print(f"{type(step).__name__}:", *numbers)


def main() -> None:
    """Print the numbers of the page."""
    aggregators()
    who_decides()
    multipliers()
    kinds_of_constraints()
    offline()
    changing()
    dynamic()
    missing()


if __name__ == "__main__":
    main()
