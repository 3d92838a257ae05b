"""Errors of the Frechet distance: by derivatives, and over many sets of samples of known laws."""

import functools

import numpy as np
import pytest

from ddpm_jax.evaluation import (
    EvaluationError,
    Gaussian,
    frechet_at_infinity,
    frechet_distance_of_gaussians,
    frechet_interval,
    gaussian_of,
    merge,
    moments_of,
)


def reference(dim):
    """Diagonal, of variances 1, 1/2, 1/3, ..."""
    return Gaussian(np.zeros(dim), np.diag(1.0 / np.arange(1, dim + 1)))


def weighted(x, weights):
    """Mean and covariance of rows with weights that sum to 1."""
    mean = weights @ x
    centred = x - mean
    return mean, (weights[:, None] * centred).T @ centred


@pytest.mark.parametrize("dead", [False, True])
def test_influences_are_the_derivatives_by_the_weights_of_the_rows(dead):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((40, 4)) @ generator.standard_normal((4, 4)) + 0.5
    rows[:, 2] *= 1e-3
    if dead:
        rows[:, 1] = 3.0
    against = gaussian_of(moments_of(generator.standard_normal((30, 4)) * [1.0, 2.0, 1e-3, 1.0]))
    equal = np.full(40, 1 / 40)
    of = Gaussian(*weighted(rows, equal))
    step, derivatives = 1e-5, []
    for row in range(40):
        towards = np.eye(40)[row] - equal
        ends = [
            frechet_distance_of_gaussians(*weighted(rows, equal + sign * step * towards), *against)
            for sign in (1.0, -1.0)
        ]
        derivatives.append((ends[0] - ends[1]) / (2 * step))
    error = np.std(derivatives, ddof=1) / np.sqrt(1000)
    value, low, high, note = frechet_interval(rows, of, against, 1000)
    assert value == pytest.approx(frechet_distance_of_gaussians(*of, *against), rel=1e-12)
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(value)
    assert "choice of the samples" in note


def test_samples_that_do_not_span_the_space_have_no_interval():
    rows = np.random.default_rng(0).standard_normal((6, 6))
    found = frechet_interval(rows, gaussian_of(moments_of(rows)), reference(6), 6)
    assert (found.low, found.high) == (None, None)
    assert "6 samples do not span the 6 features" in found.note


def test_equal_gaussians_are_at_no_distance_and_have_the_interval_zero():
    rows = np.random.default_rng(0).standard_normal((60, 5))
    of = gaussian_of(moments_of(rows))
    found = frechet_interval(rows, of, of, 60)
    np.testing.assert_allclose(found[:3], 0.0, atol=1e-12)


# The samples' law: the reference's, moved and scaled.
SAMPLES, DIM, REPETITIONS = 96, 4, 100


@pytest.fixture(scope="module", params=[(0.0, 1.0), (0.3, 1.4)], ids=["equal", "different"])
def many(request):
    """The true distance, and of many sets of samples the distances at n and at infinity."""
    shift, scale = request.param
    of = reference(DIM)
    deviations = scale * np.sqrt(np.diagonal(of.covariance))
    true = DIM * shift**2 + np.sum((deviations - deviations / scale) ** 2)
    generator = np.random.default_rng(0)
    at_n, at_infinity = [], []
    for _ in range(REPETITIONS):
        rows = shift + deviations * generator.standard_normal((SAMPLES, DIM))
        at_n.append(frechet_interval(rows, gaussian_of(moments_of(rows)), of, SAMPLES))
        # Groups of unequal sizes, as a hash of the number of the sample makes them.
        groups = np.split(rows, [10, 24, 35, 48, 57, 72, 85])
        at_infinity.append(frechet_at_infinity([moments_of(group) for group in groups], of))
    return true, at_n, at_infinity


def coverage_of(number, estimates):
    return np.mean([estimate.low <= number <= estimate.high for estimate in estimates])


def test_an_interval_covers_the_mean_of_its_number_of_samples(many):
    _, at_n, _ = many
    # 95 % of 100: below 0.88 by chance in 0.4 %; near 1 where the laws are equal.
    assert coverage_of(np.mean([estimate.value for estimate in at_n]), at_n) >= 0.88


def test_the_distance_at_infinity_has_no_bias_of_the_number_of_samples(many):
    true, at_n, at_infinity = many
    of_n, corrected = (np.array([e.value for e in part]) for part in (at_n, at_infinity))
    error = np.std(corrected) / np.sqrt(REPETITIONS)
    assert np.mean(of_n) - true > 5 * error
    assert abs(np.mean(corrected) - true) < 3 * error + 0.05 * (np.mean(of_n) - true)
    assert coverage_of(true, at_infinity) >= 0.88


def test_a_percentile_bootstrap_has_the_bias_twice():
    generator = np.random.default_rng(0)
    dim, num = 16, 96
    of = reference(dim)
    rows = generator.multivariate_normal(*of, num)
    value = frechet_interval(rows, gaussian_of(moments_of(rows)), of, num)
    again = []
    for _ in range(50):
        drawn = gaussian_of(moments_of(rows[generator.integers(0, num, num)]))
        again.append(frechet_distance_of_gaussians(*drawn, *of))
    assert np.quantile(again, 0.025) > value.high


def test_the_distance_at_infinity_is_that_of_a_parabola_through_three_sizes():
    rows = np.random.default_rng(0).standard_normal((8, 20, 3)) + 0.2
    of = reference(3)

    def distance(parts):
        return frechet_distance_of_gaussians(*gaussian_of(moments_of(np.concatenate(parts))), *of)

    at_n = distance(rows)
    at_fewer = [distance(np.delete(rows, index, axis=0)) for index in range(8)]
    halves = [[0, 2, 4, 6], [1, 3, 5, 7], [0, 1, 4, 5], [2, 3, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]
    at_half = [distance(rows[half]) for half in halves]
    parabola = np.polyfit(
        1 / np.array([160, 140, 80]), [at_n, np.mean(at_fewer), np.mean(at_half)], 2
    )
    found = frechet_at_infinity([moments_of(group) for group in rows], of)
    assert found.value == pytest.approx(parabola[2], rel=1e-7)
    half = 2.364624 * np.std([8 * at_n - 7 * d for d in at_fewer], ddof=1) / np.sqrt(8)
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-6)  # Student's t, 7 degrees


def test_the_parabola_leaves_little_of_the_bias_in_many_dimensions():
    # 4 samples for each of 120 features: 0.6 % is left; a line through n and 7 n / 8 leaves 4 %.
    dim, num = 120, 480
    generator = np.random.default_rng(0)
    of, at_n, corrected = Gaussian(np.zeros(dim), np.eye(dim)), [], []
    for _ in range(8):
        groups = [moments_of(generator.standard_normal((num // 8, dim))) for _ in range(8)]
        corrected.append(frechet_at_infinity(groups, of).value)
        whole = functools.reduce(merge, groups)
        at_n.append(frechet_distance_of_gaussians(*gaussian_of(whole), *of))
    assert abs(np.mean(corrected)) < 0.02 * np.mean(at_n)  # 2 standard errors


def test_few_samples_for_each_feature_have_no_interval_at_infinity():
    rows = np.random.default_rng(0).standard_normal((4, 7, 8))
    found = frechet_at_infinity([moments_of(group) for group in rows], reference(8))
    assert np.isfinite(found.value)
    assert found.low is None
    assert "28 samples are fewer than 4 for each of the 8 features" in found.note


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: frechet_at_infinity([moments_of(x)] * 2, reference(3)), "groups has 2 moments"),
        (
            lambda x: frechet_at_infinity([moments_of(x)] * 3, reference(4)),
            r"groups\[0\]\.mean has 3 dimensions and against\.mean 4",
        ),
        (
            lambda x: frechet_at_infinity([moments_of(x)] * 3, Gaussian(np.zeros(3), -np.eye(3))),
            "covariance_against is not a covariance",
        ),
        (
            lambda x: frechet_interval(x, reference(3), reference(4), 9),
            r"mean_against has shape \(4,\)",
        ),
        (
            lambda x: frechet_interval(x[:1], reference(3), reference(3), 9),
            "n at least 2",
        ),
    ],
)
def test_what_is_refused(without_annotation_checks, call, sentence):
    with pytest.raises(EvaluationError, match=sentence):
        call(np.random.default_rng(0).standard_normal((9, 3)))
