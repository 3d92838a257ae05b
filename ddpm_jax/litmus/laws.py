"""The law of noise that is not linear in eps, and whether sums of such noise keep it.

A step x_t = A x + h(eps) whose h works on each element alone has noise of independent elements, and
their law is known without drawing: h of the equally probable quantiles of eps is a sample of the
law with no randomness, moments come from a quadrature (`litmus.moments`). A law is recognised if
its distribution function is within `DISTANCE` of the sample's everywhere.

- normal, for any A: h permutes eps, and the chain is Gaussian all the same.
- gamma, for A = diag(k) > 0 and scales theta_t with theta_t / prod_{s <= t} k_s the same for all t:
  k_t Gamma(a, theta_{t-1}) + Gamma(b, theta_t) is Gamma(a + b, theta_t) (Nachmani et al. 2021).
- Cauchy, for A = diag(k): the scales add up, k_t g_{t-1} + g_t. There are no moments.

Others that sums keep (inverse Gaussian, stable laws without a density in closed form) are not
looked for, and the answer for them is the loop.

References:
    Nachmani et al. 2021, https://arxiv.org/abs/2110.05948
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ddpm_jax.litmus.moments import AROUND_0, KNOWN, cells, moments
from ddpm_jax.litmus.probes import flat
from ddpm_jax.processes.custom import Step

__all__ = ["DISTANCE", "SAME_SCALE", "Law", "distribution", "recognise", "sums"]

DISTANCE = {"normal": 1e-4, "gamma": 5e-4, "Cauchy": 1e-4}
"""The largest distance between two distribution functions that are taken for one (Kolmogorov's).

A gamma's may be infinitely steep at its end, where float32 rounds the noise: that costs 2e-4.
"""
SAME_SCALE = 1e-3
"""Relative; gammas whose scales differ by more are not closed under sums."""

_QUANTILES = 16384
_NORMAL_ENOUGH = 1e5  # a gamma of this shape is within 1e-3 of a normal, and slow to compute
_MOST_ELEMENTS = 64  # of which the law is read; that h works on each alone is tested for all


class Law(NamedTuple):
    """The noise at every t, tables `[T, k]` of k elements, float64."""

    name: str
    """"normal", "gamma" or "Cauchy", or "" for none of these."""
    distance: float
    """Between its distribution function and the named, or nearest, one; the worst of all t."""
    location: np.ndarray
    """A normal's mean, a Cauchy's median, where a gamma begins."""
    scale: np.ndarray
    """A normal's deviation, a Cauchy's half width; a gamma's, negative if its tail is below."""
    shape: np.ndarray
    """Of a gamma; of others 1."""
    mean: np.ndarray
    """By quadrature, whatever the law."""
    variance: np.ndarray
    """By quadrature, whatever the law; NaN where it is not known (`litmus.moments`)."""
    elements: np.ndarray
    """Which k of the d elements."""
    error: float = 0.0
    """Of mean and variance: of the first in deviations, of the second relative; the worst."""
    alike: bool = True
    """Whether all d elements, at every t, are the same function of their eps."""


def recognise(
    step: Step, shape: tuple[int, ...], num_steps: int, rng: np.random.Generator
) -> Law | None:
    """The law of h(eps) = f(0, eps) at every t, or None if h mixes elements."""
    f, d = flat(step, shape), math.prod(shape)
    if not _works_on_each_alone(f, d, num_steps, rng):
        return None
    elements = np.sort(rng.permutation(d)[:_MOST_ELEMENTS])
    zero = jnp.zeros(d, jnp.float32)

    @jax.jit
    def noise(levels: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of(level: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = f(zero, jnp.full_like(zero, level), t)
            same = (values == values[0]) | (jnp.isnan(values) & jnp.isnan(values[0]))
            return values[elements], jnp.all(same)

        values, alike = jax.lax.map(of, levels, batch_size=1024)
        return values, jnp.all(alike)

    def h(t: int, k: int, levels: np.ndarray) -> np.ndarray:
        values, _ = noise(jnp.asarray(levels, jnp.float32), jnp.int32(t))
        return np.asarray(values, np.float64)[:, :k]

    others = np.concatenate([_levels(), AROUND_0])
    inputs = jnp.asarray(np.concatenate([others, cells()]), jnp.float32)
    tables, fits, all_alike, error = [], [], True, 0.0
    for t in range(num_steps):
        raw, same = noise(inputs, jnp.int32(t))
        values, all_alike = np.asarray(raw, np.float64), all_alike and bool(same)
        k = 1 if same else len(elements)  # most are alike: one is read for all
        at_others, at_cells = values[: len(others), :k], values[len(others) :, :k]
        with np.errstate(all="ignore"):
            of_t = moments(functools.partial(h, t, k), at_cells, others, at_others)
            sample = np.sort(at_others[:_QUANTILES], axis=0)
            fits.append(_fits(sample, *of_t[:3], len(elements)))
        error = max(error, of_t.error)
        tables.append(np.broadcast_to(np.stack(of_t[:2]), (2, len(elements))))
    distances = {name: max(fit[name][0] for fit in fits) for name in fits[0]}
    nearest = min(distances, key=distances.__getitem__)
    name = next((name for name in distances if distances[name] <= DISTANCE[name]), "")
    location, scale, form = np.stack([fit[name or nearest][1] for fit in fits], axis=1)
    mean, variance = np.stack(tables, axis=1)
    if name == "normal" and not _same_moments(location, scale, mean, variance):
        name = ""  # a rare and large value is far from the normal, and its law is not
    distance = distances[name or nearest]
    return Law(name, distance, location, scale, form, mean, variance, elements, error, all_alike)


def sums(law: Law, keep: np.ndarray) -> Law | None:
    """The law of x_t - (prod k) x_0 at every t, or None where sums do not keep it.

    Args:
        law: of each step's noise.
        keep: k, the factors on x, `[T, k]` for the same elements.
    """
    if law.name == "gamma":
        if not (keep > 0.0).all():
            return None
        base = law.scale / np.cumprod(keep, axis=0)
        if (np.ptp(base, axis=0) > SAME_SCALE * np.abs(base).mean(axis=0)).any():
            return None
    location, scale, shape = (table.copy() for table in (law.location, law.scale, law.shape))
    for t in range(1, len(keep)):
        location[t] += keep[t] * location[t - 1]
        if law.name == "gamma":
            shape[t] += shape[t - 1]
        else:
            scale[t] += np.abs(keep[t]) * scale[t - 1]
    return law._replace(location=location, scale=scale, shape=shape)


def distribution(name: str, z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The distribution function of a named law of location 0 and scale 1; a gamma's of `shape`."""
    if name == "Cauchy":
        return 0.5 + np.arctan(z) / np.pi
    if name == "gamma":
        return special.gammainc(shape, np.maximum(z, 0.0))
    return special.ndtr(z)


def _fits(
    sample: np.ndarray, mean: np.ndarray, variance: np.ndarray, third: np.ndarray, k: int
) -> dict[str, tuple[float, np.ndarray]]:
    """By name: how far the law lies from the sorted sample, and location, scale and shape."""
    if (sample[0] == sample[-1]).all():  # no noise: a normal without variance, and no other
        none = np.zeros_like(mean)
        still = np.broadcast_to(np.stack([sample[0], none, np.ones_like(mean)]), (3, k))
        return {"normal": (0.0, still), "gamma": (np.inf, still), "Cauchy": (np.inf, still)}
    gamma_scale = 0.5 * third / variance
    gamma_shape = variance / gamma_scale**2
    low, middle, high = (sample[int(_QUANTILES * share)] for share in (0.25, 0.5, 0.75))
    one, levels = np.ones_like(mean), _levels()
    guesses = {
        # Of a normal that eps was only reordered to, the sample is the normal's, sorted.
        "normal": (sample.mean(axis=0), levels @ sample / (levels @ levels), one),
        "gamma": (mean - gamma_shape * gamma_scale, gamma_scale, gamma_shape),
        "Cauchy": (middle, 0.5 * (high - low), one),
    }
    expected = (np.arange(_QUANTILES)[:, None] + 0.5) / _QUANTILES
    fits = {}
    for name, (location, scale, shape) in guesses.items():
        if shape.max() > _NORMAL_ENOUGH or not np.isfinite(shape).all():
            fits[name] = (np.inf, np.broadcast_to(np.stack([location, scale, one]), (3, k)))
            continue
        below = distribution(name, (sample - location) / scale, shape)
        error = np.abs(np.where(scale > 0.0, below, 1.0 - below) - expected).max()
        parameters = np.broadcast_to(np.stack([location, scale, shape]), (3, k))
        fits[name] = (float(np.nan_to_num(error, nan=np.inf)), parameters)
    return fits


@functools.cache
def _levels() -> np.ndarray:
    """Equally probable quantiles of eps."""
    return special.ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)


def _same_moments(
    location: np.ndarray, scale: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> bool:
    of_mean = np.abs(mean - location) <= KNOWN * scale
    return bool((of_mean & (np.abs(variance - scale**2) <= KNOWN * scale**2)).all())


def _works_on_each_alone(f: Step, d: int, num_steps: int, rng: np.random.Generator) -> bool:
    """Whether an element of f(0, eps) stays when other elements of eps change, at every t."""
    one, other = jnp.asarray(rng.normal(size=(2, 8, d)), jnp.float32)
    same_eps = jnp.asarray(rng.random((8, d)) < 0.5)

    def changed(t: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda eps: f(jnp.zeros_like(eps), eps, t))
        before, after = noise(one), noise(jnp.where(same_eps, one, other))
        same = (after == before) | (jnp.isnan(after) & jnp.isnan(before))
        moved = jnp.where(same_eps & ~same, jnp.abs(after - before), 0.0)
        size = jnp.max(jnp.where(jnp.isfinite(before), jnp.abs(before), 0.0))
        return jnp.max(moved) / jnp.where(size > 0.0, size, 1.0)  # a step may add no noise

    times = jnp.arange(num_steps, dtype=jnp.int32)
    return bool((jax.jit(lambda times: jax.lax.map(changed, times))(times) <= 1e-5).all())
