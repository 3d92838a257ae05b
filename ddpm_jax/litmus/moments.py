r"""Mean and variance of h(eps), eps ~ N(0, 1), by a quadrature with an error bound.

Cells of equal width with the normal's weights are exact to float32 where h is smooth. Where h
jumps, bends or has a peak, its values depart from the straight line between their neighbours; cells
with such values are divided, and what is still not straight afterwards bounds the error. No node is
at a round number: what h is at 0 alone, or at 1 alone, has no probability.

It misses what lies between two nodes: a peak narrower than 2e-4 in the middle, 4e-3 beyond three
deviations. Around 0, where steps have their cases, the nodes lie closer, down to 1e-9.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["AROUND_0", "KNOWN", "Moments", "cells", "moments"]

KNOWN = 1e-3
"""Moments of a larger error are not known: of the mean in deviations, of the variance relative."""

AROUND_0 = np.outer([-1.0, 1.0], np.geomspace(1e-9, 2e-3, 64)).reshape(-1)
"""Nodes where h is looked at too."""

_END, _WIDTH = 8.0, 1.0 / 256.0
_SHIFT = 0.381966  # of a cell: no node is at a round number
_DIVISIONS = ((4096, 8), *[(2048, 16)] * 3)  # how many cells at most, and into how many
_STRAIGHT = 3e-8  # in deviations: departures, times their probability, that smooth functions have
_FARTHEST = 5.4  # where float32's normals end
_TAIL = 5.0  # a variance that is finite has next to nothing beyond


class Moments(NamedTuple):
    """Of each of k elements."""

    mean: np.ndarray
    variance: np.ndarray
    """NaN where it is not known: all in the tail, as a Cauchy's, or of an error above `KNOWN`."""
    third: np.ndarray
    """The central one."""
    error: float
    """Of the mean and the variance, as `KNOWN` is measured; the worst of all elements."""


def cells() -> np.ndarray:
    """The nodes `[n]` at which `moments` starts, one in the middle of each cell."""
    return np.arange(-_END, _END, _WIDTH) + _SHIFT * _WIDTH


def moments(
    h: Callable[[np.ndarray], np.ndarray],
    values: np.ndarray,
    others: np.ndarray,
    at_others: np.ndarray,
) -> Moments:
    """The moments of `h`, which takes nodes `[n]` to values `[n, k]`.

    Args:
        h: the function.
        values: those at `cells()`.
        others: more nodes where h is known: they show which cells have to be divided.
        at_others: the values there.
    """
    x = cells()
    width = np.full(len(x), _WIDTH)
    others, first = np.unique(others, return_index=True)
    at_others = at_others[first]
    for most, parts in (*_DIVISIONS, (0, 0)):
        mean, deviation = _scale(x, width, values)
        deviation = np.where(deviation > 0.0, deviation, at_others.std(axis=0))
        scale = np.stack([mean, deviation])
        both = np.concatenate([x, others])
        order = np.argsort(both)
        both, at_both = both[order], np.concatenate([values, at_others])[order]
        score = np.zeros(len(x))
        cell = np.searchsorted(x - 0.5 * width, both, "right") - 1
        np.maximum.at(score, np.clip(cell, 0, None), _uneven(both, at_both, scale))
        score *= _mass(x, width)
        worst = np.argsort(-score)[:most]
        worst = worst[score[worst] > _STRAIGHT]
        if not len(worst):
            break
        inner = width[worst] / parts
        steps = np.arange(parts) - 0.5 * (parts - 1)
        finer = (x[worst, None] + steps * inner[:, None]).reshape(-1)
        padded = np.resize(finer, most * parts)  # one shape, one compiled program
        rest = np.setdiff1d(np.arange(len(x)), worst)
        x, width = np.concatenate([x[rest], finer]), np.append(width[rest], np.repeat(inner, parts))
        values = np.concatenate([values[rest], h(padded)[: len(finer)]])
        order = np.argsort(x)
        x, width, values = x[order], width[order], values[order]
    return _sums(x, width, values, float(score[score > _STRAIGHT].sum()))


def _mass(x: np.ndarray, width: np.ndarray) -> np.ndarray:
    return width * np.exp(-0.5 * x**2) / np.sqrt(2.0 * np.pi)


def _usable(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """All nodes but those beyond float32's normals where h is not finite."""
    return (np.abs(x) <= _FARTHEST) | np.isfinite(values).all(axis=1)


def _scale(x: np.ndarray, width: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean and deviation `[2, k]`, as far as they are known."""
    usable = _usable(x, values)
    values, mass = values[usable], _mass(x, width)[usable]
    mean = mass @ values
    return np.stack([mean, np.sqrt(mass @ (values - mean) ** 2)])


def _uneven(x: np.ndarray, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """How far the values at each node of the rising `x` are from straight, `[n]`: the worst of all.

    In deviations of the mean, or in variances of the variance.
    """
    mean, deviation = scale
    before, after = values[:-2], values[2:]
    share = (x[1:-1] - x[:-2]) / np.maximum(x[2:] - x[:-2], 1e-300)
    departure = np.abs(values[1:-1] - before - share[:, None] * (after - before))
    size = np.where(deviation > 0.0, deviation, np.inf)
    of_mean, around = departure / size, np.abs(values[1:-1] - mean) / size
    both = np.maximum(of_mean, of_mean * (2.0 * around + of_mean)).max(axis=1)
    # Where h is infinite the moments are, too.
    return np.pad(np.nan_to_num(both, nan=0.0, posinf=0.0), 1)


def _sums(x: np.ndarray, width: np.ndarray, values: np.ndarray, error: float) -> Moments:
    usable = _usable(x, values)
    x, values, mass = x[usable], values[usable], _mass(x, width)[usable]
    mass /= mass.sum()
    mean = mass @ values
    squares = (values - mean) ** 2
    variance, outside = mass @ squares, np.abs(x) > _TAIL
    known = (mass[outside] @ squares[outside] <= 0.01 * variance) & (error <= KNOWN)
    third = mass @ (squares * (values - mean))
    return Moments(mean, np.where(known, variance, np.nan), third, error)
