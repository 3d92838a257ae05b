"""KL(q || p) of two Gaussians, by closed forms, quadrature and sampling."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.results import Row
from benchmarks.timing import Program, compiled, in_turns, spread
from ddpm_jax import gaussians

__all__ = ["CHUNK", "PAIRS", "Method", "make_methods", "measured"]

PAIRS = {
    "means 0.1 apart": (0.0, 1.0, 0.1, 1.0),
    "nearly equal": (0.0, 1.001, 0.001, 1.0),
    "one apart, p twice as wide": (0.0, 1.0, 1.0, 4.0),
    "narrow q in a wide p": (0.0, 0.01, 0.5, 1.0),
}
"""Mean and variance of q, mean and variance of p."""

SHARED = "shared variance"
CHUNK = 10_000
"""Draws of a dimension in memory at once."""


class Method(NamedTuple):
    """A way to the KL, compiled for as many dimensions at once as keep a device busy."""

    name: str
    n: int | None
    """Draws or nodes; None for closed forms."""
    dims: int
    program: Program
    """`(key, mean_q, variance_q, mean_p, variance_p) -> nats`, all `[dims]`."""


def make_methods(samples: Sequence[int], nodes: Sequence[int], at_once: int) -> list[Method]:
    """The closed forms, and the other methods with so many draws and nodes.

    Each has as many dimensions as have about `at_once` draws together, and at least 16.
    """
    most = max(at_once // 16, 16)
    rows: list[tuple[str, int | None, int, Callable[..., Any]]] = [
        ("closed form", None, most, _closed),
        (SHARED, None, most, _shared),
        *(("quadrature", count, max(most // count, 16), _quadrature(count)) for count in nodes),
        *(("Monte Carlo", n, min(max(at_once // n, 16), most), _sampled(n)) for n in samples),
    ]
    key = jax.random.key(0)
    return [
        Method(name, n, dims, compiled(function, key, *4 * (jnp.ones(dims),)))
        for name, n, dims, function in rows
    ]


def measured(
    name: str, methods: Sequence[Method], *, seed: int, repeats: int, seconds: float
) -> list[Row]:
    """A row for each method that fits the pair `name`; they run by turns."""
    pair, key = PAIRS[name], jax.random.key(seed)
    fit = [method for method in methods if method.name != SHARED or pair[1] == pair[3]]
    arrays = [_spread_out(seed, pair, method.dims) for method in fit]
    results: dict[int, np.ndarray] = {}
    runs = in_turns(
        {
            index: functools.partial(method.program.call, key, *arrays[index])
            for index, method in enumerate(fit)
        },
        repeats=repeats,
        seconds=seconds,
        look=lambda index, result: results.__setitem__(index, np.asarray(result, np.float64)),
    )
    rows = []
    for index, method in enumerate(fit):
        exact = _exact(*(np.asarray(part, np.float64) for part in arrays[index]))
        error = math.sqrt(np.mean(np.square(results[index] - exact)))
        numbers = {
            "dims": method.dims,
            "nats": float(np.mean(exact)),
            "rms_error": error,
            "relative_error": error / float(np.mean(exact)),
            "seconds_per_dimension": spread(runs[index]).median / method.dims,
        }
        case: dict[str, Any] = {"pair": name, "method": method.name}
        if method.n is not None:
            case["n"] = method.n
        rows.append(Row(case, runs[index], method.program.compile_seconds, numbers))
    return rows


def _closed(key: Any, *pair: Any) -> Any:
    return gaussians.kl_diagonal(*pair)


def _shared(key: Any, mean_q: Any, variance: Any, mean_p: Any, _: Any) -> Any:
    return gaussians.kl_shared_variance(mean_q, mean_p, variance)


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
