"""Settings of objectives that follow from the labels: fallbacks of gates, and weights per spread."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretune.config.objective_schema import ObjectiveSection
from paretune.config.schema import Config
from paretune.config.scorers import reward_model_objectives
from paretune.core.errors import ConfigError
from paretune.data.records import Rating, ResponseGroup
from paretune.experiment.dataset import Dataset
from paretune.experiment.label_summary import LabelStatistics, label_statistics
from paretune.experiment.resolved import ResolvedRun


def apply_labels(run: ResolvedRun, dataset: Dataset) -> ResolvedRun:
    """The run with every gate's fallback and every normalized weight filled in from the training labels.

    Raises:
        ConfigError: One line per setting whose labels are not known.
    """
    config = run.config
    names = [name for name, o in config.objectives.items() if _needs_fallback(o) or o.normalize == "std"]
    if not names:
        return run
    labels = training_label_statistics(
        config, dataset, names, generates=run.algorithm.rollout.generates, sample=False
    )
    issues = list(_unknown_label_issues(run, names, labels))
    if issues:
        raise ConfigError("\n".join(issues))
    objectives = dict(config.objectives)
    for name in names:
        objectives[name] = _filled_in(objectives[name], labels[name])
    return run.with_config(config.model_copy(update={"objectives": objectives}))


def training_label_statistics(
    config: Config, dataset: Dataset, names: Sequence[str], *, generates: bool, sample: bool = True
) -> dict[str, LabelStatistics]:
    """Objective -> statistics of the labels that its scores are like.

    Args:
        config: The recipe.
        dataset: All records.
        names: Objectives.
        generates: Responses are sampled and scored by the reward model; else their labels are stored.
        sample: Of generated records, read only some.
    """
    if not generates:
        return label_statistics(list(_stored_ratings(dataset.stored_responses)), names)
    by_reward = [name for name in names if name in reward_model_objectives(config)]
    heads = {name: config.objectives[name].scores_from or name for name in by_reward}
    if dataset.reward is None:
        return {}
    by_head = label_statistics(dataset.reward.train, list(dict.fromkeys(heads.values())), sample=sample)
    return {name: by_head[head] for name, head in heads.items()}


def _stored_ratings(groups: Sequence[ResponseGroup]) -> Iterator[Rating]:
    for group in groups:
        for response, labels in zip(group.responses, group.labels, strict=True):
            yield Rating(prompt=group.prompt, response=response, labels=labels)


def _needs_fallback(objective: ObjectiveSection) -> bool:
    return objective.parsed_gate is not None and objective.gate_fallback is None


def _filled_in(objective: ObjectiveSection, labels: LabelStatistics) -> ObjectiveSection:
    update: dict[str, Any] = {}
    if _needs_fallback(objective):
        update["gate_fallback"] = labels.worst(objective.direction)
    if objective.normalize == "std":
        update["weight"] = objective.weight / labels.std
        update["weight_schedule"] = tuple((step, w / labels.std) for step, w in objective.weight_schedule)
        update["by_category"] = {name: w / labels.std for name, w in objective.by_category.items()}
    return objective.model_copy(update=update)


def _unknown_label_issues(
    run: ResolvedRun, names: Sequence[str], labels: Mapping[str, LabelStatistics]
) -> Iterator[str]:
    reward = run.config.reward
    for name in names:
        known, objective = _known(labels, name), run.config.objectives[name]
        from_reward = name in reward_model_objectives(run.config)
        is_fitted = reward is not None and reward.path is not None and from_reward
        why = "reward.path is a fitted model" if is_fitted else "it has no ratings"
        if known is None and _needs_fallback(objective):
            problem = f"is missing: the worst label of {name} is not known, as {why}"
            fix = "write the worst score, in the units of the objective, such as gate_fallback: 0"
            yield run.issue(("objectives", name, "gate_fallback"), problem, fix)
        if objective.normalize == "std" and (known is None or not known.std > 0):
            why = why if known is None else "all its labels are equal"
            problem = f"the spread of the labels of {name} is not known, as {why}"
            yield run.issue(("objectives", name, "normalize"), problem, "remove it, and set weight")


def _known(labels: Mapping[str, LabelStatistics], name: str) -> LabelStatistics | None:
    """The statistics of an objective; None if it has no labels."""
    statistics = labels.get(name)
    return statistics if statistics is not None and statistics.num_labels else None


def fallback_warnings(config: Config, labels: Mapping[str, LabelStatistics]) -> Iterator[str]:
    """Stated fallbacks that are better than the worst label: a response is paid for failing the gate."""
    for name, objective in config.objectives.items():
        known, fallback = _known(labels, name), objective.gate_fallback
        if objective.parsed_gate is None or known is None or fallback is None:
            continue
        orient = objective.direction.orient
        worst = known.worst(objective.direction)
        is_better = orient(fallback) > orient(worst)
        if is_better and not math.isclose(fallback, worst, rel_tol=1e-9):
            where = "inside" if known.low < fallback < known.high else "beyond the best of"
            yield (
                f"objectives.{name}.gate_fallback: {fallback:g} is {where} the labels' range "
                f"{known.low:g} to {known.high:g}, so a response that fails the gate scores better than "
                f"the worst that passes; fix: write {worst:g}, or remove it"
            )
