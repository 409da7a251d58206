import os
import signal

import pytest

from paretune.core.errors import RunInterrupted
from paretune.training.guards import StopRequest


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_request_before_a_loop_stops_it_at_its_first_step():
    with StopRequest() as outer:
        send()
        assert outer.requested
        with StopRequest() as inner, pytest.raises(RunInterrupted):
            inner.raise_if_stopped("step 1")


def test_request_that_a_loop_did_not_handle_is_passed_on():
    with StopRequest() as outer:
        with StopRequest():
            send()
        with pytest.raises(RunInterrupted, match="after the stage"):
            outer.raise_if_stopped("the stage")


@pytest.mark.parametrize(
    ("number", "error", "by"),
    [
        (signal.SIGTERM, RunInterrupted, "stopped by a signal"),
        (signal.SIGINT, KeyboardInterrupt, "interrupted"),
    ],
)
def test_message_says_what_was_saved(number, error, by):
    with StopRequest() as stop:
        stop.raise_if_stopped()
        send(number)
        with pytest.raises(error, match=f"^{by} after step 3 of 9; repeat the command to resume"):
            stop.raise_if_stopped("step 3 of 9")
        with pytest.raises(error, match=f"^{by} before anything was saved; repeat the command"):
            stop.raise_if_stopped()


def test_interrupt_of_a_loop_is_raised_through():
    def loop():
        with StopRequest(), StopRequest() as inner:
            send(signal.SIGINT)
            inner.raise_if_stopped("step 1")

    with pytest.raises(KeyboardInterrupt):
        loop()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (signal.SIGINT, "stopping after this step; press Ctrl-C again to stop at once\n"),
        (signal.SIGTERM, "stopping after this step\n"),
    ],
)
def test_request_is_answered_at_once_and_once(number, text, capfd):
    with StopRequest() as outer:
        with StopRequest():
            send(number)
            assert capfd.readouterr().err == text
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert outer.requested
    assert capfd.readouterr() == ("", "")


def test_second_interrupt_does_not_wait():
    with StopRequest():
        send(signal.SIGINT)
        with StopRequest(), pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
