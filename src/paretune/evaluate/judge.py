"""Before and after: the same prompts, the same seeds, judges that are not the training reward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.chance import numpy_generator
from paretune.data.frame import View, shown
from paretune.data.records import Prompt, Sample
from paretune.errors import WiringError
from paretune.evaluate.caution import not_checked, warnings
from paretune.evaluate.compare import Question, Scores, by_kind, compare, rates
from paretune.evaluate.generate import Generations, clusters_of
from paretune.evaluate.similarity import similarity
from paretune.evaluate.stated import calibrations, thoughts
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.evaluate.text import distinct_n, num_words, per_prompt, unique
from paretune.objectives.rules import is_refusal
from paretune.objectives.score import Scorer, through
from paretune.rundir import to_json, write_atomic

SCHEMA = "paretune/eval/1"

PAIRS = 2000
"""Pairs of responses that similarity is a mean over."""

Arms = tuple[Generations, Generations]
Pair = tuple[Scores, Scores]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A scorer and what tells it from others."""

    name: str
    """In words, for the table."""
    scorer: Scorer
    weights: str = ""
    """Hash of its weights; "" for a rule."""
    data: frozenset[str] | None = frozenset()
    """Hashes of what it was fitted on; empty: it was not fitted; None: nobody knows."""

    def shares_with(self, other: "Judge") -> bool:
        """Whether the two are one scorer, or have weights or training data in common, or may have."""
        if self.scorer is other.scorer or (self.weights != "" and self.weights == other.weights):
            return True
        if frozenset() in (self.data, other.data):
            return False
        return self.data is None or other.data is None or bool(self.data & other.data)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The numbers of eval.json, and one row for each pair of responses they were made from."""

    numbers: dict[str, Any]
    rows: dict[str, list[Any]]

    def save(self, folder: Path) -> None:
        """Write eval.json and generations.parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: pa.array(column) for name, column in self.rows.items()})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(folder / "generations.parquet", sink.getvalue().to_pybytes())
        write_atomic(folder / "eval.json", to_json(self.numbers))


def evaluate(
    before: Generations,
    after: Generations,
    judges: Sequence[Judge],
    *,
    objectives: Sequence[str],
    rewards: Sequence[Judge] = (),
    margins: Mapping[str, float] | None = None,
    refuses: Callable[[str], bool] = is_refusal,
    view: View = "whole",
    correct: tuple[str, float] | None = None,
    kl: Mapping[str, Any] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Compare two policies on the same prompts.

    Args:
        before: Answers of the starting policy.
        after: Answers of the trained one, with the same prompts, seeds and settings.
        judges: Who scores what; an objective none of them gives is "not measured".
        objectives: In the order of the table.
        rewards: What the training saw; a judge that shares weights or data with them cannot say "better".
        margins: Loss of an objective that still counts as "not worse".
        refuses: Tells a refusal by its text.
        view: What judges and rewards are shown of a response; it is the same in both arms.
        correct: The objective and its least score that make an answer right, where responses state a
            confidence.
        kl: From `divergence`.
        level: Of all intervals.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        WiringError: The two arms answer different prompts, two judges give the same objective, or none the
            one that says what is right.
    """
    if before.prompts != after.prompts or before.n != after.n:
        raise WiringError(
            "before and after answer different prompts; fix: generate both with the same settings"
        )
    question = _question(tuple(objectives), judges, rewards, margins or {}, (level, draws, seed))
    arms, names = (before, after), question.objectives
    one, two = (_scores(arm, names, judges, view) for arm in arms)
    trained = None
    if rewards:
        trained = (_scores(before, names, rewards, view), _scores(after, names, rewards, view))
    numbers = _numbers(question, arms, (one, two), trained, _seen_through(view, refuses))
    if correct is not None:
        if correct[0] not in question.judges:
            raise WiringError(f'"{correct[0]}" says what is right, and nobody judges it; fix: add a judge')
        numbers["calibration"] = calibrations((before.samples, after.samples), (one, two), names, correct)
    if view == "after_thinking":
        numbers["thoughts"] = thoughts((before.samples, after.samples))
    numbers["kl"] = dict(kl) if kl is not None else None
    numbers["warnings"] = warnings(numbers)
    numbers["not_checked"] = not_checked(numbers, phrases=refuses is is_refusal)
    return Evaluation(numbers=numbers, rows=_rows(arms, names, (one, two), trained))


def _seen_through(view: View, refuses: Callable[[str], bool]) -> Callable[[Sample], bool]:
    """Whether what the view shows of a sample is a refusal."""

    def refused(sample: Sample) -> bool:
        seen = shown(sample, view)
        return seen is not None and refuses(seen.response)

    return refused


def _question(
    objectives: tuple[str, ...],
    judges: Sequence[Judge],
    rewards: Sequence[Judge],
    margins: Mapping[str, float],
    bootstrap: tuple[float, int, int],
) -> Question:
    found = {name: judge for name in objectives if (judge := _judge_of(name, judges)) is not None}
    return Question(
        objectives=objectives,
        judges={name: judge.name for name, judge in found.items()},
        independent={name: not any(j.shares_with(r) for r in rewards) for name, j in found.items()},
        margins=margins,
        level=bootstrap[0],
        draws=bootstrap[1],
        seed=bootstrap[2],
    )


def _numbers(
    question: Question, arms: Arms, scores: Pair, trained: Pair | None, refuses: Callable[[Sample], bool]
) -> dict[str, Any]:
    prompts = arms[0].prompts
    clusters = clusters_of(prompts)
    kinds = [prompt.kind for prompt in prompts]
    return {
        "schema": SCHEMA,
        "prompts": len(prompts),
        "n": arms[0].n,
        "level": question.level,
        "draws": question.draws,
        "seed": question.seed,
        "objectives": compare(question, scores[0], scores[1], clusters, trained),
        "kinds": by_kind(question, kinds, scores[0], scores[1], clusters) if any(kinds) else {},
        **_side_costs(question, arms, refuses, clusters),
    }


def _judge_of(objective: str, judges: Sequence[Judge]) -> Judge | None:
    able = [judge for judge in judges if objective in judge.scorer.names]
    if len(able) > 1:
        raise WiringError(f'{len(able)} judges give the objective "{objective}"; fix: keep one')
    return able[0] if able else None


def _scores(arm: Generations, objectives: Sequence[str], judges: Sequence[Judge], view: View) -> Scores:
    """[P, n, K], NaN where no judge gives the objective, could not say, or was shown nothing."""
    seen = [shown(sample, view) for sample in arm.samples]
    found = np.full((len(arm.samples), len(objectives)), np.nan)
    for judge in judges:
        columns = [
            (k, judge.scorer.names.index(o)) for k, o in enumerate(objectives) if o in judge.scorer.names
        ]
        if columns:
            given = through(judge.scorer, seen).double().cpu().numpy()
            for k, column in columns:
                found[:, k] = given[:, column]
    found[~np.isfinite(found)] = np.nan
    return found.reshape(len(arm.prompts), arm.n, len(objectives))


def _side_costs(
    question: Question, arms: Arms, refuses: Callable[[Sample], bool], clusters: NDArray[np.int64]
) -> dict[str, Any]:
    """Length, variety, truncation and refusals in both arms."""
    texts = [[sample.response for sample in arm.samples] for arm in arms]
    budget = min(num_words(responses) for responses in texts)
    pairs = {
        "distinct_1": [distinct_n(responses, 1, budget) for responses in texts],
        "distinct_2": [distinct_n(responses, 2, budget) for responses in texts],
        "unique": [unique(responses) for responses in texts],
        "similarity": [_alike(responses, arms[0].n, question.seed) for responses in texts],
    }
    cut, cut_after = (per_prompt(arm.samples, arm.n, lambda sample: sample.truncated) for arm in arms)
    refused, refused_after = (per_prompt(arm.samples, arm.n, refuses) for arm in arms)
    kinds = np.array([prompt.kind for prompt in arms[0].prompts], dtype=object)
    return {
        "length": _length(question, arms, clusters),
        **{name: {"before": pair[0], "after": pair[1]} for name, pair in pairs.items()},
        "truncated": rates(cut, cut_after, question.level),
        "refusals": {
            kind or "other": rates(refused[kinds == kind], refused_after[kinds == kind], question.level)
            for kind in dict.fromkeys(kinds)
        },
    }


def _alike(responses: Sequence[str], n: int, seed: int) -> float:
    """How much the first responses to different prompts resemble each other."""
    return similarity(responses[::n], PAIRS, numpy_generator(seed, 0, "similarity"))


def _length(question: Question, arms: Arms, clusters: NDArray[np.int64]) -> dict[str, Any]:
    before, after = (np.array(arm.lengths, float).reshape(-1, arm.n).mean(1) for arm in arms)
    found = simultaneous_intervals(
        (after - before)[:, None],
        clusters=clusters,
        draws=question.draws,
        level=question.level,
        seed=question.seed,
    )
    return {
        "before": float(before.mean()) if len(before) else None,
        "after": float(after.mean()) if len(after) else None,
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "unit": "tokens",
    }


def _rows(arms: Arms, objectives: Sequence[str], scores: Pair, trained: Pair | None) -> dict[str, list[Any]]:
    """The columns of generations.parquet, one row a prompt and sample."""
    prompts, n = arms[0].prompts, arms[0].n
    asked = [prompt for prompt in prompts for _ in range(n)]
    rows: dict[str, list[Any]] = {
        "prompt_id": [_storable(prompt.id) for prompt in asked],
        "kind": [_storable(prompt.kind) for prompt in asked],
        "sample": [i for _ in prompts for i in range(n)],
        "prompt": [_as_text(prompt) for prompt in asked],
    }
    for i, name in enumerate(("before", "after")):
        rows[name] = [_storable(sample.response) for sample in arms[i].samples]
        rows[f"{name}_truncated"] = [sample.truncated for sample in arms[i].samples]
        rows[f"{name}_tokens"] = list(arms[i].lengths)
        for k, objective in enumerate(objectives):
            rows[f"{name}/{objective}"] = scores[i][:, :, k].ravel().tolist()
            if trained is not None:
                rows[f"reward/{name}/{objective}"] = trained[i][:, :, k].ravel().tolist()
    return rows


def _as_text(prompt: Prompt) -> str:
    """One user turn as it is; a longer conversation with the roles before the turns."""
    if len(prompt.messages) == 1:
        return _storable(prompt.messages[0].content)
    return _storable("\n".join(f"{message.role}: {message.content}" for message in prompt.messages))


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
