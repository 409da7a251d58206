"""Warns, once per objective, that all responses of the first steps have the same score, or none."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.config.schema import Config
from paretune.experiment.context import RunContext
from paretune.run.folder import CONSTANT_SCORE_EVENT, read_jsonl

CONSTANT_STEPS = 5
"""First steps whose scores are compared; a score that is the same everywhere later may have been learnt."""
MIN_RESPONSES = 16
"""Fewer equal scores are likely to be chance."""
_TOLERANCE = 1e-6
"""Scores are 32-bit numbers, and their mean and standard deviation are rounded."""


def report_constant_scores(ctx: RunContext, step: int, num_responses: int) -> None:
    """Report the objectives from which the first steps had nothing to learn.

    Args:
        ctx: The run; its metrics have the line of this step.
        step: The step, from 0.
        num_responses: Responses of a step.
    """
    num_steps = min(CONSTANT_STEPS, ctx.config.run.max_steps)
    if step + 1 != num_steps or not ctx.resolved.algorithm.rollout.generates:
        return
    # From the files, not from memory: a resumed run knows the earlier steps, and repeats no report.
    lines = [line for line in read_jsonl(ctx.path("metrics.jsonl")) if line["stage"] == "align"][:num_steps]
    events = read_jsonl(ctx.path("events.jsonl"))
    reported = {str(e["text"]).partition(":")[0] for e in events if e["type"] == CONSTANT_SCORE_EVENT}
    steps = f"steps 1 to {num_steps}" if num_steps > 1 else "step 1"
    for name in _counted_objectives(ctx.config):
        if name not in reported and (text := describe_constant(name, lines, num_responses, steps)):
            ctx.run.log_event(CONSTANT_SCORE_EVENT, f"{name}: {text}")
            ctx.console.log(f"warning: {name}: {text}")


def describe_constant(name: str, lines: Sequence[Mapping[str, Any]], num_responses: int, steps: str) -> str:
    """What an objective's scores have in common; "" if they differ, or are few.

    Args:
        name: The objective.
        lines: Metrics of the steps.
        num_responses: Responses of a step.
        steps: The steps, in words.
    """
    unscored = [line.get(f"score/{name}/unscored_fraction") for line in lines]
    if not lines or None in unscored:
        return ""
    num_scored = sum(round((1 - (share or 0.0)) * num_responses) for share in unscored)
    num_all = num_responses * len(lines)
    if not num_scored and num_all >= MIN_RESPONSES:
        return (
            f"none of the {num_all:,} responses of {steps} was scored: nothing to learn from it; fix: "
            "correct its scorer, or the columns and prompts that it reads"
        )
    means = [m for line in lines if (m := line.get(f"score/{name}/mean")) is not None]
    spread = max([0.0, *(line.get(f"score/{name}/std") or 0.0 for line in lines)])
    if num_scored < MIN_RESPONSES or max(means) - min(means) + spread > _TOLERANCE * (1 + abs(means[0])):
        return ""
    return (
        f"all {num_scored:,} scores of {steps} were {means[0]:.4g}: nothing to learn from it; fix: correct "
        "its scorer, or take prompts or a start policy with which its scores differ"
    )


def _counted_objectives(config: Config) -> list[str]:
    """The objectives that are not logged only."""
    gating = {gate[1] for gate in config.gates}
    return [
        name
        for name, each in config.objectives.items()
        if each.weight
        or each.weight_schedule
        or each.by_category
        or each.at_least is not None
        or name in gating
    ]
