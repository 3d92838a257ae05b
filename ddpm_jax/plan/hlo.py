"""The collectives of one step, read from the program that the compiler made.

They may be in the entry computation, in the body of a loop or in a fusion, and each counts as often
as it runs. A TPU's compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of it,
and an asynchronous collective as several fusions that all contain it; both count once. With several
slices, the program is that of one slice: its collectives are among its own devices, and the host
sends and receives what goes to other slices.

Bytes are those of the whole array on one device, without the padding of layouts: the input of an
all-reduce, reduce-scatter or all-to-all, and the output of an all-gather.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ddpm_jax.plan import groups
from ddpm_jax.plan.program import Running, instructions

__all__ = ["Collective", "collectives"]


class Collective(NamedTuple):
    """All collectives of one kind, dtype and group."""

    kind: str
    """Its name in HLO: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute."""
    dtype: str
    """Its name in HLO: f32, bf16, u8."""
    axis: str
    """Of the mesh, along which its devices lie; several joined by "+", or "other"."""
    devices: int
    """In one group."""
    slices: int
    """Over which a group is spread."""
    bytes: int
    """In one step, on one device."""
    times: int
    """How many there are in one step."""
    counted: bool = True
    """False where one is in a loop of unknown length, whose body was counted once."""

    @property
    def link_bytes(self) -> float:
        """The least that a device has to send to others of its slice.

        In a ring of n devices that is 2 (n - 1) / n of the array for an all-reduce, and half of it
        if the array is only gathered or scattered.
        """
        if self.kind == "collective-permute":
            return float(self.bytes) if self.slices == 1 else 0.0
        return self.bytes * _share(self.kind, self.devices // self.slices)

    @property
    def network_bytes(self) -> float:
        """The least that a device has to send out of its slice, whose devices share that work."""
        if self.kind == "collective-permute":
            return float(self.bytes) if self.slices > 1 else 0.0
        return self.bytes * _share(self.kind, self.slices) * self.slices / self.devices


def collectives(
    text: str,
    mesh: Mapping[str, int],
    *,
    slice_of: Sequence[int] | None = None,
    across: str | None = None,
) -> list[Collective]:
    """The collectives of a program, summed by kind, dtype and axis; most bytes first.

    Args:
        text: optimized HLO.
        mesh: sizes of the mesh's axes, by their names and in its order.
        slice_of: the slice of each device, in the mesh's order; all are in one if not given.
        across: the axis that runs across slices, if the program is one of several TPU slices.
    """
    slices = 1 if slice_of is None else len(set(slice_of))
    if across is not None:  # the devices of the program are those of one slice
        mesh, slice_of = {**mesh, across: mesh[across] // slices}, None
    devices = math.prod(mesh.values())
    total: dict[tuple[str, str, str, int, int], list[int]] = collections.defaultdict(lambda: [0, 0])
    uncounted = set()
    for occurrence, running in _occurrences(text):
        if occurrence.leaves:
            axis, size, spread = across or "other", slices, slices
        else:
            members = groups.of(occurrence.line, devices)
            size = max(map(len, members))
            axis = groups.axis_of(members, mesh, pairs=occurrence.kind == "collective-permute")
            places = slice_of or [0] * devices
            spread = max(len({places[device] for device in group}) for group in members)
        for dtype, count in occurrence.bytes_by_dtype(size).items() if size > 1 else ():
            key = occurrence.kind, dtype, axis, size, spread
            total[key][0] += running.runs * count
            total[key][1] += running.runs
            if not running.known:
                uncounted.add(key)
    rows = [
        Collective(*key, size, times, counted=key not in uncounted)
        for key, (size, times) in total.items()
    ]
    return sorted(rows, key=lambda row: (-row.bytes, row))


class _Occurrence(NamedTuple):
    kind: str
    type: str
    line: str
    inputs: int = 0
    """How many arrays go into the first half of an asynchronous one."""
    leaves: bool = False
    """Whether it is among slices."""

    def bytes_by_dtype(self, size: int) -> dict[str, int]:
        shapes = list(_shapes(self.type))
        if self.leaves:  # the array that is sent, and what waits for it
            shapes = shapes[:1]
        elif self.inputs and len(shapes) >= 2 * self.inputs:
            # Inputs, outputs and semaphores; or the outputs alone.
            shapes = shapes[self.inputs : 2 * self.inputs]
        # The output of a scatter is a part; so is what a gather among slices sends.
        in_parts = self.kind == ("all-gather" if self.leaves else "reduce-scatter")
        total: dict[str, int] = collections.defaultdict(int)
        for dtype, count in shapes:
            total[dtype] += (size if in_parts else 1) * (count * _bits(dtype) // 8)
        return dict(total)


_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_PARTS = re.compile(r"channel_id=\d+|chain_id=\"\d+\"|replica_groups=\S+|op_name=\"[^\"]*\"")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def _occurrences(text: str) -> Iterator[tuple[_Occurrence, Running]]:
    """Every collective once, and where it is."""
    seen: set[str] = set()
    for running in instructions(text):
        type_, opcode, line = running.instruction
        kind = opcode.removesuffix("-start")
        if kind in _KINDS and not running.fused:
            inputs = 0 if kind == opcode else _operands(line, opcode)
            yield _Occurrence(kind, type_, line, inputs), running
        elif opcode == "fusion" and "calls=%all-reduce-scatter" in line:
            inner = next(row for row in running.inside if row.opcode == "all-reduce")
            seen.add(_identity(inner.type, inner.line))
            yield _Occurrence("reduce-scatter", type_, inner.line), running
        elif kind in _KINDS and _identity(type_, line) not in seen:
            seen.add(_identity(type_, line))
            yield _Occurrence(kind, type_, line), running
        elif opcode == "send" and (sent := _TRANSFER.search(line)):
            name = sent[1].lower().replace("_", "-")
            kind = name if name in _KINDS else "collective-permute"
            yield _Occurrence(kind, type_, line, leaves=True), running


def _operands(line: str, opcode: str) -> int:
    return line.partition(f" {opcode}(")[2].partition(")")[0].count("%")


def _identity(type_: str, line: str) -> str:
    """Equal for all parts of one collective that is in several fusions."""
    return f"{list(_shapes(type_))} {_PARTS.findall(line)}"


def _share(kind: str, n: int) -> float:
    return (2.0 if kind == "all-reduce" else 1.0) * (n - 1) / n


def _shapes(type_: str) -> Iterator[tuple[str, int]]:
    """The dtype and the number of elements of each array of a type."""
    for dtype, sizes in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", type_)):
        yield dtype, math.prod(int(size) for size in sizes.split(",") if size)


def _bits(dtype: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 8
