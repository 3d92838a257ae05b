"""What was derived, against loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.processes.litmus import laws, simulate
from ddpm_jax.processes.litmus.probes import Step
from ddpm_jax.processes.litmus.rows import Found

__all__ = ["p_values"]


def p_values(
    step: Step,
    shape: tuple[int, ...],
    num_steps: int,
    found: Found,
    key: jax.Array,
    rng: np.random.Generator,
    num_chains: int,
) -> tuple[dict[str, float], int]:
    """The least p-value of each test over three x_0 and three times, and how many there were.

    There are none for a loop, of which nothing is claimed, and where no process says what is.
    """
    least: dict[str, float] = {}
    count = 0
    if found.row == "loop" or (found.process is None and found.total is None):
        return least, count
    x0 = simulate.starts(rng, shape)
    times = (0, num_steps // 2, num_steps - 1)
    for t, x in simulate.walk(step, x0, key, num_steps, num_chains, times):
        for start, samples in zip(x0, x, strict=True):
            for name, p_value in _of_claim(found, t, start, samples, rng).items():
                least[name] = min(least.get(name, 1.0), p_value)
                count += 1
    return least, count


def _of_claim(
    found: Found, t: int, x0: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Of what is claimed of x_t `[chains, *shape]` given x_0 `[*shape]`."""
    time = jnp.full(1, t, jnp.int32)
    flat, start = x.reshape(len(x), -1).astype(np.float64), x0.reshape(-1).astype(np.float64)
    if found.total is not None and found.left is not None:
        total = found.total
        z = flat[:, total.elements] - found.left[t] * start[total.elements] - total.location[t]
        below = laws.distribution(total.name, z / total.scale[t], total.shape[t])
        return {"law": simulate.uniform_p_value(below.reshape(-1))}
    if found.row == "affine":
        M, m, C = (np.asarray(table[0], np.float64) for table in found.process.marginal(time))
        mean = M @ start + m
        return _without_noiseless(flat - mean, mean, C, rng)
    residuals = np.asarray(simulate.white(found.process, x0, x, time), np.float64)
    return simulate.normal_p_values(residuals.reshape(flat.shape), rng)


def _without_noiseless(
    departures: np.ndarray, mean: np.ndarray, covariance: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Of x - mean ~ N(0, covariance), which may be singular: in those directions x is its mean."""
    variances, axes = np.linalg.eigh(covariance)
    size = max(1.0, float(np.max(np.abs(mean))), math.sqrt(max(0.0, float(variances[-1]))))
    noisy = variances > (1e-5 * size) ** 2  # what is less drowns in the rounding of x
    along = departures @ axes
    off = float(np.max(np.abs(along[:, ~noisy]), initial=0.0))
    tests = {"noiseless": float(off <= 1e-4 * size)}
    if noisy.any():
        residuals = along[:, noisy] / np.sqrt(variances[noisy])
        tests |= simulate.normal_p_values(residuals, rng)
    return tests
