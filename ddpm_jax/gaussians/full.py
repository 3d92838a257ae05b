r"""Gaussians with full covariance, given by Cholesky factors, in nats: one value per Gaussian.

A covariance is given by its lower-triangular factor L with a positive diagonal,

.. math::

    \Sigma = L L^T

as `jnp.linalg.cholesky` returns it; what stands above the diagonal is not read. Leading axes are
batches. Everything is triangular solves and logarithms of diagonals: there is no inverse to lose
digits and no determinant to overflow.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ddpm_jax.checks import check_float, check_same_shape
from ddpm_jax.gaussians.diagonal import LOG_TWO_PI, excess_minus_log, half_square, widened_together

__all__ = ["entropy_full", "kl_full", "log_density_full"]


def kl_full(
    mean_q: Float[Array, "*batch d"],
    cholesky_q: Float[Array, "*batch d d"],
    mean_p: Float[Array, "*batch d"],
    cholesky_p: Float[Array, "*batch d d"],
) -> Float[Array, "*batch"]:
    r"""KL divergence between two Gaussians of full covariance, in nats.

    With M = L_p^{-1} L_q, which is lower triangular, and e = L_p^{-1} (m_q - m_p),

    .. math::

        \mathrm{KL} = \tfrac12 \big[ \mathrm{tr}(M M^T) - d - \log\det(M M^T) + |e|^2 \big]

    .. math::

        = \tfrac12 \Big[ \sum_{i > j} M_{ij}^2
        + \sum_i \big(M_{ii}^2 - 1 - \log M_{ii}^2\big) + |e|^2 \Big]

    a sum of terms that are never negative, each computed without cancellation: the result keeps its
    digits for nearly equal Gaussians, where trace, d and determinant would cancel. The relative
    error is that of the solves: 1e-7 for well-conditioned covariances, about 1e-5 where p's has the
    condition 1e6.

    Args:
        mean_q: m_q, `[..., d]`.
        cholesky_q: L_q, `[..., d, d]`, lower triangular with a positive diagonal.
        mean_p: m_p, shaped as `mean_q`.
        cholesky_p: L_p, shaped as `cholesky_q`.

    Returns:
        Nats, 0 or more, `[...]`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import kl_full
        >>> mean, factor = jnp.zeros((4, 3)), jnp.broadcast_to(jnp.eye(3), (4, 3, 3))
        >>> kl_full(mean, factor, mean + 1.0, factor).tolist()
        [1.5, 1.5, 1.5, 1.5]
    """
    _check_vector("mean_q", mean_q)
    _check_factor("cholesky_q", cholesky_q, "mean_q", mean_q)
    check_same_shape("mean_p", mean_p, "mean_q", mean_q)
    _check_factor("cholesky_p", cholesky_p, "mean_q", mean_q)
    dtype, arrays = widened_together(mean_q, cholesky_q, mean_p, cholesky_p)
    wide_q, factor_q, wide_p, factor_p = arrays

    # M - I = L_p^{-1} (L_q - L_p) and not M: the difference of close factors is exact.
    difference = jnp.tril(factor_q - factor_p)
    off_diagonal = jnp.tril(solve_triangular(factor_p, difference, lower=True), -1)
    diagonal_q, diagonal_p = _diagonal(factor_q), _diagonal(factor_p)
    ratio = diagonal_q / diagonal_p
    excess = (ratio + 1.0) * _diagonal(difference) / diagonal_p  # M_ii^2 - 1
    scales = jnp.sum(excess_minus_log(excess, 2.0 * jnp.log(ratio)), axis=-1)
    rotations = jnp.sum(half_square(off_diagonal), axis=(-2, -1))
    kl = 0.5 * scales + rotations + _half_squared_length(factor_p, wide_q - wide_p)
    return kl.astype(dtype)


def entropy_full(cholesky: Float[Array, "*batch d d"]) -> Float[Array, "*batch"]:
    r"""Differential entropy of a Gaussian of full covariance, in nats.

    .. math::

        \tfrac{d}{2} \log(2 \pi e) + \sum_i \log L_{ii}

    Args:
        cholesky: L, `[..., d, d]`, lower triangular with a positive diagonal.

    Returns:
        Nats, `[...]`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or no square matrices.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.gaussians import entropy_full
        >>> round(float(entropy_full(jnp.eye(3))), 3)  # three times that of one dimension
        4.257
    """
    check_float("cholesky", cholesky)
    if cholesky.ndim < 2 or cholesky.shape[-1] != cholesky.shape[-2]:
        raise ValueError(f"cholesky has shape {cholesky.shape}; it has to be [..., d, d]")
    dtype, (factor,) = widened_together(cholesky)
    entropy = jnp.sum(jnp.log(_diagonal(factor)) + 0.5 * (LOG_TWO_PI + 1.0), axis=-1)
    return entropy.astype(dtype)


def log_density_full(
    x: Float[Array, "*batch d"],
    mean: Float[Array, "*batch d"],
    cholesky: Float[Array, "*batch d d"],
) -> Float[Array, "*batch"]:
    r"""Log density of a Gaussian of full covariance at `x`, in nats.

    .. math::

        -\tfrac12 \big|L^{-1} (x - m)\big|^2 - \tfrac{d}{2} \log(2 \pi) - \sum_i \log L_{ii}

    Args:
        x: where, `[..., d]`.
        mean: m, shaped as `x`.
        cholesky: L, `[..., d, d]`, lower triangular with a positive diagonal.

    Returns:
        Nats, `[...]`.

    Raises:
        TypeError, ValueError: an argument that is not floating point, or shapes that do not fit.
    """
    _check_vector("x", x)
    check_same_shape("mean", mean, "x", x)
    _check_factor("cholesky", cholesky, "x", x)
    dtype, (wide_x, wide_mean, factor) = widened_together(x, mean, cholesky)
    volume = jnp.sum(jnp.log(_diagonal(factor)) + 0.5 * LOG_TWO_PI, axis=-1)
    return (-_half_squared_length(factor, wide_x - wide_mean) - volume).astype(dtype)


def _half_squared_length(factor: jax.Array, difference: jax.Array) -> jax.Array:
    """|L^{-1} difference|^2 / 2, from the distance in deviations."""
    error = solve_triangular(factor, difference[..., None], lower=True)
    return jnp.sum(half_square(error), axis=(-2, -1))


def _diagonal(factor: jax.Array) -> jax.Array:
    return jnp.diagonal(factor, axis1=-2, axis2=-1)


def _check_vector(name: str, value: jax.Array) -> None:
    check_float(name, value)
    if value.ndim < 1:
        raise ValueError(f"{name} has shape (); it has to be [..., d]")


def _check_factor(name: str, factor: jax.Array, like_name: str, like: jax.Array) -> None:
    check_float(name, factor)
    expected = (*like.shape, like.shape[-1])
    if factor.shape != expected:
        raise ValueError(
            f"{name} has shape {factor.shape}; it has to be {expected}, a matrix for each"
            f" {like_name} of shape {like.shape}"
        )
