"""KL(q || p) of two Gaussians, by closed forms, quadrature and sampling."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.results import Row
from benchmarks.timing import compiled, in_turns, spread
from ddpm_jax import gaussians

__all__ = ["CHUNK", "PAIRS", "measured"]

PAIRS = {
    "means 0.1 apart": (0.0, 1.0, 0.1, 1.0),
    "nearly equal": (0.0, 1.001, 0.001, 1.0),
    "one apart, p twice as wide": (0.0, 1.0, 1.0, 4.0),
    "narrow q in a wide p": (0.0, 0.01, 0.5, 1.0),
}
"""Mean and variance of q, mean and variance of p."""

AT_ONCE = 1 << 22
"""Draws, or values of a closed form, that keep a device busy."""
CHUNK = 10_000
"""Draws of a dimension in memory at once."""


def measured(
    name: str,
    pair: tuple[float, ...],
    samples: Sequence[int],
    nodes: Sequence[int],
    *,
    seed: int,
    repeats: int,
    seconds: float,
) -> list[Row]:
    """A row for each method; they run by turns."""
    methods: list[tuple[str, int, int, Callable[..., Any]]] = [
        ("closed form", 0, AT_ONCE // 16, lambda key, *g: gaussians.kl_diagonal(*g))
    ]
    if pair[1] == pair[3]:
        methods.append(
            (
                "shared variance",
                0,
                AT_ONCE // 16,
                lambda key, mean_q, variance, mean_p, _: gaussians.kl_shared_variance(
                    mean_q, mean_p, variance
                ),
            )
        )
    for count in nodes:
        methods.append(("quadrature", count, max(AT_ONCE // 16 // count, 1), _quadrature(count)))
    for n in samples:
        methods.append(("Monte Carlo", n, min(max(AT_ONCE // n, 16), AT_ONCE // 16), _sampled(n)))

    key = jax.random.key(seed)
    results: dict[int, np.ndarray] = {}
    variants, programs, exact = {}, [], []
    for index, (_, _, dims, function) in enumerate(methods):
        gaussian_pair = _spread_out(seed, pair, dims)
        exact.append(_exact(*(np.asarray(part, np.float64) for part in gaussian_pair)))
        program = compiled(function, key, *gaussian_pair)
        programs.append(program)
        variants[index] = functools.partial(program.call, key, *gaussian_pair)
    runs = in_turns(
        variants,
        repeats=repeats,
        seconds=seconds,
        look=lambda index, result: results.__setitem__(index, np.asarray(result, np.float64)),
    )
    rows = []
    for index, (method, n, dims, _) in enumerate(methods):
        error = math.sqrt(np.mean(np.square(results[index] - exact[index])))
        size = float(np.mean(exact[index]))
        numbers = {
            "dims": dims,
            "nats": size,
            "rms_error": error,
            "relative_error": error / size,
            "seconds_per_dimension": spread(runs[index]).median / dims,
        }
        case: dict[str, Any] = {"pair": name, "method": method} | ({"n": n} if n else {})
        rows.append(Row(case, runs[index], programs[index].compile_seconds, numbers))
    return rows


def _spread_out(seed: int, pair: tuple[float, ...], dims: int) -> list[jax.Array]:
    """The pair at other places and scales: the same KL in each dimension, but for rounding."""
    rng = np.random.default_rng(seed)
    place, scale = rng.uniform(-1.0, 1.0, dims), np.exp(rng.uniform(-2.0, 2.0, dims))
    mean_q, variance_q, mean_p, variance_p = pair
    parts = (
        *(place + scale * mean_q, scale**2 * variance_q),
        *(place + scale * mean_p, scale**2 * variance_p),
    )
    return [jnp.asarray(part, jnp.float32) for part in parts]


def _exact(
    mean_q: np.ndarray, variance_q: np.ndarray, mean_p: np.ndarray, variance_p: np.ndarray
) -> np.ndarray:
    excess = (variance_q - variance_p) / variance_p
    return 0.5 * (excess - np.log1p(excess) + (mean_q - mean_p) ** 2 / variance_p)


def _log_ratio(x: Any, *pair: Any) -> Any:
    """log q(x) - log p(x) of draws `[n, dims]`."""
    mean_q, variance_q, mean_p, variance_p = (jnp.broadcast_to(part, x.shape) for part in pair)
    log_q = gaussians.log_density_diagonal(x, mean_q, variance_q)
    return log_q - gaussians.log_density_diagonal(x, mean_p, variance_p)


def _quadrature(nodes: int) -> Callable[..., Any]:
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    places, weights = places.astype(np.float32), (weights / weights.sum()).astype(np.float32)

    def kl(key: Any, mean_q: Any, variance_q: Any, mean_p: Any, variance_p: Any) -> Any:
        x = mean_q[None] + jnp.sqrt(variance_q)[None] * jnp.asarray(places)[:, None]
        ratio = _log_ratio(x, mean_q, variance_q, mean_p, variance_p)
        return jnp.sum(jnp.asarray(weights)[:, None] * ratio, axis=0)

    return kl


def _sampled(n: int) -> Callable[..., Any]:
    chunk = min(n, CHUNK)

    def kl(key: Any, mean_q: Any, variance_q: Any, mean_p: Any, variance_p: Any) -> Any:
        def some(total: Any, index: Any) -> tuple[Any, None]:
            z = jax.random.normal(jax.random.fold_in(key, index), (chunk, *mean_q.shape))
            x = mean_q[None] + jnp.sqrt(variance_q)[None] * z
            ratio = _log_ratio(x, mean_q, variance_q, mean_p, variance_p)
            return total + jnp.mean(ratio, axis=0), None

        total, _ = jax.lax.scan(some, jnp.zeros_like(mean_q), jnp.arange(n // chunk))
        return total / (n // chunk)

    return kl
