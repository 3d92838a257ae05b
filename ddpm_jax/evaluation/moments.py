r"""Mean and covariance of features, computed in parts that can be merged in any order.

The moments are the number of rows n, their mean m and their scatter
:math:`S = \sum_x (x - m)(x - m)^T`, all in float64. Two parts are merged by the pairwise update of
Chan, Golub and LeVeque, *Updating formulae and a pairwise algorithm for computing sample
variances*, 1979 (also in *Algorithms for computing the sample variance*, The American Statistician
37, 1983): with :math:`d = m_b - m_a`

.. math::

    m = m_a + \frac{n_b}{n_a + n_b} d, \qquad
    S = S_a + S_b + \frac{n_a n_b}{n_a + n_b} d d^T

Sums of x and of x x^T would cancel if the mean is large; here nothing cancels. The remaining error
is the rounding of the mean itself: 2^-53 of it, while neighbouring float32 are 2^-24 apart.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.features import EvaluationError, check_features, check_same_dim

__all__ = ["Gaussian", "Moments", "covariance", "gaussian_of", "merge", "moments_of"]

_ROWS = 4096
"""Number of rows that are converted to float64 at a time."""


class Moments(NamedTuple):
    """Mean and scatter of rows of features, float64."""

    rows: int
    """Number of rows."""
    mean: Float[np.ndarray, " dim"]
    """Mean of the rows, `[dim]`."""
    scatter: Float[np.ndarray, "dim dim"]
    """Sum over the rows of (x - mean)(x - mean)^T, `[dim, dim]`."""


class Gaussian(NamedTuple):
    """Mean and covariance of features, float64: what other programs publish of a data set."""

    mean: Float[np.ndarray, " dim"]
    """Mean, `[dim]`."""
    covariance: Float[np.ndarray, "dim dim"]
    """Covariance, `[dim, dim]`."""


def moments_of(features: Float[np.ndarray, "n dim"]) -> Moments:
    """The moments of an array of features.

    Args:
        features: floating point, `[n, dim]`.

    Returns:
        Number, mean and scatter of the rows, in float64.

    Raises:
        EvaluationError: `features` is not a finite array of floats with at least one row.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import moments_of
        >>> moments = moments_of(np.array([[1.0, 0.0], [3.0, 0.0]], np.float32))
        >>> moments.rows, moments.mean.tolist(), moments.scatter.tolist()
        (2, [2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    check_features("features", features)
    starts = range(0, len(features), _ROWS)
    return functools.reduce(merge, (_moments(features[start : start + _ROWS]) for start in starts))


def merge(a: Moments, b: Moments) -> Moments:
    r"""The moments of the rows of two parts together.

    With :math:`d = m_b - m_a`

    .. math::

        m = m_a + \frac{n_b}{n_a + n_b} d, \qquad
        S = S_a + S_b + \frac{n_a n_b}{n_a + n_b} d d^T

    Args:
        a: moments of the first part.
        b: moments of the second part.

    Returns:
        The moments of all rows.

    Raises:
        EvaluationError: the dimensions differ.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import merge, moments_of
        >>> x = np.array([[0.0], [1.0], [5.0]], np.float32)
        >>> merge(moments_of(x[:1]), moments_of(x[1:]))
        Moments(rows=3, mean=array([2.]), scatter=array([[14.]]))
    """
    check_same_dim("b.mean", b.mean, "a.mean", a.mean)
    rows = a.rows + b.rows
    difference = b.mean - a.mean
    mean = a.mean + difference * (b.rows / rows)
    between = np.outer(difference, difference) * (a.rows * b.rows / rows)
    return Moments(rows, mean, a.scatter + b.scatter + between)


def covariance(moments: Moments) -> Float[np.ndarray, "dim dim"]:
    """The unbiased estimate of the covariance, scatter / (rows - 1).

    Args:
        moments: of at least two rows.

    Returns:
        float64 `[dim, dim]`.

    Raises:
        EvaluationError: there are fewer than two rows.
    """
    if moments.rows < 2:
        raise EvaluationError(f"moments has {moments.rows} row; a covariance needs at least 2")
    return moments.scatter / (moments.rows - 1)


def gaussian_of(moments: Moments) -> Gaussian:
    """The mean and the unbiased covariance.

    Args:
        moments: of at least two rows.

    Returns:
        Both, float64.

    Raises:
        EvaluationError: there are fewer than two rows.
    """
    return Gaussian(moments.mean, covariance(moments))


def _moments(features: np.ndarray) -> Moments:
    """The moments of few enough rows to be converted to float64 at once."""
    # Differences of float32 from one of the rows are (almost) exact in float64.
    from_first = features.astype(np.float64) - features[0].astype(np.float64)
    shift = from_first.mean(axis=0)
    centred = from_first - shift
    return Moments(len(features), features[0].astype(np.float64) + shift, centred.T @ centred)
