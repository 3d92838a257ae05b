"""The loggers: places for the curves and pictures of training, beside the run's metrics.jsonl."""

import abc
import contextlib
import dataclasses
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ddpm_jax.config.base import Affects, Member
from ddpm_jax.errors import require

__all__ = ["Logger", "LoggingRun", "NoLogger", "TensorBoard"]


@runtime_checkable
class LoggingRun(Protocol):
    """The calls of a logger during one run. If one raises, the run prints a line and goes on."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers.

        Args:
            step: number of training steps done.
            values: by name, such as the loss and the speed.
        """

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture of drawn images.

        Args:
            step: number of training steps done.
            name: of the picture.
            picture: uint8 `[height, width, channel]`.
        """

    def close(self) -> None:
        """Ends the log; the run calls it last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logger(Member):
    """A place for curves and pictures.

    In a run of several processes only the first one logs.
    """

    affects: ClassVar[Affects] = Affects.REPORTS

    @abc.abstractmethod
    def make(self, directory: Path, resumed_at: int) -> LoggingRun:
        """Opens the log of one run.

        Args:
            directory: of the run.
            resumed_at: number of steps done before. What was logged of later steps is void.

        Returns:
            The log, which the run calls.
        """


@dataclasses.dataclass(frozen=True)
class NoLogger(Logger):
    """No log beside metrics.jsonl and the pictures in the run."""

    def make(self, directory: Path, resumed_at: int) -> LoggingRun:
        """Returns a log that ignores all calls."""
        return _Nothing()


@dataclasses.dataclass(frozen=True)
class TensorBoard(Logger):
    """Event files in RUN/tensorboard."""

    def make(self, directory: Path, resumed_at: int) -> LoggingRun:
        """Begins a new file, which voids later steps in older files."""
        return _Events(directory / "tensorboard", resumed_at)


class _Nothing:
    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


class _Events:
    """Writes each event to the file at once; an event is lost if the disk is full.

    The writer of tensorboardX has a thread that would wait for a full disk forever.
    """

    def __init__(self, directory: Path, resumed_at: int) -> None:
        require("the logger TensorBoard", "train", "tensorboardX")
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        now = time.time()
        self._path = directory / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        self._event = Event
        header = Event(wall_time=now, file_version="brain.Event:2")
        begun = Event(
            wall_time=now,
            step=resumed_at + 1,
            session_log=SessionLog(status=SessionLog.START),
        )
        _append(self._path, _record(header) + _record(begun))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, scalar(name, value))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        from tensorboardX.summary import image

        self._write(step, image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        pass

    def _write(self, step: int, summary: Any) -> None:
        with contextlib.suppress(OSError):
            event = self._event(step=step, wall_time=time.time(), summary=summary)
            _append(self._path, _record(event))


def _record(event: Any) -> bytes:
    """The format that TensorBoard reads: length, its checksum, the event, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


def _append(path: Path, data: bytes) -> None:
    """Appends all of the data, or nothing if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(data) != len(data):
            file.truncate(end)
