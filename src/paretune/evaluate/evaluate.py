"""Before and after: the same prompts, the same seeds, judges that are not the training reward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.core.errors import WiringError
from paretune.core.rng import numpy_generator
from paretune.data.chat import ScorerView, visible_text
from paretune.data.records import Prompt, Sample
from paretune.evaluate.confidence import calibration_by_arm, thinking_length_by_arm
from paretune.evaluate.generate import Generations, prompt_clusters
from paretune.evaluate.paired import (
    ComparisonSpec,
    Scores,
    compare_by_category,
    compare_objectives,
    compare_rates,
)
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.evaluate.text_metrics import (
    distinct_n,
    mean_pairwise_meteor,
    num_words,
    rate_per_prompt,
    unique_fraction,
)
from paretune.evaluate.warnings import evaluation_warnings, limitations
from paretune.reward.scorers import Scorer, is_refusal, score_visible
from paretune.run.folder import to_json, write_atomic

SCHEMA = "paretune/eval/1"

NUM_SIMILARITY_PAIRS = 2000
"""Pairs of responses that similarity is a mean over."""

Arms = tuple[Generations, Generations]
ScorePair = tuple[Scores, Scores]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A scorer and what tells it from others."""

    name: str
    """In words, for the table."""
    scorer: Scorer
    weights_hash: str = ""
    """Hash of its weights; "" for a rule."""
    data_hashes: frozenset[str] | None = frozenset()
    """Hashes of what it was fitted on; empty: it was not fitted; None: nobody knows."""

    def overlaps_with(self, other: "Judge") -> bool:
        """Whether the two are one scorer, or have weights or training data in common, or may have."""
        if self.scorer is other.scorer or (
            self.weights_hash != "" and self.weights_hash == other.weights_hash
        ):
            return True
        if frozenset() in (self.data_hashes, other.data_hashes):
            return False
        return (
            self.data_hashes is None
            or other.data_hashes is None
            or bool(self.data_hashes & other.data_hashes)
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The numbers of eval.json, and one row for each pair of responses they were made from."""

    results: dict[str, Any]
    columns: dict[str, list[Any]]

    def save(self, folder: Path) -> None:
        """Write eval.json and generations.parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: pa.array(column) for name, column in self.columns.items()})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(folder / "generations.parquet", sink.getvalue().to_pybytes())
        write_atomic(folder / "eval.json", to_json(self.results))


def evaluate(
    before: Generations,
    after: Generations,
    judges: Sequence[Judge],
    *,
    objectives: Sequence[str],
    reward_judges: Sequence[Judge] = (),
    margins: Mapping[str, float] | None = None,
    refusal_detector: Callable[[str], bool] = is_refusal,
    scorer_view: ScorerView = "whole",
    correctness_threshold: tuple[str, float] | None = None,
    kl: Mapping[str, Any] | None = None,
    confidence_level: float = 0.95,
    bootstrap_samples: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Compare two policies on the same prompts.

    Args:
        before: Answers of the starting policy.
        after: Answers of the trained one, with the same prompts, seeds and settings.
        judges: Who scores what; an objective none of them gives is "not measured".
        objectives: In the order of the table.
        reward_judges: What the training saw; a judge that shares weights or data with them cannot say "better".
        margins: Loss of an objective that still counts as "not worse".
        refusal_detector: Tells a refusal by its text.
        scorer_view: What judges and rewards are shown of a response; it is the same in both arms.
        correctness_threshold: The objective and its least score that make an answer right, where responses state a
            confidence.
        kl: From `divergence`.
        confidence_level: Of all intervals.
        bootstrap_samples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        WiringError: The two arms answer different prompts, two judges give the same objective, or none the
            one that says what is right.
    """
    if before.prompts != after.prompts or before.num_generations != after.num_generations:
        raise WiringError(
            "before and after answer different prompts; fix: generate both with the same settings"
        )
    question = _comparison_spec(
        tuple(objectives), judges, reward_judges, margins or {}, (confidence_level, bootstrap_samples, seed)
    )
    arms, names = (before, after), question.objectives
    one, two = (_score_arm(arm, names, judges, scorer_view) for arm in arms)
    trained = None
    if reward_judges:
        trained = (
            _score_arm(before, names, reward_judges, scorer_view),
            _score_arm(after, names, reward_judges, scorer_view),
        )
    numbers = _evaluation_results(
        question, arms, (one, two), trained, _refusal_in_view(scorer_view, refusal_detector)
    )
    if correctness_threshold is not None:
        if correctness_threshold[0] not in question.judge_names:
            raise WiringError(
                f'"{correctness_threshold[0]}" says what is right, and nobody judges it; fix: add a judge'
            )
        numbers["calibration"] = calibration_by_arm(
            (before.samples, after.samples), (one, two), names, correctness_threshold
        )
    if scorer_view == "after_thinking":
        numbers["thoughts"] = thinking_length_by_arm((before.samples, after.samples))
    numbers["kl"] = dict(kl) if kl is not None else None
    numbers["warnings"] = evaluation_warnings(numbers)
    numbers["not_checked"] = limitations(numbers, refusals_by_phrase=refusal_detector is is_refusal)
    return Evaluation(results=numbers, columns=_table_columns(arms, names, (one, two), trained))


def _refusal_in_view(
    scorer_view: ScorerView, refusal_detector: Callable[[str], bool]
) -> Callable[[Sample], bool]:
    """Whether what the view shows of a sample is a refusal."""

    def refused(sample: Sample) -> bool:
        seen = visible_text(sample, scorer_view)
        return seen is not None and refusal_detector(seen.response)

    return refused


def _comparison_spec(
    objectives: tuple[str, ...],
    judges: Sequence[Judge],
    reward_judges: Sequence[Judge],
    margins: Mapping[str, float],
    bootstrap_settings: tuple[float, int, int],
) -> ComparisonSpec:
    found = {name: judge for name in objectives if (judge := _find_judge(name, judges)) is not None}
    return ComparisonSpec(
        objectives=objectives,
        judge_names={name: judge.name for name, judge in found.items()},
        independent={name: not any(j.overlaps_with(r) for r in reward_judges) for name, j in found.items()},
        margins=margins,
        confidence_level=bootstrap_settings[0],
        bootstrap_samples=bootstrap_settings[1],
        seed=bootstrap_settings[2],
    )


def _evaluation_results(
    spec: ComparisonSpec,
    arms: Arms,
    scores: ScorePair,
    training_scores: ScorePair | None,
    is_refused: Callable[[Sample], bool],
) -> dict[str, Any]:
    prompts = arms[0].prompts
    clusters = prompt_clusters(prompts)
    kinds = [prompt.category for prompt in prompts]
    return {
        "schema": SCHEMA,
        "prompts": len(prompts),
        "n": arms[0].num_generations,
        "level": spec.confidence_level,
        "draws": spec.bootstrap_samples,
        "seed": spec.seed,
        "objectives": compare_objectives(spec, scores[0], scores[1], clusters, training_scores),
        "kinds": compare_by_category(spec, kinds, scores[0], scores[1], clusters) if any(kinds) else {},
        **_side_effects(spec, arms, is_refused, clusters),
    }


def _find_judge(objective: str, judges: Sequence[Judge]) -> Judge | None:
    able = [judge for judge in judges if objective in judge.scorer.names]
    if len(able) > 1:
        raise WiringError(f'{len(able)} judges give the objective "{objective}"; fix: keep one')
    return able[0] if able else None


def _score_arm(
    arm: Generations, objectives: Sequence[str], judges: Sequence[Judge], scorer_view: ScorerView
) -> Scores:
    """[P, n, K], NaN where no judge gives the objective, could not say, or was shown nothing."""
    seen = [visible_text(sample, scorer_view) for sample in arm.samples]
    found = np.full((len(arm.samples), len(objectives)), np.nan)
    for judge in judges:
        columns = [
            (k, judge.scorer.names.index(o)) for k, o in enumerate(objectives) if o in judge.scorer.names
        ]
        if columns:
            given = score_visible(judge.scorer, seen).double().cpu().numpy()
            for k, column in columns:
                found[:, k] = given[:, column]
    found[~np.isfinite(found)] = np.nan
    return found.reshape(len(arm.prompts), arm.num_generations, len(objectives))


def _side_effects(
    spec: ComparisonSpec, arms: Arms, is_refused: Callable[[Sample], bool], clusters: NDArray[np.int64]
) -> dict[str, Any]:
    """Length, variety, truncation and refusals in both arms."""
    texts = [[sample.response for sample in arm.samples] for arm in arms]
    budget = min(num_words(responses) for responses in texts)
    pairs = {
        "distinct_1": [distinct_n(responses, 1, budget) for responses in texts],
        "distinct_2": [distinct_n(responses, 2, budget) for responses in texts],
        "unique": [unique_fraction(responses) for responses in texts],
        "similarity": [
            _response_similarity(responses, arms[0].num_generations, spec.seed) for responses in texts
        ],
    }
    cut, cut_after = (
        rate_per_prompt(arm.samples, arm.num_generations, lambda sample: sample.truncated) for arm in arms
    )
    refused, refused_after = (rate_per_prompt(arm.samples, arm.num_generations, is_refused) for arm in arms)
    kinds = np.array([prompt.category for prompt in arms[0].prompts], dtype=object)
    return {
        "length": _length_change(spec, arms, clusters),
        **{name: {"before": pair[0], "after": pair[1]} for name, pair in pairs.items()},
        "truncated": compare_rates(cut, cut_after, spec.confidence_level),
        "refusals": {
            kind or "other": compare_rates(
                refused[kinds == kind], refused_after[kinds == kind], spec.confidence_level
            )
            for kind in dict.fromkeys(kinds)
        },
    }


def _response_similarity(responses: Sequence[str], num_generations: int, seed: int) -> float:
    """How much the first responses to different prompts resemble each other."""
    return mean_pairwise_meteor(
        responses[::num_generations], NUM_SIMILARITY_PAIRS, numpy_generator(seed, 0, "similarity")
    )


def _length_change(spec: ComparisonSpec, arms: Arms, clusters: NDArray[np.int64]) -> dict[str, Any]:
    before, after = (
        np.array(arm.response_lengths, float).reshape(-1, arm.num_generations).mean(1) for arm in arms
    )
    found = simultaneous_intervals(
        (after - before)[:, None],
        clusters=clusters,
        bootstrap_samples=spec.bootstrap_samples,
        confidence_level=spec.confidence_level,
        seed=spec.seed,
    )
    return {
        "before": float(before.mean()) if len(before) else None,
        "after": float(after.mean()) if len(after) else None,
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "unit": "tokens",
    }


def _table_columns(
    arms: Arms, objectives: Sequence[str], scores: ScorePair, training_scores: ScorePair | None
) -> dict[str, list[Any]]:
    """The columns of generations.parquet, one row a prompt and sample."""
    prompts, n = arms[0].prompts, arms[0].num_generations
    asked = [prompt for prompt in prompts for _ in range(n)]
    rows: dict[str, list[Any]] = {
        "prompt_id": [_escape_surrogates(prompt.id) for prompt in asked],
        "kind": [_escape_surrogates(prompt.category) for prompt in asked],
        "sample": [i for _ in prompts for i in range(n)],
        "prompt": [_prompt_text(prompt) for prompt in asked],
    }
    for i, name in enumerate(("before", "after")):
        rows[name] = [_escape_surrogates(sample.response) for sample in arms[i].samples]
        rows[f"{name}_truncated"] = [sample.truncated for sample in arms[i].samples]
        rows[f"{name}_tokens"] = list(arms[i].response_lengths)
        for k, objective in enumerate(objectives):
            rows[f"{name}/{objective}"] = scores[i][:, :, k].ravel().tolist()
            if training_scores is not None:
                rows[f"reward/{name}/{objective}"] = training_scores[i][:, :, k].ravel().tolist()
    return rows


def _prompt_text(prompt: Prompt) -> str:
    """One user turn as it is; a longer conversation with the roles before the turns."""
    if len(prompt.messages) == 1:
        return _escape_surrogates(prompt.messages[0].content)
    return _escape_surrogates("\n".join(f"{message.role}: {message.content}" for message in prompt.messages))


def _escape_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
