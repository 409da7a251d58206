"""Thinking before the response, and verbalized confidence: parts, scorer views, adjusted rewards.

python docs/examples/views.py
"""

import textwrap

import torch
from small import block, column, graded, table

from paretune.algorithms.grpo import grpo
from paretune.algorithms.wrappers import ppo_c, ppo_m, with_thinking
from paretune.credit.base import chain
from paretune.credit.score_transforms import InvalidFormatPenalty
from paretune.credit.shaping import ConfidenceCalibratedReward
from paretune.data.prompt_formats import parse_thinking
from paretune.evaluate.confidence import calibration_metrics
from paretune.rl.algorithm_spec import LABEL_WIDTH, AlgorithmSpec

WEIGHTS = {"polite": 1.0, "safety": 1.0}


def parts() -> None:
    """The changes to the parent algorithm, as `paretune check` prints them."""
    specs = {
        "thinking": with_thinking(grpo(WEIGHTS), "penalize"),
        "ppo_c": ppo_c(WEIGHTS),
        "ppo_m": ppo_m(WEIGHTS),
    }
    for name, spec in specs.items():
        block(f"parts of {name}")
        chosen(spec)


def chosen(spec: AlgorithmSpec) -> None:
    """The lines of rollout, scorer_view and reward_steps."""
    label = ""
    for line in spec.describe():
        label = line[:LABEL_WIDTH].strip() or label
        if label in {"rollout", "scorer_view", "reward_steps"}:
            print(textwrap.fill(line, 110, subsequent_indent=" " * (LABEL_WIDTH + 5), break_long_words=False))


def forms() -> None:
    """Responses, and how they are parsed."""
    block("forms")
    rows: list[list[object]] = []
    for response in (
        "<think>a</think> B",
        "<think></think> B",
        "B",
        "<think>a",
        "<think>a</think>",
        "so: <think>a</think> B",
        "<think>a</think> B</think> C",
        "<think>a</think> B <think>c</think> D",
    ):
        parsed = parse_thinking(response)
        rows.append([response, *(parsed or ("", "invalid"))])
    table(("response", "thinking", "final response"), rows)


def invalid_format() -> None:
    """Two training steps, two columns; the last response of each has an invalid format."""
    block("invalid format")
    step, rng = InvalidFormatPenalty(), torch.Generator()
    state, rows = step.init_state(), []
    for index, scores in enumerate(([[0.9, 0.2], [0.4, 0.6]], [[0.7, 0.8], [0.8, 0.9]])):
        batch = graded([*scores, [torch.nan, torch.nan]], ("polite", "safety"))
        batch = batch.replace(format_valid=torch.tensor([True, True, False]))
        batch, state, _ = step.apply_stateful(batch, state, rng)
        rows += [[f"step {index + 1}, response {i + 1}", *column(row)] for i, row in enumerate(batch.rewards)]
    table(("", "polite", "safety"), rows)


def adjusted() -> None:
    """A batch by hand; the moving mean is 0 before it, and 0.05 after."""
    block("adjusted")
    rewards, stated = [2.0, -1.0, 0.5], [0.9, 0.9, torch.nan]
    batch = graded([[r, c] for r, c in zip(rewards, stated, strict=True)], ("score", "confidence"))
    batch = batch.replace(rewards=batch.rewards[:, :1])
    rows: list[list[object]] = []
    for missing in ("unadjusted", "worst"):
        step = chain(ConfidenceCalibratedReward(missing_confidence=missing, initial_baseline=0.0))
        out, _, _ = step.apply_stateful(batch, step.init_state(), torch.Generator())
        rows.append([f'missing_confidence "{missing}"', *column(out.rewards)])
    table(("", "2, c = 0.9", "-1, c = 0.9", "0.5, no c"), rows)


def measured() -> None:
    """Five responses."""
    block("measured")
    metrics = calibration_metrics([0.9, 0.9, 0.8, 0.6, 0.6], [1, 0, 1, 0, 1])
    table(("", "ECE", "Brier", "AUROC"), [["five responses", metrics.ece, metrics.brier, metrics.auroc]])


def main() -> None:
    """Print the numbers of the pages."""
    parts()
    forms()
    invalid_format()
    adjusted()
    measured()


if __name__ == "__main__":
    main()
