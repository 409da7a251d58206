"""Which scorer scores which objective, and the rules between objectives, scorers and judges."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paretune.config.data_schema import RewardSection
from paretune.config.issues import ConfigIssue, closest_match, list_names
from paretune.config.objective_schema import ObjectiveSection
from paretune.config.schema import Config
from paretune.config.scorer_schema import (
    LlmJudgeScorerSection,
    PythonScorerSection,
    RewardModelScorerSection,
    ScorerSection,
)
from paretune.config.unknown import UnknownValueError, item_names, known_items, until_unknown
from paretune.config.yaml import KeyPath, short_repr
from paretune.core.errors import ConfigError
from paretune.worlds import get_world

REWARD, JUDGE = "reward", "judge"
"""Names of the sections that are a scorer and a judge of their own."""
PAIRWISE = ("evaluate", "pairwise")
"""Key path of the judges that compare pairs of responses."""
VERDICT_RULES = ("all", "majority")


def scorer_sections(config: Config) -> Iterator[tuple[KeyPath, str, ScorerSection]]:
    """Every scorer, judge and judge of pairs that has a type: its key path, its name and its section."""
    for path in (("scorers",), ("judges",), PAIRWISE):
        try:
            group: Any = config
            for key in path:
                group = getattr(group, key)
            sections = known_items(group)
        except UnknownValueError:
            continue
        for name, section in sections.items():
            yield (*path, name), name, section


def scorer_objectives(name: str, section: ScorerSection) -> tuple[str, ...] | None:
    """The objectives of a scorer; None if they cannot be known before its files are read."""
    if isinstance(section, PythonScorerSection):
        return section.objectives or (name,)
    if isinstance(section, RewardModelScorerSection):
        labels = None if section.outputs else read_label_names(Path(section.path))
        if labels is not None and len(labels) == 1:
            return (name,)
        return tuple(section.outputs or labels or ()) or None
    if isinstance(section, LlmJudgeScorerSection):
        # Imported here: a recipe without such a judge is read without torch.
        from paretune.config.judges import load_rubric

        try:
            return load_rubric(section.rubric).objectives
        except ConfigError:
            return None
    return (section.objective or name,)


def objective_columns(config: Config) -> dict[str, tuple[str, str]]:
    """Objective -> scorer in `scorers` that scores it, and its column there.

    Objectives that are missing here are those of the reward model.
    """
    names = {name: scorer_objectives(name, section) or () for name, section in config.scorers.items()}
    columns = {}
    for objective, section in config.objectives.items():
        source = section.scores_from or objective
        scorer = section.scorer or next((name for name, own in names.items() if source in own), None)
        if scorer in names and (own := names[scorer]):
            columns[objective] = (scorer, source if source in own else own[0])
    return columns


def reward_model_objectives(config: Config) -> list[str]:
    """The objectives that the section `reward` scores."""
    by_scorers = objective_columns(config) if config.scorers else {}
    return [name for name in config.objectives if name not in by_scorers]


def all_objectives_known(config: Config) -> bool:
    """Whether the objectives of every scorer are known before its files are read."""
    return all(scorer_objectives(name, section) is not None for name, section in config.scorers.items())


def _rubric_issues(config: Config) -> Iterator[ConfigIssue]:
    """Rubrics that cannot be read: what a judge scores is not known then."""
    for path, _, section in scorer_sections(config):
        if isinstance(section, LlmJudgeScorerSection):
            from paretune.config.judges import load_rubric

            try:
                load_rubric(section.rubric)
            except ConfigError as error:
                yield ConfigIssue((*path, "rubric"), str(error), standalone=True)


def scorer_issues(config: Config) -> Iterator[ConfigIssue]:
    """Objectives without a scorer or with several, scorers without an objective, and names taken twice."""
    for reserved, group, sections in ((REWARD, "scorers", config.scorers), (JUDGE, "judges", config.judges)):
        if reserved in sections:
            problem = f"is the name of the section {reserved}"
            yield ConfigIssue((group, reserved), problem, fix="write another name")
    yield from _rubric_issues(config)
    names = {name: scorer_objectives(name, section) for name, section in config.scorers.items()}
    known = {name: own for name, own in names.items() if own is not None}
    used: set[str] = set()
    for objective in config.objectives:
        yield from _source_issues(config, objective, known, used)
    if len(known) == len(names):
        for name in names:
            if name not in used:
                scored = ", ".join(known[name])
                fix = f"add one of its objectives ({scored}), with weight 0 to log it only; or remove it"
                yield ConfigIssue(("scorers", name), "no objective uses it", fix=fix)
    if config.reward is not None and names and len(known) == len(names):
        heads = reward_model_objectives(config)
        if not heads:
            problem = "has no effect: the scorers score every objective"
            yield ConfigIssue((REWARD,), problem, fix="remove it, or add objectives of its own")
    yield from _verdict_issues(config)


def _source_issues(
    config: Config, objective: str, known: Mapping[str, tuple[str, ...]], used: set[str]
) -> Iterator[ConfigIssue]:
    """The scorer of one objective; adds it to `used`."""
    section, path = config.objectives[objective], ("objectives", objective)
    source, has_reward = section.scores_from or objective, config.reward is not None
    if section.scorer is not None:
        yield from _named_scorer_issues(config, objective, known)
        used.add(section.scorer)
        return
    owners = [name for name, own in known.items() if source in own]
    if has_reward and source in config.reward_heads:
        owners.append(REWARD)
    used.update(owners)
    if len(owners) > 1:
        fix = f"name one: objectives.{objective}.scorer: {owners[0]}"
        yield ConfigIssue(path, f"is scored by {' and by '.join(owners)}", fix=fix)
    elif not owners and not has_reward and len(known) == len(config.scorers):
        available = [name for own in known.values() for name in own]
        fix = (
            f"the scorers score {list_names(available)}"
            if available
            else f"add it to `scorers`, such as {objective}: {{type: rule, rule: length, max: 60}}, or add a "
            "section reward"
        )
        suggestion = closest_match(source, available)
        yield ConfigIssue(path, "no scorer scores it", suggestion=suggestion, fix=fix)


def scorer_reference_issues(config: Config) -> Iterator[ConfigIssue]:
    """Scorers that objectives name and that do not exist; a scorer with a mistake does."""
    for objective, section in known_items(config.objectives).items():
        yield from until_unknown(_reference_issues(config, objective, section))


def _reference_issues(config: Config, objective: str, section: ObjectiveSection) -> Iterator[ConfigIssue]:
    choices = [*item_names(config.scorers), *([REWARD] if config.reward is not None else [])]
    scorer = section.scorer
    if scorer is not None and scorer not in choices:
        fix = f"one of {list_names(choices)}" if choices else "add it to `scorers`"
        suggestion = closest_match(scorer, choices)
        problem = f"{short_repr(scorer)} is not in scorers"
        path = ("objectives", objective, "scorer")
        yield ConfigIssue(path, problem, suggestion=suggestion, fix=fix)


def _named_scorer_issues(
    config: Config, objective: str, known: Mapping[str, tuple[str, ...]]
) -> Iterator[ConfigIssue]:
    section, path = config.objectives[objective], ("objectives", objective, "scorer")
    scorer, source = section.scorer or "", section.scores_from or objective
    if scorer in known and source not in known[scorer] and len(known[scorer]) > 1:
        fix = f"rename the objective to one of {list_names(known[scorer])}"
        yield ConfigIssue(path, f"{scorer} scores several objectives, none of this name", fix=fix)


def _verdict_issues(config: Config) -> Iterator[ConfigIssue]:
    """The rule of the verdict must name a judge, and there must be several."""
    rule, path = config.evaluate.verdict, ("evaluate", "verdict")
    judges = [*([JUDGE] if config.judge is not None else []), *config.judges]
    if rule not in VERDICT_RULES and rule not in judges:
        choices = [*VERDICT_RULES, *judges]
        suggestion, fix = closest_match(rule, choices), f"one of {list_names(choices)}"
        yield ConfigIssue(path, f"{short_repr(rule)} is no judge", suggestion=suggestion, fix=fix)
    elif rule != VERDICT_RULES[0] and len(judges) < 2:
        problem = "has no effect with fewer than two judges"
        yield ConfigIssue(path, problem, fix="remove it, or add judges")


def judged_objectives(config: Config) -> list[str]:
    """Objectives that the judges are known to score, in their order; the world's own if it judges."""
    judged: list[str] = []
    if config.judge == "ground_truth":
        judged += get_world().objectives
    elif isinstance(config.judge, RewardSection):
        judged += config.judge.objectives
    for name, section in config.judges.items():
        judged += scorer_objectives(name, section) or ()
    return list(dict.fromkeys(judged))


def read_label_names(folder: Path) -> list[str] | None:
    """Label names (id2label) of a model's config.json; None if it cannot be read."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
        return [str(label) for label in labels.values()]
    except (OSError, ValueError, AttributeError, RecursionError):  # RecursionError: JSON nested too deeply
        return None
