r"""Is the mathematics exact on this device? The part "exactness" of `benchmarks.accelerator`.

Each function of the core runs on the default device and is compared with NumPy in float64 on the
host; the error is relative to the largest exact value. Accelerators multiply float32 matrices in
fewer bits by default (TF32 on NVIDIA's cards: 10 bits; bfloat16 on TPUs: 8), so each function's
trace is searched for products of matrices and convolutions whose precision is not HIGHEST, and
they are counted by what they are: a product that is exact on this device may not be on the next.

What a network's layers are made of is compared in the same way, as it is written there, that is at
the default precision: for a network fewer bits are a choice, for the mathematics a fault.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from benchmarks import chains, moments
from benchmarks.results import Row
from ddpm_jax import gaussians, processes, q_posterior, q_sample, samplers, schedules
from ddpm_jax.models import layers
from ddpm_jax.samplers import SamplerState

__all__ = ["measured", "products"]

T = 1000
SHAPE = (8, 8, 8, 3)
MATHEMATICS, LAYER = "mathematics", "layer"
BOUND = 1e-5
"""Of errors relative to the largest value: float32's rounding, 6e-8, in sums of a thousand terms;
TF32 is off by 1e-4 to 1e-3."""


class Check(NamedTuple):
    """A function on the device, and what it should return."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    exact: np.ndarray
    kind: str = MATHEMATICS
    read: Callable[[np.ndarray], np.ndarray] = lambda result: result
    """What is compared, on the host."""


def measured(seed: int) -> Iterator[Row]:
    """Yields a row for each function."""
    for check in (*_mathematics(seed), *_layers(seed)):
        result = check.read(np.asarray(jax.jit(check.function)(*check.arguments), np.float64))
        error = np.max(np.abs(result - check.exact)) / np.max(np.abs(check.exact))
        numbers = {
            "relative_error": float(error),
            "bound": BOUND,
            "exact": bool(error < BOUND),
            "default_precision": products(check.function, *check.arguments),
        }
        case = {"part": "exactness", "what": check.name, "kind": check.kind}
        yield Row(case, numbers=numbers)


def products(function: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """How many products of each kind have another precision than HIGHEST, where it matters."""
    counts: dict[str, int] = {}
    _count(jax.make_jaxpr(function)(*arguments).jaxpr, counts)
    return counts


def _count(jaxpr: Any, counts: dict[str, int]) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            precision = equation.params["precision"]
            parts = precision if isinstance(precision, tuple) else (precision,)
            inexact = any(part != jax.lax.Precision.HIGHEST for part in parts)
            if inexact and equation.outvars[0].aval.dtype == np.float32:
                counts[name] = counts.get(name, 0) + 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    _count(inner.jaxpr, counts)
                elif isinstance(inner, core.Jaxpr):
                    _count(inner, counts)


def _mathematics(seed: int) -> Iterator[Check]:
    rng = np.random.default_rng(seed)
    schedule, alpha_bar = schedules.cosine(T), moments.cosine_alpha_bar(T)
    t = np.array([0, 1, 10, 100, 500, 900, 998, 999], np.int32)
    x0, eps, output = (
        array.astype(np.float32) for array in (rng.uniform(-1.0, 1.0, SHAPE), *_normals(rng, 2))
    )
    a, b = (_column(np.sqrt(table[t])) for table in (alpha_bar, 1.0 - alpha_bar))
    x_t = (a * x0 + b * eps).astype(np.float32)
    every, times = jnp.arange(T, dtype=jnp.int32), jnp.asarray(t)

    # Each table relative to itself at each t, and not to its largest value.
    yield Check(
        "tables: sqrt(alpha_bar), sqrt(1 - alpha_bar)",
        lambda t: jnp.stack(
            [
                schedule.signal(t) / jnp.asarray(np.sqrt(alpha_bar), jnp.float32),
                schedule.noise(t) / jnp.asarray(np.sqrt(1.0 - alpha_bar), jnp.float32),
            ]
        ),
        (every,),
        np.ones((2, T)),
    )
    yield Check(
        "q_sample",
        lambda x0, t, eps: q_sample(schedule, x0, t, eps),
        (x0, times, eps),
        a * x0 + b * eps.astype(np.float64),
    )
    s = np.maximum(t - 1, 0)
    before = np.where(t > 0, alpha_bar[s], 1.0)
    beta = 1.0 - alpha_bar[t] / before
    weight_x0 = np.sqrt(before) * beta / (1.0 - alpha_bar[t])
    weight_x_t = np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - alpha_bar[t])
    yield Check(
        "q_posterior",
        lambda x0, x_t, t: q_posterior(schedule, x0, x_t, t, t - 1)[0],
        (x0, x_t, times),
        _column(weight_x0) * x0 + _column(weight_x_t) * x_t,
    )
    yield Check(
        "one step of DDIM",
        lambda x_t, output: _step(samplers.ddim, schedule, x_t, output),
        (x_t, output),
        _ddim(alpha_bar, 500, 400, x_t.astype(np.float64), output),
    )
    mean_q, mean_p = _normals(rng, 2)
    variance_q, variance_p = (rng.uniform(0.1, 2.0, SHAPE) for _ in range(2))
    arguments = tuple(_float32(z) for z in (mean_q, variance_q, mean_p, variance_p))
    wide = [argument.astype(np.float64) for argument in arguments]
    yield Check("KL of diagonal Gaussians", gaussians.kl_diagonal, arguments, _kl(*wide))
    grid = _float32(rng.integers(0, 256, SHAPE) / 127.5 - 1.0)
    mean, deviation = _float32(0.5 * mean_q), _float32(rng.uniform(0.05, 1.0, SHAPE))
    yield Check(
        "discretized log likelihood",
        functools.partial(gaussians.discretized_log_likelihood, levels=256),
        (grid, mean, deviation),
        _grey_levels(*(z.astype(np.float64) for z in (grid, mean, deviation))),
    )
    yield from _with_products(rng, schedule, alpha_bar, x0)


def _with_products(
    rng: np.random.Generator, schedule: Any, alpha_bar: np.ndarray, x0: np.ndarray
) -> Iterator[Check]:
    """What has products of matrices in it."""
    zeros, t = jnp.zeros(SHAPE), 500
    process = processes.blurring(schedule, SHAPE[1:])

    def modes(x_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return moments.white_blurred(alpha_bar[t], (t + 1) / T, x0, x_t)

    # No noise is given, so the modes are the mean's: what is left after it, and the mean.
    yield Check(
        "q_sample with blur",
        lambda x0: q_sample(process, x0, jnp.full(SHAPE[:1], t), zeros),
        (x0,),
        modes(x0)[1],
        read=lambda x_t: np.sum(modes(x_t), axis=0),
    )
    steps, dims = 8, 16
    A, b, Q = chains.dense(steps, dims)
    chain = processes.affine_chain(A, b, Q)
    marginal = moments.affine_marginal(A, b, Q)
    data = _float32(rng.uniform(-1.0, 1.0, (8, dims)))
    yield Check(
        "q_sample of an affine chain",
        lambda x: q_sample(chain, x, jnp.full(8, steps - 1), jnp.zeros_like(x)),
        (data,),
        data @ marginal.matrix.T + marginal.offset,
    )
    factors = [np.tril(rng.normal(0.0, 0.3, (4, dims, dims))) + 2.0 * np.eye(dims) for _ in "qp"]
    means = [rng.standard_normal((4, dims)) for _ in "qp"]
    arguments = tuple(_float32(z) for z in (means[0], factors[0], means[1], factors[1]))
    wide = [argument.astype(np.float64) for argument in arguments]
    yield Check("KL of full Gaussians", gaussians.kl_full, arguments, _kl_full(*wide))


def _layers(seed: int) -> Iterator[Check]:
    """What networks are made of, at the default precision."""
    rng = np.random.default_rng(seed)
    x = _float32(rng.standard_normal((2, 8, 8, 32)))
    kernel = _float32(rng.normal(0.0, 0.1, (3, 3, 32, 32)))

    bias = np.zeros(32, np.float32)

    def convolve(x: Any, kernel: Any) -> Any:
        return layers.Conv(32).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    def dense(x: Any, kernel: Any) -> Any:
        return layers.Dense(32).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    def gradient(x: Any, kernel: Any) -> Any:
        return jax.grad(lambda kernel: jnp.sum(jnp.square(convolve(x, kernel))))(kernel)

    exact = _convolved(x, kernel)
    yield Check("convolution, 3x3", convolve, (x, kernel), exact, LAYER)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    slope = np.array(
        [
            [
                np.tensordot(padded[:, i : i + 8, j : j + 8], 2.0 * exact, ((0, 1, 2), (0, 1, 2)))
                for j in range(3)
            ]
            for i in range(3)
        ]
    )
    yield Check("its weights' gradient", gradient, (x, kernel), slope, LAYER)
    flat, weights = x.reshape(-1, 32), kernel[0, 0]
    yield Check("dense layer", dense, (flat, weights), flat.astype(np.float64) @ weights, LAYER)
    query, key, value = (_float32(rng.standard_normal((2, 64, 1, 32))) for _ in range(3))

    logits = np.einsum("bqhw,bkhw->bhqk", query.astype(np.float64), key) / math.sqrt(32.0)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    attended = np.einsum("bhqk,bkhw->bqhw", shares / shares.sum(-1, keepdims=True), value)
    yield Check("attention", layers.attend, (query, key, value), attended, LAYER)


def _normals(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    return [rng.standard_normal(SHAPE) for _ in range(count)]


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _column(table: np.ndarray) -> np.ndarray:
    return table.reshape(-1, 1, 1, 1)


def _step(make: Any, schedule: Any, x_t: Any, output: Any) -> Any:
    sampler = make(schedule, lambda x_t, t: output, threshold=None)
    state = SamplerState(x_t)
    return sampler.step(jax.random.key(0), state, jnp.int32(500), jnp.int32(400))[0].x_t


def _ddim(
    alpha_bar: np.ndarray, t: int, s: int, x_t: np.ndarray, eps_hat: np.ndarray
) -> np.ndarray:
    """Song et al. 2021, eq. 12, with sigma = 0."""
    x0_hat = (x_t - math.sqrt(1.0 - alpha_bar[t]) * eps_hat) / math.sqrt(alpha_bar[t])
    return math.sqrt(alpha_bar[s]) * x0_hat + math.sqrt(1.0 - alpha_bar[s]) * eps_hat


def _kl(mean_q: Any, variance_q: Any, mean_p: Any, variance_p: Any) -> Any:
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1.0 - np.log(ratio) + (mean_q - mean_p) ** 2 / variance_p)


def _kl_full(mean_q: Any, factor_q: Any, mean_p: Any, factor_p: Any) -> Any:
    moved = np.linalg.solve(factor_p, factor_q)
    off = np.linalg.solve(factor_p, (mean_q - mean_p)[..., None])
    traces = np.sum(moved**2, (-1, -2)) + np.sum(off**2, (-1, -2))
    logs = [np.log(np.diagonal(f, axis1=-2, axis2=-1)).sum(-1) for f in (factor_p, factor_q)]
    return 0.5 * (traces - mean_q.shape[-1]) + logs[0] - logs[1]


def _grey_levels(x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Ho et al. 2020, eq. 13; each tail from the side on which it is small."""
    half = 1.0 / 255.0
    sign = np.where(x >= mean, 1.0, -1.0)
    centre = sign * (x - mean)
    tail = np.vectorize(lambda z: 0.5 * math.erfc(z / math.sqrt(2.0)))
    low = np.where(sign * x < -1.0 + half, -np.inf, (centre - half) / deviation)
    high = np.where(sign * x > 1.0 - half, np.inf, (centre + half) / deviation)
    return np.log(tail(low) - tail(high))


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height, width = x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    ]
    return np.sum(shifted, axis=0)
