"""The device mesh, and how arrays are placed on it.

The mesh has two axes. Along "data" the batch is split, and each device holds the same parameters.
Along "fsdp" the batch is split, and also the parameters, with their averages and the state of the
optimizer. Hosts and slices are not axes: the mesh contains their devices. If there are several
slices, "data" runs across them, because it sends the least.
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
"""The partition of a batch: its leading axis is split over all devices."""


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices with the axes "data" and "fsdp".

    Both axes are `Auto`: the compiler chooses the shardings between those that the step states.

    Args:
        data: number of devices along "data"; -1 takes all devices (divided by `fsdp`).
        fsdp: number of devices along "fsdp". They are neighbours, because they send each other the
            most.
        devices: the devices to use; by default all.

    Returns:
        A mesh of the shape (data, fsdp).

    Raises:
        UserError: a number is below 1 or above that of the devices; the mesh leaves out devices of
            a process; or the slices do not divide `data`.
    """
    available = list(jax.devices() if devices is None else devices)
    if not 1 <= fsdp <= len(available):
        raise UserError(
            f"mesh.fsdp is {fsdp}; {_count(len(available))}, so it has to be"
            f" {_range(len(available))}{_simulation(available)}"
        )
    fits = len(available) // fsdp
    size = fits if data == -1 else data
    if not 1 <= size <= fits:
        raise UserError(
            f"mesh.data is {data}; {_count(len(available))}, so it has to be {_range(fits)}"
            f"{f' with mesh.fsdp = {fsdp}' if fsdp > 1 else ''}, or -1 for all"
            f"{_simulation(available)}"
        )
    used = available[: size * fsdp]
    if len(used) < len(available) and len({device.process_index for device in available}) > 1:
        raise UserError(
            f"the mesh of {size} x {fsdp} leaves out some of the {len(available)} devices; if"
            " several processes train together, each of their devices has to be in it"
        )
    return Mesh(_arranged(size, fsdp, used), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _count(devices: int) -> str:
    return "there is 1 device" if devices == 1 else f"there are {devices} devices"


def _range(most: int) -> str:
    return "1" if most == 1 else f"1 to {most}"


def _simulation(devices: Sequence[jax.Device]) -> str:
    if len(devices) > 1 or devices[0].platform != "cpu":
        return ""
    return " (XLA_FLAGS=--xla_force_host_platform_device_count=8 makes 8 devices of a CPU)"


def _arranged(data: int, fsdp: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """`[data, fsdp]` devices, so that neighbours in the mesh are neighbours in the machine."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp), devices)
    if data % slices:
        raise UserError(
            f"mesh.data is {data}; it has to be a multiple of the number of slices, {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp), (slices, 1), devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a whole copy on each device.

    Args:
        mesh: the devices.

    Returns:
        The sharding.
    """
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over all devices.

    Args:
        mesh: the devices.

    Returns:
        The sharding.
    """
    return NamedSharding(mesh, BATCH)
