"""Mean and covariance of features, streamed: parts are added up in any order.

What is kept is the number of rows, their mean and their scatter, the sum of (x - mean)(x - mean)^T,
all in float64. Two parts are merged by the pairwise update of Chan, Golub and LeVeque, *Updating
formulae and a pairwise algorithm for computing sample variances*, 1979 (also in *Algorithms for
computing the sample variance*, The American Statistician 37, 1983): with d = mean_b - mean_a,

    mean    = mean_a + d n_b / (n_a + n_b)
    scatter = scatter_a + scatter_b + d d^T n_a n_b / (n_a + n_b).

Sums of x and of x x^T would cancel where the mean is large; here nothing does. What remains is
the rounding of the mean itself: 2^-53 of it, where two neighbouring float32 are 2^-24 apart.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.features import EvaluationError, check_features, check_same_dim

__all__ = ["Moments", "covariance", "merge", "moments_of"]

_ROWS = 4096
"""So many rows are held in float64 at a time."""


class Moments(NamedTuple):
    """Of some rows of features; float64."""

    rows: int
    """How many rows."""
    mean: Float[np.ndarray, " dim"]
    scatter: Float[np.ndarray, "dim dim"]
    """Sum over the rows of (x - mean)(x - mean)^T."""


def moments_of(features: Float[np.ndarray, "n dim"]) -> Moments:
    """Number, mean and scatter of the rows of `features`, in float64 whatever their dtype.

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
    """The moments of all rows of both; see the module's docstring.

    Raises:
        EvaluationError: they differ in dimension.

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
    """scatter / (rows - 1), the unbiased estimate.

    Raises:
        EvaluationError: of fewer than two rows.
    """
    if moments.rows < 2:
        raise EvaluationError(
            f"moments are of {moments.rows} row; a covariance is estimated from at least 2"
        )
    return moments.scatter / (moments.rows - 1)


def _moments(features: np.ndarray) -> Moments:
    """Of rows that are held in float64 all at once."""
    # Differences of float32 from one of the rows are exact, or as good as that, in float64.
    from_first = features.astype(np.float64) - features[0].astype(np.float64)
    shift = from_first.mean(axis=0)
    centred = from_first - shift
    return Moments(len(features), features[0].astype(np.float64) + shift, centred.T @ centred)
