r"""The Inception score of Salimans et al. 2016, from logits or from sums over a stream.

The score of n samples with the class probabilities p(y|x), whose mean is p(y), is

.. math::

    \exp \frac{1}{n} \sum_x \mathrm{KL}\big(p(y|x) \,\|\, p(y)\big)
    = \exp\Big( \frac{1}{n} \sum_x \sum_y p(y|x) \log p(y|x) - \sum_y p(y) \log p(y) \Big),

so that n, the sum of p(y|x) and the sum of p log p suffice; nothing else of the samples is stored.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.confidence import Estimate, mean_of
from ddpm_jax.evaluation.features import (
    EvaluationError,
    check_at_least,
    check_features,
    check_same_dim,
)

__all__ = [
    "InceptionScore",
    "ScoreSums",
    "inception_score",
    "inception_score_of_sums",
    "merge_score_sums",
    "score_sums_of",
]


class ScoreSums(NamedTuple):
    """What the Inception score needs of a part of the samples, float64."""

    rows: int
    """Number of samples."""
    probabilities: Float[np.ndarray, " classes"]
    """Sum of the class probabilities, `[classes]`."""
    negentropy: float
    """Sum over samples and classes of p log p, in nats."""


class InceptionScore(NamedTuple):
    """The Inception score over its splits, as papers publish it."""

    mean: float
    """Mean over the splits."""
    standard_deviation: float | None
    """Standard deviation over the splits. Papers print it after the mean; it is not the error of
    the mean. None for one split, or if a split has one sample, whose score is always 1."""


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
    scores = [_score(score_sums_of(logits[a:b])) for a, b in itertools.pairwise(bounds)]
    spreads = splits > 1 and len(logits) >= 2 * splits
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)) if spreads else None)


def score_sums_of(logits: Float[np.ndarray, "n classes"]) -> ScoreSums:
    """The sums of an array of logits.

    Args:
        logits: of each sample, before the softmax, `[n, classes]`.

    Returns:
        Number of samples, sum of p and sum of p log p, in float64.

    Raises:
        EvaluationError: `logits` is not a finite array of floats with at least one row.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import score_sums_of
        >>> sums = score_sums_of(np.zeros((4, 2)))
        >>> sums.rows, sums.probabilities.tolist(), round(sums.negentropy, 6)  # -4 log 2
        (4, [2.0, 2.0], -2.772589)
    """
    check_features("logits", logits)
    wide = logits.astype(np.float64)
    log_p = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    p = np.exp(log_p)
    return ScoreSums(len(p), np.sum(p, axis=0), float(np.sum(p * log_p)))


def merge_score_sums(a: ScoreSums, b: ScoreSums) -> ScoreSums:
    """The sums of two parts together.

    Args:
        a: sums of the first part.
        b: sums of the second part.

    Returns:
        The sums of all samples.

    Raises:
        EvaluationError: the numbers of classes differ.
    """
    check_same_dim("b.probabilities", b.probabilities, "a.probabilities", a.probabilities)
    return ScoreSums(
        a.rows + b.rows, a.probabilities + b.probabilities, a.negentropy + b.negentropy
    )


def inception_score_of_sums(splits: Sequence[ScoreSums]) -> Estimate:
    r"""The Inception score of samples, the mean over their splits, from the sums of each.

    .. math::

        \exp\Big( \frac{1}{n} \sum_x \sum_y p(y|x) \log p(y|x) - \sum_y p(y) \log p(y) \Big)

    The interval is Student's of the scores of the splits, which is also the jackknife's over the
    splits. It covers the choice of the samples, for splits of this size: the score grows with it.

    Args:
        splits: of equal size, 10 by convention. Samples that were drawn class by class have to be
            shuffled over the splits.

    Returns:
        The mean over the splits. One split, or a split of one sample, whose score is 1 whatever the
        sample, has no interval.

    Raises:
        EvaluationError: there is no split, or one without samples.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import inception_score_of_sums, score_sums_of
        >>> round(inception_score_of_sums([score_sums_of(np.zeros((9, 5)))] * 3).value, 12)
        1.0

    References:
        Salimans et al. 2016, https://arxiv.org/abs/1606.03498
    """
    check_at_least("number of splits", len(splits), 1)
    scores = [_score(sums) for sums in splits]
    smallest = min(sums.rows for sums in splits)
    if len(splits) == 1:
        return Estimate(scores[0], note="no interval: one split only")
    if smallest == 1:
        return Estimate(
            float(np.mean(scores)), note="no interval: the score of a split of one sample is 1"
        )
    return mean_of(scores, f"covers the choice of the samples, in splits of {smallest}")


def _score(sums: ScoreSums) -> float:
    check_at_least("samples in a split", sums.rows, 1)
    mean = sums.probabilities / sums.rows
    positive = mean[mean > 0.0]
    return math.exp(sums.negentropy / sums.rows - float(np.sum(positive * np.log(positive))))
