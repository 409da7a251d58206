"""Objectives from which the first steps of a training have nothing to learn."""

import pytest

from paretune.config import load_config
from paretune.evaluate.warnings import event_warnings
from paretune.experiment.console import PlainConsole
from paretune.experiment.constant_scores import CONSTANT_STEPS, describe_constant, report_constant_scores
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import Dataset
from paretune.experiment.resolved import resolve
from paretune.run.folder import Run, read_jsonl
from paretune.training.guards import StopRequest


def line(mean, std=0.0, unscored=0.0):
    """Metrics of one objective, `o`, in one step."""
    scores = {} if mean is None else {"score/o/mean": mean, "score/o/std": std}
    return {"score/o/unscored_fraction": unscored, **scores}


@pytest.mark.parametrize(
    ("lines", "num_responses", "start"),
    [
        ([line(0.0)] * 5, 32, "all 160 scores of the steps were 0: nothing to learn"),
        ([line(0.25)] * 2, 8, "all 16 scores of the steps were 0.25: "),
        ([line(-3.0, unscored=0.5)] * 4, 8, "all 16 scores of the steps were -3: "),
        ([line(0.1, std=1e-9)] * 5, 32, "all 160 scores of the steps were 0.1: "),  # rounded
        ([line(None, unscored=1.0)] * 5, 32, "none of the 160 responses of the steps was scored: "),
        ([line(None, unscored=1.0), line(1.0)] * 2, 8, "all 16 scores of the steps were 1: "),
        ([line(0.0)] * 4 + [line(0.01, std=0.1)], 32, ""),
        ([line(0.0), line(1.0)], 32, ""),  # equal within the steps, not between them
        ([line(0.0)] * 5, 3, ""),  # 15 scores may be equal by chance
        ([line(None, unscored=1.0)], 8, ""),
        ([{}] * 5, 32, ""),
        ([], 32, ""),
    ],
)
def test_constant_scores_are_told_with_their_number(lines, num_responses, start):
    text = describe_constant("o", lines, num_responses, "the steps")
    assert text.startswith(start)
    assert bool(text) == bool(start)
    assert not text or "; fix: " in text


RECIPE = """
name: x
data: {world: {}}
policy: {path: world, sft: {}}
algorithm: {name: grpo}
scorers:
  a: {type: rule, rule: json}
  b: {type: rule, rule: length, max: 9}
  c: {type: rule, rule: repetition}
objectives: {a: {}, b: {}, c: {weight: 0}}
"""


class HeardConsole(PlainConsole):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, text):
        self.lines.append(text)


@pytest.fixture
def context(tmp_path):
    """A run in which a and c score 0 everywhere; c is only logged."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    run = Run(tmp_path)
    run.stage = "align"
    resolved = resolve(load_config(tmp_path / "r.yaml"))
    return RunContext(
        resolved=resolved,
        run=run,
        console=HeardConsole(),
        dataset=Dataset(train_prompts={}, test_prompts=()),
        stop=StopRequest(),
    )


def take_step(context, step):
    metrics = {f"score/{name}/unscored_fraction": 0.0 for name in "abc"}
    metrics |= {f"score/{name}/mean": 0.5 * (name == "b") for name in "abc"}
    metrics |= {f"score/{name}/std": 0.1 * (name == "b") for name in "abc"}
    context.run.log_metrics(step, metrics)
    report_constant_scores(context, step, 8)


def test_it_is_told_once_on_terminal_and_page_and_not_again_after_a_resume(context, tmp_path):
    for step in range(CONSTANT_STEPS + 3):
        take_step(context, step)
    report_constant_scores(context, CONSTANT_STEPS - 1, 8)  # a resume repeats the step
    text = (
        f"a: all {8 * CONSTANT_STEPS} scores of steps 1 to {CONSTANT_STEPS} were 0: nothing to learn from it"
    )
    (line_told,) = context.console.lines
    assert line_told.startswith(f"warning: {text}")
    (warning,) = event_warnings(read_jsonl(tmp_path / "events.jsonl"))
    assert warning.startswith(text)


def test_nothing_is_told_before_the_first_steps_are_over(context):
    for step in range(CONSTANT_STEPS - 1):
        take_step(context, step)
    assert context.console.lines == []
