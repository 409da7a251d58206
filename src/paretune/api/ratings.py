"""Ratings of responses by an LLM judge, in the data format of this package."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paretune.api.arguments import check_arguments
from paretune.api.inputs import Rows, read_samples
from paretune.api.loading import LoadingContext, load_scorers
from paretune.api.scorers import ScorerSetup
from paretune.config.scorer_schema import LlmJudgeScorerSection
from paretune.core.errors import ConfigError, ScoringError, WiringError
from paretune.data.records import Sample
from paretune.report.formatting import one_line
from paretune.report.tables import align_columns
from paretune.reward.failures import MIN_RESPONSES, describe_reasons
from paretune.reward.judge_rating import rate_rows, repeat_agreement
from paretune.reward.llm_judge import LlmJudgeScorer
from paretune.run.io import write_atomic


@check_arguments
def rate(judge: ScorerSetup, rows: Rows, *, num_repeats: int = 1) -> list[dict[str, Any]]:
    """Rate responses by an LLM judge; the rows can be saved as JSON Lines and used as `ratings`.

    Args:
        judge: Result of `paretune.scorers.llm_judge`.
        rows: A file, or rows with a prompt and a response.
        num_repeats: Independent ratings of each response; each label is then the list of its votes.

    Raises:
        DataError: A row has no prompt or no response, or there are none.
        ConfigError: A setting of the judge is wrong, or its endpoint cannot be used.
        ScoringError: It answers too many canaries wrongly, or fails on too many responses.
    """
    samples = read_samples(rows)
    scorer = load_llm_judge(judge, samples)
    return list(guarded_ratings(judge.name, scorer, samples, num_repeats=num_repeats))


def load_llm_judge(judge: ScorerSetup, samples: tuple[Sample, ...], run_dir: Path = Path()) -> LlmJudgeScorer:
    """The judge, checked with its endpoint and its canaries.

    Args:
        judge: Its settings.
        samples: What it is to rate.
        run_dir: Folder of its replies, in `judge_cache`, unless the settings name one.

    Raises:
        WiringError: It is no LLM judge.
        ConfigError: A setting is wrong, or its endpoint cannot be used.
        ScoringError: It answers too many canaries wrongly.
    """
    if not isinstance(judge, ScorerSetup) or not isinstance(judge.section, LlmJudgeScorerSection):
        is_setup = isinstance(judge, ScorerSetup)
        own = f'"{judge.name}", a {judge.section.type} scorer,' if is_setup else f"a {type(judge).__name__}"
        raise WiringError(f"{own} is no LLM judge; fix: pass paretune.scorers.llm_judge(...)")
    prompts = tuple(sample.prompt for sample in samples)
    (guarded,) = load_scorers(judge, LoadingContext(prompts=prompts, run_dir=run_dir))
    scorer: LlmJudgeScorer = guarded.scorer
    return scorer


def guarded_ratings(
    name: str, judge: LlmJudgeScorer, samples: tuple[Sample, ...], *, num_repeats: int = 1
) -> Iterator[dict[str, Any]]:
    """The rows of `rate_rows`.

    Raises:
        ConfigError: There are no repeats.
        ScoringError: More responses failed than `max_failure_rate` allows.
    """
    if num_repeats < 1:
        raise ConfigError(f"{num_repeats} repeats; fix: at least 1")
    judge.failures.take()  # those of canaries
    yield from rate_rows(judge, samples, repeats=num_repeats)
    counts = judge.failures
    if counts.rate > judge.max_failure_rate and counts.num_responses >= MIN_RESPONSES:
        raise ScoringError(
            f"{name} did not rate {counts.reasons.total():,} of {counts.num_responses:,} responses "
            f"({describe_reasons(counts)}); max_failure_rate is {judge.max_failure_rate:g}; fix: mend the "
            "cause; another attempt asks for these alone"
        )


def save_ratings(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as JSON Lines; what JSON has no type for, such as dates, is written as text.

    Raises:
        ConfigError: The file exists.
        ResourceError: It cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; fix: choose another file, or remove it")
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def rating_summary(judge: LlmJudgeScorer, rows: list[dict[str, Any]], num_repeats: int) -> str:
    """A table for the terminal: mean label and rated responses per objective, agreement, and failures."""
    agreement = repeat_agreement(rows) if num_repeats > 1 else {}
    head = ("objective", "mean", "rated", *(["agreement (alpha)"] if agreement else []))
    table: list[tuple[str, ...]] = [head]
    for name in judge.names:
        labels = [row["scores"][name] for row in rows if name in row["scores"]]
        votes = [vote for label in labels for vote in (label if isinstance(label, list) else [label])]
        mean = f"{sum(votes) / len(votes):.4g}" if votes else "-"
        alpha = [f"{agreement.get(name, math.nan):.2f}"] if agreement else []
        table.append((one_line(name), mean, f"{len(labels):,} of {len(rows):,}", *alpha))
    lines = align_columns(table, right_aligned=(1,))
    counts = judge.failures
    if counts.reasons:
        lines.append(f"not rated: {describe_reasons(counts)}")
    usage = judge.client.cache.usage(judge.scope)
    lines.append(f"{usage.requests:,} requests, cost {usage.cost:.4g}")
    return "\n".join(lines)
