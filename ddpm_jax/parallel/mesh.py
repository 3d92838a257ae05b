"""The device mesh and where things live on it.

The mesh has two axes. "data" shares the batch out, and every device along it holds the same
parameters; "fsdp" shares out the batch *and* the parameters, with their averages and the state of
the optimizer. Hosts and slices are not axes: their devices are in the mesh, and if there are
several slices, "data" runs across them, since it sends the least.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError

__all__ = ["AXES", "BATCH", "make_mesh", "replicated", "split_by_batch"]

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
"""The leading axis of a batch, split over all devices."""


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices with the axes "data" and "fsdp".

    Both axes are `Auto`: the compiler places what is between the shardings that the step states.

    Args:
        data: devices along "data"; -1 takes as many as there are for this `fsdp`.
        fsdp: devices along "fsdp"; neighbours, as they send each other the most.
        devices: all there are, if not given.

    Raises:
        UserError: a count below 1, more devices than there are, fewer where several processes have
            to take part, or slices that "data" does not run across.
    """
    available = list(jax.devices() if devices is None else devices)
    if not 1 <= fsdp <= len(available):
        raise UserError(
            f"mesh.fsdp is {fsdp}; of the devices here, {len(available)}, it can take 1 to"
            f" {len(available)}"
        )
    fits = len(available) // fsdp
    size = fits if data == -1 else data
    if not 1 <= size <= fits:
        raise UserError(
            f"mesh.data is {data}; of the devices here, {len(available)}, it can take 1 to"
            f" {fits}{f' with mesh.fsdp = {fsdp}' if fsdp > 1 else ''}, or -1 for all"
        )
    used = available[: size * fsdp]
    if len(used) < len(available) and len({device.process_index for device in available}) > 1:
        raise UserError(
            f"the mesh of {size} x {fsdp} leaves out some of the {len(available)} devices of the"
            " processes that take part; each of them has to be in it"
        )
    return Mesh(_arranged(size, fsdp, used), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(data: int, fsdp: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """`[data, fsdp]` devices, so that neighbours in the mesh are neighbours in the machine."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp), devices)
    if data % slices:
        raise UserError(
            f"mesh.data is {data}; it runs across the {slices} slices, which have to divide it"
        )
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp), (slices, 1), devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, BATCH)
