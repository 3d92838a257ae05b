r"""Likelihoods of grey levels: a Gaussian cut into bins, in nats.

The probability of one bin is a difference, Phi(upper) - Phi(lower), that cancels in float32 as it
stands. Let c be the distance of the bin's centre from the mean, a = c - delta that of its nearer
edge and b = c + delta that of the farther one, all in deviations; Q(z) = 1 - Phi(z) and h = phi /
Q. With the mean outside of the bin,

.. math::

    P = Q(a)\, (1 - r), \qquad r = \frac{Q(b)}{Q(a)} = e^{-2 c \delta}\, \frac{h(a)}{h(b)} \tag{1}

With the mean inside of it,

.. math::

    P = 1 - \big(Q(-a) + Q(b)\big) \tag{2}

For bins so narrow that r is nearly 1, with delta < 1/2 and c delta < 4,

.. math::

    P = \phi(c) \cdot 2 \delta \cdot \tfrac12 \int_{-1}^{1}
    \exp\big(-c \delta v - \tfrac12 (\delta v)^2\big)\, dv \tag{3}

The integrand is smooth, and eight Gauss-Legendre nodes give the integral to 1e-9.

The slopes are written down and not left to autodiff. With D = phi(a) / P and s = 2 c delta,

.. math::

    \frac{\partial \log P}{\partial\, \mathrm{mean}}
    = \pm \frac{D\, (1 - e^{-s})}{\mathrm{deviation}}, \qquad
    \frac{\partial \log P}{\partial\, \mathrm{deviation}}
    = \frac{D\, (a - b e^{-s})}{\mathrm{deviation}} \tag{4}
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from ddpm_jax.checks import check_count, check_float, check_level_range, check_same_shape
from ddpm_jax.gaussians.diagonal import LOG_TWO_PI, half_square, widened_together

__all__ = ["discretized_log_likelihood"]

# Of a symmetric rule on [-1, 1], the positive half; its weights sum to 1.
NODES, WEIGHTS = (side[4:].tolist() for side in np.polynomial.legendre.leggauss(8))


def discretized_log_likelihood(
    x: Float[Array, "*shape"],
    mean: Float[Array, "*shape"],
    standard_deviation: Float[Array, "*shape"],
    *,
    levels: int,
) -> Float[Array, "*shape"]:
    r"""Log probability of grey levels under a Gaussian cut into bins.

    `levels` values are spread evenly over [-1, 1]. Each owns the bin that reaches halfway to its
    neighbours, and the two outer bins are open, so that the bins' probabilities sum to 1:

    .. math::

        \log\Big[ \Phi\Big(\frac{x + h - m}{\sigma}\Big) - \Phi\Big(\frac{x - h - m}{\sigma}\Big)
        \Big], \qquad h = \frac{1}{\mathrm{levels} - 1}

    (Ho et al. 2020, eq. 13). Good to float32's last places for bins that are wide or narrow against
    the deviation, near the mean or hundreds of deviations away. A logarithm below float32's range
    is -inf; a slope beyond it is the largest finite number, because a cotangent of 0 turns an
    infinite one into NaN.

    Args:
        x: values on the grid, of any shape; 256 levels for 8-bit images, 17 for scikit-learn's
            digits.
        mean: m, shaped as `x`.
        standard_deviation: sigma, positive, shaped as `x`.
        levels: number of grey levels, from 2 to 65536, beyond which float32 has no grid.

    Returns:
        Nats per element, at most 0, shaped as `x`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, shapes that differ, `levels`
            outside [2, 65536], or an `x` outside [-1, 1] that is not traced.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import discretized_log_likelihood
        >>> grid = jnp.linspace(-1.0, 1.0, 17)
        >>> log_p = discretized_log_likelihood(grid, 0.1 * grid, jnp.full(17, 0.5), levels=17)
        >>> log_p.shape
        (17,)

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    check_float("x", x)
    check_same_shape("mean", mean, "x", x)
    check_same_shape("standard_deviation", standard_deviation, "x", x)
    check_count("levels", levels)
    if not 2 <= levels <= 65536:
        raise ValueError(f"levels is {levels}; there are at least 2 grey levels, at most 65536")
    check_level_range("x", x)
    dtype, arrays = widened_together(x, mean, standard_deviation)
    return _log_probability(levels, *arrays).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_probability(levels: int, x: jax.Array, mean: jax.Array, deviation: jax.Array) -> jax.Array:
    return _value_and_slopes(levels, x, mean, deviation)[0]


@_log_probability.defjvp
def _log_probability_jvp(
    levels: int, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    value, slope_mean, slope_deviation = _value_and_slopes(levels, *primals)
    dx, d_mean, d_deviation = tangents
    return value, slope_mean * (d_mean - dx) + slope_deviation * d_deviation


def _value_and_slopes(
    levels: int, x: jax.Array, mean: jax.Array, deviation: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log P and its derivatives in mean and deviation; the module's head has the formulas."""
    half_bin = 1.0 / (levels - 1)
    # x sits on a grid of spacing 2 h, so a quarter of that separates the outer levels safely.
    at_bottom, at_top = x < -1.0 + 0.5 * half_bin, x > 1.0 - 0.5 * half_bin
    is_open = at_bottom | at_top
    # Outer bins look outwards, as if their far edge were at infinity.
    is_above = at_top | (~at_bottom & (x >= mean))
    sign = jnp.where(is_above, 1.0, -1.0).astype(x.dtype)
    to_centre, to_edge = _distances(sign * x, sign * mean, half_bin)

    delta = half_bin / deviation
    c, a = _over(to_centre, deviation), _over(to_edge, deviation)
    c_delta = jnp.where(c == 0.0, 0.0, c * delta)
    is_narrow = ~is_open & (delta < 0.5) & (c_delta < 4.0)

    narrow, narrow_mean, narrow_deviation = _narrow_bin(
        c,
        jnp.where(is_narrow, delta, 0.25),
        jnp.where(is_narrow, c_delta, 0.0),
        half_bin,
        deviation,
    )
    s = 2.0 * jnp.where(is_open, jnp.inf, c_delta)
    # 100 deviations are infinitely far, and second derivatives stay finite.
    b = jnp.where(is_open, 100.0, _over(to_centre + half_bin, deviation))
    wide, wide_mean, wide_deviation = _wide_bin(a, b, s)

    value = jnp.where(is_narrow, narrow, wide)
    slope_mean = _over(sign * jnp.where(is_narrow, narrow_mean, wide_mean), deviation)
    slope_deviation = _over(jnp.where(is_narrow, narrow_deviation, wide_deviation), deviation)
    largest = jnp.finfo(x.dtype).max
    return (
        value,
        jnp.clip(slope_mean, -largest, largest),
        jnp.clip(slope_deviation, -largest, largest),
    )


def _distances(x: jax.Array, mean: jax.Array, half_bin: float) -> tuple[jax.Array, jax.Array]:
    """x - mean, and x - mean - half_bin as exactly as its sign needs.

    A vanishing deviation blows up what rounding leaves at the edge, so the rounding errors of both
    differences and of half_bin itself are carried along (Knuth's two-sum).
    """
    to_centre, left_over = _difference(x, mean)
    rounded = float(np.asarray(half_bin, x.dtype))
    to_edge, left_over_there = _difference(to_centre, jnp.full_like(to_centre, rounded))
    correction = left_over_there + (left_over - (half_bin - rounded))
    # Rounding errors of what overflowed are NaN.
    return to_centre, jnp.where(jnp.isfinite(to_centre), to_edge + correction, to_centre)


def _difference(p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p - q, rounded, and what the rounding left over."""
    rounded = p - q
    minus_q = rounded - p
    return rounded, (p - (rounded - minus_q)) - (q + minus_q)


def _over(numerator: jax.Array, deviation: jax.Array) -> jax.Array:
    """The quotient; 0 of what is 0 however small the deviation."""
    return jnp.where(numerator == 0.0, 0.0, numerator / deviation)


def _narrow_bin(
    c: jax.Array, delta: jax.Array, c_delta: jax.Array, half_bin: float, deviation: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log P and its slopes times the deviation, by quadrature over the bin."""
    average = jnp.zeros_like(delta)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        fall = jnp.exp(-half_square(node * delta))
        average += weight * fall * jnp.cosh(node * c_delta)
    # Where delta underflows, the logarithms of what it is made of do not.
    log_width = jnp.where(
        delta > 1e-30,
        jnp.log(2.0 * jnp.maximum(delta, 1e-30)),
        math.log(2.0 * half_bin) - jnp.log(deviation),
    )
    log_p = (log_width + jnp.log(average) - 0.5 * LOG_TWO_PI) - half_square(c)
    # D (1 - e^{-s}) and D (a - b e^{-s}) with the deltas cancelled.
    edge = jnp.exp(-half_square(delta)) / average
    sinh_ratio = jnp.where(
        c_delta > 0.0, jnp.sinh(c_delta) / jnp.where(c_delta > 0.0, c_delta, 1.0), 1.0
    )
    return (
        log_p,
        edge * sinh_ratio * c,
        edge * (sinh_ratio * jnp.square(c) - jnp.cosh(c_delta)),
    )


def _wide_bin(a: jax.Array, b: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log P and its slopes times the deviation, from both tails; e^{-s} = phi(b) / phi(a)."""
    fall = jnp.exp(-s)
    is_outside, has_far_edge = a > 0.0, fall > 0.0
    log_q_a, hazard_a = _tail(jnp.abs(a))
    log_q_b, hazard_b = _tail(b)
    r = jnp.where(is_outside & has_far_edge, fall * hazard_a / hazard_b, 0.0)
    missed = jnp.where(is_outside, 0.0, jnp.exp(log_q_a) + jnp.exp(log_q_b))
    log_p = jnp.where(is_outside, log_q_a + jnp.log1p(-r), jnp.log1p(-missed))
    inside = jnp.exp(-half_square(a) - 0.5 * LOG_TWO_PI) / (1.0 - missed)
    density = jnp.where(is_outside, hazard_a / (1.0 - r), inside)  # D
    # b is infinite long after phi(b) has become 0.
    lever = a - jnp.where(has_far_edge, b * fall, 0.0)
    vanishes = density == 0.0
    return (
        log_p,
        density * -jnp.expm1(-s),
        jnp.where(vanishes, 0.0, density * jnp.where(vanishes, 0.0, lever)),
    )


def _tail(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log Q(z) and phi(z) / Q(z) for z >= 0, infinity included."""
    near = jnp.where(z < 4.0, z, 0.0)
    q = 0.5 * erfc(math.sqrt(0.5) * near)
    hazard_near = jnp.exp(-half_square(near) - 0.5 * LOG_TWO_PI) / q
    # Laplace's continued fraction, z + 1 / (z + 2 / (z + 3 / ...)).
    far = jnp.where(z < 4.0, 4.0, z)
    hazard_far = far
    for k in range(10, 0, -1):
        hazard_far = far + k / hazard_far
    log_far = -half_square(far) - (0.5 * LOG_TWO_PI + jnp.log(hazard_far))
    is_near = z < 4.0
    return jnp.where(is_near, jnp.log(q), log_far), jnp.where(is_near, hazard_near, hazard_far)
