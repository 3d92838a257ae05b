"""One sentence and exit code 4 in place of jaxlib's abort, when another process of the run is lost.

JAX's coordination service watches the heartbeats of all processes. If one is silent, a thread of
jaxlib ends the others with an error log, a stack trace and `abort()`. A process that computes with
the missing one may get an exception sooner. A process that waits for it in a barrier, or whose peer
is suspended and not dead, can only end in this way.

Therefore the output of C++ to standard output and error goes through pipes here, which hold back
the log lines of the coordination service and of gloo; and `abort()` is caught. If the last log
lines are those of the service, the process prints which process is missing and exits with
`EXIT_HOST_LOSS`. If not, it prints the lines that were held back, and aborts.

This depends on jaxlib's log lines. Two simpler ways were tried, with jax 0.10.2 and 0.12.0:

- `jax_enable_recoverability` and a thread that calls the client's `get_live_nodes` each second:
  right for every process but process 0, whose death or stop still aborts the others, before a
  thread of Python sees it. It also prints a warning at each start.
- `missed_heartbeat_callback` of jaxlib's client, in place of the abort: a function in Python raises
  std::bad_cast, because its argument, a status, does not convert.

A supervising parent process would have to read the same log lines, to forward signals, and to end
with its child, and the child with it.
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

__all__ = ["EXIT_HOST_LOSS", "RESUME", "all_joined", "claim_exit", "install"]

EXIT_HOST_LOSS = 4
RESUME = "the same command on all hosts continues from what is saved"

all_joined = threading.Event()
"""Set when all processes of the run have joined."""

_LOG = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]")
_SERVICE_FILES = re.compile(rb"(coordination_\w+|preemption_\w+|client)\.(cc|h)$")
_GLOO = re.compile(
    rb"(\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    rb"|\d| )+"
)
"""Log lines of gloo; threads, one for each device, write them in pieces."""
_FATAL = b"the JAX distributed service detected fatal errors"
_UNHEALTHY = re.compile(
    rb"unhealthy \(stopped sending heartbeats\):((?:\s*\S*task:\d+,?|\s*\d+\b)+)"
)
_MARK = b"[ddpm_jax is up to here]"
"""Written to a pipe after the last line, so that its reader knows that all lines were read."""
_PATIENCE = 1.0
"""Seconds to wait for that."""


def install() -> None:
    """Starts the watchdog of this process; call it before `jax.distributed` is initialized."""
    if _pipes:
        return
    _pipes.extend(_Pipe(stream) for stream in ("stdout", "stderr"))
    atexit.register(_uninstall)
    # Handlers in Python run in the main thread, which may wait for the missing process.
    _libc.signal(signal.SIGABRT, _on_abort)


def claim_exit() -> None:
    """Returns to its first caller, which prints the reason and exits; other callers block."""
    _exit_claim.acquire()


class _Pipe:
    """A standard stream: Python writes to the original file, C++ to a pipe that a thread reads."""

    def __init__(self, name: str) -> None:
        self._name, self._python = name, getattr(sys, name)
        self._python.flush()
        self._number = {"stdout": 1, "stderr": 2}[name]
        self._original = os.dup(self._number)
        read, write = os.pipe()
        os.dup2(write, self._number)
        os.close(write)
        # Line buffering: nothing is lost if the process exits at once.
        stream = open(  # noqa: SIM115 - it stays open as long as the process lives
            self._original,
            "w",
            buffering=1,
            encoding=self._python.encoding,
            errors=self._python.errors,
            closefd=False,
        )
        setattr(sys, name, terminal.Stream(stream))
        self.held_back = b""
        """Lines that were not printed."""
        self._in_service_log = False  # lines without a prefix belong to it
        self._flushed = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._thread.start()

    def print(self, text: bytes) -> None:
        with contextlib.suppress(OSError):  # a closed pipe or a full disk
            os.write(self._original, text)

    def flush_pipe(self) -> None:
        """Returns when all that this thread has written is printed or held back."""
        os.write(self._number, _MARK + b"\n")
        self._flushed.wait(_PATIENCE)

    def close(self) -> None:
        """Restores the stream, and prints what is in the pipe."""
        getattr(sys, self._name).flush()
        setattr(sys, self._name, self._python)
        os.dup2(self._original, self._number)  # which closes the pipe
        self._thread.join(_PATIENCE)

    def _read(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as lines:
            rest = b""
            while chunk := lines.read(65536):
                *complete, rest = (rest + chunk).split(b"\n")
                for line in complete:
                    text = line.removesuffix(_MARK)
                    if text or text == line:
                        self._handle_line(text + b"\n")
                    if text != line:
                        self._flushed.set()
            self.print(rest)

    def _handle_line(self, line: bytes) -> None:
        if begins := _LOG.match(line):
            self._in_service_log = _SERVICE_FILES.match(begins[1]) is not None
        if self._in_service_log or _GLOO.fullmatch(line.rstrip(b"\n")):
            self.held_back += line
        else:
            self.print(line)


_pipes: list[_Pipe] = []
_exit_claim = threading.Lock()


def _uninstall() -> None:
    while _pipes:
        _pipes.pop().close()


def _handle_abort(number: int) -> None:
    """Runs in the thread that called `abort()`, which goes on when this returns."""
    if not _pipes:
        return
    errors = _pipes[-1]
    errors.flush_pipe()
    if _FATAL in errors.held_back:
        claim_exit()
        errors.print(f"ddpm-jax: {_missing_processes(errors.held_back)}; {RESUME}\n".encode())
        os._exit(EXIT_HOST_LOSS)
    errors.print(errors.held_back)


def _missing_processes(words: bytes) -> str:
    if not all_joined.is_set():
        return "not all processes of the run started in time"
    if match := _UNHEALTHY.search(words):
        indices = [int(number) for number in re.findall(rb"(\d+),?(?=\s|$)", match[1])]
        if len(indices) == 1:
            return f"process {indices[0]} of the run died or does not answer"
        return f"processes {', '.join(map(str, indices))} of the run died or do not answer"
    return "process 0 of the run, which coordinates the others, died or does not answer"


_libc: Any = ctypes.CDLL(None)
_libc.signal.restype = ctypes.c_void_p
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(_handle_abort)
