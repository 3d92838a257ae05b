r"""The derived process against the chain itself: loops walked step by step, and tests of the claim.

Many chains are walked from a few x_0. What is claimed of x_t is taken away from it: with the
claimed mean subtracted and the claimed covariance divided out, residuals are N(0, I), whatever the
row. Five tests of that, each a p-value that already pays for what it looked at:

    mean        the largest of the means over all coordinates
    variance    the sum of all squares, chi-squared
    directions  the same along random directions
    worst       along the directions in which the first half of the chains varies most and least,
                tested on the second half, which knows nothing of how they were chosen
    law         Kolmogorov-Smirnov: all coordinates together, and along random directions

Noise of another law is turned into uniforms by its claimed distribution function; then there is
the Kolmogorov-Smirnov test alone.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.arrays import per_example
from ddpm_jax.processes.litmus.probes import Step

__all__ = ["normal_p_values", "starts", "uniform_p_value", "walk", "white"]

_DIRECTIONS = 4
_MOST_VALUES = 200_000  # of one Kolmogorov-Smirnov test


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
    """What is left of x_t `[n, *shape]`, given x_0 `[*shape]`, if a modal `process` explains it.

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
    laws = [along[:, i] for i in range(_DIRECTIONS)] + [residuals.reshape(-1)]
    return {
        "mean": _several([math.erfc(far / math.sqrt(2.0))], d),
        "variance": _variance_p_value(residuals.reshape(-1)),
        "directions": _several([_variance_p_value(column) for column in along.T]),
        "worst": _several([_variance_p_value(column) for column in extremes.T]),
        "law": _several([uniform_p_value(_normal_below(values)) for values in laws]),
    }


def uniform_p_value(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov: how probable it is that uniform `values` `[n]` lie this unevenly.

    With Stephens's correction for finite n (1970), good to a few per cent from n = 5.
    """
    values = np.sort(values[:_MOST_VALUES])
    n = len(values)
    if not np.isfinite(values).all():
        return 0.0
    steps = np.arange(n + 1) / n
    distance = float(max(np.max(steps[1:] - values), np.max(values - steps[:-1])))
    argument = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if argument < 0.3:  # the series takes long, and the answer is 1 to five digits
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2.0 * (k * argument) ** 2) for k in range(1, 101)]
    return min(1.0, max(0.0, 2.0 * sum(terms)))


@functools.partial(jax.jit, static_argnums=2)
def _draw(key: jax.Array, t: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, t), shape, jnp.float32)


def _extreme_directions(residuals: np.ndarray) -> np.ndarray:
    """Unit vectors `[d, 1 or 2]`: most variance, and least if there are enough rows to tell."""
    n, d = residuals.shape
    if n < 2 * d:  # the large matrix has the small one's eigenvalues
        vectors = residuals.T @ np.linalg.eigh(residuals @ residuals.T)[1][:, -1:]
    else:
        vectors = np.linalg.eigh(residuals.T @ residuals)[1][:, [0, -1]]
    return vectors / np.linalg.norm(vectors, axis=0)


def _variance_p_value(values: np.ndarray) -> float:
    """Two-sided: the sum of squares of n standard normals is chi-squared.

    By its cube root, which is nearly normal (Wilson & Hilferty 1931).
    """
    n = len(values)
    spread = 2.0 / (9.0 * n)
    z = (np.cbrt(np.mean(values**2)) - (1.0 - spread)) / math.sqrt(spread)
    return math.erfc(abs(float(z)) / math.sqrt(2.0))


def _several(p_values: Sequence[float], count: int | None = None) -> float:
    """The least of p-values, times their number (Bonferroni)."""
    return min(1.0, (count or len(p_values)) * min(p_values))


def _normal_below(values: np.ndarray) -> np.ndarray:
    return np.asarray(_ndtr(values[:_MOST_VALUES].astype(np.float32)), np.float64)


_ndtr = jax.jit(jax.scipy.special.ndtr)
