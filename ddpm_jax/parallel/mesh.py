"""The device mesh and where things live on it: the batch is split, the rest is everywhere."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError

__all__ = ["compile_step", "make_mesh", "replicated", "shard_batch", "split_by_batch"]


def make_mesh(data: int = -1) -> Mesh:
    """A mesh with one axis, "data", over the first `data` devices; -1 takes all of them.

    Its axis is `Auto`: the compiler places what is between the shardings that the step states.

    Raises:
        UserError: `data` is neither -1 nor between 1 and the number of devices.
    """
    available = jax.device_count()
    size = available if data == -1 else data
    if not 1 <= size <= available:
        raise UserError(
            f"mesh.data is {data}; of the devices here, {available}, it can take 1 to {available},"
            " or -1 for all"
        )
    devices = jax.devices()[:size]
    return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(mesh: Mesh, local_batch: np.ndarray) -> jax.Array:
    """One global array out of every process's share of the batch."""
    return jax.make_array_from_process_local_data(split_by_batch(mesh), local_batch)


def compile_step(step: Callable[[Any, jax.Array], Any], mesh: Mesh) -> Callable[..., Any]:
    """`jit` of a train step on `mesh`: state replicated and donated, batch split by "data"."""
    everywhere = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, split_by_batch(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
    )
