r"""Kernel distance and Inception score of samples, and the names under which they may be printed.

The kernel distance is KID where the features are Inception's: the squared maximum mean discrepancy
with the kernel k(x, y) = (x.y / dim + 1)^3, by the unbiased estimate of Binkowski et al. 2018,
section 3 and eq. 4 (https://arxiv.org/abs/1801.01401),

    1 / (m (m - 1)) sum_{i != j} k(x_i, x_j) + 1 / (n (n - 1)) sum_{i != j} k(y_i, y_j)
        - 2 / (m n) sum_{i, j} k(x_i, y_j),                                                     (1)

in float64. It is unbiased, so it may be negative; the number of samples changes its spread alone.

The Inception score is exp(E_x KL(p(y|x) || p(y))), Salimans et al. 2016
(https://arxiv.org/abs/1606.03498).
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
INCEPTION = "Inception-v3"
"""The network whose features FID, KID and IS are of."""
FULL = 50_000
"""The number of samples that papers compare: a name leaves out the number from here on."""

_BLOCK = 2048
"""Rows of either set in one block: 32 MB of kernel values."""
_OTHER_NETWORKS = {"FID": "Frechet distance", "KID": "kernel distance", "IS": "classifier score"}
"""What these three are called in the space of another network."""


class KernelDistance(NamedTuple):
    """The kernel distance over random subsets."""

    mean: float
    """An unbiased estimate of the same quantity as `kernel_distance` of all rows."""
    standard_deviation: float
    """Over the subsets. Papers print it after the mean; it is not the error of the mean."""
    standard_error: float
    """Of the mean, as an estimate of the distance between these rows."""


class InceptionScore(NamedTuple):
    """The Inception score over its splits, as it is published."""

    mean: float
    standard_deviation: float | None
    """Over the splits. Papers print it after the mean; it is not the error of the mean. None for
    one split, or where a split has one sample: that one's score is 1, whatever the sample."""


def kernel_distance(a: Float[np.ndarray, "m dim"], b: Float[np.ndarray, "n dim"]) -> float:
    """The unbiased estimate from all rows, eq. (1) of the module.

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
    return _mean_kernel(a) + _mean_kernel(b) - 2.0 * _mean_kernel(a, b)


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
    """exp(E_x KL(p(y|x) || p(y))), Salimans et al. 2016 (https://arxiv.org/abs/1606.03498).

    Computed in float64 from the logarithms of the softmax: no probability underflows, and no
    logarithm is taken of 0. As in the paper's code, the samples are cut, in the order they come in,
    into `splits` parts that differ in size by one at most, and p(y) is the mean within a part.
    Samples drawn class by class have to be shuffled first.

    Args:
        logits: of each sample, before the softmax.
        splits: at most the number of samples. The score depends on how large a part is.

    Returns:
        From 1 to the number of classes.

    Raises:
        EvaluationError: logits that are not finite, or fewer samples than `splits`.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import inception_score
        >>> round(inception_score(100.0 * np.eye(5), splits=1).mean, 12)
        5.0
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
    """The name under which a result may be printed.

    "FID" alone is of Inception-v3, at least 50,000 samples and the full reference. Precision and
    recall always name their network: their paper took VGG-16, and others Inception.

    Args:
        metric: what it would be called at its best.
        samples: how many the result is of.
        network: whose features, in words.
        full_reference: whether it was compared with all images of a data set's split, not some.

    Raises:
        EvaluationError: another metric, no samples, or a network without a name.

    Example:
        >>> from ddpm_jax.evaluation import metric_name
        >>> metric_name("FID", samples=50_000), metric_name("FID", samples=10_000)
        ('FID', 'FID-10k')
        >>> metric_name("FID", samples=10_000, network="digits classifier")
        'Frechet distance, digits classifier, 10k samples'
    """
    if metric not in get_args(Metric):
        known = ", ".join(map(repr, get_args(Metric)))
        raise EvaluationError(f"metric is {metric!r}; it is one of {known}")
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
