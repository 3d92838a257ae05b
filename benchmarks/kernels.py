r"""How many kernels a compiled program launches, read from its text.

XLA's optimized HLO is a list of computations; each line of one is an instruction

    %name = type opcode(%operand, ...), attributes

An instruction of the ENTRY computation is a kernel unless it only names what is there (`parameter`,
`tuple`, `bitcast`, ...). A loop is one instruction there, so `launches` also goes into the
computations that are called, and counts a loop's as often as the loop is known to run.

The count is the compiler's, not a profiler's: a backend may run an instruction as several kernels
(a convolution), or as none (a copy that it elides).
"""

import math
import re
from typing import NamedTuple

__all__ = ["Kernels", "count_kernels"]

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("opt-barrier", "partition-id", "replica-id", "add-dependency", "get-dimension-size"),
}
"""Instructions that move no data."""

_NAME = r"%?([\w.\-]+)"
_HEADER = re.compile(rf"^(ENTRY )?{_NAME} .*\{{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?{_NAME} = (.*)$")
_OPCODE = re.compile(r"^(?:\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b[a-z]+[0-9a-z]*\[([0-9,]*)\]")
_CALLED = re.compile(rf"(?:to_apply|body|condition)={_NAME}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Kernels(NamedTuple):
    """What `count_kernels` counts."""

    kernels: int
    """Instructions of the ENTRY computation that launch something."""
    image_kernels: int
    """Those of them that read or write an array with the batch's length and at least as many
    elements as the images, or with exactly as many."""
    launches: int
    """All launches, loops followed."""
    loops_known: bool
    """Whether the compiler says how often each loop runs; one that it does not counts once."""


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


def count_kernels(hlo: str, images: tuple[int, ...]) -> Kernels:
    """The kernels of a compiled program's text; `images` is their shape, `[batch, ...]`."""
    computations, entry = _parse(hlo)
    types = {i.name: i.type for i in computations[entry]}
    launched = [i for i in computations[entry] if not _is_free(i)]
    large = [
        i
        for i in launched
        if any(
            _has_images(kind, images) for kind in (i.type, *(types.get(n, "") for n in i.operands))
        )
    ]
    launches, known = _launches(computations, entry)
    return Kernels(len(launched), len(large), launches, known)


def _is_free(instruction: _Instruction) -> bool:
    """What was started is counted at its start, and not when it is done."""
    return instruction.opcode in _FREE or instruction.opcode.endswith("-done")


def _launches(computations: dict[str, list[_Instruction]], name: str) -> tuple[int, bool]:
    total, known = 0, True
    for instruction in computations[name]:
        if instruction.opcode in ("while", "call", "conditional"):
            trips = _TRIPS.search(instruction.rest)
            known &= instruction.opcode == "call" or bool(trips)
            for called in _CALLED.findall(instruction.rest):
                inside, inside_known = _launches(computations, called)
                total += inside * (int(trips.group(1)) if trips else 1)
                known &= inside_known
        elif not _is_free(instruction):
            total += 1
    return total, known


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry = inside = ""
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            inside = header.group(2)
            entry = inside if header.group(1) else entry
            computations[inside] = []
            continue
        instruction = _INSTRUCTION.match(line)
        if not (instruction and inside):
            continue
        # A tuple's type has comments between its parts.
        text = re.sub(r"/\*.*?\*/", "", instruction.group(2))
        opcode = _OPCODE.match(text)
        if opcode:
            arguments = text[opcode.end() :].split(")", 1)[0]
            operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
            kind = text[: opcode.start(1)]
            parsed = _Instruction(instruction.group(1), kind, opcode.group(1), operands, text)
            computations[inside].append(parsed)
    return computations, entry


def _has_images(kind: str, images: tuple[int, ...]) -> bool:
    """Whether an array of this type may hold the images: tables may have more numbers than they."""
    elements = math.prod(images)
    for dims in _ARRAY.findall(kind):
        shape = [int(n) for n in dims.split(",") if n]
        size = math.prod(shape)
        if size == elements or (size > elements and shape[0] == images[0]):
            return True
    return False
