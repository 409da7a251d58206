"""What the sections of a recipe must be to each other: names that are known, options that have an effect."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from paretune.config.faults import Fault, nearest
from paretune.config.kinds import kind_faults
from paretune.config.schema import Experiment
from paretune.config.sources import Columns, RewardSection, Section, Source
from paretune.config.tree import PathKey, short

WORLD = "world"


def rule_faults(experiment: Experiment) -> list[Fault]:
    """Every broken rule of an experiment whose sections are right by themselves."""
    return [fault for rule in RULES for fault in rule(experiment)]


def given(section: Section) -> list[str]:
    """The keys that were written and say something else than their defaults."""
    fields, default = type(section).model_fields, type(section).model_construct()
    return [
        fields[name].alias or name
        for name in fields
        if name in section.model_fields_set and getattr(section, name) != getattr(default, name, None)
    ]


def _idle(path: PathKey, keys: Iterable[str], why: str) -> Iterator[Fault]:
    for key in keys:
        yield Fault((*path, key), f"has no effect {why}", fix="leave out one of the two")


def _data(e: Experiment) -> Iterator[Fault]:
    if e.data.world is not None:
        yield from _idle(
            ("data",), [k for k in given(e.data) if k in {"prompts", "test"}], "beside data.world"
        )
        yield from _unmade(e, given(e.data.world))
        return
    for name, source in e.data.test.items():
        if "share" in given(source):
            fix = "leave it out; `most` takes fewer prompts"
            yield Fault(("data", "test", name, "share"), "has no effect: every test prompt is used", fix=fix)
    if not e.data.prompts:
        yield Fault(("data", "prompts"), "is missing", fix="name files of prompts, or write data.world: {}")
    if not e.data.test:
        yield Fault(
            ("data", "test"), "is missing", fix="name files of prompts that the policy is evaluated on"
        )
    yield from _twice(
        ("data", "test"), e.data.test, e.data.prompts, "the policy would be tried on what it learnt"
    )


def _unmade(e: Experiment, said: list[str]) -> Iterator[Fault]:
    """What is said of the built-in world's records where the recipe has records of its own, or needs none."""
    if e.policy.sft is None or e.policy.sft.demonstrations:
        why = "without policy.sft" if e.policy.sft is None else "beside policy.sft.demonstrations"
        yield from _idle(("data", "world"), [k for k in said if k == "demonstrations"], why)
    own = next((key for key in ("path", "ratings", "pairs") if getattr(e.reward, key)), None)
    if own is not None:
        raters = {"rated", "raters", "noise", "length_bias", "missing", "confidence_bias"}
        yield from _idle(("data", "world"), [k for k in said if k in raters], f"beside reward.{own}")


def _twice(
    path: PathKey, test: Mapping[str, Source], train: Mapping[str, Source], why: str
) -> Iterator[Fault]:
    """The same rows in two roles that must not share any."""
    for name, source in test.items():
        for other, seen in train.items():
            if (source.file, source.where) == (seen.file, seen.where):
                fix = "name another file, or other rows by `where`"
                yield Fault((*path, name, "file"), f'has the rows of "{other}": {why}', fix=fix)


def _policy(e: Experiment) -> Iterator[Fault]:
    sft, own = e.policy.sft, e.policy.path == WORLD
    if own and e.data.world is None:
        fix = "write data.world: {}, or name a folder or a hub name"
        yield Fault(
            ("policy", "path"),
            '"world" is the policy of the built-in world, and there is no data.world',
            fix=fix,
        )
    if own and sft is None:
        yield Fault(("policy", "sft"), "is missing: the policy of the built-in world is trained from scratch")
    if sft is not None and own and sft.demonstrations:
        yield from _idle(
            ("policy", "sft"), ["demonstrations"], 'beside policy.path "world", which brings its own'
        )
    if sft is not None and not sft.demonstrations and e.data.world is None:
        fix = "name files of demonstrations, or leave out policy.sft"
        yield Fault(("policy", "sft", "demonstrations"), "is missing: nothing to learn from", fix=fix)


def _rewards(e: Experiment) -> Iterator[Fault]:
    for name, section in sections(e):
        yield from _ready_made(name, section) if section.path is not None else _fitted(e, name, section)


def sections(e: Experiment) -> Iterator[tuple[str, RewardSection]]:
    """The reward, and the judge where it is a model."""
    yield "reward", e.reward
    if isinstance(e.judge, RewardSection):
        yield "judge", e.judge


def _ready_made(name: str, section: RewardSection) -> Iterator[Fault]:
    yield from _idle(
        (name,), [k for k in given(section) if k not in {"path", "revision", "dtype"}], f"beside {name}.path"
    )


def _fitted(e: Experiment, name: str, section: RewardSection) -> Iterator[Fault]:
    if not section.objectives:
        yield Fault(
            (name, "objectives"), "is missing", fix=f"name the heads to fit, or a fitted model by {name}.path"
        )
    world = e.data.world is not None and not (section.ratings or section.pairs)
    if world:
        yield from _world_heads(name, section)
    elif not (section.ratings or section.pairs):
        yield Fault((name, "ratings"), "is missing", fix=f"name files by {name}.ratings or {name}.pairs")
    else:
        yield from _heads(name, section)
        yield from _twice(
            (name, "test_ratings"), section.test_ratings, section.ratings, "nothing would be held out"
        )
        yield from _twice(
            (name, "test_pairs"), section.test_pairs, section.pairs, "nothing would be held out"
        )
    if "held_out" in given(section) and (world or section.test_ratings or section.test_pairs):
        yield from _idle((name,), ["held_out"], "where there is test data of its own")
    if "revision" in given(section) and section.body == "policy":
        yield from _idle((name,), ["revision"], "without a body of its own: see policy.revision")
    for head, settings in section.objectives.items():
        if "delta" in given(settings) and settings.loss != "huber":
            yield from _idle((name, "objectives", head), ["delta"], f"with loss {settings.loss}")
        if "right" in given(settings) and settings.loss != "calibrated":
            yield from _idle((name, "objectives", head), ["right"], f"with loss {settings.loss}")


def _world_heads(name: str, section: RewardSection) -> Iterator[Fault]:
    from paretune.data.world import OBJECTIVES

    if name == "judge":
        fix = "write judge: truth, or name other data by judge.ratings or judge.path"
        yield Fault(("judge",), "would be fitted on what the reward is fitted on", fix=fix)
    yield from _idle((name,), [k for k in given(section) if k.startswith("test_")], "beside data.world")
    for head, settings in section.objectives.items():
        path: PathKey = (name, "objectives", head)
        if head not in OBJECTIVES:
            fix = f"the raters of the built-in world say {', '.join(OBJECTIVES)}"
            yield Fault(path, "nobody rates it", meant=nearest(head, OBJECTIVES), fix=fix)
        if settings.loss == "bradley_terry":
            yield Fault(
                (*path, "loss"),
                "bradley_terry needs pairs, and the built-in world has ratings",
                fix="take mse",
            )


def _heads(name: str, section: RewardSection) -> Iterator[Fault]:
    """Labels and pairs without a head, and heads without either."""
    heads = section.objectives
    for group in ("ratings", "test_ratings"):
        for source, ratings in getattr(section, group).items():
            for label in ratings.labels:
                yield from _known((name, group, source, "labels", label), label, heads, f"{name}.objectives")
    for group in ("pairs", "test_pairs"):
        for source, pairs in getattr(section, group).items():
            if pairs.objective is not None:
                yield from _known(
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
            yield Fault(
                (name, "objectives", head),
                f"loss {settings.loss} needs {kind} of it, and there are none",
                fix=fix,
            )


def _known(path: PathKey, word: str, words: Iterable[str], where: str) -> Iterator[Fault]:
    every = list(dict.fromkeys(words))
    if word not in every:
        yield Fault(
            path,
            f"{short(word)} is not in {where}",
            meant=nearest(word, every),
            fix=f"one of {', '.join(every)}",
        )


def _judge(e: Experiment) -> Iterator[Fault]:
    if e.judge == "truth" and e.data.world is None:
        fix = "name a model, or other data to fit one; or leave out judge"
        yield Fault(("judge",), "the truth is known in the built-in world only", fix=fix)
    if isinstance(e.judge, RewardSection):
        why = "a judge must know other data than the reward"
        yield from _twice(("judge", "ratings"), e.judge.ratings, e.reward.ratings, why)
        yield from _twice(("judge", "pairs"), e.judge.pairs, e.reward.pairs, why)
        if e.judge.path is not None and e.judge.path == e.reward.path:
            yield Fault(
                ("judge", "path"),
                f"is the reward itself: {why}",
                fix="leave out judge, or name another model",
            )


def _objectives(e: Experiment) -> Iterator[Fault]:
    for name, objective in e.objectives.items():
        path: PathKey = ("objectives", name)
        yield from _head_of(e, name)
        if objective.when is not None and objective.gate is None:
            fix = 'write it like "safety >= 0.5"'
            yield Fault((*path, "when"), f"{short(objective.when)} is not a gate", fix=fix, alone=True)
        elif objective.gate is not None:
            yield from _known((*path, "when"), objective.gate[0], e.objectives, "objectives")
            if not math.isfinite(objective.gate[1]):
                yield Fault((*path, "when"), "the threshold must be a finite number", alone=True)
            yield from _worst(e, name)
        elif objective.otherwise is not None:
            yield from _idle(path, ["otherwise"], "without `when`")
    if not any(objective.weight for objective in e.objectives.values()):
        yield Fault(
            ("objectives",), "every weight is 0: there is nothing to learn", fix="give one of them a weight"
        )
    known = [*e.objectives, *(e.judge.objectives if isinstance(e.judge, RewardSection) else {})]
    for name in e.evaluate.margin:
        yield from _known(("evaluate", "margin", name), name, known, "objectives")


def _head_of(e: Experiment, name: str) -> Iterator[Fault]:
    """The head that scores an objective: one of its own name, or for thoughts the one that is named."""
    objective, heads = e.objectives[name], list(e.reward.objectives)
    path: PathKey = ("objectives", name)
    if objective.reads == "trace" and objective.of is None:
        yield Fault((*path, "of"), "is missing", fix="name the head that scores the thoughts")
        return
    if objective.reads == "answer":
        yield from _idle(path, [key for key in given(objective) if key == "of"], "without reads: trace")
    if heads and e.reward.path is None:
        where = (*path, "of") if objective.of else path
        yield from _known(where, objective.of or name, heads, "reward.objectives: no model provides it")


def _worst(e: Experiment, name: str) -> Iterator[Fault]:
    """A gated head must have a worst score: one that only compares has 0 for its average response."""
    head = e.reward.objectives.get(name)
    if head is not None and head.loss == "bradley_terry" and e.objectives[name].otherwise is None:
        fix = "write its worst score, such as otherwise: -3 (log-odds below the average response)"
        wrong = (
            "is missing: a head fitted to pairs has no worst score, and below the gate 0 would be a reward"
        )
        yield Fault(("objectives", name, "otherwise"), wrong, fix=fix, alone=True)


def _stored(e: Experiment) -> Iterator[Fault]:
    """What stored responses are labelled by must be objectives."""
    for source, ratings in e.data.stored.ratings.items():
        for label in ratings.labels:
            path: PathKey = ("data", "stored", "ratings", source, "labels", label)
            yield from _known(path, label, e.objectives, "objectives")
    for source, pairs in e.data.stored.pairs.items():
        if pairs.objective is not None:
            path = ("data", "stored", "pairs", source, "objective")
            yield from _known(path, pairs.objective, e.objectives, "objectives")


USED = {
    "prompts": {"prompt", "messages", "id", "kind", "preference"},
    "ratings": {"prompt", "messages", "id", "response", "scores"},
    "pairs": {"prompt", "id", "chosen", "rejected", "objective"},
    "demonstrations": {"prompt", "messages", "id", "response"},
}


def sources(e: Experiment) -> Iterator[tuple[PathKey, str, Source]]:
    """Every file of the recipe: its path in the recipe, the kind of its records, and the source."""
    groups: list[tuple[PathKey, str, Mapping[str, Source]]] = [
        (("data", "prompts"), "prompts", e.data.prompts),
        (("data", "test"), "prompts", e.data.test),
        (
            ("policy", "sft", "demonstrations"),
            "demonstrations",
            e.policy.sft.demonstrations if e.policy.sft else {},
        ),
    ]
    groups.append((("data", "stored", "ratings"), "ratings", e.data.stored.ratings))
    groups.append((("data", "stored", "pairs"), "pairs", e.data.stored.pairs))
    groups.append((("data", "demonstrations"), "demonstrations", e.data.demonstrations))
    for name, section in sections(e):
        for group in ("ratings", "pairs", "test_ratings", "test_pairs"):
            groups.append(((name, group), group.removeprefix("test_"), getattr(section, group)))
    for path, kind, found in groups:
        for name, source in found.items():
            yield (*path, name), kind, source


def _columns(e: Experiment) -> Iterator[Fault]:
    for path, kind, source in sources(e):
        columns: Columns = source.columns
        idle = [key for key in given(columns) if key not in USED[kind]]
        for key in idle:
            wrong, fix = f"{kind} have no such column", f"one of {', '.join(sorted(USED[kind]))}"
            yield Fault((*path, "columns", key), wrong, fix=fix, alone=True)
        if kind == "pairs" and columns.objective and getattr(source, "objective", None) is not None:
            yield from _idle((*path, "columns"), ["objective"], "beside `objective`")


RULES: tuple[Callable[[Experiment], Iterator[Fault]], ...] = (
    _data,
    _policy,
    _rewards,
    _judge,
    _objectives,
    _stored,
    _columns,
    kind_faults,
)
