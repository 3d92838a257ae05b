"""The log of a run that goes to a service, through a process of its own.

A service that is slow, hangs, prints or fails costs the run a line and not its time.
"""

import base64
import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ddpm_jax.config import logger_process
from ddpm_jax.files import write_json

__all__ = ["ServiceRun", "run_id"]

_QUEUE = 1000
"""Calls that may wait for a slow service."""


class ServiceRun:
    """A `LoggingRun`: a process of `logger_process`, and the threads that write to it and read.

    Calls return at once and raise what went wrong since the last one. `close` waits.

    Args:
        service: "wandb" or "mlflow".
        directory: of the run. What the service prints goes to SERVICE/output.txt in it.
        options: of the member.
        seconds: how long `close` waits.
    """

    def __init__(
        self, service: str, directory: Path, options: dict[str, Any], seconds: float
    ) -> None:
        directory = directory.absolute()
        self._output = directory / service / "output.txt"
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._seconds = seconds
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                # Without the script's folder on the path: its modules have common names.
                [sys.executable, "-P", logger_process.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # ctrl-C is for the run
            )
        self._queue: queue.Queue[Any] = queue.Queue(_QUEUE)
        self._errors: queue.Queue[str] = queue.Queue()
        self._ended = self._killed = False
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._feed, self._listen)
        ]
        for thread in self._threads:
            thread.start()
        start = {"service": service, "directory": str(directory), "options": options}
        self._put({**start, "seconds": seconds})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers."""
        self._put(["scalars", step, values])

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture."""
        data = base64.b64encode(np.asarray(picture, np.uint8).tobytes()).decode()
        self._put(["picture", step, name, picture.shape, data])

    def close(self) -> None:
        """Waits until everything is sent, or the time is over."""
        end = time.monotonic() + self._seconds
        try:
            for last in (["close"], None):
                self._queue.put(last, timeout=max(0.0, end - time.monotonic()))
            self._process.wait(max(0.0, end - time.monotonic()))
        except (queue.Full, subprocess.TimeoutExpired):
            self._killed = True
            self._errors.put(f"it did not end within {self._seconds:g} s; the rest is not sent")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with all that it has started
        self._process.wait()
        for thread in self._threads:
            thread.join(1.0)
        self._raise()

    def _put(self, call: Any) -> None:
        try:
            if not self._ended:
                self._queue.put_nowait(call)
        except queue.Full:
            raise TimeoutError(f"{_QUEUE} calls wait; until it answers, others are lost") from None
        self._raise()

    def _raise(self) -> None:
        errors = []
        with contextlib.suppress(queue.Empty):
            while True:
                errors.append(self._errors.get_nowait())
        if errors:
            raise ConnectionError(f"{'; '.join(errors)} (see {self._output})")

    def _feed(self) -> None:
        with contextlib.suppress(OSError), cast(IO[bytes], self._process.stdin) as pipe:
            while (call := self._queue.get()) is not None:
                pipe.write(json.dumps(call).encode() + b"\n")
                pipe.flush()
        self._ended = True
        with contextlib.suppress(queue.Empty):
            while True:  # nobody sends them
                self._queue.get_nowait()

    def _listen(self) -> None:
        error = None
        with cast(IO[bytes], self._process.stdout) as pipe:
            for line in pipe:
                report = json.loads(line)
                if isinstance(report, dict):
                    with contextlib.suppress(OSError):
                        write_json(self._output.with_name("run.json"), report)
                else:
                    error = report
                    self._errors.put(error)
        code = self._process.wait()
        if code and error is None and not self._killed:
            self._errors.put(f"its process ended with code {code}")
        self._ended = True


def run_id(file: Path) -> str:
    """The id in a file of JSON, which is made if there is none."""
    if file.exists():
        return str(json.loads(file.read_text())["id"])
    value = secrets.token_hex(8)
    write_json(file, {"id": value})
    return value
