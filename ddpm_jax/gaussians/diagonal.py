"""Gaussians with diagonal covariance, element by element, in nats.

Nothing here reduces: each function returns one value per element, and the caller sums over
dimensions. A per-pixel map of an ELBO term is then one call.

Differences of means are divided by a deviation before they are squared, because the square of a
difference, or a variance in a denominator twice over, leaves float32's range long before their
quotient does.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import widened
from ddpm_jax.checks import check_float, check_same_shape

__all__ = [
    "LOG_TWO_PI",
    "entropy_diagonal",
    "excess_minus_log",
    "half_square",
    "kl_diagonal",
    "kl_shared_variance",
    "kl_standardized",
    "kl_to_standard_normal",
    "log_density_diagonal",
    "widened_together",
]

LOG_TWO_PI = math.log(2.0 * math.pi)


def kl_diagonal(
    mean_q: Float[Array, "*shape"],
    variance_q: Float[Array, "*shape"],
    mean_p: Float[Array, "*shape"],
    variance_p: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    r"""KL(N(mean_q, variance_q) || N(mean_p, variance_p)) of each element, in nats.

    1/2 [ (r - 1 - log r) + (mean_q - mean_p)^2 / variance_p ],   r = variance_q / variance_p.

    All four arguments have one shape and are positive where they are variances. This is the
    generic form: `kl_shared_variance` is what it collapses to when the variances agree.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.
    """
    check_float("mean_q", mean_q)
    check_same_shape("variance_q", variance_q, "mean_q", mean_q)
    check_same_shape("mean_p", mean_p, "mean_q", mean_q)
    check_same_shape("variance_p", variance_p, "mean_q", mean_q)
    dtype, arrays = widened_together(mean_q, variance_q, mean_p, variance_p)
    return _kl(*arrays).astype(dtype)


def kl_shared_variance(
    mean_q: Float[Array, "*shape"],
    mean_p: Float[Array, "*shape"],
    variance: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """KL(N(mean_q, variance) || N(mean_p, variance)) of each element, in nats.

    (mean_q - mean_p)^2 / (2 variance): the KL shortcut, with which each term of the ELBO becomes
    a weighted squared error (Ho et al. 2020, eq. 8, https://arxiv.org/abs/2006.11239).
    `ddpm_jax.losses.kl_weight` is that weight.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import kl_shared_variance
        >>> kl_shared_variance(jnp.zeros(2), jnp.array([1.0, 3.0]), jnp.full(2, 0.25)).tolist()
        [2.0, 18.0]
    """
    check_float("mean_q", mean_q)
    check_same_shape("mean_p", mean_p, "mean_q", mean_q)
    check_same_shape("variance", variance, "mean_q", mean_q)
    dtype, (wide_q, wide_p, wide_variance) = widened_together(mean_q, mean_p, variance)
    error = (wide_q - wide_p) / jnp.sqrt(wide_variance)
    return half_square(error).astype(dtype)


def kl_standardized(
    error: Float[Array, "*shape"], log_variance_ratio: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""KL between two Gaussians, given by how they differ, of each element, in nats.

    1/2 [ e^d - 1 - d + error^2 ],   error = (mean_q - mean_p) / sd_p,
                                     d = log(variance_q / variance_p).

    For a learned variance, of which a network gives the logarithm (Nichol & Dhariwal 2021, eq. 15,
    https://arxiv.org/abs/2102.09672): no variance is ever formed, so none can vanish.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.
    """
    check_float("error", error)
    check_same_shape("log_variance_ratio", log_variance_ratio, "error", error)
    dtype, (wide_error, d) = widened_together(error, log_variance_ratio)
    return (0.5 * expm1_minus_argument(d) + half_square(wide_error)).astype(dtype)


def kl_to_standard_normal(
    mean: Float[Array, "*shape"], one_minus_variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """KL(N(mean, 1 - one_minus_variance) || N(0, 1)) of each element, in nats.

    1/2 [ mean^2 - m - log(1 - m) ] with m = 1 - variance. Takes m and not the variance because
    the prior of a good schedule has m near 0, where 1 - m is 1 in float32.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.
    """
    check_float("mean", mean)
    check_same_shape("one_minus_variance", one_minus_variance, "mean", mean)
    dtype, (wide_mean, m) = widened_together(mean, one_minus_variance)
    kl = half_square(wide_mean) + 0.5 * excess_minus_log(-m, jnp.log1p(-m))
    return kl.astype(dtype)


def entropy_diagonal(variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Differential entropy of N(., variance) of each element, in nats: 1/2 log(2 pi e variance).

    Negative for narrow Gaussians, as entropies of densities may be.

    Raises:
        TypeError: `variance` is not floating point.
    """
    check_float("variance", variance)
    dtype, (wide,) = widened_together(variance)
    return (0.5 * (jnp.log(wide) + (LOG_TWO_PI + 1.0))).astype(dtype)


def log_density_diagonal(
    x: Float[Array, "*shape"], mean: Float[Array, "*shape"], variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Log density of N(mean, variance) at `x`, of each element, in nats.

    -1/2 [ (x - mean)^2 / variance + log(2 pi variance) ]

    A density, so its logarithm may be positive; `discretized_log_likelihood` gives probabilities.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.
    """
    check_float("x", x)
    check_same_shape("mean", mean, "x", x)
    check_same_shape("variance", variance, "x", x)
    dtype, (wide_x, wide_mean, wide_variance) = widened_together(x, mean, variance)
    error = (wide_x - wide_mean) / jnp.sqrt(wide_variance)
    log_density = -half_square(error) - 0.5 * (jnp.log(wide_variance) + LOG_TWO_PI)
    return log_density.astype(dtype)


@jax.custom_jvp
def _kl(
    mean_q: jax.Array, variance_q: jax.Array, mean_p: jax.Array, variance_p: jax.Array
) -> jax.Array:
    error, excess = _compare(mean_q, variance_q, mean_p, variance_p)
    ratio = variance_q / variance_p
    # 1e-30 / 1e+30 is 0 in float32, its logarithm is nothing special.
    log_ratio = jnp.where(
        ratio > 1e-30,
        jnp.log(jnp.maximum(ratio, 1e-30)),
        jnp.log(variance_q) - jnp.log(variance_p),
    )
    return 0.5 * excess_minus_log(excess, log_ratio) + half_square(error)


@_kl.defjvp
def _kl_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """By hand, because that of a quotient has variance_p^2 in it, which is 0 at 1e-30."""
    _, variance_q, _, variance_p = primals
    error, excess = _compare(*primals)
    slope_mean = error / jnp.sqrt(variance_p)
    slope_q = 0.5 * excess / variance_q
    slope_p = -(0.5 * excess + half_square(error)) / variance_p
    d_mean_q, d_variance_q, d_mean_p, d_variance_p = tangents
    slope = slope_mean * (d_mean_q - d_mean_p) + slope_q * d_variance_q + slope_p * d_variance_p
    return _kl(*primals), slope


def _compare(
    mean_q: jax.Array, variance_q: jax.Array, mean_p: jax.Array, variance_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The difference of means in deviations of p, and r - 1 without its cancellation."""
    # The difference of close variances below 1e-31 is less than float32's smallest number.
    scale = jnp.where(variance_p < 1e-20, 2.0**64, 1.0)
    excess = (scale * variance_q - scale * variance_p) / (scale * variance_p)
    return (mean_q - mean_p) / jnp.sqrt(variance_p), excess


def widened_together(*arrays: jax.Array) -> tuple[jnp.dtype, tuple[jax.Array, ...]]:
    """The dtype of a result of these arrays, and the arrays `widened` from it."""
    dtype = jnp.result_type(*arrays)
    return dtype, tuple(widened(array.astype(dtype)) for array in arrays)


def half_square(z: jax.Array) -> jax.Array:
    """z^2 / 2, also where z^2 is beyond the largest number."""
    return (0.5 * z) * z


def excess_minus_log(excess: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """r - 1 - log r for r > 0, from r - 1, which has the digits near r = 1, and log r.

    `log_ratio` is read below r = 1/2 only, where r - 1 no longer has the digits of log r.
    """
    # With x = r - 1 and z = x / (2 + x): log r = 2 artanh z, x - 2 z = x z, and no difference
    # of rounded numbers is left.
    x = jnp.clip(excess, -0.5, 0.5)
    z = x / (2.0 + x)
    series = sum(jnp.square(z) ** k / (2 * k + 3) for k in range(7))
    near = x * z - 2.0 * z**3 * series
    log_above = jnp.log1p(jnp.maximum(excess, 0.0))
    far = excess - jnp.where(excess > 0.0, log_above, log_ratio)
    return jnp.where(jnp.abs(excess) < 0.5, near, far)


@jax.custom_jvp
def expm1_minus_argument(d: jax.Array) -> jax.Array:
    """e^d - 1 - d, with its Taylor series where the three terms cancel."""
    x = jnp.clip(d, -1.0, 1.0)
    series = jnp.ones_like(x)
    for n in range(12, 2, -1):
        series = 1.0 + x / n * series
    return jnp.where(jnp.abs(d) < 1.0, half_square(x) * series, jnp.expm1(d) - d)


@expm1_minus_argument.defjvp
def _expm1_minus_argument_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (d,), (dd,) = primals, tangents
    return expm1_minus_argument(d), jnp.expm1(d) * dd
