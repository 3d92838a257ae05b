"""The kernel distance of two sets of features: KID, where the features are Inception's.

The squared maximum mean discrepancy with the kernel k(x, y) = (x.y / dim + 1)^3, by the unbiased
estimate of Binkowski et al. 2018, section 3 and eq. 4 (https://arxiv.org/abs/1801.01401),

    1 / (m (m - 1)) sum_{i != j} k(x_i, x_j) + 1 / (n (n - 1)) sum_{i != j} k(y_i, y_j)
        - 2 / (m n) sum_{i, j} k(x_i, y_j),

in float64. Being unbiased it may be negative, and depends on the number of samples in its spread
alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.guards import (
    EvaluationError,
    check_at_least,
    check_features,
    check_same_dim,
)

__all__ = ["KernelDistance", "kernel_distance", "kernel_distance_of_subsets"]

_BLOCK = 2048
"""Rows of either set that meet at a time: 32 MB of kernel values, and as much to cube them."""


class KernelDistance(NamedTuple):
    """Of random subsets."""

    mean: float
    """An unbiased estimate, of what `kernel_distance` of all rows is, too."""
    standard_deviation: float
    """Over the subsets: what papers print after the mean, and no error of it."""
    standard_error: float
    """Of the mean, as an estimate of the distance of all rows; it knows nothing of other rows."""


def kernel_distance(a: Float[np.ndarray, "m dim"], b: Float[np.ndarray, "n dim"]) -> float:
    """The unbiased estimate from all rows, by the equation of the module.

    It takes some (m + n)^2 dim / 2 multiplications, and memory for blocks of them: some 170 MB for
    features of 2048 dimensions.

    Raises:
        EvaluationError: features that are not finite, fewer than two rows, or different dimensions.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import kernel_distance
        >>> kernel_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
        297.5
    """
    check_features("a", a, least=2)
    check_features("b", b, least=2)
    check_same_dim("b", b, "a", a)
    return _unbiased(a, b)


def kernel_distance_of_subsets(
    a: Float[np.ndarray, "m dim"],
    b: Float[np.ndarray, "n dim"],
    *,
    seed: int | Sequence[int] | np.random.SeedSequence,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """The estimate as it is published: its mean over random subsets of both sets.

    Each subset is drawn without replacement; subsets overlap.

    Args:
        a, b: features.
        seed: of `np.random.default_rng`; the same one draws the same subsets.
        subsets: how many, at least 2.
        subset_size: rows of each, at least 2.

    Raises:
        EvaluationError: as `kernel_distance`, or a set has fewer rows than a subset.
    """
    check_at_least("subsets", subsets, 2)
    check_at_least("subset_size", subset_size, 2)
    if seed is None:
        raise EvaluationError(
            "seed is None; it has to be given, so that the result can be repeated"
        )
    for name, features in (("a", a), ("b", b)):
        check_features(name, features)
        if len(features) < subset_size:
            raise EvaluationError(
                f"subset_size is {subset_size}; {name} has {len(features)} rows, and no subset can"
                " have more"
            )
    check_same_dim("b", b, "a", a)
    generator = np.random.default_rng(seed)
    distances = np.empty(subsets)
    for index in range(subsets):
        rows_a = generator.choice(len(a), subset_size, replace=False)
        rows_b = generator.choice(len(b), subset_size, replace=False)
        distances[index] = _unbiased(a[rows_a], b[rows_b])
    deviation = float(np.std(distances))
    return KernelDistance(float(np.mean(distances)), deviation, deviation / math.sqrt(subsets - 1))


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    m, n = len(a), len(b)
    within = _sum_of_pairs(a) / (m * (m - 1)) + _sum_of_pairs(b) / (n * (n - 1))
    starts = range(0, m, _BLOCK), range(0, n, _BLOCK)
    between = sum(_kernel(a, i, b, j).sum() for i in starts[0] for j in starts[1])
    return float(within - 2.0 * between / (m * n))


def _sum_of_pairs(rows: np.ndarray) -> float:
    """Sum over i != j of k(x_i, x_j): the blocks on and above the diagonal."""
    total = 0.0
    for i in range(0, len(rows), _BLOCK):
        block = _kernel(rows, i, rows, i)
        np.fill_diagonal(block, 0.0)
        total += block.sum()
        for j in range(i + _BLOCK, len(rows), _BLOCK):
            total += 2.0 * _kernel(rows, i, rows, j).sum()
    return float(total)


def _kernel(a: np.ndarray, i: int, b: np.ndarray, j: int) -> np.ndarray:
    """k of the block of rows of `a` that begins at `i`, and that of `b` at `j`."""
    x = a[i : i + _BLOCK].astype(np.float64)
    y = b[j : j + _BLOCK].astype(np.float64)
    base = x @ y.T
    base /= a.shape[1]
    base += 1.0
    cube = base * base
    cube *= base
    return cube
