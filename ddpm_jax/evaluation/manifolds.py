r"""Precision, recall, density and coverage: samples and a reference in each other's neighbourhoods.

Each feature of a set has a ball that reaches to its k-th nearest neighbour in the set; all balls
together are the set's manifold. As in the papers' code, a feature is not its own neighbour, and an
equal feature is one. A ball includes its surface in all four numbers; the code of density and
coverage leaves it out, which matters only for equal features.

- Precision is the share of samples in the manifold of the reference, recall the share of the
  reference in the manifold of the samples: Kynkaanniemi et al. 2019, equations 1 and 2
  (https://arxiv.org/abs/1904.06991).
- Density is the mean number of the reference's balls that contain a sample, divided by k; coverage
  the share of the reference's balls that contain a sample: Naeem et al. 2020, equations 3 and 4
  (https://arxiv.org/abs/2002.09797). One outlier in the reference has a large ball, which raises
  precision more than density.

The intervals of precision, density and coverage cover the choice of the samples, that of recall the
choice of the reference's rows, each with the balls as they are. A bootstrap over both sets would
also draw the set that makes the balls, with replacement. This is not valid: the k nearest
neighbours of a feature are then copies of fewer features, so that balls shrink and all four numbers
fall.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.confidence import Estimate, proportion, quantile, standard_error, symmetric
from ddpm_jax.evaluation.features import (
    EvaluationError,
    check_at_least,
    check_features,
    check_same_dim,
)
from ddpm_jax.evaluation.neighbours import ball_counts, nearest_squares

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall"]

_OF_SAMPLES = "covers the choice of the samples, with the reference's balls fixed"
_OF_REFERENCE = "covers the choice of the reference's rows, with the samples' balls fixed"


class PrecisionRecall(NamedTuple):
    """Precision and recall of samples."""

    precision: Estimate
    """Share of samples in the manifold of the reference, in [0, 1]."""
    recall: Estimate
    """Share of the reference in the manifold of the samples, in [0, 1]."""


class DensityCoverage(NamedTuple):
    """Density and coverage of samples."""

    density: Estimate
    """Mean number of the reference's balls that contain a sample, divided by k; 1 on average if
    samples and reference have one distribution."""
    coverage: Estimate
    """Share of the reference's balls that contain a sample, in [0, 1]."""


def precision_recall(
    samples: Float[np.ndarray, "m dim"], reference: Float[np.ndarray, "n dim"], k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall of samples; both depend on m, n and k.

    Precision is the share of samples inside the balls around features of the reference, which reach
    to their k-th nearest neighbours; recall is the share of the reference inside the balls around
    the samples. It takes at most (m + n)^2 dim multiplications, and 300 MB of memory for features
    of 2048 dimensions. The intervals are Wilson's, with the balls fixed.

    Args:
        samples: features of generated images, `[m, dim]`.
        reference: features of data by the same network, `[n, dim]`; about as many as samples.
        k: the neighbour to which a ball reaches, 1 to one less than the size of either set.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        EvaluationError: features are not finite, the dimensions differ, or `k` is out of range.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import precision_recall
        >>> reference = np.array([[0.0], [1.0], [5.0]])
        >>> precision, recall = precision_recall(np.array([[0.5], [7.0]]), reference, k=1)
        >>> precision.value, recall.value
        (1.0, 1.0)

    References:
        Kynkaanniemi et al. 2019, equations 1 and 2, https://arxiv.org/abs/1904.06991
    """
    _check("samples", samples, k)
    _check("reference", reference, k)
    check_same_dim("samples", samples, "reference", reference)
    shares = []
    for queries, centres, note in (
        (samples, reference, _OF_SAMPLES),
        (reference, samples, _OF_REFERENCE),
    ):
        counts = ball_counts(queries, centres, _squared_radii(centres, k), enough=1)
        shares.append(proportion(int(np.sum(counts > 0)), len(queries), note))
    return PrecisionRecall(*shares)


def density_coverage(
    samples: Float[np.ndarray, "m dim"], reference: Float[np.ndarray, "n dim"], k: int = 5
) -> DensityCoverage:
    r"""Density and coverage of samples; coverage depends on m, n and k.

    With the balls :math:`B_i` around features of the reference, which reach to their k-th nearest
    neighbours,

    .. math::

        \mathrm{density} = \frac{1}{k m} \sum_{i, j} 1[y_j \in B_i], \qquad
        \mathrm{coverage} = \frac{1}{n} \sum_i 1[\exists j: y_j \in B_i].

    If samples and reference have one distribution, density is about 1 and coverage about
    1 - 2^-k for m = n. Both intervals cover the choice of the samples, with the balls fixed: that
    of density is a mean's, that of coverage the jackknife's. Without sample j, coverage loses the
    balls that contain no other sample.

    Args:
        samples: features y of generated images, `[m, dim]`.
        reference: features of data by the same network, `[n, dim]`.
        k: the neighbour to which a ball reaches, 1 to n - 1.

    Returns:
        Density, 0 or more, and coverage, in [0, 1].

    Raises:
        EvaluationError: features are not finite, the dimensions differ, or `k` is out of range.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import density_coverage
        >>> reference = np.array([[0.0], [1.0], [5.0]])
        >>> density, coverage = density_coverage(np.array([[0.5], [7.0]]), reference, k=1)
        >>> density.value, round(coverage.value, 6)  # 0.5 is in two balls, 7 in one
        (1.5, 1.0)

    References:
        Naeem et al. 2020, equations 3 and 4, https://arxiv.org/abs/2002.09797
    """
    check_features("samples", samples)
    _check("reference", reference, k)
    check_same_dim("samples", samples, "reference", reference)
    squared_radii = _squared_radii(reference, k)
    densities = ball_counts(samples, reference, squared_radii) / k
    density = float(np.mean(densities))
    num = len(samples)
    neighbours, squares = nearest_squares(reference, samples, min(2, num))
    inside = squares <= squared_radii[:, None]
    coverage = float(np.mean(inside[:, 0]))
    error = standard_error(densities)
    if error is None:
        note = "no interval: one sample only"
        return DensityCoverage(Estimate(density, note=note), Estimate(coverage, note=note))
    alone = neighbours[inside[:, 0] & ~inside[:, 1], 0]
    losses = np.bincount(alone, minlength=num) / len(reference)  # without each of the samples
    error_of_coverage = math.sqrt((num - 1) * float(np.var(losses)))
    half = quantile(None) * error_of_coverage
    if half > 0.0:
        low, high = max(coverage - half, 0.0), min(coverage + half, 1.0)
        covered = Estimate(coverage, low, high, _OF_SAMPLES)
    else:
        covered = Estimate(coverage, note="no interval: no ball depends on a single sample")
    return DensityCoverage(symmetric(density, error, _OF_SAMPLES), covered)


def _check(name: str, features: np.ndarray, k: int) -> None:
    check_at_least("k", k, 1)
    check_features(name, features)
    if k >= len(features):
        raise EvaluationError(
            f"k is {k}; it has to be below the number of rows of {name}, {len(features)}, as no"
            " row is its own neighbour"
        )


def _squared_radii(centres: np.ndarray, k: int) -> np.ndarray:
    # One of the k + 1 nearest is the centre itself, at 0, or a row that equals it.
    return nearest_squares(centres, centres, k + 1)[1][:, k]
