"""Checks of a mean and a covariance that another program computed."""

from typing import Any

import numpy as np

from ddpm_jax.evaluation.features import EvaluationError
from ddpm_jax.evaluation.moments import Gaussian

__all__ = ["checked_gaussian"]

_ROUNDING = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 1e-4}
"""Largest error of a correlation matrix that is attributed to rounding, by the dtype in the file.
Programs sum x x^T without subtracting the mean first, and some store float32."""
_TINY = 1e-12
"""A negative eigenvalue of this size, relative to the largest one, needs no correction."""


def checked_gaussian(
    where: str,
    mean: Any,
    covariance: Any,
    network: str,
    dim: int | None,
    *,
    names: tuple[str, str] = ("mu", "sigma"),
) -> Gaussian:
    """The Gaussian in float64, if the arrays are a mean and a covariance of the network's features.

    A covariance of full rank that is symmetric is not changed. Otherwise, what differs by rounding
    from a covariance becomes the nearest one: the symmetric part, without negative eigenvalues.

    Args:
        where: the file, for sentences.
        mean: `[dim]`.
        covariance: `[dim, dim]`.
        network: name of the network, for sentences.
        dim: number of the network's features; None if it is unknown.
        names: names of the two arrays in the file.

    Returns:
        Both in float64.

    Raises:
        EvaluationError: dtype, shape or values are not those of a mean and a covariance.
    """
    for name, array, axes in ((names[0], mean, 1), (names[1], covariance, 2)):
        if not isinstance(array, np.ndarray) or array.dtype not in _ROUNDING:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise EvaluationError(
                f"{name} of {where} is of the type {kind}; it has to be an array of float32 or"
                " float64"
            )
        size = len(mean) if dim is None else dim
        if array.shape != (size,) * axes:
            raise EvaluationError(
                f"{name} of {where} has shape {array.shape}; for the {size} features of {network}"
                f" it has to be {(size,) * axes}"
            )
        if not np.isfinite(array).all():
            raise EvaluationError(f"{name} of {where} has values that are not finite")
    name = f"{names[1]} of {where}"
    return Gaussian(mean.astype(np.float64), _covariance(name, covariance))


def _covariance(name: str, stored: np.ndarray) -> np.ndarray:
    matrix, rounding = stored.astype(np.float64), _ROUNDING[stored.dtype]
    variances = np.diagonal(matrix)
    if not (variances >= 0.0).all():
        raise EvaluationError(
            f"{name} is not a covariance: it has the variance {np.min(variances):.3g}, and"
            " variances are not negative"
        )
    deviations = np.sqrt(variances)
    scale = np.where(deviations > 0.0, deviations, 1.0)
    correlation = matrix / scale[:, None] / scale
    if np.max(np.abs(correlation - correlation.T)) > rounding:
        raise EvaluationError(f"{name} is not symmetric; a covariance has to be")
    if np.max(np.abs(correlation)) > 1.0 + rounding or correlation[deviations == 0.0].any():
        raise EvaluationError(
            f"{name} is not a covariance: two features have a larger covariance than their"
            " variances allow"
        )
    if (matrix == matrix.T).all() and _is_positive(correlation):
        return matrix
    eigenvalues, vectors = np.linalg.eigh((correlation + correlation.T) / 2.0)
    if eigenvalues[0] < -rounding * eigenvalues[-1]:
        raise EvaluationError(
            f"{name} is not a covariance: scaled to unit variances it has the eigenvalue"
            f" {eigenvalues[0]:.3g}, and eigenvalues are not negative"
        )
    factor = scale[:, None] * vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return factor @ factor.T


def _is_positive(correlation: np.ndarray) -> bool:
    """Whether no eigenvalue is more negative than rounding explains."""
    try:
        np.linalg.cholesky(correlation + _TINY * np.eye(len(correlation)))
    except np.linalg.LinAlgError:
        return False
    return True
