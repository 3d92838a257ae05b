r"""The Frechet distance of two Gaussians, exact to the last digits of float64.

The squared distance of :math:`N(m_1, C_1)` and :math:`N(m_2, C_2)` is (Dowson and Landau, *The
Frechet distance between multivariate normal distributions*, 1982; Heusel et al. 2017, equation 6,
https://arxiv.org/abs/1706.08500)

.. math::

    |m_1 - m_2|^2 + \mathrm{tr}\big(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\big). \tag{1}

No square root of a matrix is computed. With any factors :math:`C_i = A_i A_i^T`, the trace of the
root is the sum of the singular values of :math:`A_1^T A_2 = W S V^T`. The whole second term is the
least squared distance between the two factors if one may be rotated,

.. math::

    \min_U |A_1 U - A_2|^2 = |A_1 W V^T - A_2|^2, \quad U \text{ orthonormal}, \tag{2}

the orthogonal Procrustes problem. (2) is a sum of squares and does not cancel where (1) does, so
that the distance of equal statistics is the square of a rounding error.

Singular covariances (fewer samples than dimensions, or constant features) keep all digits, too. A
factor comes from the eigenvectors of the correlation matrix, scaled by the standard deviations, so
that features of very different sizes do not lose digits. The computed value of a zero eigenvalue is
about 1e-16 of the largest, of either sign. Its root, 1e-8, would be larger than rounding errors;
therefore eigenvalues within rounding of zero are set to zero.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.features import EvaluationError, check_same_dim
from ddpm_jax.evaluation.moments import Moments, covariance

__all__ = ["frechet_distance", "frechet_distance_of_gaussians"]

ROUNDING = 100.0 * float(np.finfo(np.float64).eps)
"""Largest rounding error of a zero eigenvalue, relative to the largest one (3 eps were seen, for up
to 2048 dimensions)."""
_REFUSED = 100.0
"""An eigenvalue that is below 0 by this many rounding errors is not due to rounding."""


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""The squared Frechet distance of two sets of features; FID if they are Inception's.

    .. math::

        |m_1 - m_2|^2 + \mathrm{tr}\big(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\big)

    The covariances are the unbiased ones, as in the paper's code.

    Args:
        a: moments of the first set.
        b: moments of the second set.

    Returns:
        The squared distance, 0 or more.

    Raises:
        EvaluationError: a set has fewer than two rows, or the sets have different dimensions.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import frechet_distance, moments_of
        >>> x = np.array([[-1.0], [0.0], [1.0]], np.float32)
        >>> round(frechet_distance(moments_of(x), moments_of(3 * x + 4)), 12)  # 4^2 + (3 - 1)^2
        20.0

    References:
        Heusel et al. 2017, equation 6, https://arxiv.org/abs/1706.08500
    """
    check_same_dim("b.mean", b.mean, "a.mean", a.mean)
    return frechet_distance_of_gaussians(a.mean, covariance(a), b.mean, covariance(b))


def frechet_distance_of_gaussians(
    mean_a: Float[np.ndarray, " dim"],
    covariance_a: Float[np.ndarray, "dim dim"],
    mean_b: Float[np.ndarray, " dim"],
    covariance_b: Float[np.ndarray, "dim dim"],
) -> float:
    """The squared Frechet distance of two Gaussians, from means and covariances.

    Use it with statistics that others publish. See `frechet_distance` for the formula.

    Args:
        mean_a: `[dim]`.
        covariance_a: `[dim, dim]`.
        mean_b: `[dim]`.
        covariance_b: `[dim, dim]`.

    Returns:
        The squared distance, 0 or more.

    Raises:
        EvaluationError: the shapes do not fit, a value is not finite, or a covariance is not
            symmetric or has a negative eigenvalue, beyond rounding.
    """
    check_gaussian("a", mean_a, covariance_a, len(mean_a))
    check_gaussian("b", mean_b, covariance_b, len(mean_a))
    factor_a = factor_of("covariance_a", covariance_a)
    factor_b = factor_of("covariance_b", covariance_b)
    means = mean_a.astype(np.float64) - mean_b
    return distance_of_factors(means, factor_a, factor_b, rotation(factor_a, factor_b))


class Rotation(NamedTuple):
    """The singular value decomposition of A^T B, which brings the factor A next to B."""

    left: Float[np.ndarray, "rank_a rank"]
    """Columns of W."""
    values: Float[np.ndarray, " rank"]
    """Singular values; their sum is the trace of the root of the product of the covariances."""
    right: Float[np.ndarray, "rank rank_b"]
    """Rows of V^T."""


def rotation(
    factor_a: Float[np.ndarray, "dim rank_a"], factor_b: Float[np.ndarray, "dim rank_b"]
) -> Rotation:
    """The decomposition W S V^T of A^T B."""
    return Rotation(*np.linalg.svd(factor_a.T @ factor_b, full_matrices=False))


def distance_of_factors(
    means: Float[np.ndarray, " dim"],
    factor_a: Float[np.ndarray, "dim rank_a"],
    factor_b: Float[np.ndarray, "dim rank_b"],
    turn: Rotation,
) -> float:
    """Equation (2) and the squared difference of the means, `means`."""
    if factor_a.shape[1] <= factor_b.shape[1]:  # the narrower one turns, which loses nothing
        apart = factor_a @ (turn.left @ turn.right) - factor_b
    else:
        apart = factor_a - factor_b @ (turn.right.T @ turn.left.T)
    return float(np.sum(np.square(means)) + np.sum(np.square(apart)))


def check_gaussian(name: str, mean: np.ndarray, covariance: np.ndarray, dim: int) -> None:
    """Raises EvaluationError unless both are finite and of `dim` dimensions."""
    for kind, value, shape in (("mean", mean, (dim,)), ("covariance", covariance, (dim, dim))):
        if value.shape != shape:
            raise EvaluationError(f"{kind}_{name} has shape {value.shape}; it has to be {shape}")
        if not np.isfinite(value).all():
            raise EvaluationError(
                f"{kind}_{name} has values that are not finite; all have to be finite"
            )


def factor_of(name: str, matrix: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "dim rank"]:
    """A with A A^T = `matrix`, `[dim, rank]`, with orthogonal columns in units of deviations.

    Raises:
        EvaluationError: `matrix` is not symmetric or has a negative eigenvalue, beyond rounding.
    """
    wide = matrix.astype(np.float64)
    variances = np.diagonal(wide)
    deviations = np.sqrt(np.maximum(variances, 0.0))
    scale = np.where(deviations > 0.0, deviations, 1.0)
    correlation = wide / scale[:, None] / scale
    if np.max(np.abs(correlation - correlation.T)) > _REFUSED * ROUNDING:
        raise EvaluationError(f"{name} is not symmetric; a covariance has to be")
    if not (variances >= 0.0).all():
        raise EvaluationError(
            f"{name} is not a covariance: it has the variance {np.min(variances):.3g}, and"
            " variances are not negative"
        )
    if np.any(correlation[deviations == 0.0]):
        raise EvaluationError(
            f"{name} is not a covariance: a feature of variance 0 has a covariance that is not 0"
        )
    eigenvalues, vectors = np.linalg.eigh(correlation)
    zero = ROUNDING * eigenvalues[-1]
    if eigenvalues[0] < -_REFUSED * zero:
        raise EvaluationError(
            f"{name} is not a covariance: scaled to unit variances it has the eigenvalue"
            f" {eigenvalues[0]:.3g}, and eigenvalues are not negative"
        )
    positive = eigenvalues > zero
    return deviations[:, None] * vectors[:, positive] * np.sqrt(eigenvalues[positive])
