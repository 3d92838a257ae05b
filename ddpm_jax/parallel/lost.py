"""One sentence in place of jaxlib's abort, when another process of the run is gone.

JAX's coordination service watches the heartbeats of all processes. If one is silent, it ends the
others from a thread of its own: an error log, a stack trace, `abort()`. A process that computes
with the lost one may learn of it sooner, as an exception; one that waits for it in a barrier, or
for a process that is stopped and not dead, learns of it in this way only. (The callback that
jaxlib takes in place of the abort cannot be written in Python: its argument does not convert.)

So what C++ writes to standard output and error goes through pipes here, which leave out what the
coordination service and gloo tell of themselves; and `abort()` is caught. If the last words were
those of the service, the process says who is gone and ends with `EXIT_LOST`. If not, nothing is
held back, and it aborts.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from typing import Any

from ddpm_jax import terminal

__all__ = ["EXIT_LOST", "ONWARDS", "last_word", "listen", "met"]

EXIT_LOST = 4
ONWARDS = "the same command on all hosts goes on from the last checkpoint"

met = threading.Event()
"""Whether all processes of the run have been there."""

_LOG = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]")
_OWN_FILES = re.compile(rb"(coordination_\w+|preemption_\w+|client)\.(cc|h)$")
_GLOO = re.compile(
    rb"(\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    rb"|\d| )+"
)
"""Threads write it, one for each device, through each other."""
_LAST_WORDS = b"the JAX distributed service detected fatal errors"
_SILENT = re.compile(rb"unhealthy \(stopped sending heartbeats\):((?:\s*\S*task:\d+,?|\s*\d+\b)+)")
_MARK = b"[ddpm_jax is up to here]"
"""Goes through a pipe after the last words, to tell that they have come out."""
_PATIENCE = 1.0
"""Seconds for that."""


def listen() -> None:
    """From now on, for the whole process; before `jax.distributed` is initialized."""
    if _pipes:
        return
    _pipes.extend(_Pipe(stream) for stream in ("stdout", "stderr"))
    atexit.register(_stop_listening)
    # Python's own handlers wait for the main thread, which may wait for the lost process.
    _libc.signal(signal.SIGABRT, _on_abort)


def last_word() -> None:
    """Whoever calls it first is to say why the process ends, and to end it; others stay here."""
    _speaker.acquire()


class _Pipe:
    """A standard stream: Python writes to where it went before, all others through a pipe."""

    def __init__(self, name: str) -> None:
        self._name, self._python = name, getattr(sys, name)
        self._python.flush()
        self._number = {"stdout": 1, "stderr": 2}[name]
        self._screen = os.dup(self._number)
        read, write = os.pipe()
        os.dup2(write, self._number)
        os.close(write)
        # By lines: a process that ends at once leaves nothing behind.
        stream = open(  # noqa: SIM115 - it stays open as long as the process lives
            self._screen,
            "w",
            buffering=1,
            encoding=self._python.encoding,
            errors=self._python.errors,
            closefd=False,
        )
        setattr(sys, name, terminal.Stream(stream))
        self.held = b""
        """What was left out so far."""
        self._is_own = False  # the service's, to which lines without a beginning belong
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._thread.start()

    def tell(self, text: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(self._screen, text)

    def catch_up(self) -> None:
        """Returns when all that this thread has written is told or held."""
        os.write(self._number, _MARK + b"\n")
        self._caught_up.wait(_PATIENCE)

    def close(self) -> None:
        """Everything as it was, and what is in the pipe told."""
        getattr(sys, self._name).flush()
        setattr(sys, self._name, self._python)
        os.dup2(self._screen, self._number)  # which closes the pipe
        self._thread.join(_PATIENCE)

    def _read(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as lines:
            rest = b""
            while chunk := lines.read(65536):
                *complete, rest = (rest + chunk).split(b"\n")
                for line in complete:
                    text = line.removesuffix(_MARK)
                    if text or text == line:
                        self._sort(text + b"\n")
                    if text != line:
                        self._caught_up.set()
            self.tell(rest)

    def _sort(self, line: bytes) -> None:
        if begins := _LOG.match(line):
            self._is_own = _OWN_FILES.match(begins[1]) is not None
        if self._is_own or _GLOO.fullmatch(line.rstrip(b"\n")):
            self.held += line
        else:
            self.tell(line)


_pipes: list[_Pipe] = []
_speaker = threading.Lock()


def _stop_listening() -> None:
    while _pipes:
        _pipes.pop().close()


def _on_abort_called(number: int) -> None:
    """Called by the thread that called `abort()`, which returns to it or ends the process."""
    if not _pipes:
        return
    errors = _pipes[-1]
    errors.catch_up()
    if _LAST_WORDS in errors.held:
        last_word()
        errors.tell(f"ddpm-jax: {_who(errors.held)}; {ONWARDS}\n".encode())
        os._exit(EXIT_LOST)
    errors.tell(errors.held)


def _who(words: bytes) -> str:
    if not met.is_set():
        return "the processes of the run did not all meet in time"
    if silent := _SILENT.search(words):
        lost = [int(number) for number in re.findall(rb"(\d+),?(?=\s|$)", silent[1])]
        if len(lost) == 1:
            return f"process {lost[0]} of the run died or does not answer"
        return f"processes {', '.join(map(str, lost))} of the run died or do not answer"
    return "process 0 of the run, which the others meet at, died or does not answer"


_libc: Any = ctypes.CDLL(None)
_libc.signal.restype = ctypes.c_void_p
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort_called)
