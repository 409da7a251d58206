"""Stage 1: every record the recipe names, read and checked before any model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.config import Experiment, written_at
from paretune.config.algorithm import recipe_of
from paretune.config.rules import WORLD, sources
from paretune.config.sources import DemonstrationSource, RewardSection, Source
from paretune.data.collate import prompt_key, split_by_prompt
from paretune.data.columns import BadField, Columns, Label
from paretune.data.drawn import Drawn
from paretune.data.frame import Frame
from paretune.data.readers import read_demonstrations, read_preferences, read_prompts, read_ratings
from paretune.data.records import Demonstration, Prompt
from paretune.data.stored import candidates
from paretune.data.world_model import CONTEXT, longest_request
from paretune.data.world_model import tokenizer as world_tokenizer
from paretune.elsewhere import PreTrainedTokenizerBase
from paretune.errors import ConfigError, DataError, complaint
from paretune.models.load import context_of, load_tokenizer
from paretune.stages.again import unlayered
from paretune.stages.critic_start import other_tokens
from paretune.stages.fits import Fits
from paretune.stages.made import made_demonstrations, made_prompts, made_ratings
from paretune.stages.material import Judgement, Judgements, Material, lacking
from paretune.stages.ready import placed, ready

__all__ = ["Judgements", "Material", "gather", "policy_context", "policy_tokenizer"]

Tell = Callable[[int, int, str], None]


def gather(experiment: Experiment, tell: Tell = lambda done, total, note: None) -> Material:
    """Read every file of the recipe; what it names no files for is made by the built-in world.

    Args:
        experiment: The recipe.
        tell: Hears of every file before it is read: files done, files in all, the file.

    Raises:
        ConfigError: A model cannot be read, a ready-made one does not know the objectives, an adapter fits
            nothing, layers cannot be worked out again as asked for, or responses are so long that the policy
            could read no prompt; bad rows are told with it.
        DataError: One line for every bad row of every file, for rows that are too long for their model, and
            for what is empty once all that is to be unseen was taken out.
    """
    frame = recipe_of(experiment).frame
    models = [
        *ready(experiment),
        *other_tokens(experiment, policy_tokenizer),
        *unlayered(experiment),
    ]
    return _Reader(experiment, tell, models=models, frame=frame).material()


def policy_tokenizer(experiment: Experiment) -> PreTrainedTokenizerBase:
    """The tokenizer the policy will have."""
    path, world = experiment.policy.path, experiment.data.world
    if path == WORLD:
        return world_tokenizer(world.frame if world is not None else "")
    return load_tokenizer(path, revision=experiment.policy.revision)


def policy_context(experiment: Experiment) -> int:
    """The longest row that the policy can read, in tokens."""
    policy = experiment.policy
    if policy.path == WORLD:
        return CONTEXT
    return context_of(policy.path, revision=policy.revision)


@dataclass
class _Reader:
    """Reads the files of one experiment; collects the complaints of all files before it gives up."""

    experiment: Experiment
    tell: Tell
    models: list[str]
    """What is wrong with the models."""
    frame: Frame = ""
    """What the policy is asked beside every prompt, which must fit too."""
    done: int = 0
    notes: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the policy; nobody asks for it where the built-in world brings everything."""
        with placed(self.experiment, ("policy", "path")):
            return policy_tokenizer(self.experiment)

    def material(self) -> Material:
        e = self.experiment
        with placed(e, ("policy", "path")):
            context = policy_context(e)
        pools, test = self._requests(_room(e, context))
        shown = self._shown(context)
        remembered = self._demonstrations(e.data.demonstrations, context)
        stored = self._stored(context)
        reward = self._judgements("reward", e.reward)
        judge = self._judgements("judge", e.judge) if isinstance(e.judge, RewardSection) else None
        self._give_up()
        if e.evaluate.most is not None:
            test = _evenly(test, e.evaluate.most)
        held = {prompt_key(p) for p in test}
        # What the built-in world draws is of other splits than its test prompts: nothing to look for.
        found = Material(
            pools={name: self._apart(f"prompts of {name}", pool, held) for name, pool in pools.items()},
            test=tuple(test),
            demonstrations=shown if isinstance(shown, Drawn) else self._apart("demonstrations", shown, held),
            remembered=self._apart("demonstrations", remembered, held),
            stored=tuple(candidates(self._apart("stored responses", stored, held))),
            reward=self._unseen("reward", reward, held),
            judge=self._unseen("judge", judge, set()),
            notes=tuple(self.notes),
            files=self.files,
        )
        self.complaints += lacking(e, found)
        self._give_up()
        return found

    def _give_up(self) -> None:
        if self.models:
            raise ConfigError("\n".join([*self.models, *self.complaints]))
        if self.complaints:
            raise DataError("\n".join(self.complaints))

    def _requests(self, room: int) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
        """What the policy is aligned on, pool by pool, and what it is evaluated on."""
        data = self.experiment.data
        if data.world is not None:
            pools, test = made_prompts(self.experiment)
            self._made_fit([*chain(*pools.values()), *test], room)
            return pools, test
        pools = {name: self._prompts(name, source, room) for name, source in data.prompts.items()}
        return pools, [p for name, source in data.test.items() for p in self._prompts(name, source, room)]

    def _made_fit(self, prompts: Sequence[Prompt], room: int) -> None:
        """Complain of the first request of the built-in world that is too long for the policy."""
        if self.experiment.policy.path == WORLD and longest_request(prompts, self.frame) <= room:
            return
        fits = Fits(self.tokenizer, room, "error", frame=self.frame)
        try:
            all(fits(prompt) for prompt in prompts)
        except BadField as error:
            self.complaints.append(error.at(f"{written_at(self.experiment, ('data', 'world'))}: data.world"))

    def _shown(self, context: int) -> Sequence[Demonstration]:
        """What the starting policy learns from."""
        sft = self.experiment.policy.sft
        if sft is None:
            return []
        if not sft.demonstrations:
            return made_demonstrations(self.experiment)
        return self._demonstrations(sft.demonstrations, context)

    def _demonstrations(
        self, sources: Mapping[str, DemonstrationSource], context: int
    ) -> list[Demonstration]:
        found: list[Demonstration] = []
        for name, source in sources.items():
            fits = Fits(self.tokenizer, min(source.max_tokens or context, context), source.longer)
            found += self._read(name, source, read_demonstrations, fits)
        return found

    def _stored(self, context: int) -> list[Judgement]:
        given = self.experiment.data.stored
        if not (given.ratings or given.pairs):
            return []
        return self._rows("stored", given.ratings, given.pairs, self.tokenizer, context)

    def _unseen(self, name: str, found: Judgements | None, held: set[str]) -> Judgements | None:
        """Without the rows whose prompt the policy is evaluated on, or the model itself is reported on."""
        if found is None or isinstance(found.train, Drawn):
            return found
        train = self._apart(f"rows of {name}", found.train, held)
        own = {prompt_key(record) for record in found.test}
        train = self._apart(f"rows of {name}", train, own, "those of its own test rows")
        return Judgements(train=train, test=found.test)

    def _apart(
        self, what: str, records: Sequence[Any], held: set[str], among: str = "among the test prompts"
    ) -> tuple[Any, ...]:
        """The records whose prompt is none of those that are held out."""
        kept = tuple(record for record in records if prompt_key(record) not in held)
        if len(kept) < len(records):
            self.notes.append(f"{len(records) - len(kept)} {what} left out: their prompts are {among}")
        return kept

    def _read(
        self, name: str, source: Source, reader: Callable[..., list[Any]], fits: Fits, **more: Any
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
        return found

    def _prompts(self, name: str, source: Any, room: int) -> list[Prompt]:
        fits = Fits(self.tokenizer, min(source.max_tokens or room, room), source.longer, frame=self.frame)
        return self._read(name, source, read_prompts, fits, kind=source.kind)

    def _judgements(self, name: str, section: RewardSection) -> Judgements | None:
        """All rows of one reward model; none where it is ready made."""
        e = self.experiment
        if section.path is not None:
            return None
        if not (section.ratings or section.pairs):
            made = made_ratings(e, section.objectives)
            return Judgements(train=made[0], test=made[1])
        reads, room = self.tokenizer, policy_context(e)
        if section.body != "policy":
            with placed(e, (name, "body")):
                reads = load_tokenizer(section.body, revision=section.revision)
                room = context_of(section.body, revision=section.revision)
        train = self._rows(name, section.ratings, section.pairs, reads, room)
        test = self._rows(f"{name} test", section.test_ratings, section.test_pairs, reads, room)
        if not (section.test_ratings or section.test_pairs):
            train, test = split_by_prompt(train, section.held_out, e.run.seed)
        return Judgements(train=tuple(train), test=tuple(test))

    def _rows(
        self,
        name: str,
        ratings: Mapping[str, Any],
        pairs: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        room: int,
    ) -> list[Judgement]:
        rows: list[Judgement] = []
        for key, source in ratings.items():
            labels = {
                objective: Label(aspect=label.source, scale=label.scale, offset=label.offset)
                for objective, label in source.labels.items()
            }
            fits = Fits(tokenizer, min(source.max_tokens or room, room), source.longer)
            rows += self._read(f"{name} {key}", source, read_ratings, fits, labels=labels)
        for key, source in pairs.items():
            fits = Fits(tokenizer, min(source.max_tokens or room, room), source.longer)
            rows += self._read(
                f"{name} {key}", source, read_preferences, fits, objective=source.objective or ""
            )
        return rows


def _room(e: Experiment, context: int) -> int:
    """The longest prompt that leaves room for a response, in tokens."""
    longest = {
        ("algorithm", "max_new"): int(e.algorithm.arguments.get("max_new", 256)),
        ("evaluate", "max_new"): e.evaluate.max_new or 0,
    }
    path = max(longest, key=lambda key: longest[key])
    if longest[path] >= context:
        wrong = f"{longest[path]} tokens leave no room for a prompt: the policy reads {context} in all"
        raise ConfigError(
            complaint(written_at(e, path), None, None, ".".join(path), wrong, fix="make it smaller")
        )
    return context - longest[path]


def _evenly(prompts: list[Prompt], most: int) -> list[Prompt]:
    """At most that many prompts, every kind keeping its share, in their order."""
    if len(prompts) <= most:
        return prompts
    by_kind = sorted(range(len(prompts)), key=lambda i: prompts[i].kind)
    return [prompts[i] for i in sorted(by_kind[place * len(prompts) // most] for place in range(most))]
