"""Changes that make a step fit into memory, and the largest batch that fits.

Each candidate is compiled, which takes about a minute, so both searches compile few. Of each kind
of change the one that saves most is tried first; if it does not fit, milder ones are not tried.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ddpm_jax.config import Config

__all__ = ["Change", "Largest", "apply", "changes", "largest", "mildest"]

MOST_PARTS = 16
"""Into which a batch is split for accumulation."""


class Change(NamedTuple):
    """Dotted names of fields, with new values."""

    fields: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join(f"--{field.replace('_', '-')} {value}" for field, value in self.fields)


def changes(config: Config, devices: int) -> list[list[Change]]:
    """Changes that save memory, by kind; each kind from what saves least to what saves most.

    Args:
        config: where the changes start; its own values are not among them.
        devices: of the mesh.
    """
    kinds = [
        [Change(((f"network.{field}", value),)) for field, value in config.network.smaller()],
        [
            Change((("mesh.data", devices // fsdp), ("mesh.fsdp", fsdp)))
            for fsdp in _doublings(config.mesh.fsdp, devices)
            if devices % fsdp == 0
        ],
        [
            Change((("train.accumulate", parts),))
            for parts in _doublings(config.train.accumulate, MOST_PARTS)
            if config.train.batch_size % (parts * devices) == 0
        ],
    ]
    return [kind for kind in kinds if kind]


def apply(config: Config, change: Change) -> Config:
    """`config` with the values of `change`."""
    for dotted, value in change.fields:
        config = _replaced(config, dotted.split("."), value)
    return config


def mildest(kinds: Sequence[Sequence[Change]], fits: Callable[[Change], bool]) -> list[Change]:
    """The first change of each kind that fits; if none does, the last ones of all kinds together.

    Args:
        kinds: each from what saves least to what saves most.
        fits: compiles, and says whether the step fits.
    """
    solutions = []
    for kind in kinds:
        if not fits(kind[-1]):
            continue
        low, high = -1, len(kind) - 1  # kind[high] fits, and kind[low] does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(kind[middle]) else (middle, high)
        solutions.append(kind[high])
    if not solutions and len(kinds) > 1:
        everything = Change(tuple(field for kind in kinds for field in kind[-1].fields))
        solutions = [everything] if fits(everything) else []
    return solutions


class Largest(NamedTuple):
    """The largest count that was seen to fit, and the least that was seen not to."""

    fits: int
    fails: int | None
    """None where the search ended before there was one."""


def largest(
    needed: Callable[[int], tuple[bool, int]], usable: int, start: int, *, tries: int = 8
) -> Largest | None:
    """The largest count that fits into `usable`, to one part in sixteen; None if 1 does not.

    Memory grows almost linearly with the batch: the next count is where the line through two known
    ones reaches `usable`, always between the largest that fits and the least that does not.

    Args:
        needed: compiles; returns whether a count fits, and the bytes it needs, 0 if unknown.
        usable: bytes.
        start: the first count.
        tries: the largest number of compilations.
    """
    known: dict[int, int] = {}
    low, high, count = 0, None, max(start, 1)
    for _ in range(tries):
        fits, need = needed(count)
        if need:
            known[count] = need
        before = math.inf if high is None else high - low
        if fits:
            low = max(low, count)
        else:
            high = count if high is None else min(high, count)
        if high is not None and high - low <= max(low // 16, 1):
            break
        # Where memory jumps, a line can creep; then the next count is in the middle.
        halve = high is not None and high - low > before / 2
        count = _next(known, usable, low, high, halve=halve)
    return Largest(low, high) if low else None


def _next(known: dict[int, int], usable: int, low: int, high: int | None, *, halve: bool) -> int:
    """Where the line through two known counts reaches `usable`, between `low` and `high`."""
    least, most = low + 1, math.inf if high is None else high - 1
    guess = 2 * low if high is None else (low + high) // 2
    points = sorted(known)
    if high in known and low in known:
        points = [low, high]
    elif low in known:
        points = [count for count in points if count <= low][-2:]
    if len(points) > 1 and not halve:
        first, second = points[-2:]
        slope = (known[second] - known[first]) / (second - first)
        if slope > 0.0:
            guess = math.floor(first + (usable - known[first]) / slope)
    return int(max(least, min(guess, most)))


def _replaced(values: Any, path: Sequence[str], value: Any) -> Any:
    """A dataclass with another value of a field, or of a field of its fields."""
    name, *inner = path
    new = _replaced(getattr(values, name), inner, value) if inner else value
    return dataclasses.replace(values, **{name: new})


def _doublings(value: int, most: int) -> list[int]:
    return [2**power * value for power in range(1, 32) if 2**power * value <= most]
