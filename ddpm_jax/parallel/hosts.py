"""Several processes that run one program, each with its own devices: how they meet and wait.

All of it is JAX's own: `jax.distributed` finds the processes, watches their heartbeats and carries
the barriers; nothing here talks to another host by itself. A process that runs alone needs none of
it, and every function says so by returning at once.
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ddpm_jax.errors import UserError

__all__ = ["LostError", "agreed", "alone", "barrier", "is_first", "join"]


_PATIENCE = 3600
"""Seconds: compiling for a pod can take long, and longer on one host than on another."""


class LostError(RuntimeError):
    """Another process of the run ended or cannot be reached."""


def join(
    *,
    detect: bool = False,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    heartbeat_seconds: int = 10,
) -> None:
    """Joins the processes of one run; has to come before anything else is asked of JAX.

    Either JAX detects the others, as it can under SLURM and on Cloud TPUs, or all three of
    `coordinator`, `count` and `index` are given, or this process is alone.

    Args:
        detect: let JAX find out.
        coordinator: host:port of process 0.
        count: of the processes.
        index: of this one.
        heartbeat_seconds: silence after which a process counts as dead, and the others are ended.

    Raises:
        UserError: values that do not go together, or the others cannot be found or reached.
    """
    told = {"coordinator": coordinator, "count": count, "index": index}
    missing = [f"hosts.{name}" for name, value in told.items() if value is None]
    if missing and len(missing) < len(told):
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
    if missing and not detect:
        return
    if jax.distributed.is_initialized():
        return
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        found = coordinator or "a cluster that JAX can detect"
        raise UserError(f"the processes of this run did not meet at {found}: {error}") from error


def alone() -> bool:
    """Whether this process is the only one."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here; each name serves once.

    It asks no device, so nothing has to be compiled for it and nobody has to hurry.
    """
    if not alone():
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * _PATIENCE)


def agreed(value: Any) -> Any:
    """What process 0 has for `value`, plain enough for JSON, on all of them."""
    if alone():
        return value
    text = json.dumps(value).encode() if is_first() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    bytes_of_all = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(length), np.uint8))
    return json.loads(np.asarray(bytes_of_all).tobytes())
