"""SIGTERM, SIGHUP and SIGINT during training: the last step is saved, and the process exits.

A scheduler that takes a machine back sends SIGTERM and waits for some seconds; a closed terminal
sends SIGHUP; ctrl-C sends SIGINT. The loop checks after each step whether to stop. While there is
nothing to save, the process exits at once. Repeated signals change nothing, except that a second
SIGINT does not wait.

Python runs a signal's handler only when the main thread returns from C++, where compiling or a long
step may take minutes. A thread reads the signals from a pipe instead, and acts at once.

Several processes have to stop after the same step, whichever of them got the signal: JAX's
coordination service passes SIGTERM on and names the step (`reached_preemption_sync_point`).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from jax.experimental import multihost_utils

from ddpm_jax.parallel import hosts, watchdog
from ddpm_jax.terminal import complain

__all__ = ["InterruptedTraining", "Interrupts"]

_EXIT_SIGNAL = 128
"""The exit code is this plus the signal's number."""
_PATIENCE = 2.0
"""Seconds to wait for the last output, because a terminal or a pipe may block."""


class InterruptedTraining(Exception):  # noqa: N818 - nothing went wrong
    """A signal stopped training, and its last step is saved.

    Args:
        step: the last step.
        signal_number: number of the signal.
    """

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; step {step} is saved")
        self.step = step
        self.signal_number = signal_number


class Interrupts:
    """A context manager that catches the three signals, except those that are ignored (nohup).

    Signals only reach the main thread: in other threads it catches nothing. After a signal, all
    three are ignored when the context ends, because the process is about to exit with the code of
    the first signal. Set the attribute `steps` to the number of steps of the run.

    Args:
        say: gets the sentences for the log.
        close: called before the process exits at once; it restores the terminal.
    """

    def __init__(
        self, say: Callable[[str], None] = print, close: Callable[[], None] = lambda: None
    ) -> None:
        self.say, self.close = say, close
        self.steps: int | None = None
        self._nothing_to_save: str | None = "nothing was trained, and nothing is lost"
        self._step = 0
        self._received: int | None = None
        self._interrupts = 0
        self._lock = threading.Lock()
        self._before: dict[int, Any] = {}
        self._alone = True
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Interrupts":
        self._alone = hosts.alone()
        if threading.current_thread() is not threading.main_thread():
            return self
        caught = [signal.SIGINT, signal.SIGHUP]
        if self._alone:  # else JAX handles SIGTERM and passes it on
            caught.append(signal.SIGTERM)
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._watch, args=(read,), daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in caught:
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = before or signal.SIG_DFL  # None if it is not Python's
                signal.signal(number, lambda number, frame: None)  # the pipe has it already
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is None:
            return
        for number, before in self._before.items():
            signal.signal(number, before if self._received is None else signal.SIG_IGN)
        self._before = {}
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._write, b"\0")
        self._thread.join(_PATIENCE)
        os.close(self._write)

    def computed(self, step: int) -> None:
        """Notes that a step is done, so that there is something to save.

        Args:
            step: number of the step.
        """
        with self._lock:
            self._nothing_to_save = None

    def saved(self, sentence: str) -> None:
        """Notes that there is nothing left to save; exits if there was a signal.

        Args:
            sentence: the reason, which is printed at the exit.
        """
        with self._lock:
            self._nothing_to_save = sentence
        if self._received is not None and self._alone:
            self._leave(self._received, sentence)

    def received(self, step: int) -> int | None:
        """The signal for which training has to stop; each process calls this after each step.

        Args:
            step: number of the step.

        Returns:
            The signal's number, or None to go on.
        """
        self._step = step
        if self._alone:
            return self._received
        if multihost_utils.reached_preemption_sync_point(step):
            return self._received or signal.SIGTERM
        return None

    def _watch(self, pipe: int) -> None:
        """The thread."""
        with open(pipe, "rb", buffering=0) as signals:
            while (number := ord(signals.read(1))) != 0:
                if number in self._before:
                    self._receive(number)

    def _receive(self, number: int) -> None:
        self._interrupts += number == signal.SIGINT
        with self._lock:
            first, nothing = self._received is None, self._nothing_to_save
            if first and nothing is None:
                self._received = number
        if self._interrupts > 1:
            self._leave(signal.SIGINT, "the same command resumes from the last checkpoint")
        elif first and nothing is not None:
            self._leave(number, nothing)
        elif first and not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)
        elif first:
            step = self._step + 1 if self.steps is None else min(self._step + 1, self.steps)
            again = "ctrl-C again" if number == signal.SIGINT else "ctrl-C twice"
            _speak(
                lambda: self.say(
                    f"finishing step {step}, saving it, then exiting; {again} exits at once"
                )
            )

    def _leave(self, number: int, sentence: str) -> None:
        """Exits at once, whatever the main thread does; the kernel frees locks and files."""
        if not self._alone:
            watchdog.claim_exit()

        def last_words() -> None:
            self.close()
            if number == signal.SIGINT:
                self.say(sentence)
                complain("interrupted")
            else:
                complain(f"stopped by {signal.Signals(number).name}; {sentence}")
            sys.stdout.flush()

        _speak(last_words)
        os._exit(_EXIT_SIGNAL + number)


def _speak(words: Callable[[], None]) -> None:
    """In a thread of its own: it may wait for a terminal, or a lock that the main thread holds."""
    thread = threading.Thread(target=words, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
