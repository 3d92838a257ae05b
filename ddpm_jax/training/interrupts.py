"""SIGTERM and SIGINT while training: finish the step at hand, save it, leave.

A scheduler that takes a machine back sends SIGTERM and waits for some seconds; a person presses
ctrl-C. Either way the loop asks after each step whether to stop. A second SIGINT does not wait.

Several processes have to stop after the same step, whichever of them was told: JAX's coordination
service passes SIGTERM on and names the step (`reached_preemption_sync_point`).
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils

from ddpm_jax.parallel import hosts

__all__ = ["InterruptedTraining", "Interrupts"]


class InterruptedTraining(Exception):  # noqa: N818 - nothing went wrong
    """Training was asked to stop, and its last step is saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; step {step} is saved")
        self.step = step
        self.signal_number = signal_number


class Interrupts:
    """Catches the two signals while the context lasts.

    Signals reach the main thread only: elsewhere it catches nothing.
    """

    def __init__(self, say: Any = print) -> None:
        self._say = say
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            caught = [signal.SIGINT]
            if hosts.alone():  # else SIGTERM belongs to JAX, which tells the other processes
                caught.append(signal.SIGTERM)
            self._before = {number: signal.signal(number, self._receive) for number in caught}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def received(self, step: int) -> int | None:
        """The signal to stop for after `step`; asked once after each step, by every process."""
        if hosts.alone():
            return self._received
        if multihost_utils.reached_preemption_sync_point(step):
            return self._received or signal.SIGTERM
        return None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        if hosts.alone():
            self._say("saving this step before leaving; ctrl-C again leaves at once")
        else:
            os.kill(os.getpid(), signal.SIGTERM)
