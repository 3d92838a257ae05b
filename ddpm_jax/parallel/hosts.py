"""Several processes that run one program, each with its own devices: how they meet and wait.

JAX does all of it: `jax.distributed` finds the processes, watches their heartbeats and provides the
barriers. In a process that runs alone every function returns at once.
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
"""Seconds: compiling for a pod can take long, and longer on one host than on another."""


_GATHERED = itertools.count()
_STATUS = re.compile(
    "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)
"""How errors of collectives and barriers begin, of any type; RESOURCE_EXHAUSTED is none."""


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
    """Joins the processes of one run; has to come before any other use of JAX.

    Either JAX detects the others, as it can under SLURM and on Cloud TPUs, or all three of
    `coordinator`, `count` and `index` are given, or this process is alone.

    Args:
        detect: let JAX find out.
        coordinator: host:port of process 0.
        count: of the processes.
        index: of this one.
        heartbeat_seconds: silence after which a process counts as dead, and the others are ended.
        start_seconds: how long this process waits for the others to start.

    Raises:
        UserError: values that do not go together, or the others cannot be found or reached.
    """
    given = {"coordinator": coordinator, "count": count, "index": index}
    missing = [f"hosts.{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; coordinator,"
            " count and index of the hosts go together"
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(
            f"hosts.index is {index}; with hosts.count = {count} it is 0 to {count - 1}"
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
        raise UserError(f"the processes of this run did not meet at {place}: {error}") from error
    watchdog.all_joined.set()


def alone() -> bool:
    """Whether this process is the only one."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here; each name serves once.

    It uses no device, so nothing is compiled for it and processes may come late.
    """
    if not alone():
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * _PATIENCE)


def gathered(value: Any) -> list[Any]:
    """The `value` of every process, plain enough for JSON, in their order."""
    if alone():
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # Who comes to a collective can be late by 30 s at most, where it is gloo's first.
    barrier(f"gathered {next(_GATHERED)}")
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.pad(text, (0, lengths.max() - len(text)))
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def agreed(value: Any) -> Any:
    """The `value` of process 0, plain enough for JSON, in all of them."""
    return gathered(value)[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """If one process cannot do what is in the body, none goes on.

    The body must not wait for other processes.

    Raises:
        UserError: or an OSError, where the body raised it.
        HostLossError: in the other processes, with its sentence.
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
            raise HostLossError(f"process {index} of the run does not go on: {sentence}")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises LostError for errors of JAX that are due to the loss of another process.

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
    """Ends the run as one of several processes that all end it, so that none counts as lost.

    Waits for the others, for the seconds of a heartbeat at most.
    """
    if jax.distributed.is_initialized():
        # If one does not come, this process ends all the same.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
