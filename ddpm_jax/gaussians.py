"""Arithmetic of Gaussians with diagonal covariance, in nats, element by element.

Nothing here reduces: each function returns one value per element, and who calls sums over the
dimensions it means. That keeps a per-pixel map of an ELBO term one call away.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from ddpm_jax.checks import check_float, check_same_shape

__all__ = [
    "discretized_log_likelihood",
    "kl_diagonal",
    "kl_standardized",
    "kl_to_standard_normal",
    "log_density_diagonal",
]


def kl_diagonal(
    mean_q: Float[Array, "*shape"],
    variance_q: Float[Array, "*shape"],
    mean_p: Float[Array, "*shape"],
    variance_p: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    r"""KL(N(mean_q, variance_q) || N(mean_p, variance_p)) of each element, in nats.

    1/2 [ (r - 1 - log r) + (mean_q - mean_p)^2 / variance_p ],   r = variance_q / variance_p.

    All four arguments have one shape and are positive where they are variances. This is the
    generic form: `ddpm_jax.losses.kl_weight` is what it collapses to when the variances agree.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.
    """
    check_float("mean_q", mean_q)
    check_same_shape("variance_q", variance_q, "mean_q", mean_q)
    check_same_shape("mean_p", mean_p, "mean_q", mean_q)
    check_same_shape("variance_p", variance_p, "mean_q", mean_q)
    ratio = variance_q / variance_p
    excess = (variance_q - variance_p) / variance_p  # r - 1, without the cancellation
    return 0.5 * (_excess_minus_log(excess, ratio) + jnp.square(mean_q - mean_p) / variance_p)


def kl_to_standard_normal(
    mean: Float[Array, "*shape"], one_minus_variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """KL(N(mean, 1 - one_minus_variance) || N(0, 1)) of each element, in nats.

    1/2 [ mean^2 - m - log(1 - m) ] with m = 1 - variance. Takes m and not the variance because
    the prior of a good schedule has m near 0, where 1 - m in float32 has already lost it.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that differ.
    """
    check_float("mean", mean)
    check_same_shape("one_minus_variance", one_minus_variance, "mean", mean)
    m = one_minus_variance
    return 0.5 * (jnp.square(mean) + _excess_minus_log(-m, 1.0 - m))


def kl_standardized(
    error: Float[Array, "*shape"], log_variance_ratio: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """A placeholder until the package of gaussians arrives."""
    check_float("error", error)
    check_same_shape("log_variance_ratio", log_variance_ratio, "error", error)
    return 0.5 * (jnp.expm1(log_variance_ratio) - log_variance_ratio + jnp.square(error))


def log_density_diagonal(
    x: Float[Array, "*shape"], mean: Float[Array, "*shape"], variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """A placeholder until the package of gaussians arrives."""
    check_float("x", x)
    check_same_shape("mean", mean, "x", x)
    check_same_shape("variance", variance, "x", x)
    return -0.5 * (jnp.square(x - mean) / variance + jnp.log(2.0 * jnp.pi * variance))


def discretized_log_likelihood(
    x: Float[Array, "*shape"],
    mean: Float[Array, "*shape"],
    standard_deviation: Float[Array, "*shape"],
    *,
    levels: int,
) -> Float[Array, "*shape"]:
    r"""Log probability of grey levels under a Gaussian cut into bins (Ho et al. 2020, eq. 13).

    `levels` values are spread evenly over [-1, 1]. Each owns the bin that reaches halfway to its
    neighbours, and the two outer bins are open, so that the bins' probabilities sum to 1:

        log [ Phi((x + h - mean) / sd) - Phi((x - h - mean) / sd) ],   h = 1 / (levels - 1).

    The difference is taken between logarithms in the tail where both are small, so that a value
    hundreds of standard deviations away has a finite answer and a useful gradient.

    Args:
        x: values on the grid; 256 levels for 8-bit images, 17 for scikit-learn's digits.
        mean, standard_deviation: of the Gaussian, shaped as `x`; the deviation is positive.
        levels: number of grey levels, at least 2.

    Returns:
        Nats per element, at most 0.

    Raises:
        TypeError, ValueError: an argument that is not floating point, shapes that differ, or
            `levels` below 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import discretized_log_likelihood
        >>> grid = jnp.linspace(-1.0, 1.0, 17)
        >>> log_p = discretized_log_likelihood(grid, 0.1 * grid, jnp.full(17, 0.5), levels=17)
        >>> log_p.shape
        (17,)
    """
    check_float("x", x)
    check_same_shape("mean", mean, "x", x)
    check_same_shape("standard_deviation", standard_deviation, "x", x)
    if levels < 2:
        raise ValueError(f"levels is {levels}; there are at least 2 grey levels")
    half_bin = 1.0 / (levels - 1)
    # Mirrored into the lower tail: there both ends' log Phi are small and well told apart.
    offset = -jnp.abs(x - mean)
    lower = (offset - half_bin) / standard_deviation
    upper = (offset + half_bin) / standard_deviation
    closed = _log_ndtr_difference(lower, upper, 2.0 * half_bin / standard_deviation)
    # x sits on a grid of spacing 2 h, so a quarter of that tells the outer levels apart safely.
    at_bottom = x < -1.0 + 0.5 * half_bin
    at_top = x > 1.0 - 0.5 * half_bin
    below_bottom = _log_ndtr((x + half_bin - mean) / standard_deviation)
    above_top = _log_ndtr((mean - x + half_bin) / standard_deviation)
    return jnp.where(at_bottom, below_bottom, jnp.where(at_top, above_top, closed))


def _log_ndtr_difference(lower: jax.Array, upper: jax.Array, width: jax.Array) -> jax.Array:
    """log[Phi(upper) - Phi(lower)] for upper = lower + width with lower + upper <= 0."""
    log_lower, log_upper = _log_ndtr(lower), _log_ndtr(upper)
    # Far out both ends round to the same number; log Phi, concave with a slope above -upper
    # there, still tells how far apart they are.
    gap = jnp.maximum(log_upper - log_lower, -upper * width)
    # log(1 - exp(-gap)) loses digits on one side of log 2 with either of the two ways to write it.
    near = gap < jnp.log(2.0).astype(gap.dtype)
    from_near = jnp.log(-jnp.expm1(-jnp.where(near, gap, 1.0)))
    from_far = jnp.log1p(-jnp.exp(-jnp.where(near, 1.0, gap)))
    return log_upper + jnp.where(near, from_near, from_far)


@jax.custom_jvp
def _log_ndtr(x: jax.Array) -> jax.Array:
    """log Phi(x) with a derivative that holds in the tail."""
    return log_ndtr(x)


@_log_ndtr.defjvp
def _log_ndtr_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """phi / Phi. JAX's exp(log phi - log Phi) is a difference of squares, lost below x = -1000."""
    (x,), (dx,) = primals, tangents
    near = jnp.maximum(x, -4.0)
    ratio_near = jnp.exp(norm.logpdf(near) - log_ndtr(near))
    # Laplace's continued fraction, y + 1 / (y + 2 / (y + 3 / ...)) at y = -x.
    y = jnp.maximum(-x, 4.0)
    ratio_far = y
    for k in range(10, 0, -1):
        ratio_far = y + k / ratio_far
    return log_ndtr(x), jnp.where(x < -4.0, ratio_far, ratio_near) * dx


def _excess_minus_log(excess: jax.Array, ratio: jax.Array) -> jax.Array:
    """r - 1 - log r from r - 1, which has the digits near r = 1, and r, which has them far off."""
    # With x = r - 1 and z = x / (2 + x): log r = 2 artanh z, x - 2 z = x z, and no difference
    # of rounded numbers is left.
    x = jnp.clip(excess, -0.5, 0.5)
    z = x / (2.0 + x)
    series = sum(jnp.square(z) ** k / (2 * k + 3) for k in range(7))
    near = x * z - 2.0 * z**3 * series
    return jnp.where(jnp.abs(excess) < 0.5, near, excess - jnp.log(ratio))
