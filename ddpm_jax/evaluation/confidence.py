r"""Numbers with their 95 % intervals: a mean, a proportion, or what has a standard error.

An interval covers the number that the same procedure yields on average, in 95 of 100 repetitions
of what its note says. A bias is not covered: the Frechet distance of n samples is too large on
average (see `ddpm_jax.evaluation.frechet_at_infinity`), and its interval is about that average.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from ddpm_jax.evaluation.features import EvaluationError, check_at_least

__all__ = ["Estimate", "mean_of", "proportion", "quantile", "standard_error", "symmetric"]

LEVEL = 0.95
"""The share of repetitions in which an interval covers."""


class Estimate(NamedTuple):
    """A number that was estimated from samples."""

    value: float
    """The estimate."""
    low: float | None = None
    """Lower end of the 95 % interval; None without an interval."""
    high: float | None = None
    """Upper end of the 95 % interval; None without an interval."""
    note: str = ""
    """What the interval covers, or why there is none."""


def mean_of(values: Sequence[float] | Float[np.ndarray, " n"], note: str = "") -> Estimate:
    r"""The mean of independent values, such as a metric for several seeds of sampling.

    With the standard deviation s of the n values, the interval is Student's,

    .. math::

        \bar x \pm t_{n-1} \, s / \sqrt{n}.

    Args:
        values: at least one.
        note: what the interval covers.

    Returns:
        The mean. A single value has no interval.

    Raises:
        EvaluationError: there is no value, or one is not finite.

    Example:
        >>> from ddpm_jax.evaluation import mean_of
        >>> mean, low, high, _ = mean_of([3.1, 3.4, 3.4])
        >>> round(mean, 2), round(low, 2), round(high, 2)
        (3.3, 2.87, 3.73)
    """
    numbers = np.asarray(values, np.float64)
    check_at_least("number of values", numbers.size, 1)
    if not np.isfinite(numbers).all():
        raise EvaluationError(f"values is {values}; every value has to be finite")
    mean = float(np.mean(numbers))
    error = standard_error(numbers)
    if error is None:
        return Estimate(mean, note="no interval: one value only")
    return symmetric(mean, error, note, degrees=numbers.size - 1)


def proportion(successes: int, trials: int, note: str = "") -> Estimate:
    """The proportion of independent trials that succeed, with Wilson's interval.

    Unlike the proportion plus and minus its standard error, the interval stays within [0, 1] and
    has a length where none or all succeed.

    Args:
        successes: 0 to `trials`.
        trials: at least 1.
        note: what the interval covers.

    Returns:
        successes / trials.

    Raises:
        EvaluationError: the numbers are out of range.

    Example:
        >>> from ddpm_jax.evaluation import proportion
        >>> value, low, high, _ = proportion(0, 100)
        >>> value, low, round(high, 3)
        (0.0, 0.0, 0.037)

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927
    """
    check_at_least("trials", trials, 1)
    if not 0 <= successes <= trials:
        raise EvaluationError(f"successes is {successes}; it has to be from 0 to {trials}, trials")
    share = successes / trials
    z = quantile(None)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    half /= 1 + z**2 / trials
    # At the ends exactly 0 and 1, where the two terms differ by rounding.
    low = max(0.0, centre - half) if successes else 0.0
    high = min(1.0, centre + half) if successes < trials else 1.0
    return Estimate(share, low, high, note)


def standard_error(values: Float[np.ndarray, " n"]) -> float | None:
    """Standard error of the mean of independent values; None for one value, which has no spread.

    Args:
        values: at least one.

    Returns:
        s / sqrt(n), with the standard deviation s of the n values.
    """
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def symmetric(value: float, error: float, note: str, degrees: int | None = None) -> Estimate:
    """`value` plus and minus the multiple of its standard error that covers 95 %.

    Args:
        value: the estimate.
        error: its standard error.
        note: what the interval covers.
        degrees: degrees of freedom of the standard error; None for many.

    Returns:
        The estimate with its interval.
    """
    half = quantile(degrees) * error
    return Estimate(value, value - half, value + half, note)


def quantile(degrees: int | None) -> float:
    """The 97.5 % quantile of Student's t with these degrees of freedom; None for the normal one."""
    level = (1.0 + LEVEL) / 2.0
    return float(special.ndtri(level) if degrees is None else special.stdtrit(degrees, level))
