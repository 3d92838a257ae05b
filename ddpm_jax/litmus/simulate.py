"""The derived process against the chain itself: loops walked step by step, and tests of the claim.

Many chains are walked from a few x_0. With the claimed mean of x_t subtracted and the claimed
covariance divided out, residuals are N(0, I), whatever the row. Five tests of that, each a p-value
that is already corrected for its number of comparisons:

- mean: the largest of the means over all coordinates.
- variance: the sum of all squares, chi-squared.
- directions: the same along random directions.
- worst: along the directions in which the first half of the chains varies most and least, tested on
  the second half, which had no part in the choice.
- law: Kolmogorov-Smirnov, all coordinates together, and along random directions.

Noise of another law is turned into uniforms by its claimed distribution function; then there is the
Kolmogorov-Smirnov test alone.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from ddpm_jax.arrays import per_example
from ddpm_jax.litmus import laws
from ddpm_jax.litmus.rows import Classification
from ddpm_jax.processes.custom import Step

__all__ = ["normal_p_values", "p_values"]

_DIRECTIONS = 4
_MOST_VALUES = 200_000  # of one Kolmogorov-Smirnov test


def p_values(
    step: Step,
    shape: tuple[int, ...],
    num_steps: int,
    claim: Classification,
    key: jax.Array,
    rng: np.random.Generator,
    num_chains: int,
) -> tuple[dict[str, float], int]:
    """The least p-value of each test over three x_0 and three times, and how many there were.

    There are none for a loop, of which nothing is claimed, and where there is no process.
    """
    least: dict[str, float] = {}
    count = 0
    if claim.row == "loop" or (claim.process is None and claim.total is None):
        return least, count
    x0 = starts(rng, shape)
    times = (0, num_steps // 2, num_steps - 1)
    for t, x in walk(step, x0, key, num_steps, num_chains, times):
        for start, samples in zip(x0, x, strict=True):
            for name, p_value in _of_claim(claim, t, start, samples, rng).items():
                least[name] = min(least.get(name, 1.0), p_value)
                count += 1
    return least, count


def _of_claim(
    claim: Classification, t: int, x0: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """The p-values of the claim on x_t `[chains, *shape]` given x_0 `[*shape]`."""
    time = jnp.full(1, t, jnp.int32)
    flat, start = x.reshape(len(x), -1).astype(np.float64), x0.reshape(-1).astype(np.float64)
    if claim.total is not None and claim.left is not None:
        total = claim.total
        z = flat[:, total.elements] - claim.left[t] * start[total.elements] - total.location[t]
        below = laws.distribution(total.name, z / total.scale[t], total.shape[t])
        return {"law": uniform_p_value(below.reshape(-1))}
    if claim.row == "affine":
        M, m, C = (np.asarray(table[0], np.float64) for table in claim.process.marginal(time))
        mean = M @ start + m
        return _without_noiseless(flat - mean, mean, C, rng)
    residuals = np.asarray(white(claim.process, x0, x, time), np.float64)
    return normal_p_values(residuals.reshape(flat.shape), rng)


def _without_noiseless(
    departures: np.ndarray, mean: np.ndarray, covariance: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Of x - mean ~ N(0, covariance), which may be singular: in those directions x is its mean."""
    variances, axes = np.linalg.eigh(covariance)
    size = max(1.0, float(np.max(np.abs(mean))), math.sqrt(max(0.0, float(variances[-1]))))
    noisy = variances > (1e-5 * size) ** 2  # less is below the rounding of x
    along = departures @ axes
    off = float(np.max(np.abs(along[:, ~noisy]), initial=0.0))
    tests = {"noiseless": float(off <= 1e-4 * size)}
    if noisy.any():
        residuals = along[:, noisy] / np.sqrt(variances[noisy])
        tests |= normal_p_values(residuals, rng)
    return tests


def starts(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A few x_0 `[3, *shape]`: nothing, data in [-1, 1], and some far outside."""
    uniform = [scale * rng.uniform(-1.0, 1.0, shape) for scale in (0.0, 1.0, 10.0)]
    return np.stack(uniform).astype(np.float32)


def walk(
    step: Step, x0: np.ndarray, key: jax.Array, num_steps: int, num_chains: int, keep: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """x_t `[starts, num_chains, *shape]` at the times `keep`, by the loop."""
    x = jnp.asarray(np.repeat(x0[:, None], num_chains, axis=1))
    with jax.default_matmul_precision("highest"):
        advance = jax.jit(jax.vmap(jax.vmap(step, in_axes=(0, 0, None)), in_axes=(0, 0, None)))
        for t in range(num_steps):
            x = advance(x, _draw(key, jnp.int32(t), x.shape), jnp.int32(t))
            if t in keep:
                yield t, np.asarray(x)


@jax.jit
def white(process: Any, x0: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """Residuals of x_t `[n, *shape]` given x_0 `[*shape]` under a modal `process`.

    (B x_t - a B x_0) / b of each mode, white if the process is right; t is `[1]`.
    """
    signal, noise = per_example(process.signal(t), x), per_example(process.noise(t), x)
    # The mean is taken off in the data's coordinates: there are fewer roundings then.
    mean = process.basis.to_data(signal * process.basis.to_modes(x0[None]))
    return process.basis.to_modes(x - mean) / noise


def normal_p_values(residuals: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """The five tests that `residuals` `[n, d]` are N(0, I)."""
    n, d = residuals.shape
    if not np.isfinite(residuals).all():
        return dict.fromkeys(("mean", "variance", "directions", "worst", "law"), 0.0)
    unit = rng.normal(size=(d, _DIRECTIONS))
    unit /= np.linalg.norm(unit, axis=0)
    along = residuals @ unit
    first, second = residuals[: n // 2], residuals[n // 2 :]
    extremes = second @ _extreme_directions(first)
    far = math.sqrt(n) * float(np.max(np.abs(residuals.mean(axis=0))))
    columns = [*along.T, residuals.reshape(-1)]
    return {
        "mean": _several([2.0 * special.ndtr(-far)], d),
        "variance": _variance_p_value(residuals.reshape(-1)),
        "directions": _several([_variance_p_value(column) for column in along.T]),
        "worst": _several([_variance_p_value(column) for column in extremes.T]),
        "law": _several([uniform_p_value(special.ndtr(values)) for values in columns]),
    }


def uniform_p_value(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov: how probable it is that uniform `values` `[n]` lie this unevenly."""
    values = values[:_MOST_VALUES]
    return float(stats.kstest(values, "uniform").pvalue) if np.isfinite(values).all() else 0.0


@functools.partial(jax.jit, static_argnums=2)
def _draw(key: jax.Array, t: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, t), shape, jnp.float32)


def _extreme_directions(residuals: np.ndarray) -> np.ndarray:
    """Unit vectors `[d, 1 or 2]`: most variance, and least if there are enough rows."""
    n, d = residuals.shape
    if n < 2 * d:  # the large matrix has the small one's eigenvalues
        vectors = residuals.T @ np.linalg.eigh(residuals @ residuals.T)[1][:, -1:]
    else:
        vectors = np.linalg.eigh(residuals.T @ residuals)[1][:, [0, -1]]
    return vectors / np.linalg.norm(vectors, axis=0)


def _variance_p_value(values: np.ndarray) -> float:
    """Two-sided: the sum of squares of n standard normals is chi-squared."""
    total = np.sum(values**2)
    return 2.0 * min(special.chdtr(len(values), total), special.chdtrc(len(values), total))


def _several(p_values: Sequence[float], count: int | None = None) -> float:
    """The least of p-values, times their number (Bonferroni)."""
    return min(1.0, (count or len(p_values)) * min(p_values))
