"""Stage 1: every record the recipe names, read and checked before any model is loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from paretune.config import Experiment
from paretune.config.rules import sources
from paretune.config.sources import RewardSection, Source
from paretune.data import world
from paretune.data.collate import prompt_key, split_by_prompt
from paretune.data.columns import BadField, Columns, Label
from paretune.data.readers import read_demonstrations, read_preferences, read_prompts, read_ratings
from paretune.data.records import Demonstration, Preference, Prompt, Rating
from paretune.data.template import encode_prompt, encode_response
from paretune.data.world_model import tokenizer as world_tokenizer
from paretune.data.world_truth import truth
from paretune.errors import DataError
from paretune.models.load import context_of, load_tokenizer

Judgement = Rating | Preference
Tell = Callable[[int, int, str], None]
WORLD_TEST = 400
"""Unseen rated responses of the built-in world whose true scores a reward model is reported against."""


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """What one reward model is fitted on, and what it is reported on."""

    train: tuple[Judgement, ...]
    test: tuple[Judgement, ...]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All records of an experiment."""

    pools: Mapping[str, tuple[Prompt, ...]]
    test: tuple[Prompt, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    reward: Judgements | None = None
    judge: Judgements | None = None
    notes: tuple[str, ...] = ()
    """What was left out, and why; one line each."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file that was read."""

    def manifest(self) -> dict[str, Any]:
        """Counts, hashes and exclusions, for data/manifest.json."""
        judgements = {
            name: {"train": len(found.train), "test": len(found.test)}
            for name, found in (("reward", self.reward), ("judge", self.judge))
            if found is not None
        }
        return {
            "schema": "paretune/data/1",
            "prompts": {name: len(pool) for name, pool in self.pools.items()},
            "test": len(self.test),
            "demonstrations": len(self.demonstrations),
            **judgements,
            "left_out": list(self.notes),
            "sha256": dict(self.files),
        }


def gather(experiment: Experiment, tell: Tell = lambda done, total, note: None) -> Material:
    """Read every file of the recipe, or make the data of the built-in world.

    Args:
        experiment: The recipe.
        tell: Hears of every file before it is read: files done, files in all, the file.

    Raises:
        DataError: One line for every bad row of every file, or for rows that are too long for their model.
    """
    if experiment.data.world is not None:
        return _from_world(experiment)
    return _Reader(experiment, tell).material()


def policy_tokenizer(experiment: Experiment) -> PreTrainedTokenizerBase:
    """The tokenizer the policy will have."""
    path = experiment.policy.path
    return world_tokenizer() if path == "world" else load_tokenizer(path, revision=experiment.policy.revision)


def _from_world(experiment: Experiment) -> Material:
    how, seed = experiment.data.world, experiment.run.seed
    assert how is not None
    raters = {
        "raters": how.raters,
        "noise": how.noise,
        "length_bias": how.length_bias,
        "missing": how.missing,
    }
    unseen = world.rated(WORLD_TEST, seed, split="test", **raters)  # type: ignore[arg-type]
    true = tuple(
        Rating(prompt=r.prompt, response=r.response, labels=_truth(r, experiment.reward.objectives))
        for r in unseen
    )
    found = world.requests("train", how.prompts, seed)
    heads = experiment.reward.objectives
    rated = tuple(
        Rating(prompt=r.prompt, response=r.response, labels={k: v for k, v in r.labels.items() if k in heads})
        for r in world.rated(how.rated, seed, **raters)  # type: ignore[arg-type]
    )
    kinds = {kind: tuple(p for p in found if p.kind == kind) for kind in world.MIX}
    fitted = experiment.reward.path is None
    return Material(
        pools={kind: pool for kind, pool in kinds.items() if pool},
        test=tuple(world.requests("test", how.test_prompts, seed)),
        demonstrations=tuple(world.demonstrations(how.demonstrations, seed)) if experiment.policy.sft else (),
        reward=Judgements(train=rated, test=true) if fitted else None,
    )


def _truth(rating: Rating, heads: Iterable[str]) -> dict[str, float]:
    scores = truth(world.asked(rating.prompt), rating.response)
    return {name: value for name, value in zip(world.OBJECTIVES, scores, strict=True) if name in heads}


@dataclass
class _Fits:
    """Whether a record is short enough for the model that reads it."""

    tokenizer: PreTrainedTokenizerBase
    most: int
    longer: str
    dropped: int = 0

    def __call__(self, record: Any) -> bool:
        tokens = self._tokens(self.shortened(record))
        if tokens <= self.most:
            return True
        if self.longer == "error":
            fix = "shorten it, or write `longer: drop` to leave such rows out"
            raise BadField("prompt", f"{tokens} tokens, and there is room for {self.most}", fix=fix)
        self.dropped += 1
        return False

    def shortened(self, record: Any) -> Any:
        """With `longer: cut`, the record without its oldest turns, as many as it takes to fit."""
        if self.longer != "cut":
            return record
        while self._tokens(record) > self.most and len(record.prompt.messages) > 1:
            record = replace(record, prompt=replace(record.prompt, messages=record.prompt.messages[1:]))
        return record

    def _tokens(self, record: Any) -> int:
        if isinstance(record, Prompt):
            return len(encode_prompt(self.tokenizer, record))
        texts = (record.chosen, record.rejected) if isinstance(record, Preference) else (record.response,)
        longest = max(len(encode_response(self.tokenizer, text, stop=0)) for text in texts)
        return len(encode_prompt(self.tokenizer, record.prompt)) + longest


@dataclass
class _Reader:
    """Reads the files of one experiment; collects the complaints of all files before it gives up."""

    experiment: Experiment
    tell: Tell
    done: int = 0
    notes: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def material(self) -> Material:
        e = self.experiment
        tokenizer = policy_tokenizer(e)
        context = context_of(e.policy.path) if e.policy.path != "world" else tokenizer.model_max_length
        room = context - max(int(e.algorithm.arguments.get("max_new", 256)), e.evaluate.max_new or 0)
        pools = {
            name: self._prompts(name, source, tokenizer, room) for name, source in e.data.prompts.items()
        }
        test = [p for name, s in e.data.test.items() for p in self._prompts(name, s, tokenizer, room)]
        sft = e.policy.sft.demonstrations if e.policy.sft else {}
        shown = [r for name, s in sft.items() for r in self._demonstrations(name, s, tokenizer, context)]
        reward = self._judgements("reward", e.reward)
        judge = self._judgements("judge", e.judge) if isinstance(e.judge, RewardSection) else None
        if self.complaints:
            raise DataError("\n".join(self.complaints))
        if e.evaluate.most is not None:
            test = _evenly(test, e.evaluate.most)
        held = {prompt_key(p) for p in test}
        return Material(
            pools={name: self._apart(f"prompts of {name}", pool, held) for name, pool in pools.items()},
            test=tuple(test),
            demonstrations=self._apart("demonstrations", shown, held),
            reward=self._unseen("reward", reward, held),
            judge=judge,
            notes=tuple(self.notes),
            files=self.files,
        )

    def _unseen(self, name: str, found: Judgements | None, held: set[str]) -> Judgements | None:
        if found is None:
            return None
        return Judgements(train=self._apart(f"rows of {name}", found.train, held), test=found.test)

    def _apart(self, what: str, records: Sequence[Any], held: set[str]) -> tuple[Any, ...]:
        """The records whose prompt is not one of those the policy is evaluated on."""
        kept = tuple(record for record in records if prompt_key(record) not in held)
        if len(kept) < len(records):
            self.notes.append(f"{len(records) - len(kept)} {what} left out: they are among the test prompts")
        return kept

    def _read(
        self, name: str, source: Source, reader: Callable[..., list[Any]], fits: _Fits, **more: Any
    ) -> list[Any]:
        self.tell(self.done, len(list(sources(self.experiment))), source.file)
        self.done += 1
        root = Path(self.experiment.data.root)
        columns = Columns(**source.columns.model_dump(exclude_defaults=True))
        try:
            found = reader(
                source.file,
                root=root,
                columns=columns,
                where=source.where,
                most=source.most,
                seed=self.experiment.run.seed,
                admit=fits,
                **more,
            )
        except DataError as error:
            self.complaints.append(str(error))
            return []
        if fits.dropped:
            self.notes.append(f"{fits.dropped} rows of {name} left out: longer than {fits.most} tokens")
        path = root / source.file
        if path.is_file() and source.file not in self.files:
            self.files[source.file] = sha256(path.read_bytes()).hexdigest()
        return [fits.shortened(record) for record in found]

    def _prompts(self, name: str, source: Any, tokenizer: PreTrainedTokenizerBase, room: int) -> list[Prompt]:
        fits = _Fits(tokenizer, min(source.max_tokens or room, room), source.longer)
        return self._read(name, source, read_prompts, fits, kind=source.kind)

    def _demonstrations(
        self, name: str, source: Any, tokenizer: PreTrainedTokenizerBase, room: int
    ) -> list[Any]:
        fits = _Fits(tokenizer, min(source.max_tokens or room, room), source.longer)
        return self._read(name, source, read_demonstrations, fits)

    def _judgements(self, name: str, section: RewardSection) -> Judgements | None:
        if section.path is not None or not section.objectives:
            return None
        own = section.body == "policy"
        tokenizer = policy_tokenizer(self.experiment) if own else load_tokenizer(section.body)
        room = context_of(self.experiment.policy.path if own else section.body)
        train = self._rows(name, section.ratings, section.pairs, tokenizer, room)
        test = self._rows(f"{name} test", section.test_ratings, section.test_pairs, tokenizer, room)
        if not (section.test_ratings or section.test_pairs):
            train, test = split_by_prompt(train, section.held_out, self.experiment.run.seed)
        return Judgements(train=tuple(train), test=tuple(test))

    def _rows(
        self, name: str, ratings: Mapping[str, Any], pairs: Mapping[str, Any], tokenizer: Any, room: int
    ) -> list[Judgement]:
        rows: list[Judgement] = []
        for key, source in ratings.items():
            labels = {
                objective: Label(aspect=label.source, scale=label.scale, offset=label.offset)
                for objective, label in source.labels.items()
            }
            fits = _Fits(tokenizer, min(source.max_tokens or room, room), source.longer)
            rows += self._read(f"{name} {key}", source, read_ratings, fits, labels=labels)
        for key, source in pairs.items():
            fits = _Fits(tokenizer, min(source.max_tokens or room, room), source.longer)
            rows += self._read(
                f"{name} {key}", source, read_preferences, fits, objective=source.objective or ""
            )
        return rows


def _evenly(prompts: list[Prompt], most: int) -> list[Prompt]:
    """At most that many prompts, every kind keeping its share, in their order."""
    if len(prompts) <= most:
        return prompts
    return [prompts[i * len(prompts) // most] for i in range(most)]
