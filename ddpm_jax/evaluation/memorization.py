r"""The fraction of samples that are nearer to the training images than held-out images are.

A model that has learned training images by heart draws samples which are nearer to them than new
images are. Both distances are of one kind, of pixels or of features: that of each image to its
nearest training image. The threshold is a low quantile of the held-out images' distances. For a
model of the true distribution, the fraction of samples below it is this quantile's level on
average, whatever the distances.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from ddpm_jax.evaluation.confidence import LEVEL, Estimate, proportion
from ddpm_jax.evaluation.features import EvaluationError, check_at_least

__all__ = ["near_fraction", "near_level"]


def near_fraction(
    of_samples: Float[np.ndarray, " m"],
    of_held_out: Float[np.ndarray, " h"],
    quantile: float = 0.01,
) -> Estimate:
    r"""The fraction of samples that are at most as far as the nearest held-out images.

    The threshold is the r-th smallest of the h distances of held-out images, with r the integer
    next to `quantile` (h + 1), at least 1. If samples and held-out images have one distribution
    without ties, the fraction is r / (h + 1) on average (`near_level`).

    The interval covers the choice of the samples and of the held-out images. Two intervals are
    combined by the square-and-add method of Newcombe 1998, *Interval estimation for the difference
    between independent proportions*: Wilson's, of the fraction below a given threshold; and the
    fractions below the two distances, of held-out images, between which the quantile is in 95 % of
    all cases (order statistics: the level of the j-th distance is Beta(j, h + 1 - j)).

    Args:
        of_samples: distance of each sample to its nearest training image, `[m]`.
        of_held_out: the same of held-out images, `[h]`.
        quantile: level of the threshold, in (0, 1).

    Returns:
        The fraction. There is no interval where the held-out images are fewer than 1 / `quantile`:
        their smallest distance is at a higher level, then.

    Raises:
        EvaluationError: there are no distances, one is negative or NaN, or `quantile` is not in
            (0, 1).

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import near_fraction
        >>> held_out = np.arange(1.0, 1000.0)
        >>> near_fraction(np.array([0.0, 5.0, 10.0, 10.5]), held_out).value
        0.75
    """
    rank = _rank(len(of_held_out), quantile)
    for name, distances in (("of_samples", of_samples), ("of_held_out", of_held_out)):
        check_at_least(f"number of distances {name}", len(distances), 1)
        if not (distances >= 0.0).all():
            raise EvaluationError(
                f"{name} has the distance {np.min(distances)}; distances are 0 or more"
            )
    num, num_held_out = len(of_samples), len(of_held_out)
    samples, held_out = np.sort(of_samples), np.sort(of_held_out)

    def fraction(distance: float) -> float:
        return int(np.searchsorted(samples, distance, side="right")) / num

    share, low, high, _ = proportion(round(fraction(held_out[rank - 1]) * num), num)
    if num_held_out * quantile < 1.0 or low is None or high is None:
        return Estimate(
            share, note=f"no interval: {num_held_out} held-out images for the level {quantile:g}"
        )
    # Levels of the distances in rank order; a distance of rank 0 or h + 1 is at 0 or infinity.
    ranks = np.arange(1, num_held_out + 1)
    below = special.betainc(ranks, num_held_out + 1 - ranks, quantile)  # P(level <= quantile)
    tail = (1.0 - LEVEL) / 2.0
    first = int(np.sum(below >= 1.0 - tail))
    last = num_held_out + 1 - int(np.sum(below <= tail))
    least = fraction(held_out[first - 1]) if first else 0.0
    most = fraction(held_out[last - 1]) if last <= num_held_out else 1.0
    return Estimate(
        share,
        max(share - math.hypot(share - low, share - least), 0.0),
        min(share + math.hypot(high - share, most - share), 1.0),
        f"covers the choice of the samples and of the {num_held_out} held-out images",
    )


def near_level(held_out: int, quantile: float = 0.01) -> float:
    """The fraction that `near_fraction` has on average for a perfect model.

    Args:
        held_out: number of held-out images.
        quantile: level of the threshold, in (0, 1).

    Returns:
        `quantile`, up to what so many held-out images can resolve.

    Raises:
        EvaluationError: there are no held-out images, or `quantile` is not in (0, 1).

    Example:
        >>> from ddpm_jax.evaluation import near_level
        >>> near_level(999), near_level(49)
        (0.01, 0.02)
    """
    return _rank(held_out, quantile) / (held_out + 1)


def _rank(held_out: int, quantile: float) -> int:
    check_at_least("number of held-out images", held_out, 1)
    if not 0.0 < quantile < 1.0:
        raise EvaluationError(f"quantile is {quantile}; it has to be between 0 and 1")
    return min(max(round(quantile * (held_out + 1)), 1), held_out)
