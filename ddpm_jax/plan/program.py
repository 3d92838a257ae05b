"""The text of optimized HLO, as instructions with the number of times that each runs.

A program is a list of computations, and each is a list of instructions, one a line. A computation
runs as often as the instructions that call it: the body of a loop as often as its condition says.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Instruction", "Running", "instructions"]


class Instruction(NamedTuple):
    """One line."""

    type: str
    """Of its result."""
    opcode: str
    line: str


class Running(NamedTuple):
    """An instruction, and where it is."""

    instruction: Instruction
    runs: int
    """In one run of the program."""
    known: bool
    """False inside a loop of unknown length, which is counted as if it ran once."""
    fused: bool
    """Whether it is a part of a fusion."""
    inside: tuple[Instruction, ...] = ()
    """The instructions of a fusion or call, in their order."""


def instructions(text: str) -> Iterator[Running]:
    """All instructions that run; those of fusions and loops follow the one that calls them."""
    computations, entry = _computations(text)

    def walk(name: str, runs: int, known: bool, fused: bool) -> Iterator[Running]:
        for instruction in computations.get(name, ()):
            called = _called(instruction.line)
            inside = [row for name in called.get("calls", ()) for row in computations.get(name, ())]
            yield Running(instruction, runs, known, fused, tuple(inside))
            if instruction.opcode == "while":
                trips = _trip_count(instruction.line, computations)
                for body in called["body"]:
                    yield from walk(body, runs * (trips or 1), known and trips is not None, fused)
            elif instruction.opcode not in ("async-done", "async-update"):
                for inner in itertools.chain.from_iterable(called.values()):
                    yield from walk(inner, runs, known, fused or instruction.opcode == "fusion")

    return walk(entry, 1, True, False)


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ")
_CALLED = re.compile(r"(body|condition|calls|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_END = re.compile(r"= s(?:32|64)\[\](?:\{\S*\})? constant\((\d+)\)")


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif body is not None and (start := _LINE.match(line)):
            end = _end_of_type(line, start.end())
            opcode = line[end:].lstrip().partition("(")[0]
            body.append(Instruction(line[start.end() : end], opcode, line))
    return computations, entry


def _end_of_type(line: str, start: int) -> int:
    """Where the type that begins at `start` ends: at a space outside of parentheses."""
    depth = 0
    for index in range(start, len(line)):
        depth += (line[index] in "({[") - (line[index] in ")}]")
        if line[index] == " " and depth == 0:
            return index
    return len(line)


def _called(line: str) -> dict[str, list[str]]:
    """The computations that an instruction runs, by its name for them."""
    return {
        key: [name.strip().lstrip("%") for name in value.strip("{}").split(",")]
        for key, value in _CALLED.findall(line)
    }


def _trip_count(line: str, computations: dict[str, list[Instruction]]) -> int | None:
    """How often a loop runs, by the compiler's note or by its condition if it counts up from 0."""
    if count := _TRIPS.search(line):
        return int(count[1])
    rows = list(computations[_called(line)["condition"][0]])
    for fusion in [row for row in rows if row.opcode == "fusion"]:
        rows += computations[_called(fusion.line)["calls"][0]]
    compared = [row for row in rows if row.opcode == "compare"]
    ends = [row for row in rows if row.opcode == "constant"]
    if len(compared) != 1 or len(ends) != 1 or "direction=LT" not in compared[0].line:
        return None
    end = _END.search(ends[0].line)
    return int(end[1]) if end else None
