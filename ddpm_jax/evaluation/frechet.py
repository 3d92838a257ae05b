r"""The Frechet distance of two Gaussians, to the last digits of float64.

Between N(m_1, C_1) and N(m_2, C_2) it is, squared as everyone reports it (Dowson and Landau, *The
Frechet distance between multivariate normal distributions*, 1982; Heusel et al. 2017, eq. 6,
https://arxiv.org/abs/1706.08500),

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2}).                                          (1)

No square root of a matrix is taken. With any factors C_i = A_i A_i^T, the trace of the root is the
sum of the singular values of A_1^T A_2 = W S V^T, and the whole second term is the least squared
distance between the two factors when one may be turned,

    min_U |A_1 U - A_2|^2 = |A_1 W V^T - A_2|^2,   U orthonormal,                               (2)

the orthogonal Procrustes problem. (2) is a sum of squares: it does not cancel where (1) does, so
equal statistics are as far apart as the square of a rounding error.

Singular covariances, of fewer samples than dimensions or of features that never vary, keep all
digits as well. A factor comes from the eigenvectors of the correlation matrix, scaled by the
deviations, so that features of very different sizes do not round each other away. Eigenvalues that
are zero come out of the computation as about 1e-16 of the largest, of either sign; their roots,
1e-8, would be no rounding errors any more, so whatever is within rounding of zero is zero.
"""

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.features import EvaluationError, check_same_dim
from ddpm_jax.evaluation.moments import Moments, covariance

__all__ = ["frechet_distance", "frechet_distance_of_gaussians"]

_ROUNDING = 100.0 * float(np.finfo(np.float64).eps)
"""Times the largest eigenvalue: how far from 0 rounding may leave one that is 0 (3 eps were seen,
of up to 2048 dimensions)."""
_REFUSED = 100.0
"""An eigenvalue below 0 by so many times as much is none of rounding."""


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of the Gaussians with these moments; FID, of Inception's.

    See the module's docstring. The covariances are the unbiased ones, as in the paper's code.

    Raises:
        EvaluationError: moments of fewer than two rows, or of different dimensions.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import frechet_distance, moments_of
        >>> x = np.array([[-1.0], [0.0], [1.0]], np.float32)
        >>> round(frechet_distance(moments_of(x), moments_of(3 * x + 4)), 12)  # 4^2 + (3 - 1)^2
        20.0
    """
    check_same_dim("b.mean", b.mean, "a.mean", a.mean)
    return frechet_distance_of_gaussians(a.mean, covariance(a), b.mean, covariance(b))


def frechet_distance_of_gaussians(
    mean_a: Float[np.ndarray, " dim"],
    covariance_a: Float[np.ndarray, "dim dim"],
    mean_b: Float[np.ndarray, " dim"],
    covariance_b: Float[np.ndarray, "dim dim"],
) -> float:
    """The same of means and covariances, such as others publish; eq. (1) of the module.

    Raises:
        EvaluationError: shapes that do not fit, a value that is not finite, or a covariance that
            is not symmetric or has a negative eigenvalue, beyond rounding.
    """
    dim = len(mean_a)
    for name, value, shape in (
        ("mean_a", mean_a, (dim,)),
        ("covariance_a", covariance_a, (dim, dim)),
        ("mean_b", mean_b, (dim,)),
        ("covariance_b", covariance_b, (dim, dim)),
    ):
        if value.shape != shape:
            raise EvaluationError(f"{name} has shape {value.shape}; it has to be {shape}")
        if not np.isfinite(value).all():
            raise EvaluationError(f"{name} has values that are not finite; all have to be")
    factor_a = _factor("covariance_a", covariance_a)
    factor_b = _factor("covariance_b", covariance_b)
    if factor_a.shape[1] > factor_b.shape[1]:  # the narrower one is turned, and loses nothing
        factor_a, factor_b = factor_b, factor_a
    left, _, right = np.linalg.svd(factor_a.T @ factor_b, full_matrices=False)
    apart = factor_a @ (left @ right) - factor_b
    means = mean_a.astype(np.float64) - mean_b
    return float(np.sum(np.square(means)) + np.sum(np.square(apart)))


def _factor(name: str, matrix: np.ndarray) -> np.ndarray:
    """A with A A^T = `matrix`, `[dim, rank]`."""
    wide = matrix.astype(np.float64)
    variances = np.diagonal(wide)
    deviations = np.sqrt(np.maximum(variances, 0.0))
    scale = np.where(deviations > 0.0, deviations, 1.0)
    correlation = wide / scale[:, None] / scale
    if np.max(np.abs(correlation - correlation.T)) > _REFUSED * _ROUNDING:
        raise EvaluationError(f"{name} is not symmetric; a covariance is")
    if not (variances >= 0.0).all():
        raise EvaluationError(
            f"{name} is no covariance: it has the variance {np.min(variances):.3g}, and none may be"
            " negative"
        )
    if np.any(correlation[deviations == 0.0]):
        raise EvaluationError(
            f"{name} is no covariance: a feature of variance 0 has a covariance that is not 0"
        )
    eigenvalues, vectors = np.linalg.eigh(correlation)
    zero = _ROUNDING * eigenvalues[-1]
    if eigenvalues[0] < -_REFUSED * zero:
        raise EvaluationError(
            f"{name} is no covariance: scaled to unit variances it has the eigenvalue"
            f" {eigenvalues[0]:.3g}, and none may be negative"
        )
    positive = eigenvalues > zero
    return deviations[:, None] * vectors[:, positive] * np.sqrt(eigenvalues[positive])
