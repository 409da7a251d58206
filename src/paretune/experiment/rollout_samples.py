"""A few responses of the training with their scores, every some steps: what the policy writes by now."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from paretune.core.batch import Batch
from paretune.data.records import Sample
from paretune.experiment.context import RunContext
from paretune.report.formatting import finite_or_none

MAX_PROMPTS = 2
"""Prompts of a step whose responses are kept: the first ones, which are others in each step."""
MAX_RESPONSES = 4
"""Responses to each of them."""


def rollout_logger(ctx: RunContext) -> Callable[[int, Batch, Sequence[Sample]], None]:
    """Writes responses of every `run.save_steps`-th step to rollouts.jsonl."""
    return partial(_log, ctx)


def _log(ctx: RunContext, step: int, batch: Batch, samples: Sequence[Sample]) -> None:
    if step % ctx.config.run.save_steps == 0:
        ctx.run.log_rollouts(step, rollout_rows(batch, samples))


def rollout_rows(batch: Batch, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Prompt, response and scores of a few rows; a score of null: not scored."""
    groups, rows = batch.group.tolist(), list[dict[str, Any]]()
    shown = list(dict.fromkeys(groups))[:MAX_PROMPTS]
    counts = dict.fromkeys(shown, 0)
    scores = batch.scores.tolist()
    for i, (group, sample) in enumerate(zip(groups, samples, strict=True)):
        if group not in counts or counts[group] == MAX_RESPONSES:
            continue
        counts[group] += 1
        messages = sample.prompt.messages
        rows.append(
            {
                "prompt": messages[-1].content if messages else "",
                "response": sample.full_response,
                **{
                    name: finite_or_none(value)
                    for name, value in zip(batch.objectives, scores[i], strict=True)
                },
            }
        )
    return rows
