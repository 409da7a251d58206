"""Kinds of prompts: a word that was all but one of those whose refusals are counted apart.

What the sections of a recipe must be to each other: names that are known, options that have an effect.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from paretune.config.data_schema import ColumnsSection, DataSource, RewardSection, Section
from paretune.config.issues import ConfigIssue, closest_match
from paretune.config.schema import Config
from paretune.config.yaml import KeyPath, short_repr
from paretune.data.columns import NOT_REFUSAL_CATEGORY, RENAME_CATEGORY_FIX, misspelled_category


def category_issues(config: Config) -> Iterator[ConfigIssue]:
    """Kinds in whose spelling a slip would take their refusals out of the evaluation, unseen."""
    for group, found in (("prompts", config.data.prompts), ("test", config.data.test_prompts)):
        for name, source in found.items():
            meant = misspelled_category(source.category)
            if meant:
                fix = RENAME_CATEGORY_FIX.format(meant)
                wrong = f"{short_repr(source.category)} {NOT_REFUSAL_CATEGORY}"
                yield ConfigIssue(
                    ("data", group, name, "kind"), wrong, suggestion=meant, fix=fix, standalone=True
                )


WORLD = "world"


def rule_issues(config: Config) -> list[ConfigIssue]:
    """Every broken rule of an experiment whose sections are right by themselves."""
    return [fault for rule in RULES for fault in rule(config)]


def non_default_keys(section: Section) -> list[str]:
    """The keys that were written and say something else than their defaults."""
    fields, default = type(section).model_fields, type(section).model_construct()
    return [
        fields[name].alias or name
        for name in fields
        if name in section.model_fields_set and getattr(section, name) != getattr(default, name, None)
    ]


def _no_effect_issues(path: KeyPath, keys: Iterable[str], reason: str) -> Iterator[ConfigIssue]:
    for key in keys:
        yield ConfigIssue((*path, key), f"has no effect {reason}", fix="leave out one of the two")


def _data_issues(config: Config) -> Iterator[ConfigIssue]:
    if config.data.world is not None:
        yield from _no_effect_issues(
            ("data",),
            [k for k in non_default_keys(config.data) if k in {"prompts", "test"}],
            "beside data.world",
        )
        yield from _unused_world_issues(config, non_default_keys(config.data.world))
        return
    for name, source in config.data.test_prompts.items():
        if "share" in non_default_keys(source):
            fix = "leave it out; `most` takes fewer prompts"
            yield ConfigIssue(
                ("data", "test", name, "share"), "has no effect: every test prompt is used", fix=fix
            )
    if not config.data.prompts:
        yield ConfigIssue(
            ("data", "prompts"), "is missing", fix="name files of prompts, or write data.world: {}"
        )
    if not config.data.test_prompts:
        yield ConfigIssue(
            ("data", "test_prompts"),
            "is missing",
            fix="name files of prompts that the policy is evaluated on",
        )
    yield from _overlap_issues(
        ("data", "test_prompts"),
        config.data.test_prompts,
        config.data.prompts,
        "the policy would be tried on what it learnt",
    )


def _unused_world_issues(config: Config, keys: list[str]) -> Iterator[ConfigIssue]:
    """What is said of the built-in world's records where the recipe has records of its own, or needs none."""
    if config.policy.sft is None or config.policy.sft.demonstrations:
        why = "without policy.sft" if config.policy.sft is None else "beside policy.sft.demonstrations"
        yield from _no_effect_issues(("data", "world"), [k for k in keys if k == "demonstrations"], why)
    own = next((key for key in ("path", "ratings", "pairs") if getattr(config.reward, key)), None)
    if own is not None:
        raters = {"rated", "raters", "noise", "length_bias", "missing", "confidence_bias"}
        yield from _no_effect_issues(
            ("data", "world"), [k for k in keys if k in raters], f"beside reward.{own}"
        )


def _overlap_issues(
    path: KeyPath, test: Mapping[str, DataSource], train: Mapping[str, DataSource], reason: str
) -> Iterator[ConfigIssue]:
    """The same rows in two roles that must not share any."""
    for name, source in test.items():
        for other, seen in train.items():
            if (source.file, source.where) == (seen.file, seen.where):
                fix = "name another file, or other rows by `where`"
                yield ConfigIssue((*path, name, "file"), f'has the rows of "{other}": {reason}', fix=fix)


def _policy_issues(config: Config) -> Iterator[ConfigIssue]:
    sft, own = config.policy.sft, config.policy.path == WORLD
    if own and config.data.world is None:
        fix = "write data.world: {}, or name a folder or a hub name"
        yield ConfigIssue(
            ("policy", "path"),
            '"world" is the policy of the built-in world, and there is no data.world',
            fix=fix,
        )
    if own and sft is None:
        yield ConfigIssue(
            ("policy", "sft"), "is missing: the policy of the built-in world is trained from scratch"
        )
    if sft is not None and own and sft.demonstrations:
        yield from _no_effect_issues(
            ("policy", "sft"), ["demonstrations"], 'beside policy.path "world", which brings its own'
        )
    if sft is not None and not sft.demonstrations and config.data.world is None:
        fix = "name files of demonstrations, or leave out policy.sft"
        yield ConfigIssue(("policy", "sft", "demonstrations"), "is missing: nothing to learn from", fix=fix)


def _reward_issues(config: Config) -> Iterator[ConfigIssue]:
    for name, section in reward_sections(config):
        yield from (
            _pretrained_reward_issues(name, section)
            if section.path is not None
            else _trained_reward_issues(config, name, section)
        )


def reward_sections(config: Config) -> Iterator[tuple[str, RewardSection]]:
    """The reward, and the judge where it is a model."""
    yield "reward", config.reward
    if isinstance(config.judge, RewardSection):
        yield "judge", config.judge


def _pretrained_reward_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    yield from _no_effect_issues(
        (name,),
        [k for k in non_default_keys(section) if k not in {"path", "revision", "dtype"}],
        f"beside {name}.path",
    )


def _trained_reward_issues(config: Config, name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    if not section.objectives:
        yield ConfigIssue(
            (name, "objectives"), "is missing", fix=f"name the heads to fit, or a fitted model by {name}.path"
        )
    world = config.data.world is not None and not (section.ratings or section.pairs)
    if world:
        yield from _world_head_issues(name, section)
    elif not (section.ratings or section.pairs):
        yield ConfigIssue(
            (name, "ratings"), "is missing", fix=f"name files by {name}.ratings or {name}.pairs"
        )
    else:
        yield from _head_issues(name, section)
        yield from _overlap_issues(
            (name, "test_ratings"), section.test_ratings, section.ratings, "nothing would be held out"
        )
        yield from _overlap_issues(
            (name, "test_pairs"), section.test_pairs, section.pairs, "nothing would be held out"
        )
    if "held_out" in non_default_keys(section) and (world or section.test_ratings or section.test_pairs):
        yield from _no_effect_issues((name,), ["held_out"], "where there is test data of its own")
    if "revision" in non_default_keys(section) and section.init_from == "policy":
        yield from _no_effect_issues((name,), ["revision"], "without a body of its own: see policy.revision")
    for head, settings in section.objectives.items():
        if "delta" in non_default_keys(settings) and settings.loss != "huber":
            yield from _no_effect_issues((name, "objectives", head), ["delta"], f"with loss {settings.loss}")
        if "right" in non_default_keys(settings) and settings.loss != "calibrated":
            yield from _no_effect_issues((name, "objectives", head), ["right"], f"with loss {settings.loss}")


def _world_head_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    from paretune.worlds.helpdesk.world import OBJECTIVES

    if name == "judge":
        fix = "write judge: truth, or name other data by judge.ratings or judge.path"
        yield ConfigIssue(("judge",), "would be fitted on what the reward is fitted on", fix=fix)
    yield from _no_effect_issues(
        (name,), [k for k in non_default_keys(section) if k.startswith("test_")], "beside data.world"
    )
    for head, settings in section.objectives.items():
        path: KeyPath = (name, "objectives", head)
        if head not in OBJECTIVES:
            fix = f"the raters of the built-in world say {', '.join(OBJECTIVES)}"
            yield ConfigIssue(path, "nobody rates it", suggestion=closest_match(head, OBJECTIVES), fix=fix)
        if settings.loss == "bradley_terry":
            yield ConfigIssue(
                (*path, "loss"),
                "bradley_terry needs pairs, and the built-in world has ratings",
                fix="take mse",
            )


def _head_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    """Labels and pairs without a head, and heads without either."""
    heads = section.objectives
    for group in ("ratings", "test_ratings"):
        for source, ratings in getattr(section, group).items():
            for label in ratings.labels:
                yield from _unknown_name_issues(
                    (name, group, source, "labels", label), label, heads, f"{name}.objectives"
                )
    for group in ("pairs", "test_pairs"):
        for source, pairs in getattr(section, group).items():
            if pairs.objective is not None:
                yield from _unknown_name_issues(
                    (name, group, source, "objective"), pairs.objective, heads, f"{name}.objectives"
                )
    rated = {label for ratings in section.ratings.values() for label in ratings.labels}
    paired = {pairs.objective for pairs in section.pairs.values()}
    for head, settings in heads.items():
        by_pairs, there = settings.loss == "bradley_terry", head in paired or None in paired
        if settings.loss == "calibrated" and there:
            continue
        if not (there if by_pairs else head in rated):
            kind = "pairs" if by_pairs else "ratings"
            other = (
                ""
                if by_pairs or head not in paired
                else "; or write loss: bradley_terry, to learn from its pairs"
            )
            fix = f"name {name}.{kind} that have it{other}"
            yield ConfigIssue(
                (name, "objectives", head),
                f"loss {settings.loss} needs {kind} of it, and there are none",
                fix=fix,
            )


def _unknown_name_issues(
    path: KeyPath, name: str, known_names: Iterable[str], owner: str
) -> Iterator[ConfigIssue]:
    every = list(dict.fromkeys(known_names))
    if name not in every:
        yield ConfigIssue(
            path,
            f"{short_repr(name)} is not in {owner}",
            suggestion=closest_match(name, every),
            fix=f"one of {', '.join(every)}",
        )


def _judge_issues(config: Config) -> Iterator[ConfigIssue]:
    if config.judge == "truth" and config.data.world is None:
        fix = "name a model, or other data to fit one; or leave out judge"
        yield ConfigIssue(("judge",), "the truth is known in the built-in world only", fix=fix)
    if isinstance(config.judge, RewardSection):
        why = "a judge must know other data than the reward"
        yield from _overlap_issues(("judge", "ratings"), config.judge.ratings, config.reward.ratings, why)
        yield from _overlap_issues(("judge", "pairs"), config.judge.pairs, config.reward.pairs, why)
        if config.judge.path is not None and config.judge.path == config.reward.path:
            yield ConfigIssue(
                ("judge", "path"),
                f"is the reward itself: {why}",
                fix="leave out judge, or name another model",
            )


def _objective_issues(config: Config) -> Iterator[ConfigIssue]:
    for name, objective in config.objectives.items():
        path: KeyPath = ("objectives", name)
        yield from _scoring_head_issues(config, name)
        if objective.gate is not None and objective.parsed_gate is None:
            fix = 'write it like "safety >= 0.5"'
            yield ConfigIssue(
                (*path, "when"), f"{short_repr(objective.gate)} is not a gate", fix=fix, standalone=True
            )
        elif objective.parsed_gate is not None:
            yield from _unknown_name_issues(
                (*path, "when"), objective.parsed_gate[0], config.objectives, "objectives"
            )
            if not math.isfinite(objective.parsed_gate[1]):
                yield ConfigIssue((*path, "when"), "the threshold must be a finite number", standalone=True)
            yield from _gate_fallback_issues(config, name)
        elif objective.gate_fallback is not None:
            yield from _no_effect_issues(path, ["otherwise"], "without `when`")
    if not any(objective.weight for objective in config.objectives.values()):
        yield ConfigIssue(
            ("objectives",), "every weight is 0: there is nothing to learn", fix="give one of them a weight"
        )
    known = [
        *config.objectives,
        *(config.judge.objectives if isinstance(config.judge, RewardSection) else {}),
    ]
    for name in config.evaluate.non_inferiority_margin:
        yield from _unknown_name_issues(("evaluate", "margin", name), name, known, "objectives")


def _scoring_head_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """The head that scores an objective: one of its own name, or for thoughts the one that is named."""
    objective, heads = config.objectives[name], list(config.reward.objectives)
    path: KeyPath = ("objectives", name)
    if objective.scored_text == "trace" and objective.scores_from is None:
        yield ConfigIssue((*path, "of"), "is missing", fix="name the head that scores the thoughts")
        return
    if objective.scored_text == "answer":
        yield from _no_effect_issues(
            path, [key for key in non_default_keys(objective) if key == "of"], "without reads: trace"
        )
    if heads and config.reward.path is None:
        where = (*path, "of") if objective.scores_from else path
        yield from _unknown_name_issues(
            where, objective.scores_from or name, heads, "reward.objectives: no model provides it"
        )


def _gate_fallback_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """A gated head must have a worst score: one that only compares has 0 for its average response."""
    head = config.reward.objectives.get(name)
    if head is not None and head.loss == "bradley_terry" and config.objectives[name].gate_fallback is None:
        fix = "write its worst score, such as otherwise: -3 (log-odds below the average response)"
        wrong = (
            "is missing: a head fitted to pairs has no worst score, and below the gate 0 would be a reward"
        )
        yield ConfigIssue(("objectives", name, "otherwise"), wrong, fix=fix, standalone=True)


def _stored_label_issues(config: Config) -> Iterator[ConfigIssue]:
    """What stored responses are labelled by must be objectives."""
    for source, ratings in config.data.stored_responses.ratings.items():
        for label in ratings.labels:
            path: KeyPath = ("data", "stored", "ratings", source, "labels", label)
            yield from _unknown_name_issues(path, label, config.objectives, "objectives")
    for source, pairs in config.data.stored_responses.pairs.items():
        if pairs.objective is not None:
            path = ("data", "stored", "pairs", source, "objective")
            yield from _unknown_name_issues(path, pairs.objective, config.objectives, "objectives")


COLUMNS_BY_RECORD_TYPE = {
    "prompts": {"prompt", "messages", "id", "kind", "preference"},
    "ratings": {"prompt", "messages", "id", "response", "scores"},
    "pairs": {"prompt", "id", "chosen", "rejected", "objective"},
    "demonstrations": {"prompt", "messages", "id", "response"},
}


def data_sources(config: Config) -> Iterator[tuple[KeyPath, str, DataSource]]:
    """Every file of the recipe: its path in the recipe, the kind of its records, and the source."""
    groups: list[tuple[KeyPath, str, Mapping[str, DataSource]]] = [
        (("data", "prompts"), "prompts", config.data.prompts),
        (("data", "test_prompts"), "prompts", config.data.test_prompts),
        (
            ("policy", "sft", "demonstrations"),
            "demonstrations",
            config.policy.sft.demonstrations if config.policy.sft else {},
        ),
    ]
    groups.append((("data", "stored_responses", "ratings"), "ratings", config.data.stored_responses.ratings))
    groups.append((("data", "stored_responses", "pairs"), "pairs", config.data.stored_responses.pairs))
    groups.append((("data", "demonstrations"), "demonstrations", config.data.demonstrations))
    for name, section in reward_sections(config):
        for group in ("ratings", "pairs", "test_ratings", "test_pairs"):
            groups.append(((name, group), group.removeprefix("test_"), getattr(section, group)))
    for path, kind, found in groups:
        for name, source in found.items():
            yield (*path, name), kind, source


def _column_issues(config: Config) -> Iterator[ConfigIssue]:
    for path, kind, source in data_sources(config):
        columns: ColumnsSection = source.columns
        idle = [key for key in non_default_keys(columns) if key not in COLUMNS_BY_RECORD_TYPE[kind]]
        for key in idle:
            wrong, fix = (
                f"{kind} have no such column",
                f"one of {', '.join(sorted(COLUMNS_BY_RECORD_TYPE[kind]))}",
            )
            yield ConfigIssue((*path, "columns", key), wrong, fix=fix, standalone=True)
        if kind == "pairs" and columns.objective and getattr(source, "objective", None) is not None:
            yield from _no_effect_issues((*path, "columns"), ["objective"], "beside `objective`")


RULES: tuple[Callable[[Config], Iterator[ConfigIssue]], ...] = (
    _data_issues,
    _policy_issues,
    _reward_issues,
    _judge_issues,
    _objective_issues,
    _stored_label_issues,
    _column_issues,
    category_issues,
)
