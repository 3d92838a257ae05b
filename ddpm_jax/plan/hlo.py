"""What devices say to each other in one step, read from the program that the compiler made.

The text of optimized HLO is a list of computations, and each is a list of instructions, one a line.
Collectives may be anywhere: in the entry computation, in the body of a loop, which runs as often as
its condition says, or in a fusion. What is counted is what a step does, so each is counted as often
as its computation runs. A TPU's compiler writes a reduce-scatter as a fusion of an all-reduce and
of a slice of it, and an asynchronous collective as several fusions that hold it each; either is
counted once, as what it is.

Bytes are those of the whole: of an all-reduce what is reduced, of an all-gather what comes out, of
a reduce-scatter and of an all-to-all what goes in, on one device, without the padding of layouts.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ddpm_jax.plan import groups

__all__ = ["Collective", "collectives", "summed"]


class Collective(NamedTuple):
    """All collectives of one kind, dtype and group."""

    kind: str
    """As HLO calls it: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute."""
    dtype: str
    """As HLO calls it: f32, bf16, u8."""
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
        """What a device has to send at least to others of its slice.

        Of n devices around a ring, 2 (n - 1) / n of an array that is reduced for all, and half of
        that if it is only gathered or scattered.
        """
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * _share(self.kind, self.devices // self.slices)

    @property
    def network_bytes(self) -> float:
        """What a device has to send at least out of its slice, whose devices share that work."""
        if self.kind == "collective-permute":
            return float(self.bytes) if self.slices > 1 else 0.0
        return self.bytes * _share(self.kind, self.slices) * self.slices / self.devices


def collectives(
    text: str, mesh: Mapping[str, int], slice_of: Sequence[int] | None = None
) -> list[Collective]:
    """The collectives of a program, summed by kind, dtype and axis; most bytes first.

    Args:
        text: optimized HLO.
        mesh: sizes of the mesh's axes, by their names and in its order.
        slice_of: the slice of each device, in the mesh's order; all are in one if not given.
    """
    devices = math.prod(mesh.values())
    slice_of = [0] * devices if slice_of is None else slice_of
    computations, entry = _computations(text)
    total: dict[tuple[str, str, str, int, int], list[int]] = collections.defaultdict(lambda: [0, 0])
    uncounted = set()
    for found, runs, known in _found(computations, entry):
        members = groups.of(found.line, devices)
        size = max(map(len, members), default=1)
        if size < 2:
            continue
        axis = groups.axis_of(members, mesh, pairs=found.kind == "collective-permute")
        spread = max(len({slice_of[device] for device in group}) for group in members)
        for dtype, count in found.bytes_by_dtype(size).items():
            key = found.kind, dtype, axis, size, spread
            total[key][0] += runs * count
            total[key][1] += runs
            if not known:
                uncounted.add(key)
    rows = [
        Collective(*key, size, times, counted=key not in uncounted)
        for key, (size, times) in total.items()
    ]
    return sorted(rows, key=lambda row: (-row.bytes, row))


def summed(rows: Sequence[Collective]) -> dict[str, int]:
    """Bytes by axis."""
    total: dict[str, int] = collections.defaultdict(int)
    for row in rows:
        total[row.axis] += row.bytes
    return dict(total)


def _share(kind: str, n: int) -> float:
    return (2.0 if kind == "all-reduce" else 1.0) * (n - 1) / n


class _Instruction(NamedTuple):
    type: str
    opcode: str
    line: str


class _Found(NamedTuple):
    kind: str
    started: bool
    """Whether it is the first half of an asynchronous one."""
    type: str
    line: str

    def bytes_by_dtype(self, size: int) -> dict[str, int]:
        shapes, operands = list(_shapes(self.type)), self.line.partition(f"{self.kind}-start(")[2]
        if self.started:
            # What goes in and what comes out, and semaphores; or only what comes out.
            inputs = operands.partition(")")[0].count("%")
            shapes = shapes[inputs : 2 * inputs] if len(shapes) >= 2 * inputs else shapes
        # A type is of what comes out, which of a scatter is a part.
        whole = size if self.kind == "reduce-scatter" else 1
        total: dict[str, int] = collections.defaultdict(int)
        for dtype, count in shapes:
            total[dtype] += whole * (count * _bits(dtype) // 8)
        return dict(total)


_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ")
_CALLED = re.compile(r"(body|condition|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif body is not None and (start := _LINE.match(line)):
            end = _end_of_type(line, start.end())
            opcode = line[end:].lstrip().partition("(")[0]
            body.append(_Instruction(line[start.end() : end], opcode, line))
    return computations, entry


def _end_of_type(line: str, start: int) -> int:
    """Where a type ends that begins at `start`: at a space that is in no parenthesis."""
    depth = 0
    for index in range(start, len(line)):
        depth += (line[index] in "({[") - (line[index] in ")}]")
        if line[index] == " " and depth == 0:
            return index
    return len(line)


def _found(
    computations: dict[str, list[_Instruction]], entry: str
) -> Iterator[tuple[_Found, int, bool]]:
    """Every collective, how often it runs, and whether that is known."""
    in_fusions: set[tuple[str, str | None]] = set()

    def walk(name: str, runs: int, known: bool, fused: bool) -> Iterator[tuple[_Found, int, bool]]:
        for instruction in computations.get(name, ()):
            opcode, type_, line = instruction.opcode, instruction.type, instruction.line
            kind = opcode.removesuffix("-start")
            if kind in _KINDS:
                channel = re.search(r"channel_id=(\d+)", line)
                part = kind, channel[1] if channel else None
                if not fused or part not in in_fusions:
                    yield _Found(kind, kind != opcode, type_, line), runs, known
                if fused:
                    in_fusions.add(part)
                continue
            called = _called(line)
            if opcode == "while":
                trips = _trip_count(line, computations)
                for body in called["body"]:
                    yield from walk(body, runs * (trips or 1), known and trips is not None, fused)
            elif opcode == "fusion" and called["calls"][0].startswith("all-reduce-scatter"):
                inside = [row for row in computations[called["calls"][0]] if row.opcode in _KINDS]
                yield _Found("reduce-scatter", False, type_, inside[0].line), runs, known
            elif opcode not in ("async-done", "async-update"):
                for inner in itertools.chain.from_iterable(called.values()):
                    yield from walk(inner, runs, known, fused or opcode == "fusion")

    return walk(entry, 1, True, False)


def _called(line: str) -> dict[str, list[str]]:
    """The computations that an instruction names, by what it calls them."""
    return {
        key: [name.strip().lstrip("%") for name in value.strip("{}").split(",")]
        for key, value in _CALLED.findall(line)
    }


def _trip_count(line: str, computations: dict[str, list[_Instruction]]) -> int | None:
    """How often a loop runs: the compiler says, or the condition does if it counts up from 0."""
    if told := _TRIPS.search(line):
        return int(told[1])
    rows = list(computations[_called(line)["condition"][0]])
    for fusion in [row for row in rows if row.opcode == "fusion"]:
        rows += computations[_called(fusion.line)["calls"][0]]
    compared = [row for row in rows if row.opcode == "compare"]
    ends = [row for row in rows if row.opcode == "constant"]
    if len(compared) != 1 or len(ends) != 1 or "direction=LT" not in compared[0].line:
        return None
    end = re.search(r"s(?:32|64)\[\](?:\{\S*\})? constant\((\d+)\)", ends[0].line)
    return int(end[1]) if end else None


def _shapes(type_: str) -> Iterator[tuple[str, int]]:
    """The dtype and the number of elements of each array of a type."""
    for dtype, sizes in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", type_)):
        yield dtype, math.prod(int(size) for size in sizes.split(",") if size)


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0
