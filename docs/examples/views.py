"""Thinking before the answer, and stated confidence: parts, views, and what calibration pays.

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
from paretune.data.chat import parse_thinking
from paretune.evaluate.confidence import calibration_metrics
from paretune.rl.algorithm_spec import AlgorithmSpec, describe

WEIGHTS = {"polite": 1.0, "safety": 1.0}


def parts() -> None:
    """What each changes of its parent, as `paretune check` prints it."""
    made = {
        "thinking": with_thinking(grpo(WEIGHTS), "worst"),
        "ppo_c": ppo_c(WEIGHTS),
        "ppo_m": ppo_m(WEIGHTS),
    }
    for name, recipe in made.items():
        block(f"parts of {name}")
        chosen(recipe)


def chosen(recipe: AlgorithmSpec) -> None:
    """The lines of source, view and worth."""
    at = ""
    for line in describe(recipe):
        at = line[:10].strip() or at
        if at in {"source", "view", "worth"}:
            print(textwrap.fill(line, 110, subsequent_indent=" " * 15, break_long_words=False))


def forms() -> None:
    """Responses, and what is read of them."""
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
        found = parse_thinking(response)
        rows.append([response, *(found or ("", "unread"))])
    table(("response", "thoughts", "answer"), rows)


def unread() -> None:
    """Two training steps, two columns; the last response of each is unread."""
    block("unread")
    step, rng = InvalidFormatPenalty(), torch.Generator()
    state, rows = step.init_state(), []
    for at, scores in enumerate(([[0.9, 0.2], [0.4, 0.6]], [[0.7, 0.8], [0.8, 0.9]])):
        batch = graded([*scores, [torch.nan, torch.nan]], ("polite", "safety"))
        batch = batch.replace(format_valid=torch.tensor([True, True, False]))
        batch, state, _ = step.apply_stateful(batch, state, rng)
        rows += [[f"step {at + 1}, response {i + 1}", *column(row)] for i, row in enumerate(batch.rewards)]
    table(("", "polite", "safety"), rows)


def adjusted() -> None:
    """A batch by hand; the moving mean was 0 before it, and is 0.05 after."""
    block("adjusted")
    rewards, stated = [2.0, -1.0, 0.5], [0.9, 0.9, torch.nan]
    batch = graded([[r, c] for r, c in zip(rewards, stated, strict=True)], ("score", "confidence"))
    batch = batch.replace(rewards=batch.rewards[:, :1])
    rows: list[list[object]] = []
    for unstated in ("unadjusted", "worst"):
        step = chain(ConfidenceCalibratedReward(missing_confidence=unstated, initial_baseline=0.0))
        got, _, _ = step.apply_stateful(batch, step.init_state(), torch.Generator())
        rows.append([f'unstated "{unstated}"', *column(got.rewards)])
    table(("", "2, sure", "-1, sure", "0.5, silent"), rows)


def measured() -> None:
    """Five answers."""
    block("measured")
    found = calibration_metrics([0.9, 0.9, 0.8, 0.6, 0.6], [1, 0, 1, 0, 1])
    table(("", "ECE", "Brier", "AUROC"), [["five answers", found.ece, found.brier, found.auroc]])


def main() -> None:
    """Print the numbers of the pages."""
    parts()
    forms()
    unread()
    adjusted()
    measured()


if __name__ == "__main__":
    main()
