"""What would make a step fit into memory, and how large a batch does.

Every answer is a program that was compiled. Compiling takes a minute or so, so they are looked for
with few: of each kind of change the one that saves most comes first, and if that is not enough, the
milder ones are not tried.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ddpm_jax.config import Config, ModelConfig

__all__ = ["Change", "Largest", "apply", "changes", "largest", "mildest"]

MOST_PARTS = 16
"""Of a batch that is accumulated."""


class Change(NamedTuple):
    """Fields of a config by their dotted names, and other values for them."""

    fields: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join(f"--{field.replace('_', '-')} {value}" for field, value in self.fields)


def changes(config: Config, devices: int) -> list[list[Change]]:
    """What there is to change, kind by kind, and in each from what saves least to what saves most.

    Args:
        config: whose own values are not among them.
        devices: of the mesh.
    """
    kinds = [
        [Change((("model.remat", policy),)) for policy in _more_remat(config)],
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
    """`config` with other values."""
    for dotted, value in change.fields:
        room, field = dotted.split(".")
        inner = dataclasses.replace(getattr(config, room), **{field: value})
        config = dataclasses.replace(config, **{room: inner})
    return config


def mildest(kinds: Sequence[Sequence[Change]], fits: Callable[[Change], bool]) -> list[Change]:
    """Of each kind the first change that fits; of none alone, the most of all kinds together.

    Args:
        kinds: each from what saves least to what saves most.
        fits: compiles.
    """
    found = []
    for kind in kinds:
        if not fits(kind[-1]):
            continue
        low, high = -1, len(kind) - 1  # kind[high] fits, and kind[low] does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(kind[middle]) else (middle, high)
        found.append(kind[high])
    if not found and len(kinds) > 1:
        everything = Change(tuple(field for kind in kinds for field in kind[-1].fields))
        found = [everything] if fits(everything) else []
    return found


class Largest(NamedTuple):
    """A count that fits, and the least that was seen not to."""

    fits: int
    fails: int | None
    """None where the search ended before one was found."""


def largest(
    needed: Callable[[int], tuple[bool, int]], usable: int, start: int, *, tries: int = 8
) -> Largest | None:
    """The largest count whose need is at most `usable`, to one part in sixteen; None if 1 is not.

    Memory grows nearly in a line with the batch. Two counts give the line, the next one tried is
    where it reaches `usable`, and so on between what fits and what does not.

    Args:
        needed: compiles; whether a count fits, and the bytes that it needs, 0 if unknown.
        usable: bytes.
        start: where to begin.
        tries: compilations at most.
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
    """Where the line through two counts near the border reaches it, inside what is open."""
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


def _more_remat(config: Config) -> list[str]:
    """The policies after the one there is; they are declared in the order of what they save."""
    known = typing.get_args(typing.get_type_hints(ModelConfig)["remat"])
    return list(known[known.index(config.model.remat) + 1 :])


def _doublings(value: int, most: int) -> list[int]:
    return [2**power * value for power in range(1, 32) if 2**power * value <= most]
