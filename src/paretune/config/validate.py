"""Rules between the sections of a recipe: names must be known, and every setting must have an effect."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from paretune.config.checkpoint_issues import checkpoint_issues
from paretune.config.data_schema import DataSource, RewardSection, Section
from paretune.config.issues import ConfigIssue, closest_match, list_names, misspelled_category
from paretune.config.objective_issues import goal_issues
from paretune.config.objective_schema import parse_threshold
from paretune.config.schema import Config
from paretune.config.scorers import (
    all_objectives_known,
    judged_objectives,
    reward_model_objectives,
    scorer_issues,
    scorer_reference_issues,
)
from paretune.config.unknown import UnknownValueError, item_names, known_items, until_unknown
from paretune.config.yaml import KeyPath, dotted_key, short_repr
from paretune.worlds import get_world

WORLD = "world"
"""`policy.path` of the model that is trained from scratch in the built-in world."""


def rule_issues(config: Config) -> list[ConfigIssue]:
    """All violations of the rules between sections that are valid by themselves."""
    return [issue for rule in RULES for issue in until_unknown(rule(config))]


def non_default_keys(section: Section) -> list[str]:
    """The keys that are set to something else than their defaults."""
    fields, defaults = type(section).model_fields, vars(type(section).model_construct())
    return [
        fields[name].alias or name
        for name in fields
        if getattr(section, name) != defaults.get(name) and name in section.model_fields_set
    ]


def reward_sections(config: Config) -> Iterator[tuple[str, RewardSection]]:
    """The reward model, if there is one, and the judge if it is such a model."""
    for name in ("reward", "judge"):
        try:
            section = getattr(config, name)
        except UnknownValueError:
            continue
        if isinstance(section, RewardSection):
            yield name, section


def _no_effect_issues(path: KeyPath, keys: Iterable[str], reason: str) -> Iterator[ConfigIssue]:
    for key in keys:
        yield ConfigIssue((*path, key), f"has no effect {reason}", fix="remove it")


def category_issues(config: Config) -> Iterator[ConfigIssue]:
    """Misspelled refusal categories, whose refusals would silently not be reported."""
    refusal_categories = list(config.evaluate.refusal_categories)
    for group, sources in (("prompts", config.data.prompts), ("test_prompts", config.data.test_prompts)):
        for name, source in sources.items():
            suggestion = misspelled_category(source.category, refusal_categories)
            if suggestion:
                yield ConfigIssue(
                    ("data", group, name, "category"),
                    f"{short_repr(source.category)} is not in evaluate.refusal_categories",
                    suggestion=suggestion,
                    fix=f"write {suggestion}, or a clearly different category",
                    standalone=True,
                )


def _data_issues(config: Config) -> Iterator[ConfigIssue]:
    if config.data.world is not None:
        file_keys = {"prompts", "test_prompts", "holdout_fraction"}
        keys = [key for key in non_default_keys(config.data) if key in file_keys]
        yield from _no_effect_issues(("data",), keys, "with data.world")
        yield from _unused_world_issues(config, non_default_keys(config.data.world))
        return
    for name, source in config.data.test_prompts.items():
        if "sampling_weight" in non_default_keys(source):
            path: KeyPath = ("data", "test_prompts", name, "sampling_weight")
            fix = "remove it; `max_rows` limits the number of prompts"
            yield ConfigIssue(path, "has no effect: every test prompt is used", fix=fix)
    if not config.data.prompts:
        fix = "name files of prompts, or write data.world: {}"
        yield ConfigIssue(("data", "prompts"), "is missing", fix=fix)
    if config.data.holdout_fraction is not None and config.data.test_prompts:
        yield from _no_effect_issues(("data",), ["holdout_fraction"], "with data.test_prompts")
    if not (config.data.test_prompts or config.data.holdout_fraction):
        fix = "name files to evaluate the policy on, or hold prompts out: data: {holdout_fraction: 0.1}"
        yield ConfigIssue(("data", "test_prompts"), "is missing", fix=fix)
    yield from _overlap_issues(
        ("data", "test_prompts"),
        config.data.test_prompts,
        config.data.prompts,
        "the policy would be evaluated on its training prompts",
    )


def _unused_world_issues(config: Config, keys: list[str]) -> Iterator[ConfigIssue]:
    """Settings of the world's demonstrations and ratings in a recipe that does not use them."""
    sft = config.policy.sft
    if sft is None or sft.demonstrations:
        reason = "without policy.sft" if sft is None else "with policy.sft.demonstrations"
        unused = [key for key in keys if key == "num_demonstrations"]
        yield from _no_effect_issues(("data", "world"), unused, reason)
    reward, source = config.reward, None
    if reward is not None:
        key = next((key for key in ("path", "ratings", "pairs") if getattr(reward, key)), None)
        source = key and f"with reward.{key}"
    if reward is None or source is not None:
        rating_keys = {
            "num_ratings",
            "num_raters",
            "rater_noise",
            "length_bias",
            "missing_rate",
            "confidence_bias",
        }
        unused = [key for key in keys if key in rating_keys]
        yield from _no_effect_issues(("data", "world"), unused, source or "without a section reward")


def _overlap_issues(
    path: KeyPath, test: Mapping[str, DataSource], train: Mapping[str, DataSource], reason: str
) -> Iterator[ConfigIssue]:
    """The same rows in two roles that must be disjoint; a judge's must not be the reward's."""
    own = (*path[:-1], str(path[-1]).removeprefix("test_"))
    train_path = own if own != path else ("reward", *path[1:])
    for name, source in test.items():
        for other, train_source in train.items():
            if (source.file, source.where) == (train_source.file, train_source.where):
                problem = f"has the same rows as {dotted_key((*train_path, other))}: {reason}"
                fix = "name another file, or other rows with `where`"
                yield ConfigIssue((*path, name, "file"), problem, fix=fix)


def _policy_issues(config: Config) -> Iterator[ConfigIssue]:
    sft, is_world_policy = config.policy.sft, config.policy.path == WORLD
    if is_world_policy and config.data.world is None:
        fix = "write data.world: {}, or a folder or hub name"
        problem = '"world" is the policy of the built-in world, which needs data.world'
        yield ConfigIssue(("policy", "path"), problem, fix=fix)
    if is_world_policy and sft is None:
        problem = "is missing: the policy of the built-in world is trained from scratch"
        yield ConfigIssue(("policy", "sft"), problem, fix="write policy.sft: {}")
    if sft is not None and is_world_policy and sft.demonstrations:
        reason = 'with policy.path "world", which has its own demonstrations'
        yield from _no_effect_issues(("policy", "sft"), ["demonstrations"], reason)
    if sft is not None and not sft.demonstrations and config.data.world is None:
        problem, fix = "is missing: nothing to train on", "name files of demonstrations, or remove policy.sft"
        yield ConfigIssue(("policy", "sft", "demonstrations"), problem, fix=fix)


def _reward_issues(config: Config) -> Iterator[ConfigIssue]:
    for name, section in reward_sections(config):
        yield from (
            _pretrained_reward_issues(name, section)
            if section.path is not None
            else _trained_reward_issues(config, name, section)
        )


LOSS_OF_KEY = {"huber_delta": "huber", "correct_threshold": "calibrated", "levels": "ordinal"}
PRETRAINED_KEYS = {"path", "revision", "dtype", "chat_template_kwargs"}
"""Keys of a reward model that is not fitted in the run."""


def _pretrained_reward_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    unused = [key for key in non_default_keys(section) if key not in PRETRAINED_KEYS]
    yield from _no_effect_issues((name,), unused, f"with {name}.path")


def _trained_reward_issues(config: Config, name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    if not section.objectives:
        fix = f"name the heads to fit, or a fitted model in {name}.path"
        yield ConfigIssue((name, "objectives"), "is missing", fix=fix)
    has_files = bool(section.ratings or section.pairs)
    uses_world = config.data.world is not None and not has_files
    if uses_world:
        yield from _world_head_issues(name, section)
    elif not has_files:
        fix = f"name files in {name}.ratings or {name}.pairs"
        yield ConfigIssue((name, "ratings"), "is missing", fix=fix)
    else:
        yield from _label_issues(name, section)
        yield from _head_issues(name, section)
        reason = "the reward model would be evaluated on its training rows"
        yield from _overlap_issues((name, "test_ratings"), section.test_ratings, section.ratings, reason)
        yield from _overlap_issues((name, "test_pairs"), section.test_pairs, section.pairs, reason)
    keys = non_default_keys(section)
    if "holdout_fraction" in keys and (uses_world or section.test_ratings or section.test_pairs):
        yield from _no_effect_issues((name,), ["holdout_fraction"], "with separate test data")
    if "allow_weak_heads" in keys and name == "judge":
        reason = "on a judge, whose weak heads are a warning"
        yield from _no_effect_issues((name,), ["allow_weak_heads"], reason)
    for key in sorted(
        {"revision", "chat_template_kwargs"} & set(keys) if section.init_from == "policy" else ()
    ):
        yield from _no_effect_issues((name,), [key], f"with init_from: policy; see policy.{key}")
    for head, settings in section.objectives.items():
        for key, loss in LOSS_OF_KEY.items():
            if key in non_default_keys(settings) and settings.loss != loss:
                path = (name, "objectives", head)
                yield from _no_effect_issues(path, [key], f"with loss {settings.loss}")


def _world_head_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    world_objectives = get_world().objectives
    if name == "judge":
        fix = "write judge: ground_truth, or other data in judge.ratings or judge.path"
        yield ConfigIssue(("judge",), "would be fitted to the same data as the reward", fix=fix)
    unused = [key for key in non_default_keys(section) if key.startswith("test_")]
    yield from _no_effect_issues((name,), unused, "with data.world")
    for head, settings in section.objectives.items():
        path: KeyPath = (name, "objectives", head)
        if head not in world_objectives:
            fix = f"the built-in world has ratings of {list_names(world_objectives)}"
            suggestion = closest_match(head, world_objectives)
            yield ConfigIssue(path, "has no ratings", suggestion=suggestion, fix=fix)
        needs = {"bradley_terry": "pairs", "ordinal": "ratings on levels"}.get(settings.loss)
        if needs is not None:
            has = "ratings" if needs == "pairs" else "means of ratings"
            problem = f"{settings.loss} needs {needs}, and the built-in world has {has}"
            yield ConfigIssue((*path, "loss"), problem, fix="write mse")


def _label_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    """Labels and pairs without a head."""
    heads, owner = section.objectives, f"{name}.objectives"
    for group in ("ratings", "test_ratings"):
        for source, ratings in getattr(section, group).items():
            for label in ratings.labels:
                yield from _unknown_name_issues((name, group, source, "labels", label), label, heads, owner)
    for group in ("pairs", "test_pairs"):
        for source, pairs in getattr(section, group).items():
            if pairs.objective is not None:
                path = (name, group, source, "objective")
                yield from _unknown_name_issues(path, pairs.objective, heads, owner)


def _head_issues(name: str, section: RewardSection) -> Iterator[ConfigIssue]:
    """Heads without data to fit."""
    heads = section.objectives
    rated = {label for ratings in section.ratings.values() for label in ratings.labels}
    paired = {pairs.objective for pairs in section.pairs.values()}
    for head, settings in heads.items():
        # A source whose objective is null names one per row, which may be any.
        needs_pairs, has_pairs = settings.loss == "bradley_terry", head in paired or None in paired
        if settings.loss == "calibrated" and has_pairs:
            continue
        if not (has_pairs if needs_pairs else head in rated):
            data = "pairs" if needs_pairs else "ratings"
            fix = f"add it to {name}.{data}"
            if not needs_pairs and head in paired:
                fix += "; or write loss: bradley_terry, to fit its pairs"
            problem = f"loss {settings.loss} needs {data} of this objective, and there are none"
            yield ConfigIssue((name, "objectives", head), problem, fix=fix)


def _unknown_name_issues(
    path: KeyPath, name: str, known_names: Iterable[str], owner: str, fix: str = ""
) -> Iterator[ConfigIssue]:
    names = list(dict.fromkeys(item_names(known_names)))
    if name not in names:
        suggestion, fix = closest_match(name, names), fix or f"one of {list_names(names)}"
        yield ConfigIssue(path, f"{short_repr(name)} is not in {owner}", suggestion=suggestion, fix=fix)


def _judge_issues(config: Config) -> Iterator[ConfigIssue]:
    if config.judge == "ground_truth" and config.data.world is None:
        fix = "name a model, or other data to fit one; or remove judge"
        yield ConfigIssue(("judge",), "ground truth exists in the built-in world only", fix=fix)
    if isinstance(config.judge, RewardSection) and config.reward is not None:
        reason = "the judge must be fitted to other data than the reward"
        yield from _overlap_issues(("judge", "ratings"), config.judge.ratings, config.reward.ratings, reason)
        yield from _overlap_issues(("judge", "pairs"), config.judge.pairs, config.reward.pairs, reason)
        if config.judge.path is not None and config.judge.path == config.reward.path:
            fix = "remove judge, or name another model"
            yield ConfigIssue(("judge", "path"), f"is the reward model itself: {reason}", fix=fix)


def _objective_issues(config: Config) -> Iterator[ConfigIssue]:
    for name in known_items(config.objectives):
        yield from until_unknown(_scoring_head_issues(config, name))
        yield from until_unknown(_gate_issues(config, name))


def _weight_issues(config: Config) -> Iterator[ConfigIssue]:
    if not any(objective.weight for objective in config.objectives.values()):
        problem = "every weight is 0, so there is no reward"
        yield ConfigIssue(("objectives",), problem, fix="give one of them a weight")


def _margin_issues(config: Config) -> Iterator[ConfigIssue]:
    names = [*item_names(config.objectives), *judged_objectives(config)]
    for name in config.evaluate.non_inferiority_margin:
        path: KeyPath = ("evaluate", "non_inferiority_margin", name)
        yield from _unknown_name_issues(path, name, names, "objectives")


def _scoring_head_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """The reward head of an objective: the one of the same name, or for thinking the one in `scores_from`."""
    objective, heads = config.objectives[name], list(config.reward_heads)
    path: KeyPath = ("objectives", name)
    if objective.scored_text == "thinking" and objective.scores_from is None:
        fix = "name the reward head that scores the thinking"
        yield ConfigIssue((*path, "scores_from"), "is missing", fix=fix)
        return
    if objective.scored_text == "response":
        unused = [key for key in non_default_keys(objective) if key == "scores_from"]
        yield from _no_effect_issues(path, unused, "without scored_text: thinking")
    is_from_scorer = not all_objectives_known(config) or name not in reward_model_objectives(config)
    if heads and not is_from_scorer and config.reward is not None and config.reward.path is None:
        head_path = (*path, "scores_from") if objective.scores_from else path
        owner, source = "reward.objectives: no model provides it", objective.scores_from or name
        is_new = (config.reward.ratings or config.reward.pairs) and not closest_match(source, heads)
        yield from _unknown_name_issues(head_path, source, heads, owner, _new_fix(config) if is_new else "")


def _new_fix(config: Config) -> str:
    """How to train an objective that no head is like: it is new, not misspelled."""
    judge = ", and to judge.objectives and judge.ratings" * isinstance(config.judge, RewardSection)
    return f"add it to reward.objectives and to the labels of reward.ratings{judge}; or to scorers"


def _gate_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    objective, path = config.objectives[name], ("objectives", name)
    if objective.gate is not None and objective.parsed_gate is None:
        problem, fix = f"{short_repr(objective.gate)} is not a gate", _gate_fix(objective.gate)
        yield ConfigIssue((*path, "gate"), problem, fix=fix, standalone=True)
    elif objective.parsed_gate is not None:
        gating_objective, _, threshold = objective.parsed_gate
        yield from _unknown_name_issues((*path, "gate"), gating_objective, config.objectives, "objectives")
        if not math.isfinite(threshold):
            yield ConfigIssue((*path, "gate"), "the threshold must be a finite number", standalone=True)
        yield from _gate_fallback_issues(config, name)
    elif objective.gate_fallback is not None:
        yield from _no_effect_issues(path, ["gate_fallback"], "without `gate`")


def _gate_fix(gate: str) -> str:
    """The same gate with >= or <=, where it has another comparison; else an example."""
    name, comparison, threshold = re.match(r"([^<>=]*)([<>=]*)(.*)", gate, re.DOTALL).groups()  # type: ignore[union-attr]
    meant = "<=" if "<" in comparison else ">="
    written = f"{name.strip()} {meant} {threshold.strip()}"
    if not comparison or comparison == meant or parse_threshold(written) is None:
        return 'write it like "safety >= 0.5"'
    return f'{comparison} must be {meant}: write "{written}"'


def _gate_fallback_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """A gated objective needs a worst score: a Bradley-Terry head scores its average response 0."""
    head = config.reward_heads.get(name)
    if head is not None and head.loss == "bradley_terry" and config.objectives[name].gate_fallback is None:
        fix = "write its worst score, such as gate_fallback: -3 (log-odds below the average response)"
        problem = "is missing: a head fitted to pairs has no worst score, and 0 would be an average reward"
        yield ConfigIssue(("objectives", name, "gate_fallback"), problem, fix=fix, standalone=True)


def _stored_label_issues(config: Config) -> Iterator[ConfigIssue]:
    """Labels of stored responses must be objectives."""
    stored, path = config.data.stored_responses, ("data", "stored_responses")
    for source, ratings in stored.ratings.items():
        for label in ratings.labels:
            label_path: KeyPath = (*path, "ratings", source, "labels", label)
            yield from _unknown_name_issues(label_path, label, config.objectives, "objectives")
    for source, pairs in stored.pairs.items():
        if pairs.objective is not None:
            objective_path: KeyPath = (*path, "pairs", source, "objective")
            yield from _unknown_name_issues(objective_path, pairs.objective, config.objectives, "objectives")


RULES: tuple[Callable[[Config], Iterator[ConfigIssue]], ...] = (
    _data_issues,
    _policy_issues,
    _reward_issues,
    _judge_issues,
    _objective_issues,
    _weight_issues,
    goal_issues,
    _margin_issues,
    scorer_reference_issues,
    scorer_issues,
    _stored_label_issues,
    category_issues,
    checkpoint_issues,
)
