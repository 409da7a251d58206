"""Comparison of two policies on the same prompts and seeds, scored by judges independent of the reward."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.core.errors import WiringError
from paretune.core.goals import Goal
from paretune.core.rng import numpy_generator
from paretune.data.prompt_formats import ScorerView, visible_text
from paretune.data.records import Prompt, Sample
from paretune.evaluate.confidence import calibration_by_arm, thinking_metrics_by_arm
from paretune.evaluate.generate import Generations, prompt_clusters
from paretune.evaluate.judging import (
    Arms,
    Judge,
    ScorePair,
    combine_judge_verdicts,
    compare_judges,
    comparison_spec,
    score_arms,
)
from paretune.evaluate.paired import (
    ComparisonSpec,
    compare_by_category,
    compare_objectives,
    compare_rates,
)
from paretune.evaluate.refusals import classifier_refusal_rates
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.evaluate.text_metrics import (
    distinct_n,
    mean_pairwise_meteor,
    num_words,
    rate_per_prompt,
    unique_fraction,
)
from paretune.evaluate.verdicts import ALL
from paretune.evaluate.warnings import RefusalDirection, evaluation_warnings, limitations
from paretune.reward.scorers import is_refusal
from paretune.run.folder import to_json, write_atomic

SCHEMA = "paretune/eval/3"
"""Format identifier of eval.json."""

NUM_SIMILARITY_PAIRS = 2000
"""Pairs of responses over which similarity is averaged."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The content of eval.json, and the columns of generations.parquet with one row per pair of responses."""

    results: dict[str, Any]
    columns: dict[str, list[Any]]

    def save(self, folder: Path) -> None:
        """Write eval.json and generations.parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: pa.array(column) for name, column in self.columns.items()})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        # eval.json marks a complete evaluation, so it comes last.
        write_atomic(folder / "generations.parquet", sink.getvalue().to_pybytes())
        write_atomic(folder / "eval.json", to_json(self.results))


def evaluate(
    before: Generations,
    after: Generations,
    judges: Sequence[Judge],
    *,
    objectives: Sequence[str],
    reward_judges: Sequence[Judge] = (),
    goals: Mapping[str, Goal] | None = None,
    margins: Mapping[str, float] | None = None,
    refusal_detector: Callable[[str], bool] = is_refusal,
    refusal_categories: Mapping[str, RefusalDirection] | None = None,
    scorer_view: ScorerView = "full",
    verdict_rule: str = ALL,
    correctness_threshold: tuple[str, float] | None = None,
    kl: Mapping[str, Any] | None = None,
    learning_rate: float | None = None,
    confidence_level: float = 0.95,
    bootstrap_samples: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Compare two policies on the same prompts.

    Args:
        before: Responses of the starting policy.
        after: Responses of the trained policy, with the same prompts, seeds and settings.
        judges: Score the objectives; the first judge of an objective gives its numbers.
        objectives: Names, in the order of the table.
        reward_judges: The training reward; a judge that shares weights or data with it never yields "better".
        goals: Objective -> its goal; "higher" if it is left out.
        margins: Objective -> non-inferiority margin: the largest loss that still counts as "not worse".
        refusal_detector: Whether a response refuses, by its text.
        refusal_categories: Prompt category -> better direction of its refusal rate.
        scorer_view: The part of a response that judges and rewards read, the same in both arms.
        verdict_rule: Of objectives with several judges; see `combine_verdicts`.
        correctness_threshold: An objective and its lowest correct score, where responses state a confidence.
        kl: Result of `estimate_kl`.
        learning_rate: The rate of the training, which the warnings name; None without gradients.
        confidence_level: Confidence level of all intervals.
        bootstrap_samples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        WiringError: Different prompts, two judges of one name, or none for `correctness_threshold`.
    """
    _require_same_prompts(before, after)
    sampling = (confidence_level, bootstrap_samples, seed)
    spec = comparison_spec(tuple(objectives), judges, reward_judges, margins or {}, sampling, goals or {})
    arms, names = (before, after), spec.objectives
    scores = score_arms(arms, names, judges, scorer_view)
    training_scores = score_arms(arms, names, reward_judges, scorer_view) if reward_judges else None
    is_refused = _refusal_in_view(scorer_view, refusal_detector)
    results = _evaluation_results(spec, arms, scores, training_scores, is_refused)
    results |= compare_judges(spec, arms, judges, reward_judges, scorer_view)
    combine_judge_verdicts(results, verdict_rule)
    results |= _refusal_details(spec, arms, scorer_view, refusal_detector, refusal_categories or {})
    results |= _format_results(spec, arms, scores, scorer_view, correctness_threshold)
    results |= {"kl": dict(kl) if kl is not None else None, "learning_rate": learning_rate}
    results["warnings"] = evaluation_warnings(results)
    results["limitations"] = limitations(results, refusals_by_phrase=refusal_detector is is_refusal)
    return Evaluation(results=results, columns=_table_columns(arms, names, scores, training_scores))


def _require_same_prompts(before: Generations, after: Generations) -> None:
    if before.prompts != after.prompts or before.num_generations != after.num_generations:
        problem = "before and after answer different prompts"
        raise WiringError(f"{problem}; fix: generate both with the same settings")


def _format_results(
    spec: ComparisonSpec,
    arms: Arms,
    scores: ScorePair,
    scorer_view: ScorerView,
    correctness_threshold: tuple[str, float] | None,
) -> dict[str, Any]:
    """Calibration where responses state a confidence, lengths where they think before they answer."""
    samples = (arms[0].samples, arms[1].samples)
    results = {}
    if correctness_threshold is not None:
        name = correctness_threshold[0]
        if name not in spec.judge_names:
            raise WiringError(
                f'correctness is judged by "{name}", which has no judge; fix: add a judge of this objective'
            )
        results["calibration"] = calibration_by_arm(samples, scores, spec.objectives, correctness_threshold)
    if scorer_view == "after_thinking":
        results["thinking"] = thinking_metrics_by_arm(samples)
    return results


def _refusal_in_view(
    scorer_view: ScorerView, refusal_detector: Callable[[str], bool]
) -> Callable[[Sample], bool]:
    """Whether the visible part of a sample is a refusal."""

    def is_refused(sample: Sample) -> bool:
        visible = visible_text(sample, scorer_view)
        return visible is not None and refusal_detector(visible.response)

    return is_refused


def _refusal_details(
    spec: ComparisonSpec,
    arms: Arms,
    scorer_view: ScorerView,
    refusal_detector: Callable[[str], bool],
    refusal_categories: Mapping[str, RefusalDirection],
) -> dict[str, Any]:
    """The categories, and refusals by the fitted classifier; none where another detector is used."""
    results: dict[str, Any] = {"refusal_categories": dict(refusal_categories)}
    if refusal_detector is not is_refusal:
        return results
    before, after = (
        [None if (seen := visible_text(s, scorer_view)) is None else seen.response for s in arm.samples]
        for arm in arms
    )
    categories = [prompt.category for prompt in arms[0].prompts]
    return results | {
        "refusal_classifier": classifier_refusal_rates(
            (before, after), arms[0].num_generations, categories, spec.confidence_level
        )
    }


def _evaluation_results(
    spec: ComparisonSpec,
    arms: Arms,
    scores: ScorePair,
    training_scores: ScorePair | None,
    is_refused: Callable[[Sample], bool],
) -> dict[str, Any]:
    prompts = arms[0].prompts
    clusters = prompt_clusters(prompts)
    categories = [prompt.category for prompt in prompts]
    return {
        "schema": SCHEMA,
        "num_prompts": len(prompts),
        "num_generations": arms[0].num_generations,
        "confidence_level": spec.confidence_level,
        "bootstrap_samples": spec.bootstrap_samples,
        "seed": spec.seed,
        "objectives": compare_objectives(spec, scores[0], scores[1], clusters, training_scores),
        "categories": (
            compare_by_category(spec, categories, scores[0], scores[1], clusters) if any(categories) else {}
        ),
        **_side_effects(spec, arms, is_refused, clusters),
    }


def _side_effects(
    spec: ComparisonSpec, arms: Arms, is_refused: Callable[[Sample], bool], clusters: NDArray[np.int64]
) -> dict[str, Any]:
    """Length, diversity, truncation and refusal rates in both arms, and the fraction of equal responses."""
    texts = [[sample.response for sample in arm.samples] for arm in arms]
    # Distinct n-grams fall with the amount of text: read equally many words of both arms.
    max_words = min(num_words(responses) for responses in texts)
    text_metrics = {
        "distinct_1": [distinct_n(responses, 1, max_words) for responses in texts],
        "distinct_2": [distinct_n(responses, 2, max_words) for responses in texts],
        "unique_fraction": [unique_fraction(responses) for responses in texts],
        "similarity": [
            _response_similarity(responses, arms[0].num_generations, spec.seed) for responses in texts
        ],
    }
    truncated = [
        rate_per_prompt(arm.samples, arm.num_generations, lambda sample: sample.truncated) for arm in arms
    ]
    refused = [rate_per_prompt(arm.samples, arm.num_generations, is_refused) for arm in arms]
    categories = np.array([prompt.category for prompt in arms[0].prompts], dtype=object)
    return {
        "length": _length_change(spec, arms, clusters),
        **{name: {"before": pair[0], "after": pair[1]} for name, pair in text_metrics.items()},
        "unchanged_fraction": sum(map(str.__eq__, *texts)) / max(len(texts[0]), 1),
        "truncation_rate": compare_rates(truncated[0], truncated[1], spec.confidence_level),
        "refusal_rate": {
            category or "other": compare_rates(
                refused[0][categories == category], refused[1][categories == category], spec.confidence_level
            )
            for category in dict.fromkeys(categories)
        },
    }


def _response_similarity(responses: Sequence[str], num_generations: int, seed: int) -> float:
    """Mean METEOR between the first responses to different prompts."""
    return mean_pairwise_meteor(
        responses[::num_generations], NUM_SIMILARITY_PAIRS, numpy_generator(seed, 0, "similarity")
    )


def _length_change(spec: ComparisonSpec, arms: Arms, clusters: NDArray[np.int64]) -> dict[str, Any]:
    before, after = (
        np.array(arm.response_lengths, float).reshape(-1, arm.num_generations).mean(1) for arm in arms
    )
    intervals = simultaneous_intervals(
        (after - before)[:, None],
        clusters=clusters,
        bootstrap_samples=spec.bootstrap_samples,
        confidence_level=spec.confidence_level,
        seed=spec.seed,
    )
    return {
        "before": float(before.mean()) if len(before) else None,
        "after": float(after.mean()) if len(after) else None,
        "low": float(intervals.low[0]),
        "high": float(intervals.high[0]),
        "unit": "tokens",
    }


def _table_columns(
    arms: Arms, objectives: Sequence[str], scores: ScorePair, training_scores: ScorePair | None
) -> dict[str, list[Any]]:
    """The columns of generations.parquet, one row per prompt and sample."""
    prompts, n = arms[0].prompts, arms[0].num_generations
    # Samples of a prompt are consecutive.
    repeated = [prompt for prompt in prompts for _ in range(n)]
    columns: dict[str, list[Any]] = {
        "prompt_id": [_escape_surrogates(prompt.id) for prompt in repeated],
        "category": [_escape_surrogates(prompt.category) for prompt in repeated],
        "sample_index": [i for _ in prompts for i in range(n)],
        "prompt": [_prompt_text(prompt) for prompt in repeated],
    }
    if any([message.role for message in prompt.messages] != ["user"] for prompt in prompts):
        # Needed to rate the responses: the text of a conversation does not tell its turns apart.
        columns["messages"] = [_messages_json(prompt) for prompt in repeated]
    for i, name in enumerate(("before", "after")):
        columns[name] = [_escape_surrogates(sample.response) for sample in arms[i].samples]
        columns[f"{name}_truncated"] = [sample.truncated for sample in arms[i].samples]
        columns[f"{name}_tokens"] = list(arms[i].response_lengths)
        for k, objective in enumerate(objectives):
            columns[f"{name}/{objective}"] = scores[i][:, :, k].ravel().tolist()
            if training_scores is not None:
                columns[f"reward/{name}/{objective}"] = training_scores[i][:, :, k].ravel().tolist()
    return columns


def _prompt_text(prompt: Prompt) -> str:
    """A single turn without its role; a longer conversation with one line per turn."""
    if len(prompt.messages) == 1:
        return _escape_surrogates(prompt.messages[0].content)
    return _escape_surrogates("\n".join(f"{message.role}: {message.content}" for message in prompt.messages))


def _messages_json(prompt: Prompt) -> str | None:
    """The turns as JSON; None if one has more than a role and a text."""
    if any(message.extra for message in prompt.messages):
        return None
    return json.dumps([{"role": message.role, "content": message.content} for message in prompt.messages])


def _escape_surrogates(text: str) -> str:
    """The text with lone surrogates escaped: parquet holds UTF-8 only."""
    return text.encode("utf-8", "backslashreplace").decode()
