"""Checks of the goals of objectives, and of the keys whose meaning depends on them."""

from collections.abc import Iterator

from paretune.config.issues import ConfigIssue
from paretune.config.objective_schema import ObjectiveSection
from paretune.config.schema import Config
from paretune.config.unknown import known_items, until_unknown
from paretune.config.yaml import KeyPath
from paretune.core.goals import Goal


def goal_issues(config: Config) -> Iterator[ConfigIssue]:
    """Targets without a goal and goals without a target, weights below 0, and bounds on the wrong side."""
    for name in known_items(config.objectives):
        yield from until_unknown(_target_issues(config, name))
        yield from until_unknown(_negative_weight_issues(config, name))
        yield from until_unknown(_bound_issues(config.objectives[name], ("objectives", name)))
    yield from until_unknown(_stored_pair_issues(config))


def _target_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    objective, path = config.objectives[name], ("objectives", name)
    if objective.goal == "target" and objective.target is None:
        fix = "write it, such as target: 120"
        yield ConfigIssue((*path, "target"), "is missing: the best score", fix=fix)
    elif objective.goal not in (None, "target") and objective.target is not None:
        problem, fix = f"has no effect with goal {objective.goal}", "write goal: target, or remove it"
        yield ConfigIssue((*path, "target"), problem, fix=fix)


def _negative_weight_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """A weight says how much an objective counts; which of its scores are good, its goal."""
    objective, path = config.objectives[name], ("objectives", name)
    weights: dict[KeyPath, float] = {("weight",): objective.weight}
    weights |= {("weight_schedule", i, 1): w for i, (_, w) in enumerate(objective.weight_schedule)}
    weights |= {("by_category", category): w for category, w in objective.by_category.items()}
    for key, weight in weights.items():
        if weight < 0:
            problem = f"is {weight:g}, and a weight below 0 leaves open which scores of {name} are good"
            yield ConfigIssue((*path, *key), problem, fix=_weight_fix(objective, weight))
            return


def _weight_fix(objective: ObjectiveSection, weight: float) -> str:
    if objective.by_category or len({w > 0 for _, w in objective.weight_schedule}) > 1:
        one = "an objective has one goal, so score the other direction as another objective"
        return f"write goal: lower and weights above 0; {one}"
    if objective.direction != Goal():
        return f"write {-weight:g}: its goal is {objective.direction.kind} already"
    return f"write goal: lower, with the weight {-weight:g}"


def _bound_issues(objective: ObjectiveSection, path: KeyPath) -> Iterator[ConfigIssue]:
    kind, is_rate = objective.direction.kind, objective.constraint == "rate"
    keys = [key for key in ("at_least", "at_most") if getattr(objective, key) is not None]
    if not keys:
        return
    if kind == "target":
        problem = "cannot be combined with a target: the reward is the distance to it"
        yield ConfigIssue((*path, keys[0]), problem, fix="remove one of the two")
        return
    expected = "at_most" if kind == "lower" and not is_rate else "at_least"
    for key in keys:
        if key != expected:
            reason = "a rate is bounded from below" if is_rate else f"its goal is {kind}"
            fix = f"write {expected}" + ("" if is_rate or kind == "lower" else ", or goal: lower")
            yield ConfigIssue((*path, key), f"is on the wrong side: {reason}", fix=fix)


def _stored_pair_issues(config: Config) -> Iterator[ConfigIssue]:
    """Pairs say which response is better, and score it 1."""
    for source, pairs in config.data.stored_responses.pairs.items():
        objective = config.objectives.get(pairs.objective or "")
        if objective is not None and objective.direction != Goal():
            problem = f"the chosen response of a pair scores 1, and the goal is {objective.direction.kind}"
            path = ("objectives", str(pairs.objective), "goal" if objective.goal else "target")
            where = f"data.stored_responses.pairs.{source}"
            yield ConfigIssue(path, problem, fix=f"remove it, or the pairs in {where}")
