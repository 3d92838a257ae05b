"""The loggers: places for the curves and pictures of training, beside the run's metrics.jsonl.

The numbers of a run follow from config and seed, but for its speed: what a resumed run logs again
is what a service has already, and is ignored there.

Keys and passwords of services come from the environment or from the files of the services
(`WANDB_API_KEY`, `wandb login`, `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`). A
config has none.
"""

import abc
import contextlib
import dataclasses
import os
import socket
import struct
import time
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ddpm_jax.config.base import NOT_EMPTY, POSITIVE, Affects, Bound, ConfigError, Member
from ddpm_jax.config.logger_service import ServiceRun, run_id
from ddpm_jax.errors import require

__all__ = ["Logger", "LoggingRun", "Mlflow", "NoLogger", "TensorBoard", "Wandb"]

_PAIRS = Bound(lambda tags: all("=" in tag for tag in tags), "texts such as 'key=value'")


@runtime_checkable
class LoggingRun(Protocol):
    """The calls of a logger during one run. If one raises, the run prints a line and goes on.

    Of calls that fail one after the other, only the first is printed.
    """

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers.

        Args:
            step: number of training steps done.
            values: by name, such as the loss and the speed; when the run ends, also its results,
                `final_NAME`.
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
            directory: of the run; its config.json is there.
            resumed_at: number of steps done before. What was logged of later steps is void.

        Returns:
            The log, which the run calls.

        Raises:
            UserError: what the user can fix; training does not begin. With any other error it
                begins without a log.
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


@dataclasses.dataclass(frozen=True)
class Wandb(Logger):
    """A run of Weights & Biases. A resumed run has the same id, of RUN/wandb/run.json.

    The service ignores steps before the last one that it has. Offline, a resumed run writes another
    folder in RUN/wandb with the same id; `wandb sync RUN/wandb/offline-run-*` sends all of them.
    """

    project: Annotated[str, NOT_EMPTY] = "ddpm_jax"
    """Name of the project."""
    entity: str | None = None
    """User or team; None for the user's default."""
    name: str | None = None
    """Name of the run; None for the name of its directory."""
    group: str | None = None
    """Group of the run."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    offline: bool = False
    """Write to RUN/wandb alone, without a network and a key. `WANDB_MODE=offline` does so, too."""
    wait_seconds: Annotated[float, POSITIVE] = 60.0
    """How long the end of the run waits until everything is sent, in seconds."""

    def make(self, directory: Path, resumed_at: int) -> LoggingRun:
        """Starts the process, and the run in it."""
        require("the logger Wandb", "wandb", "wandb")
        options = dataclasses.asdict(self) | {"id": run_id(directory / "wandb" / "run.json")}
        del options["wait_seconds"]
        return ServiceRun("wandb", directory, options, self.wait_seconds)


@dataclasses.dataclass(frozen=True)
class Mlflow(Logger):
    """A run of MLflow. A resumed run has the same id, of RUN/mlflow/run.json.

    Steps that the service has already are not logged again. Parameters are those of the start of
    the run; config.json among its artifacts is that of the last start.
    """

    tracking_uri: str | None = None
    """Address of the server, or of a database. None: that of `MLFLOW_TRACKING_URI`, and without it
    RUN/mlflow/mlflow.db, a file."""
    experiment: Annotated[str, NOT_EMPTY] = "ddpm_jax"
    """Name of the experiment."""
    name: str | None = None
    """Name of the run; None for the name of its directory."""
    tags: Annotated[tuple[str, ...], _PAIRS] = ()
    """Tags of the run, 'key=value'."""
    wait_seconds: Annotated[float, POSITIVE] = 60.0
    """How long the end of the run waits until everything is sent, in seconds."""

    def check(self, config: Any) -> None:
        """Checks that the address has no password, which config.json would show to everyone."""
        address = urllib.parse.urlsplit(self.tracking_uri or "")
        if address.password or (address.username and address.scheme.startswith("http")):
            raise ConfigError(
                "logger.tracking_uri has a password or token, which config.json would show; put it"
                " into MLFLOW_TRACKING_PASSWORD, or the whole address into MLFLOW_TRACKING_URI"
            )

    def make(self, directory: Path, resumed_at: int) -> LoggingRun:
        """Starts the process, and the run in it."""
        local = not (self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        require("the logger Mlflow", "mlflow", "mlflow", *(["sqlalchemy", "alembic"] * local))
        options = dataclasses.asdict(self)
        del options["wait_seconds"]
        return ServiceRun("mlflow", directory, options, self.wait_seconds)


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
