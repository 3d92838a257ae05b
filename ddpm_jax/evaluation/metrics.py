r"""Kernel distance and Inception score of samples, and the names of metrics in results.

The kernel distance is the squared maximum mean discrepancy with the kernel
:math:`k(x, y) = (x \cdot y / \mathrm{dim} + 1)^3`; it is KID if the features are Inception's. The
unbiased estimate of Binkowski et al. 2018, section 3 and equation 4
(https://arxiv.org/abs/1801.01401), is

.. math::

    \frac{1}{m (m - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n (n - 1)} \sum_{i \ne j} k(y_i, y_j)
    - \frac{2}{m n} \sum_{i, j} k(x_i, y_j), \tag{1}

computed in float64. Because it is unbiased, it may be negative, and the number of samples only
changes its spread.

The Inception score is that of Salimans et al. 2016 (https://arxiv.org/abs/1606.03498).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import require
from ddpm_jax.evaluation.features import (
    EvaluationError,
    check_at_least,
    check_features,
    check_same_dim,
)

__all__ = [
    "FULL",
    "INCEPTION",
    "InceptionScore",
    "KernelDistance",
    "Metric",
    "inception_score",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "metric_name",
]

Metric = Literal["FID", "KID", "precision", "recall", "IS"]
"""Metrics of samples, by their names for Inception's features."""
INCEPTION = "Inception-v3"
"""Name of the network of FID, KID and IS."""
FULL = 50_000
"""Number of samples in papers; from this number on, the name of a metric leaves it out."""

_BLOCK = 2048
"""Rows of either set in one block: 32 MB of kernel values."""
_OTHER_NETWORKS = {"FID": "Frechet distance", "KID": "kernel distance", "IS": "classifier score"}
"""Names of these three metrics for the features of another network."""


class KernelDistance(NamedTuple):
    """The kernel distance over random subsets."""

    mean: float
    """Mean over the subsets, an unbiased estimate of `kernel_distance` of all rows."""
    standard_deviation: float
    """Standard deviation over the subsets. Papers print it after the mean; it is not the error of
    the mean."""
    standard_error: float
    """Standard error of the mean as an estimate of the distance between these rows."""


class InceptionScore(NamedTuple):
    """The Inception score over its splits, as papers publish it."""

    mean: float
    """Mean over the splits."""
    standard_deviation: float | None
    """Standard deviation over the splits. Papers print it after the mean; it is not the error of
    the mean. None for one split, or if a split has one sample, whose score is always 1."""


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
    check_features("a", a, least=2)
    check_features("b", b, least=2)
    check_same_dim("b", b, "a", a)
    return _mean_kernel(a) + _mean_kernel(b) - 2.0 * _mean_kernel(a, b)


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


def _mean_kernel(x: np.ndarray, y: np.ndarray | None = None) -> float:
    """Mean of k(x_i, y_j) over all i, j; without `y` of k(x_i, x_j) over i != j."""
    require("ddpm_jax.evaluation.metrics", "evaluate", "sklearn")
    from sklearn.metrics.pairwise import polynomial_kernel

    others = x if y is None else y
    total = 0.0
    starts = range(0, len(x), _BLOCK), range(0, len(others), _BLOCK)
    for i, j in itertools.product(*starts):
        if y is None and j < i:
            continue  # by symmetry the same as block (j, i), which counts twice
        rows, columns = (
            part.astype(np.float64) for part in (x[i : i + _BLOCK], others[j : j + _BLOCK])
        )
        block = polynomial_kernel(rows, columns, degree=3, gamma=1.0 / x.shape[1], coef0=1.0)
        if y is None and i == j:
            np.fill_diagonal(block, 0.0)
        total += (2.0 if y is None and i < j else 1.0) * float(np.sum(block))
    return total / (len(x) * (len(x) - 1 if y is None else len(y)))


def inception_score(logits: Float[np.ndarray, "n classes"], splits: int = 10) -> InceptionScore:
    r"""The Inception score of samples, from the logits of a classifier.

    .. math::

        \exp \mathrm{E}_x \mathrm{KL}\big(p(y|x) \,\|\, p(y)\big)

    It is computed in float64 from the logarithms of the softmax, so that no probability underflows.
    As in the paper's code, the samples are split in their order into `splits` parts of equal size
    (or one more), and p(y) is the mean within a part. Shuffle samples that were drawn class by
    class.

    Args:
        logits: of each sample, before the softmax, `[n, classes]`.
        splits: number of parts, at most n. The score depends on the size of a part.

    Returns:
        Mean and standard deviation over the parts of the score, which is between 1 and the number
        of classes.

    Raises:
        EvaluationError: logits are not finite, or there are fewer samples than `splits`.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import inception_score
        >>> round(inception_score(100.0 * np.eye(5), splits=1).mean, 12)
        5.0

    References:
        Salimans et al. 2016, https://arxiv.org/abs/1606.03498
    """
    check_at_least("splits", splits, 1)
    check_features("logits", logits)
    if len(logits) < splits:
        raise EvaluationError(
            f"splits is {splits}; logits has {len(logits)} rows, and each part needs one"
        )
    bounds = [index * len(logits) // splits for index in range(splits + 1)]
    scores = [_score(logits[a:b]) for a, b in itertools.pairwise(bounds)]
    spreads = splits > 1 and len(logits) >= 2 * splits
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)) if spreads else None)


def _score(logits: np.ndarray) -> float:
    wide = logits.astype(np.float64)
    log_p = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    log_mean = np.logaddexp.reduce(log_p, axis=0, keepdims=True) - np.log(len(log_p))
    return float(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_mean), axis=1))))


def metric_name(
    metric: Metric, *, samples: int, network: str = INCEPTION, full_reference: bool = True
) -> str:
    """The name of a metric in results, which says how it was computed.

    "FID" without more words stands for Inception-v3, at least 50,000 samples and the full
    reference. Precision and recall always name their network: their paper used VGG-16, and others
    use Inception.

    Args:
        metric: the metric.
        samples: number of samples.
        network: name of the feature network.
        full_reference: whether the reference was all images of a data set's split.

    Returns:
        The name.

    Raises:
        EvaluationError: the metric is unknown, there are no samples, or the network has no name.

    Example:
        >>> from ddpm_jax.evaluation import metric_name
        >>> metric_name("FID", samples=50_000), metric_name("FID", samples=10_000)
        ('FID', 'FID-10k')
        >>> metric_name("FID", samples=10_000, network="digits classifier")
        'Frechet distance, digits classifier, 10k samples'
    """
    if metric not in get_args(Metric):
        known = ", ".join(map(repr, get_args(Metric)))
        raise EvaluationError(f"metric is {metric!r}; it has to be one of {known}")
    check_at_least("samples", samples, 1)
    if not network.strip():
        raise EvaluationError(f"network is {network!r}; it has to name the feature network")
    few = samples < FULL
    number = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    if network == INCEPTION and metric in _OTHER_NETWORKS:
        parts = [metric + (f"-{number}" if few or not full_reference else "")]
    else:
        parts = [_OTHER_NETWORKS.get(metric, metric), network]
        parts += [f"{number} sample{'s' if samples > 1 else ''}"] if few else []
    return ", ".join(parts if full_reference else [*parts, "part of the reference"])
