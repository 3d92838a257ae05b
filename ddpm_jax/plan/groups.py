"""The devices of a collective in the four notations of HLO, and the axes of a mesh.

    {{0,1},{2,3}}                             the devices of each group
    [2,4]<=[4,2]T(1,0)                        0, 1, ... as [4, 2], transposed, two groups of four
    mesh['data'=4,'fsdp'=2] {'fsdp'}          along some axes of a mesh of devices 0, 1, ...
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}    of devices in another order

and the pairs of a permutation. Devices are numbered in the order of the mesh that the program was
compiled for.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["axis_of", "of"]

_GROUPS = re.compile(
    r"replica_groups=(?:(?P<list>\{\{.*?\}\}|\{\})|(?P<mesh>mesh\[.*?\})"
    r"|(?P<iota>\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?))"
)
_PAIRS = re.compile(r"source_target_pairs=(\{\{.*?\}\})")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def of(line: str, devices: int) -> list[list[int]]:
    """The groups of the collective in a line of HLO; all devices are one group if it has none."""
    if pairs := _PAIRS.search(line):
        return _listed(pairs[1])
    match = _GROUPS.search(line)
    if match is None or match["list"] == "{}":
        return [list(range(devices))]
    if match["list"]:
        return _listed(match["list"])
    return (_iota(match["iota"]) if match["iota"] else _meshed(match["mesh"])).tolist()


def axis_of(
    members: Sequence[Sequence[int]], mesh: Mapping[str, int], *, pairs: bool = False
) -> str:
    """The axes of the mesh along which the groups lie: "data", "fsdp", "data+fsdp", or "other".

    Groups that do not cover their axes are "other", except the `pairs` of a permutation.

    Example:
        >>> from ddpm_jax.plan.groups import axis_of
        >>> axis_of([[0, 1], [2, 3]], {"data": 2, "fsdp": 2})
        'fsdp'
    """
    sizes, names = list(mesh.values()), list(mesh)
    places = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=-1)
    along: set[int] = set()
    for group in members:
        own = places[list(group)]
        along |= set(np.flatnonzero((own != own[0]).any(axis=0)).tolist())
    full = math.prod(sizes[axis] for axis in along)
    whole = pairs or all(len(group) == full for group in members)
    return "+".join(names[axis] for axis in sorted(along)) if along and whole else "other"


def _listed(text: str) -> list[list[int]]:
    return [
        [int(n) for n in re.findall(r"\d+", group)] for group in re.findall(r"\{[\d,]+\}", text)
    ]


def _iota(text: str) -> np.ndarray:
    shape, sizes = re.findall(r"\[([\d,]+)\]", text)
    order = re.search(r"T\(([\d,]+)\)", text)
    return _counted(_numbers(sizes), order[1] if order else None).reshape(_numbers(shape))


def _meshed(text: str) -> np.ndarray:
    described, taken = text.rstrip("}").rsplit("{", 1)
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", described)}
    ids = re.search(r"device_ids=\((?:\[([\d,]+)\]T\(([\d,]+)\)|([\d,]+))\)", described)
    if ids is None:
        devices = np.arange(math.prod(sizes.values()))
    elif ids[3]:
        devices = np.array(_numbers(ids[3]))
    else:
        devices = _counted(_numbers(ids[1]), ids[2])
    # A part of an axis, 'x':(2)4, is an axis of size 4 between one of size 2 and the rest.
    shape: list[int] = []
    along: list[int] = []
    parts = {name: (int(before or 1), int(own or 0)) for name, before, own in _AXIS.findall(taken)}
    for name, size in sizes.items():
        before, own = parts.get(name, (size, 1))
        if name in parts:
            own = own or size
            along.append(len(shape) + 1)
        shape += [before, own, size // (before * own)]
    grid = np.moveaxis(devices.reshape(shape), along, range(-len(along), 0))
    return grid.reshape(-1, math.prod(shape[axis] for axis in along))


def _counted(sizes: Sequence[int], order: str | None) -> np.ndarray:
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return (grid if order is None else grid.transpose(_numbers(order))).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
