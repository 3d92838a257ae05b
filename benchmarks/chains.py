"""The chains of one size of image: isotropic, blurring, and one of dense matrices."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import moments
from benchmarks.results import Row
from benchmarks.timing import spread
from ddpm_jax import processes, schedules

__all__ = ["Chains", "dense", "make_chains"]


class Chains(NamedTuple):
    """The processes, and what is known of the affine one."""

    isotropic: Any
    spectral: Any
    affine: Any | None
    marginals: dict[int, moments.Affine]
    """Of the affine chain, for each t that it reaches."""


def make_chains(
    num_steps: int,
    shape: tuple[int, ...],
    affine_times: Sequence[int],
    *,
    longest: float,
) -> tuple[Chains, list[Row]]:
    """The chains of images of `shape`, and a row for what the affine one took at each length.

    It has as many steps as the largest of the rising `affine_times` whose tables are expected to
    take less than `longest` seconds, by how much longer the second of two shorter chains took than
    the first; without any there is none.
    """
    schedule = schedules.cosine(num_steps)
    spectral = processes.blurring(schedule, shape)
    if not affine_times:
        return Chains(schedule, spectral, None, {}), []
    A, b, Q = dense(num_steps, int(np.prod(shape)))
    rows: list[Row] = []
    chain = None
    known: list[tuple[int, float]] = []  # lengths, and the least that their tables took
    for t in affine_times:
        case = {"method": "affine set-up", "t": t}
        if len(known) > 1:
            (shorter, less), (longer, more) = known[-2:]
            expected = more + (more - less) / (longer - shorter) * (t - longer)
            if expected > longest:
                rows.append(Row(case, numbers={"left_out_seconds": expected}))
                continue
        taken: list[float] = []  # the first one compiles
        while len(taken) < 2 or (len(taken) < 4 and sum(taken[1:]) < 0.5 * longest):
            start = time.perf_counter()
            chain = processes.affine_chain(A[:t], b[:t], Q[:t], transitions=False)
            jax.block_until_ready(chain)
            taken.append(time.perf_counter() - start)
        median = spread(taken[1:]).median
        rows.append(Row(case, taken[1:], max(taken[0] - median, 0.0)))
        known.append((t, min(taken)))
    reached = [row.case["t"] for row in rows if row.seconds]
    marginals = {t: moments.affine_marginal(A[:t], b[:t], Q[:t]) for t in reached}
    return Chains(schedule, spectral, chain, marginals), rows


def dense(num_steps: int, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A chain in which neighbouring pixels mix by turns, a drift, and noise with a covariance.

    Rotations of the pairs (0, 1), (2, 3), ... at even steps and (1, 2), (3, 4), ... at odd ones:
    they do not commute, so no basis makes all steps diagonal.
    """
    alpha_bar = moments.cosine_alpha_bar(num_steps)
    betas = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    A = np.empty((num_steps, dims, dims))
    for parity in (0, 1):
        rotation = np.eye(dims)
        for i in range(parity, dims - 1, 2):
            rotation[i : i + 2, i : i + 2] = [
                [np.cos(0.3), -np.sin(0.3)],
                [np.sin(0.3), np.cos(0.3)],
            ]
        A[parity::2] = rotation
    A *= np.sqrt(1.0 - betas)[:, None, None]
    pixels = np.arange(dims)
    covariance = np.exp(-0.5 * np.abs(np.subtract.outer(pixels, pixels)))
    return A, 0.1 * betas[:, None] * np.cos(pixels), betas[:, None, None] * covariance
