"""Signals while training, also while the main thread is in C++ and runs no handler."""

import hashlib
import os
import signal
import threading
import time

import pytest

from ddpm_jax.training import Interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers_as_before():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupts(monkeypatch):
    """Some that note in `events` what they say, and with what they would leave."""
    events = []
    monkeypatch.setattr(Interrupts, "_leave", lambda self, *why: events.append(why))
    made = Interrupts(events.append)
    made.events = events
    return made


def send(interrupts, *numbers):
    """One after another, each when the one before has been read."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS)
def test_where_there_is_nothing_to_save_a_signal_leaves_at_once(interrupts, number):
    with interrupts:
        send(interrupts, number)
        assert interrupts.events == [(number, "nothing was trained, and nothing is lost")]
        assert interrupts.received(1) is None


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        ([signal.SIGTERM] * 10, 0),
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP], 0),
        ([signal.SIGTERM, signal.SIGINT], 0),
        ([signal.SIGINT, signal.SIGTERM, signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGINT], 1),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGINT], 1),
    ],
)
def test_the_first_signal_is_that_to_stop_for_and_only_a_second_interrupt_does_not_wait(
    interrupts, numbers, left
):
    with interrupts:
        interrupts.received(6)
        interrupts.computed(6)
        send(interrupts, *numbers)
        assert interrupts.received(7) == numbers[0]
    assert "finishing step 7, saving it, then exiting" in interrupts.events[0]
    gone = [(signal.SIGINT, "the same command resumes from the last checkpoint")]
    assert interrupts.events[1:] == gone * left
    # A scheduler that goes on sending must not change how the process ends.
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}


def test_after_the_last_save_there_is_nothing_to_wait_for(interrupts):
    with interrupts:
        interrupts.computed(8)
        interrupts.saved("step 8 is saved")
        send(interrupts, signal.SIGTERM)
        assert interrupts.events == [(signal.SIGTERM, "step 8 is saved")]


def test_a_signal_that_comes_during_the_last_save_leaves_after_it(interrupts):
    with interrupts:
        interrupts.computed(8)
        send(interrupts, signal.SIGHUP)
        interrupts.saved("step 8 is saved")
        assert interrupts.events[1:] == [(signal.SIGHUP, "step 8 is saved")]


def test_an_ignored_signal_stays_ignored(interrupts):
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts:
        send(interrupts, signal.SIGHUP)
        assert interrupts.events == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_main_thread_need_not_come_back_from_c(interrupts):
    seen = []

    def send_and_look():
        time.sleep(0.1)
        send(interrupts, signal.SIGTERM)
        seen.extend(interrupts.events)

    with interrupts:
        interrupts.computed(1)
        sender = threading.Thread(target=send_and_look)
        sender.start()
        while sender.is_alive():  # each call takes some 1.5 s and runs no handler of Python's
            hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
            assert seen
    assert "finishing step" in seen[0]
