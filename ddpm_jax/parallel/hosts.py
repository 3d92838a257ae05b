"""Several processes that run one program, each with its own devices: how they connect and wait.

`jax.distributed` finds the processes, watches their heartbeats and provides the barriers. In a
process that runs alone each function returns at once.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
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
    "barrier",
    "gathered",
    "is_first",
    "join",
    "leave",
    "together",
    "watched",
]

_PATIENCE = 3600
"""Seconds to wait at a barrier: hosts may take very different times to compile for a pod."""


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
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # At gloo's first collective a process may be late by at most 30 s.
    barrier(f"gathered {next(_GATHERED)}")
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.pad(text, (0, lengths.max() - len(text)))
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def agreed(value: Any) -> Any:
    """The value of process 0, which JSON can hold, in all processes."""
    return gathered(value)[0]


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
