"""The Inception score: classes that are sure of each image and spread over all of them."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.guards import EvaluationError, check_at_least, check_features

__all__ = ["InceptionScore", "inception_score"]


class InceptionScore(NamedTuple):
    """Over the splits, as it is published."""

    mean: float
    standard_deviation: float | None
    """Over the splits: what papers print after the mean, and no error of it. None of one split, or
    where a part has one sample: the score of that is 1, whatever the sample."""


def inception_score(logits: Float[np.ndarray, "n classes"], splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))), Salimans et al. 2016 (https://arxiv.org/abs/1606.03498).

    Computed in float64 from log softmax, so that no probability vanishes and no logarithm is of 0.
    As in the paper's code, the samples are cut, in the order they come in, into `splits` parts
    that differ in size by one at most, and p(y) is the mean within a part. Samples drawn class by
    class have to be shuffled first.

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
    log_p = wide - _log_sum_exp(wide, axis=1)
    log_mean = _log_sum_exp(log_p, axis=0) - np.log(len(log_p))
    divergences = np.sum(np.exp(log_p) * (log_p - log_mean), axis=1)
    return float(np.exp(np.mean(divergences)))


def _log_sum_exp(values: np.ndarray, axis: int) -> np.ndarray:
    largest = values.max(axis=axis, keepdims=True)
    total: np.ndarray = largest + np.log(np.sum(np.exp(values - largest), axis, keepdims=True))
    return total
