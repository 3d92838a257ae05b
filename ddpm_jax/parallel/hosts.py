"""Several processes that run one program, each with its own devices: how they connect and wait.

`jax.distributed` finds the processes, watches their heartbeats and provides the barriers. In a
process that runs alone each function returns at once.
"""

import contextlib
import io
import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ddpm_jax.errors import UserError
from ddpm_jax.parallel import watchdog

__all__ = [
    "HostLossError",
    "agreed",
    "alone",
    "appears",
    "barrier",
    "by_first",
    "check_same",
    "check_shared",
    "gathered",
    "gathered_arrays",
    "is_first",
    "join",
    "leave",
    "together",
    "watched",
]

_PATIENCE = 24 * 3600
"""Seconds to wait at a barrier: the shares of an interrupted evaluation may differ by hours. The
heartbeats notice a process that is lost."""
_SHARED = 30
"""Seconds until a file that one host wrote has to be visible to the others: NFS caches listings."""

_GATHERED = itertools.count()
_STATUS = re.compile(
    "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)
"""Beginnings of the errors of collectives and barriers; RESOURCE_EXHAUSTED is not one of them."""


class HostLossError(RuntimeError):
    """Another process of the run ended or cannot be reached."""


def join(
    *,
    detect: bool = False,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    heartbeat_seconds: int = 10,
    start_seconds: int = 300,
) -> None:
    """Connects the processes of one run. Call it before any other use of JAX.

    Either JAX detects the others, as it can under SLURM and on Cloud TPUs, or all three of
    `coordinator`, `count` and `index` are given, or this process is alone.

    Args:
        detect: let JAX find the other processes.
        coordinator: address host:port of process 0.
        count: number of processes.
        index: number of this process, from 0.
        heartbeat_seconds: seconds of silence after which a process counts as dead; then the other
            processes exit.
        start_seconds: seconds to wait for the other processes to start.

    Raises:
        UserError: the arguments do not fit each other, or the other processes cannot be found or
            reached.
    """
    given = {"coordinator": coordinator, "count": count, "index": index}
    missing = [f"hosts.{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; set all of"
            " hosts.coordinator, hosts.count and hosts.index, or none"
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(
            f"hosts.index is {index}; with hosts.count = {count} it has to be 0 to {count - 1}"
        )
    if heartbeat_seconds < 2:
        raise UserError(f"hosts.heartbeat_seconds is {heartbeat_seconds}; it has to be 2 or more")
    if start_seconds < 1:
        raise UserError(f"hosts.start_seconds is {start_seconds}; it has to be 1 or more")
    if missing and not detect:
        return
    if jax.distributed.is_initialized():
        return
    if jax.config.values["jax_platforms"] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        place = coordinator or "a cluster that JAX can detect"
        raise UserError(
            f"the processes of this run could not connect at {place}: {error}"
        ) from error
    watchdog.all_joined.set()


def alone() -> bool:
    """Whether this process is the only one."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this is the first process, which writes the files of the run."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have called it; use each name once.

    It uses no device, so that nothing is compiled, and processes may be late.
    """
    if not alone():
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * _PATIENCE)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, which JSON can hold, in the order of the processes."""
    if alone():
        return [value]
    return [json.loads(text) for text in _gathered_bytes(json.dumps(value).encode())]


def gathered_arrays(values: np.ndarray) -> list[np.ndarray]:
    """The arrays of all processes, of any shapes, in the order of the processes.

    Each host and each device holds all of them for a moment.
    """
    if alone():
        return [values]
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return [
        np.load(io.BytesIO(content), allow_pickle=False)
        for content in _gathered_bytes(file.getvalue())
    ]


def _gathered_bytes(content: bytes) -> list[bytes]:
    own = np.frombuffer(content, np.uint8)
    # At gloo's first collective a process may be late by at most 30 s.
    barrier(f"gathered {next(_GATHERED)}")
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(own))))
    padded = np.pad(own, (0, lengths.max() - len(own)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def agreed(value: Any) -> Any:
    """The value of process 0, which JSON can hold, in all processes."""
    return gathered(value)[0]


def by_first(function: Callable[[], Any]) -> Any:
    """The value of `function`, which JSON can hold, in all processes; only the first one calls it.

    Args:
        function: must not wait for other processes.

    Raises:
        UserError: (or an OSError) in the first process, if `function` raised it.
        HostLossError: in the other processes, with the same sentence.
    """
    value = None
    with together():
        if is_first():
            value = function()
    return agreed(value)


def check_same(what: str, value: Any) -> None:
    """Checks that all processes have the same value, which JSON can hold.

    Args:
        what: the value is, for the sentence: "images", for example.
        value: of this process.

    Raises:
        UserError: in all processes, if one has another value than the first.
    """
    first, *others = gathered(value)
    for index, other in enumerate(others, start=1):
        if other != first:
            leave()
            raise UserError(
                f"process {index} has other {what} than process 0; all processes need the same"
            )


def appears(path: Path) -> bool:
    """Whether a file that another process wrote is visible here; waits for some seconds."""
    end = time.monotonic() + _SHARED
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def check_shared(folder: Path) -> None:
    """Checks that all processes see what the first one writes into `folder`, which it makes.

    Raises:
        UserError: in all processes, if one does not see it.
        HostLossError, OSError: the first process cannot write there.
    """
    if alone():
        return
    marker = folder / f"shared-{agreed(secrets.token_hex(8))}"
    with together():
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            marker.touch()
    visible = gathered(appears(marker))
    if is_first():
        marker.unlink(missing_ok=True)
    if not all(visible):
        leave()
        raise UserError(
            f"process {visible.index(False)} does not see what process 0 writes to"
            f" {str(folder)!r}; it has to be a folder on a disk that all hosts share"
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """If the body fails in one process, all processes stop.

    The body must not wait for other processes.

    Raises:
        UserError: (or an OSError) in the process whose body raised it.
        HostLossError: in the other processes, with the same sentence.
    """
    refused: UserError | OSError | None = None
    try:
        yield
    except (UserError, OSError) as error:
        refused = error
    sentences = gathered(None if refused is None else str(refused))
    if any(sentences):
        leave()
    if refused is not None:
        raise refused
    for index, sentence in enumerate(sentences):
        if sentence is not None:
            raise HostLossError(f"process {index} of the run has stopped: {sentence}")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises HostLossError in place of the errors of JAX after the loss of another process.

    Raises:
        HostLossError: in place of such an error.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if alone() or not _STATUS.match(str(error)):
            raise
        first_line = str(error).splitlines()[0][:200]
        raise HostLossError(
            f"another process of the run died or cannot be reached ({first_line});"
            f" {watchdog.RESUME}"
        ) from error


def leave() -> None:
    """Ends the run in all processes together, so that none counts as lost.

    It waits for the others, but not longer than the seconds of a heartbeat.
    """
    if jax.distributed.is_initialized():
        # If another process does not come, this one exits without it.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
