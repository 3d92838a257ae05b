"""Improved precision and recall of samples: how many are plausible, how much is covered.

Kynkaanniemi et al. 2019, eq. 1 and 2 (https://arxiv.org/abs/1904.06991). Around each feature of a
set is a ball that reaches to its k-th nearest neighbour in the set; all the balls together are the
set's manifold. Precision is the share of samples that lie in the manifold of the reference, recall
the share of the reference that lies in that of the samples. As in the paper's code, a feature is
not a neighbour of itself, an equal one is, and a ball has its surface.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation import neighbours
from ddpm_jax.evaluation.guards import (
    EvaluationError,
    check_at_least,
    check_features,
    check_same_dim,
)

__all__ = ["PrecisionRecall", "precision_recall"]


class PrecisionRecall(NamedTuple):
    """Shares, from 0 to 1."""

    precision: float
    recall: float


def precision_recall(
    samples: Float[np.ndarray, "m dim"], reference: Float[np.ndarray, "n dim"], k: int = 3
) -> PrecisionRecall:
    """Precision and recall of `samples`; both depend on m, n and k.

    Membership is right to the last places of a squared distance, on the surface of a ball too; see
    `ddpm_jax.evaluation.neighbours`. It takes (m + n)^2 dim multiplications at most, and memory for
    blocks of them, some 300 MB for features of 2048 dimensions.

    Args:
        samples: features of what a model drew.
        reference: features of data, by the same network; about as many as samples.
        k: a ball reaches to the k-th neighbour, from 1 to one less than the size of either set.

    Raises:
        EvaluationError: features that are not finite, different dimensions, or a `k` out of range.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import precision_recall
        >>> reference = np.array([[0.0], [1.0], [5.0]])
        >>> precision_recall(np.array([[0.5], [7.0]]), reference, k=1)
        PrecisionRecall(precision=1.0, recall=1.0)
    """
    check_at_least("k", k, 1)
    for name, features in (("samples", samples), ("reference", reference)):
        check_features(name, features)
        if k >= len(features):
            raise EvaluationError(
                f"k is {k}; {name} has {len(features)} rows, and k has to be below that, as no row"
                " is its own neighbour"
            )
    check_same_dim("samples", samples, "reference", reference)
    precision = _covered(samples, reference, _squared_radii(reference, k))
    recall = _covered(reference, samples, _squared_radii(samples, k))
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


def _squared_radii(rows: np.ndarray, k: int) -> np.ndarray:
    """Of the ball around each row."""
    # One of the k + 1 nearest is the row itself, at 0; where others equal it, it matters not which.
    columns = neighbours.nearest(rows, rows, k + 1).indices[:, k]
    return neighbours.squared_distances(rows, rows, np.arange(len(rows)), columns)


def _covered(queries: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    """Whether each of `queries` is in the ball of at least one of `centres`."""
    origin = centres.mean(axis=0, dtype=np.float64)
    covered = np.zeros(len(queries), bool)
    for start in range(0, len(centres), neighbours.POOL):
        block = centres[start : start + neighbours.POOL]
        squares = squared_radii[start : start + neighbours.POOL]
        shifted = neighbours.centred(block, origin)
        outside = np.flatnonzero(~covered)
        for first in range(0, len(outside), neighbours.QUERIES):
            asked = outside[first : first + neighbours.QUERIES]
            rows = queries[asked]
            low, high = neighbours.bounded_squares(neighbours.centred(rows, origin), shifted)
            inside = np.asarray(np.any(high <= squares, axis=1))
            undecided = np.nonzero((low <= squares) & ~inside[:, None])
            exact = neighbours.squared_distances(rows, block, *undecided)
            inside[undecided[0][exact <= squares[undecided[1]]]] = True
            covered[asked] = inside
    return covered
