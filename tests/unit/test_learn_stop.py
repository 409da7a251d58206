import os
import signal

import pytest

from paretune.core.errors import RunInterrupted
from paretune.training.guards import StopRequest


def strike(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_what_came_before_a_loop_is_obeyed_at_its_first_step():
    with StopRequest() as outer:
        strike()
        assert outer.requested
        with StopRequest() as inner, pytest.raises(RunInterrupted):
            inner.raise_if_stopped("step 1")


def test_what_came_too_late_for_a_loop_is_obeyed_outside():
    with StopRequest() as outer:
        with StopRequest():
            strike()
        with pytest.raises(RunInterrupted, match="after the stage"):
            outer.raise_if_stopped("the stage")


@pytest.mark.parametrize(
    ("number", "error", "by"),
    [
        (signal.SIGTERM, RunInterrupted, "stopped by a signal"),
        (signal.SIGINT, KeyboardInterrupt, "interrupted"),
    ],
)
def test_a_stop_says_what_was_saved(number, error, by):
    with StopRequest() as stop:
        stop.raise_if_stopped()
        strike(number)
        with pytest.raises(error, match=f"^{by} after step 3 of 9; give the same command again to go on"):
            stop.raise_if_stopped("step 3 of 9")
        with pytest.raises(error, match=f"^{by} before anything of it was saved; give the same command"):
            stop.raise_if_stopped()


def test_what_a_loop_obeyed_is_not_handed_on_but_raised_through():
    def loop():
        with StopRequest(), StopRequest() as inner:
            strike(signal.SIGINT)
            inner.raise_if_stopped("step 1")

    with pytest.raises(KeyboardInterrupt):
        loop()


def test_the_second_interrupt_does_not_wait():
    with StopRequest():
        strike(signal.SIGINT)
        with StopRequest(), pytest.raises(KeyboardInterrupt):
            strike(signal.SIGINT)
