r"""Kernel distances of two sets of features: KID and CMMD, with their intervals.

Both are squared maximum mean discrepancies. The kernel distance has the kernel
:math:`k(x, y) = (x \cdot y / \mathrm{dim} + 1)^3`; it is KID if the features are Inception's. The
unbiased estimate of Binkowski et al. 2018, section 3 and equation 4
(https://arxiv.org/abs/1801.01401), is

.. math::

    \frac{1}{m (m - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n (n - 1)} \sum_{i \ne j} k(y_i, y_j)
    - \frac{2}{m n} \sum_{i, j} k(x_i, y_j), \tag{1}

computed in float64. Because it is unbiased, it may be negative, and the number of samples only
changes its spread. CMMD has a Gaussian kernel, and its means include the pairs of a row with
itself.

Intervals come from the jackknife of (1), which leaves one row out at a time (Arvesen 1969,
*Jackknifing U-statistics*). All these values follow from the sums of k over the pairs of each row,
so that they cost no more than (1) itself. The jackknife's variance is too large on average, never
too small (Efron and Stein 1981): by a factor of at most 2 where both distributions are equal.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.confidence import Estimate, symmetric
from ddpm_jax.evaluation.features import (
    EvaluationError,
    check_at_least,
    check_features,
    check_same_dim,
)

__all__ = [
    "KernelDistance",
    "cmmd",
    "kernel_distance",
    "kernel_distance_interval",
    "kernel_distance_of_subsets",
]

_BLOCK = 2048
"""Rows of either set in one block: 32 MB of kernel values."""
_BANDWIDTH, _SCALE = 10.0, 1000.0
"""Of CMMD, as in its paper's code."""
_NOTE = "covers the choice of the samples and of the reference's rows"

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


class KernelDistance(NamedTuple):
    """The kernel distance over random subsets."""

    mean: float
    """Mean over the subsets, an unbiased estimate of `kernel_distance` of all rows."""
    standard_deviation: float
    """Standard deviation over the subsets. Papers print it after the mean; it is not the error of
    the mean."""
    standard_error: float
    """Standard error of the mean as an estimate of the distance between these rows."""


def kernel_distance(a: Float[np.ndarray, "m dim"], b: Float[np.ndarray, "n dim"]) -> float:
    r"""The kernel distance of two sets of features from all rows; KID if they are Inception's.

    .. math::

        \frac{1}{m (m - 1)} \sum_{i \ne j} k(x_i, x_j)
        + \frac{1}{n (n - 1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{m n} \sum_{i, j} k(x_i, y_j),
        \quad k(x, y) = (x \cdot y / \mathrm{dim} + 1)^3

    It takes about (m + n)^2 dim / 2 multiplications, and 170 MB of memory for features of 2048
    dimensions.

    Args:
        a: features, `[m, dim]`.
        b: features, `[n, dim]`, by the same network.

    Returns:
        The unbiased estimate; it may be negative.

    Raises:
        EvaluationError: features are not finite, there are fewer than two rows, or the dimensions
            differ.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import kernel_distance
        >>> kernel_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
        297.5

    References:
        Binkowski et al. 2018, equation 4, https://arxiv.org/abs/1801.01401
    """
    _check_sets(a, b, least=2)
    return _discrepancy(_cubic, a, b)[0]


def kernel_distance_interval(
    a: Float[np.ndarray, "m dim"], b: Float[np.ndarray, "n dim"]
) -> Estimate:
    """The kernel distance of all rows with its 95 % interval.

    See `kernel_distance` for the formula and the cost. The interval covers the choice of both sets:
    it is about the distance of the two distributions.

    Args:
        a: features, `[m, dim]`, m at least 3.
        b: features, `[n, dim]`, by the same network, n at least 3.

    Returns:
        The unbiased estimate, which may be negative, and the jackknife's interval.

    Raises:
        EvaluationError: features are not finite, there are fewer than three rows, or the dimensions
            differ.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import kernel_distance_interval
        >>> a, b = np.random.default_rng(0).standard_normal((2, 400, 3))
        >>> value, low, high, _ = kernel_distance_interval(a, b)
        >>> abs(value) < 0.05, low < 0.0 < high
        (True, True)

    References:
        Arvesen 1969, Jackknifing U-statistics; Efron and Stein 1981, The jackknife estimate of
        variance
    """
    _check_sets(a, b, least=3)
    value, error = _discrepancy(_cubic, a, b)
    return symmetric(value, error, _NOTE)


def cmmd(a: Float[np.ndarray, "m dim"], b: Float[np.ndarray, "n dim"]) -> Estimate:
    r"""The CLIP maximum mean discrepancy, if the features are embeddings of images by CLIP.

    With rows of length 1,

    .. math::

        1000 \Big( \frac{1}{m^2} \sum_{i, j} k(x_i, x_j) + \frac{1}{n^2} \sum_{i, j} k(y_i, y_j)
        - \frac{2}{m n} \sum_{i, j} k(x_i, y_j) \Big),
        \quad k(x, y) = \exp\Big(-\frac{|x - y|^2}{2 \cdot 10^2}\Big).

    As in the paper's code, the means include the pairs of a row with itself, which adds
    1000 (1/m + 1/n) (1 - mean k) on average: 0.001 for two sets of 10,000 rows whose mean squared
    distance is 1.

    Args:
        a: features, `[m, dim]`, m at least 3. They are scaled to length 1 here.
        b: features, `[n, dim]`, by the same network, n at least 3.

    Returns:
        The distance, 0 or more up to rounding, and the jackknife's interval.

    Raises:
        EvaluationError: features are not finite, a row is 0, there are fewer than three rows, or
            the dimensions differ.

    References:
        Jayasumana et al. 2024, section 4 and appendix, https://arxiv.org/abs/2401.09603
    """
    _check_sets(a, b, least=3)
    value, error = _discrepancy(_gaussian, _normalized("a", a), _normalized("b", b), own_pairs=1.0)
    return symmetric(_SCALE * value, _SCALE * error, _NOTE)


def kernel_distance_of_subsets(
    a: Float[np.ndarray, "m dim"],
    b: Float[np.ndarray, "n dim"],
    *,
    seed: int | Sequence[int] | np.random.SeedSequence,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """The kernel distance as papers publish it: its mean over random subsets of both sets.

    Each subset is drawn without replacement; subsets overlap.

    Args:
        a: features, `[m, dim]`.
        b: features, `[n, dim]`, by the same network.
        seed: of `np.random.default_rng`; the same seed draws the same subsets.
        subsets: number of subsets, at least 2.
        subset_size: rows of each subset, at least 2.

    Returns:
        Mean, standard deviation and standard error over the subsets.

    Raises:
        EvaluationError: as in `kernel_distance`, or a set has fewer rows than a subset.
    """
    check_at_least("subsets", subsets, 2)
    check_at_least("subset_size", subset_size, 2)
    if seed is None:
        raise EvaluationError("seed is None; set it, so that the result can be repeated")
    for name, features in (("a", a), ("b", b)):
        check_features(name, features)
        if len(features) < subset_size:
            raise EvaluationError(
                f"subset_size is {subset_size}; it has to be at most the number of rows of {name},"
                f" {len(features)}"
            )
    check_same_dim("b", b, "a", a)
    generator = np.random.default_rng(seed)
    distances = np.empty(subsets)
    for index in range(subsets):
        rows_a = generator.choice(len(a), subset_size, replace=False)
        rows_b = generator.choice(len(b), subset_size, replace=False)
        distances[index] = kernel_distance(a[rows_a], b[rows_b])
    deviation = float(np.std(distances))
    return KernelDistance(float(np.mean(distances)), deviation, deviation / math.sqrt(subsets - 1))


def _check_sets(a: np.ndarray, b: np.ndarray, least: int) -> None:
    check_features("a", a, least=least)
    check_features("b", b, least=least)
    check_same_dim("b", b, "a", a)


def _normalized(name: str, rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise EvaluationError(
            f"{name}[{int(np.argmin(lengths))}] is 0; rows are scaled to length 1, and it has none"
        )
    return rows / lengths


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    root = x @ y.T
    root /= x.shape[1]
    root += 1.0
    return root * root * root  # a power takes ten times as long


def _gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of rows of length 1, where |x - y|^2 = 2 - 2 x . y."""
    return np.exp((x @ y.T - 1.0) / _BANDWIDTH**2)


def _discrepancy(
    kernel: Kernel, a: np.ndarray, b: np.ndarray, own_pairs: float | None = None
) -> tuple[float, float]:
    """The estimate (1) and its standard error by the jackknife.

    With `own_pairs`, the kernel of a row and itself, the means include these pairs.
    """
    within_a, within_b = _own_sums(kernel, a), _own_sums(kernel, b)
    between_a, between_b = _sums_between(kernel, a, b)
    between = float(np.sum(between_a)) / (len(a) * len(b))
    value = -2.0 * between
    variance = 0.0
    for within, pairs, others in ((within_a, between_a, len(b)), (within_b, between_b, len(a))):
        num, total = len(within), float(np.sum(within))
        own = (total + num * own_pairs) / num**2 if own_pairs else total / (num * (num - 1))
        value += own
        if num > 2:  # what changes in (1) without row i
            left_out = (total - 2.0 * within) / ((num - 1) * (num - 2))
            left_out -= 2.0 * (between * num - pairs / others) / (num - 1)
            variance += (num - 1) * float(np.var(left_out))
    return value, math.sqrt(variance)


def _own_sums(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """The sum of k(x_i, x_j) over j != i, for each i."""
    sums = np.zeros(len(x))
    for i, j in itertools.combinations_with_replacement(range(0, len(x), _BLOCK), 2):
        block = kernel(_wide(x, i), _wide(x, j))
        if i == j:
            np.fill_diagonal(block, 0.0)
        else:  # by symmetry also block (j, i)
            sums[j : j + _BLOCK] += np.sum(block, axis=0)
        sums[i : i + _BLOCK] += np.sum(block, axis=1)
    return sums


def _sums_between(kernel: Kernel, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums of k(x_i, y_j) over j for each i, and over i for each j."""
    of_x, of_y = np.zeros(len(x)), np.zeros(len(y))
    for i, j in itertools.product(range(0, len(x), _BLOCK), range(0, len(y), _BLOCK)):
        block = kernel(_wide(x, i), _wide(y, j))
        of_x[i : i + _BLOCK] += np.sum(block, axis=1)
        of_y[j : j + _BLOCK] += np.sum(block, axis=0)
    return of_x, of_y


def _wide(rows: np.ndarray, start: int) -> np.ndarray:
    return rows[start : start + _BLOCK].astype(np.float64)
