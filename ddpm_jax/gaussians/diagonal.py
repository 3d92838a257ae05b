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
    r"""KL divergence between two Gaussians, of each element, in nats.

    .. math::

        \mathrm{KL}\big(\mathcal{N}(m_q, v_q) \,\|\, \mathcal{N}(m_p, v_p)\big)
        = \tfrac12 \Big[ r - 1 - \log r + \frac{(m_q - m_p)^2}{v_p} \Big], \qquad r = v_q / v_p

    `kl_shared_variance` is the special case of equal variances.

    Args:
        mean_q: m_q, of any shape.
        variance_q: v_q, positive, shaped as `mean_q`.
        mean_p: m_p, shaped as `mean_q`.
        variance_p: v_p, positive, shaped as `mean_q`.

    Returns:
        Nats per element, 0 or more, shaped as `mean_q`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import kl_diagonal
        >>> one = jnp.ones(2)
        >>> kl_diagonal(jnp.array([1.0, 3.0]), one, jnp.zeros(2), one).tolist()
        [0.5, 4.5]
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
    r"""KL divergence between two Gaussians of one variance, of each element, in nats.

    .. math::

        \mathrm{KL}\big(\mathcal{N}(m_q, v) \,\|\, \mathcal{N}(m_p, v)\big)
        = \frac{(m_q - m_p)^2}{2 v}

    This is the KL shortcut, with which each term of the ELBO becomes a weighted squared error
    (Ho et al. 2020, eq. 8). `ddpm_jax.losses.kl_weight` is that weight.

    Args:
        mean_q: m_q, of any shape.
        mean_p: m_p, shaped as `mean_q`.
        variance: v, positive, shaped as `mean_q`.

    Returns:
        Nats per element, 0 or more, shaped as `mean_q`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import kl_shared_variance
        >>> kl_shared_variance(jnp.zeros(2), jnp.array([1.0, 3.0]), jnp.full(2, 0.25)).tolist()
        [2.0, 18.0]

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
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
    r"""KL divergence between two Gaussians that are given by how they differ, in nats.

    .. math::

        \tfrac12 \big[ e^d - 1 - d + e^2 \big], \qquad
        e = \frac{m_q - m_p}{\sqrt{v_p}}, \qquad d = \log\frac{v_q}{v_p}

    where e is `error`, and e^d is the exponential. For a learned variance, of which a network gives
    the logarithm (Nichol & Dhariwal 2021, eq. 15): no variance is computed, so none can underflow.

    Args:
        error: the difference of the means in deviations of p, of any shape.
        log_variance_ratio: d, natural logarithm, shaped as `error`.

    Returns:
        Nats per element, 0 or more, shaped as `error`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import kl_standardized
        >>> kl_standardized(jnp.array([1.0, 3.0]), jnp.zeros(2)).tolist()
        [0.5, 4.5]

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    check_float("error", error)
    check_same_shape("log_variance_ratio", log_variance_ratio, "error", error)
    dtype, (wide_error, d) = widened_together(error, log_variance_ratio)
    return (0.5 * expm1_minus_argument(d) + half_square(wide_error)).astype(dtype)


def kl_to_standard_normal(
    mean: Float[Array, "*shape"], one_minus_variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""KL divergence from a Gaussian to the standard normal, of each element, in nats.

    .. math::

        \mathrm{KL}\big(\mathcal{N}(\mu, 1 - m) \,\|\, \mathcal{N}(0, 1)\big)
        = \tfrac12 \big[ \mu^2 - m - \log(1 - m) \big]

    It takes m and not the variance because the prior of a good schedule has m near 0, where 1 - m
    is 1 in float32.

    Args:
        mean: mu, of any shape.
        one_minus_variance: m = 1 - variance, below 1, shaped as `mean`.

    Returns:
        Nats per element, 0 or more, shaped as `mean`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import kl_to_standard_normal
        >>> kl_to_standard_normal(jnp.array([1.0, 3.0]), jnp.zeros(2)).tolist()
        [0.5, 4.5]
    """
    check_float("mean", mean)
    check_same_shape("one_minus_variance", one_minus_variance, "mean", mean)
    dtype, (wide_mean, m) = widened_together(mean, one_minus_variance)
    kl = half_square(wide_mean) + 0.5 * excess_minus_log(-m, jnp.log1p(-m))
    return kl.astype(dtype)


def entropy_diagonal(variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Differential entropy of a Gaussian, of each element, in nats.

    .. math::

        \tfrac12 \log(2 \pi e\, v)

    Negative for narrow Gaussians, as entropies of densities may be.

    Args:
        variance: v, positive, of any shape.

    Returns:
        Nats per element, shaped as `variance`.

    Raises:
        TypeError: `variance` is not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import entropy_diagonal
        >>> [round(h, 3) for h in entropy_diagonal(jnp.array([1.0, 4.0])).tolist()]  # log 2 apart
        [1.419, 2.112]
    """
    check_float("variance", variance)
    dtype, (wide,) = widened_together(variance)
    return (0.5 * (jnp.log(wide) + (LOG_TWO_PI + 1.0))).astype(dtype)


def log_density_diagonal(
    x: Float[Array, "*shape"], mean: Float[Array, "*shape"], variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Log density of a Gaussian at `x`, of each element, in nats.

    .. math::

        \log \mathcal{N}(x;\, m, v) = -\tfrac12 \Big[ \frac{(x - m)^2}{v} + \log(2 \pi v) \Big]

    The logarithm of a density can be positive; `discretized_log_likelihood` gives probabilities.

    Args:
        x: where, of any shape.
        mean: m, shaped as `x`.
        variance: v, positive, shaped as `x`.

    Returns:
        Nats per element, shaped as `x`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import log_density_diagonal
        >>> nats = log_density_diagonal(jnp.array([0.0, 1.0]), jnp.zeros(2), jnp.ones(2))
        >>> [round(value, 3) for value in nats.tolist()]
        [-0.919, -1.419]
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
