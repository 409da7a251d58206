"""The progress line: what is always on it, and what it leaves out on a narrow terminal."""

import io
import re

import pytest
from rich.console import Console as RichConsole

from paretune.experiment import console
from paretune.experiment.console import LiveConsole, PlainConsole, TimeLeft, format_duration, progress_line

NAMES = ("politeness", "meaningfulness", "actionability", "safety", "truthfulness", "conciseness")
VALUES = ["10% of the budget", *(f"{name} 0.{i}2" for i, name in enumerate(NAMES))]


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.mark.parametrize(("width", "num_shown"), [(40, 0), (60, 0), (80, 0), (120, 1)])
def test_bar_steps_and_time_left_are_on_every_line_and_no_name_is_cut(width, num_shown):
    line = progress_line("[5/7] align", 12, 60, 80.0, "KL/token 0.012", VALUES, width=width, bar=("#", "-"))
    assert len(line) <= width
    assert re.match(r"\[5/7\] align #+-+ 12/60 1:20 left", line)
    shown = [name for name in NAMES if name in line]
    assert shown == [*NAMES[: len(shown)]], "the first ones, in their order"
    assert len(shown) >= num_shown
    assert width < 60 or re.search(r" \+\d$", line), "the number of those not shown"


def test_everything_is_on_a_line_without_a_limit():
    line = progress_line("align", 1, 2, 3.0, "note", VALUES)
    assert line == f"align 1/2 0:03 left  note  {'  '.join(VALUES)}"


def test_a_long_name_is_left_out_rather_than_cut():
    line = progress_line("align", 1, 2, 3.0, "", ["x" * 90, "short 0.5"], width=60, bar=("#", "-"))
    assert "xxx" not in line
    assert len(line) <= 60


def test_durations():
    assert [format_duration(x) for x in (0.4, 59.6, 750.0, 3723.0)] == ["0:00", "1:00", "12:30", "1:02:03"]


def test_time_left_comes_from_recent_steps(clock):
    left = TimeLeft()
    clock.now = 9.0
    left.add(0, 10)
    assert left.seconds() is None
    clock.now = 13.0
    left.add(1, 10)
    assert left.seconds() == pytest.approx(36), "without what was loaded before the first step"
    clock.now = 4.0
    left = TimeLeft()
    left.add(1, 10)
    assert left.seconds() is None, "its beginning is unknown"
    clock.now = 6.0
    left.add(2, 10)
    assert left.seconds() == pytest.approx(16)
    clock.now = 7.0
    assert left.seconds() == pytest.approx(15), "it runs down between two steps"
    left.add(10, 10)
    assert left.seconds() is None


def test_a_resumed_stage_does_not_count_the_steps_before_it(clock):
    left = TimeLeft()
    clock.now = 3.0
    left.add(501, 1000)
    assert left.seconds() is None
    clock.now = 5.0
    left.add(502, 1000)
    assert left.seconds() == pytest.approx(2.0 * 498)
    left.add(1, 50)
    assert left.seconds() is None or left.seconds() < 1, "another part of the stage starts anew"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_shows_one_line_of_its_width(clock, width, encoding):
    class Terminal(io.StringIO):
        pass

    Terminal.encoding = property(lambda self: encoding)
    rich = RichConsole(file=Terminal(), width=width, force_terminal=True)
    live = LiveConsole(rich)
    live.start_stage("align", 5, 7)
    live.progress_bar.stop()
    assert live.current_line() == "[5/7] align 0:00  loading"
    live.progress(0, 0, "testing on unseen rows")
    assert live.current_line() == "[5/7] align 0:00  testing on unseen rows"
    live.progress(0, 60, "")
    clock.now = 4.0
    live.progress(1, 60, "KL/token 0.012", VALUES)
    line = live.current_line()
    assert len(line) <= width - console.SPINNER_WIDTH
    assert "1/60 3:56 left" in line
    assert line.isascii() is (encoding == "ascii")
    live.finish_stage(f"grpo, 60 steps; training reward: {' '.join(VALUES)} runs/{'x' * 100}/report.html")
    last = rich.file.getvalue().split("\n")
    wrapped = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row).strip("\r") for row in last]
    wrapped = wrapped[next(i for i, row in enumerate(wrapped) if row.startswith("[5/7] align   ")) :]
    assert all(len(row) <= width for row in wrapped if "xxx" not in row)
    assert any(f"runs/{'x' * 100}/report.html" in row for row in wrapped), "a path stays whole"


def test_plain_lines_have_steps_time_left_and_all_values(clock, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    plain = PlainConsole(stream)
    plain.start_stage("align", 5, 7)
    plain.progress(0, 60, "")
    assert stream.getvalue() == "", "not before the interval has passed"
    clock.now = 40.0
    plain.progress(2, 60, "KL/token 0.012", VALUES)
    assert f"2/60 19:20 left  KL/token 0.012  {'  '.join(VALUES)}\n" in stream.getvalue()
    monkeypatch.setenv("COLUMNS", "80")
    narrow = io.StringIO()
    plain = PlainConsole(narrow)
    plain.start_stage("align", 5, 7)
    clock.now = 80.0
    plain.progress(2, 60, "KL/token 0.012", VALUES)
    assert len(narrow.getvalue().rstrip()) <= 80
    assert " +" in narrow.getvalue()
