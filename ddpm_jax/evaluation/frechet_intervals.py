r"""The errors of a Frechet distance: its interval over the choice of samples, and its bias.

**Interval.** With the transport map T from the samples' Gaussian N(m, C) to the reference's
N(m_r, C_r), the distance has the influence function (the derivative of the trace of the root is
T / 2)

.. math::

    \psi(x) = 2 (m - m_r)^T (x - m) + (x - m)^T (I - T) (x - m) - \mathrm{tr}((I - T) C),
    \qquad T = C^{-1/2} (C^{1/2} C_r C^{1/2})^{1/2} C^{-1/2}, \tag{1}

and the distance of n samples has the standard error :math:`\sqrt{\mathrm{Var}\,\psi(x) / n}`, the
delta method. A percentile bootstrap does not do: samples that are drawn again from samples have the
bias of n samples *twice*, so that the interval lies above the number that it belongs to.

**Bias.** The distance of n samples is too large by :math:`b / n + c / n^2 + \dots`; Chong and
Forsyth 2020 (https://arxiv.org/abs/1911.07023) take the value of a line in 1/n at 1/n = 0 for the
distance of infinitely many samples. Here it is a parabola, through the distance of all samples, the
mean distance of all but one of g groups, and the mean distance of halves. If the groups have one
size,

.. math::

    F_\infty = w_1 F(n) + w_2 F\big(\tfrac{g - 1}{g} n\big) + w_3 F\big(\tfrac{n}{2}\big), \qquad
    \sum_i w_i = 1, \quad \sum_i w_i k_i = \sum_i w_i k_i^2 = 0, \quad
    k = \big(1, \tfrac{g}{g - 1}, 2\big). \tag{2}

For equal Gaussians of d dimensions the terms are known: with :math:`\gamma = d / n` the bias is a
multiple of :math:`\gamma + \gamma^2 / 8 + 0.039 \gamma^3 + \dots` (from the Marchenko-Pastur law:
:math:`\mathrm{E} \sqrt{\lambda} = {}_2F_1(-1/2, 1/2; 2; \gamma)`). So (2) leaves
:math:`0.09 \gamma^2` of it, 0.6 % where n = 4 d; a line through n and 7 n / 8 leaves
:math:`\gamma / 7`, 4 %, which is more than the error of the choice of samples for d = 2048.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ddpm_jax.evaluation.confidence import Estimate, quantile, symmetric
from ddpm_jax.evaluation.features import EvaluationError, check_features, check_same_dim
from ddpm_jax.evaluation.frechet import (
    ROUNDING,
    check_gaussian,
    distance_of_factors,
    factor_of,
    rotation,
)
from ddpm_jax.evaluation.moments import Gaussian, Moments, covariance, merge

__all__ = ["frechet_at_infinity", "frechet_interval"]

_PER_FEATURE = 4
"""Samples for each feature from which on the parabola leaves less than 1 % of the bias."""
_ROWS = 4096
"""Number of rows that are converted to float64 at a time."""


def frechet_interval(
    rows: Float[np.ndarray, "some dim"], of: Gaussian, against: Gaussian, num: int
) -> Estimate:
    """The squared Frechet distance of samples from a reference, with its 95 % interval.

    The interval covers the distance that `num` other samples of the same distribution would have on
    average. It does not cover the bias of this average, see `frechet_at_infinity`, nor the choice
    of the reference's images. Where both distributions are equal, it is 1.3 to 1.6 times as long as
    it has to be.

    Args:
        rows: features of samples, `[some, dim]`: all, or a random choice of them.
        of: mean and covariance of the features of all samples.
        against: mean and covariance of the reference.
        num: number of all samples.

    Returns:
        The distance. It has no interval if `num` is at most dim, because then the samples span only
        a part of the space.

    Raises:
        EvaluationError: as in `frechet_distance_of_gaussians`; or `rows` is not a finite array of
            floats with at least two rows, or of other dimensions.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import frechet_interval, gaussian_of, moments_of
        >>> rows = np.random.default_rng(0).standard_normal((1000, 2))
        >>> reference = gaussian_of(moments_of(rows + 1.0))
        >>> value, low, high, _ = frechet_interval(
        ...     rows, gaussian_of(moments_of(rows)), reference, 1000
        ... )
        >>> round(value, 6), round(low, 1), round(high, 1)
        (2.0, 1.8, 2.2)

    References:
        Influence functions: Hampel 1974, The influence curve and its role in robust estimation
    """
    check_features("rows", rows, least=2)
    check_gaussian("of", of.mean, of.covariance, rows.shape[1])
    check_gaussian("against", against.mean, against.covariance, rows.shape[1])
    factor = factor_of("covariance_of", of.covariance)
    factor_against = factor_of("covariance_against", against.covariance)
    means = of.mean.astype(np.float64) - against.mean
    turn = rotation(factor, factor_against)
    value = distance_of_factors(means, factor, factor_against, turn)
    dim = rows.shape[1]
    if num <= dim:
        return Estimate(
            value, note=f"no interval: {num} samples do not span the {dim} features they have"
        )
    # With A^+ x the coordinates of x by the columns of A, which are orthogonal in units of the
    # deviations: x^T T x = sum_k s_k (W^T A^+ x)_k^2.
    deviations = np.sqrt(np.maximum(np.diagonal(of.covariance), 0.0))
    units = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=deviations > 0.0)
    scaled = factor * units[:, None]
    coordinates = (units[:, None] * scaled / np.sum(np.square(scaled), axis=0)) @ turn.left
    influences = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        x = rows[start : start + _ROWS].astype(np.float64) - of.mean
        transported = np.square(x @ coordinates) @ turn.values
        influences[start : start + _ROWS] = (
            2.0 * (x @ means) + np.sum(np.square(x), axis=1) - transported
        )
    error = float(np.std(influences, ddof=1)) / math.sqrt(num)
    return symmetric(value, error, "covers the choice of the samples, not the bias of their number")


def frechet_at_infinity(groups: Sequence[Moments], against: Gaussian) -> Estimate:
    r"""The squared Frechet distance that infinitely many samples would have; FID-infinity.

    The distance of n samples is too large by about :math:`b / n + c / n^2`. The parabola in 1/n
    through the distances of n samples, of all but one of the g groups and of halves, which are
    means over several such sets, meets 1/n = 0 at

    .. math::

        F_\infty = w_1 F(n) + w_2 F\big(\tfrac{g - 1}{g} n\big) + w_3 F\big(\tfrac{n}{2}\big).

    The bias of the distance of n samples is this distance minus the value returned here.

    Args:
        groups: moments of disjoint random groups of the samples, at least 3, of about one size; 8
            are usual, and a power of two is best.
        against: mean and covariance of the reference.

    Returns:
        The distance, which may be negative, as it is corrected. The interval is that of the
        jackknife over the groups. There is none if the samples are fewer than 4 for each feature:
        the parabola does not fit there.

    Raises:
        EvaluationError: there are fewer than 3 groups, or too few samples for a covariance; or
            the dimensions differ, or `against` has no covariance.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import Gaussian, frechet_at_infinity, moments_of
        >>> rows = np.random.default_rng(0).standard_normal((8, 500, 4))
        >>> reference = Gaussian(np.zeros(4), np.eye(4))
        >>> value, low, high, _ = frechet_at_infinity([moments_of(x) for x in rows], reference)
        >>> abs(value) < 0.002, low < 0.0 < high
        (True, True)

    References:
        Chong and Forsyth 2020, https://arxiv.org/abs/1911.07023; Busing et al. 1999, Delete-m
        jackknife for unequal m
    """
    num_groups = len(groups)
    if num_groups < 3:
        raise EvaluationError(f"groups has {num_groups} moments; a parabola needs at least 3")
    for index, group in enumerate(groups):
        check_same_dim(f"groups[{index}].mean", group.mean, "against.mean", against.mean)
    check_gaussian("against", against.mean, against.covariance, len(against.mean))
    factor = factor_of("covariance_against", against.covariance)

    def distance(parts: Sequence[Moments]) -> float:
        return _distance(functools.reduce(merge, parts), against, factor)

    value = distance(groups)
    rows = sum(group.rows for group in groups)
    sizes = np.array([group.rows for group in groups]) / rows
    numbers = range(num_groups)
    left_out = np.array([distance([groups[j] for j in numbers if j != i]) for i in numbers])
    # The groups are halved by each binary digit of their numbers.
    digits = (num_groups - 1).bit_length()
    sides = [[i for i in numbers if i >> d & 1 == bit] for d in range(digits) for bit in (0, 1)]
    of_halves = np.array([distance([groups[i] for i in side]) for side in sides])
    sizes_of_halves = np.array([np.sum(sizes[side]) for side in sides])
    # Means weighted by sizes: their first powers of n / size are g / (g - 1) and 2, exactly.
    weights, weights_of_halves = (1.0 - sizes) / (num_groups - 1), sizes_of_halves / digits
    powers = [
        [1.0, 1.0, 1.0],
        [1.0, num_groups / (num_groups - 1), 2.0],
        [1.0, np.sum(weights / (1.0 - sizes) ** 2), np.sum(weights_of_halves / sizes_of_halves**2)],
    ]
    means = [value, np.sum(weights * left_out), np.sum(weights_of_halves * of_halves)]
    at_infinity = float(np.linalg.solve(np.array(powers), [1.0, 0.0, 0.0]) @ means)
    dim = len(against.mean)
    if rows < _PER_FEATURE * dim:
        return Estimate(
            at_infinity,
            note=f"no interval: {rows} samples are fewer than {_PER_FEATURE} for each of the {dim}"
            " features",
        )
    # Busing's variance: of pseudo-values h F - (h - 1) F_(-i), with h = n / n_i, about their mean.
    inverse = 1.0 / sizes
    pseudo = inverse * value - (inverse - 1.0) * left_out
    variance = np.mean(np.square(pseudo - np.sum(sizes * pseudo)) / (inverse - 1.0))
    half = quantile(num_groups - 1) * math.sqrt(variance)
    return Estimate(
        at_infinity,
        at_infinity - half,
        at_infinity + half,
        "covers the choice of the samples and the bias of their number",
    )


def _distance(moments: Moments, against: Gaussian, factor: Float[np.ndarray, "dim rank"]) -> float:
    """The distance by the traces, which loses digits only near 0 and takes half the time.

    The trace of the root comes from the eigenvalues of B^T C B, for the factor B of `against`.
    """
    of = covariance(moments)
    eigenvalues = np.linalg.eigvalsh(factor.T @ of @ factor)
    roots = np.sqrt(eigenvalues[eigenvalues > ROUNDING * np.max(eigenvalues, initial=0.0)])
    traces = np.trace(of) + np.sum(np.square(factor)) - 2.0 * np.sum(roots)
    return float(np.sum(np.square(moments.mean - against.mean)) + traces)
