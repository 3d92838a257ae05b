"""The Frechet distance against closed forms, 50 digits and scipy; singular covariances too."""

import exact  # noqa: F401  # 50 digits
import mpmath as mp
import numpy as np
import pytest
import scipy.linalg

from ddpm_jax.evaluation import (
    EvaluationError,
    Moments,
    covariance,
    frechet_distance,
    frechet_distance_of_gaussians,
    moments_of,
)


def fifty_digits(mean_a, covariance_a, mean_b, covariance_b):
    """Eq. (1): the root's trace from the eigenvalues of C_a^{1/2} C_b C_a^{1/2}."""
    a, b = mp.matrix(covariance_a), mp.matrix(covariance_b)
    values, vectors = mp.eigsy(a)
    tiny = mp.mpf(10) ** -40  # an exact zero, to 50 digits
    roots = mp.diag([mp.sqrt(value) if value > tiny else 0 for value in values])
    root = vectors * roots * vectors.T
    products = mp.eigsy(root * b * root, eigvals_only=True)
    trace = sum(mp.sqrt(value) for value in products if value > tiny)
    means = sum((mp.mpf(x) - mp.mpf(y)) ** 2 for x, y in zip(mean_a, mean_b, strict=True))
    return means + sum(a[i, i] + b[i, i] for i in range(a.rows)) - 2 * trace


def exact_covariance(features):
    """Mean and covariance of the rows to 50 digits, so that the rank is theirs."""
    rows = mp.matrix(features)
    mean = [mp.fsum(rows[:, j]) / rows.rows for j in range(rows.cols)]
    centred = mp.matrix(rows.rows, rows.cols)
    for i in range(rows.rows):
        for j in range(rows.cols):
            centred[i, j] = rows[i, j] - mean[j]
    return mean, centred.T * centred / (rows.rows - 1)


def whole_covariance(generator, rank, dim=5):
    """F F^T of small whole numbers: of this rank exactly, in float64 as well."""
    factor = generator.integers(-4, 5, (dim, rank)).astype(float)
    return factor @ factor.T


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranks", [(5, 5), (2, 5), (5, 2), (2, 3), (3, 3), (1, 1), (0, 4), (0, 0)])
def test_fifty_digits_of_any_rank(ranks, seed):
    generator = np.random.default_rng(seed)
    covariances = [whole_covariance(generator, rank) for rank in ranks]
    means = generator.integers(-2, 3, (2, 5)) / 8.0
    arguments = means[0], covariances[0], means[1], covariances[1]
    expected = float(fifty_digits(*arguments))
    assert frechet_distance_of_gaussians(*arguments) == pytest.approx(expected, rel=2e-14)


def test_features_of_very_different_sizes():
    generator = np.random.default_rng(0)
    scale = np.diag(2.0 ** np.array([0, -20, 3, -40, 0]))  # exact
    covariances = [scale @ whole_covariance(generator, 5) @ scale for _ in range(2)]
    covariances[0][4], covariances[0][:, 4] = 0.0, 0.0  # and one is dead
    mean = np.zeros(5)
    expected = float(fifty_digits(mean, covariances[0], mean, covariances[1]))
    actual = frechet_distance_of_gaussians(mean, covariances[0], mean, covariances[1])
    assert actual == pytest.approx(expected, rel=2e-14)
    few = np.ix_([1, 3], [1, 3])
    small = covariances[0][few], covariances[1][few]
    expected = float(fifty_digits(np.zeros(2), small[0], np.zeros(2), small[1]))
    actual = frechet_distance_of_gaussians(np.zeros(2), small[0], np.zeros(2), small[1])
    assert actual == pytest.approx(expected, rel=2e-14)


def test_a_small_eigenvalue_is_not_taken_for_zero():
    # Nearly the same feature twice: eigenvalues 2 - 2^-36 and 2^-36, next to 1 and 1.
    small = 2.0**-36
    close = np.array([[1.0, 1.0 - small], [1.0 - small, 1.0]])
    expected = (np.sqrt(2.0 - small) - 1.0) ** 2 + (2.0**-18 - 1.0) ** 2
    actual = frechet_distance_of_gaussians(np.zeros(2), close, np.zeros(2), np.eye(2))
    assert actual == pytest.approx(expected, rel=1e-10)


def test_one_dimension_and_commuting_covariances():
    one = [np.array([value]) for value in (1.0, 4.0)]
    two = [np.array([[value]]) for value in (9.0, 0.25)]
    assert frechet_distance_of_gaussians(one[0], two[0], one[1], two[1]) == 9.0 + 6.25
    generator = np.random.default_rng(0)
    a, b = generator.gamma(1.0, size=(2, 30))
    turn = scipy.linalg.qr(generator.standard_normal((30, 30)))[0]
    mean_a, mean_b = generator.standard_normal((2, 30))
    # Both have the axes `turn`: (sqrt a - sqrt b)^2 along each.
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    rotated = [(turn * values) @ turn.T for values in (a, b)]
    rotated = [(matrix + matrix.T) / 2 for matrix in rotated]
    actual = frechet_distance_of_gaussians(mean_a, rotated[0], mean_b, rotated[1])
    assert actual == pytest.approx(expected, rel=1e-13)


def test_scipys_square_root():
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((64, 64))
    x = generator.standard_normal((500, 64)).astype(np.float32)
    y = (0.3 + generator.standard_normal((700, 64)) @ mixing).astype(np.float32)
    a, b = moments_of(x), moments_of(y)
    root = scipy.linalg.sqrtm(covariance(a) @ covariance(b))
    assert np.isrealobj(root)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(covariance(a) + covariance(b) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    arguments = a.mean, covariance(a), b.mean, covariance(b)
    assert frechet_distance_of_gaussians(*arguments) == pytest.approx(expected, rel=1e-12)


def test_fewer_samples_than_dimensions():
    # Samples in a subspace of 6 dimensions, which a turn hides: the distance is that of there.
    generator = np.random.default_rng(0)
    turn = scipy.linalg.qr(generator.standard_normal((80, 6)), mode="economic")[0]
    small = generator.standard_normal((5, 6)), 0.5 + 2.0 * generator.standard_normal((9, 6))
    expected = float(fifty_digits(*exact_covariance(small[0]), *exact_covariance(small[1])))
    a, b = (moments_of(part @ turn.T) for part in small)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=2e-14)
    # Without the number of samples, rounding alone says which eigenvalues are 0.
    actual = frechet_distance_of_gaussians(a.mean, covariance(a), b.mean, covariance(b))
    assert actual == pytest.approx(expected, rel=2e-14)


def test_from_a_few_samples_to_a_full_covariance():
    # Of 4 samples in 40 dimensions and the identity: |f_i| along each axis, sum (|f_i| - 1)^2.
    features = np.random.default_rng(0).standard_normal((4, 40))
    few = moments_of(features)
    singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)[:3] / np.sqrt(3)
    expected = np.sum(few.mean**2) + np.sum((singular - 1.0) ** 2) + 37
    identity = Moments(1000, np.zeros(40), 999 * np.eye(40))
    assert frechet_distance(few, identity) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("rows", [10, 300])
def test_equal_statistics_are_at_no_distance(rows):
    features = np.random.default_rng(0).gamma(1.0, size=(rows, 100)).astype(np.float32)
    a = moments_of(features)
    assert 0.0 <= frechet_distance(a, a) < 1e-26
    assert 0.0 <= frechet_distance(a, moments_of(features[::-1].copy())) < 1e-26
    # Where eq. (1) itself, a difference of traces of 100, would have no digit left:
    moved = moments_of(features + np.float32(2.0**-20))
    mean = moved.mean - a.mean
    expected = np.sum(mean**2)
    shifted = Moments(a.rows, moved.mean, a.scatter)
    assert frechet_distance(a, shifted) == pytest.approx(expected, rel=1e-12)
    scaled = Moments(a.rows, a.mean, a.scatter * (1 + 2.0**-20) ** 2)
    expected = np.trace(covariance(a)) * 2.0**-40
    assert frechet_distance(a, scaled) == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric():
    generator = np.random.default_rng(0)
    a = moments_of(generator.standard_normal((20, 30)))
    b = moments_of(generator.standard_normal((50, 30)) * 2.0)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-14)


def test_what_is_no_covariance(without_annotation_checks):
    mean, good = np.zeros(2), np.eye(2)
    for matrix, said in (
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue -1,"),
        (np.diag([1.0, -1e-30]), "the variance -1e-30,"),
        (np.array([[0.0, 1e-9], [1e-9, 1.0]]), "of variance 0 has a covariance"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "is not symmetric"),
        (np.eye(3), r"shape \(3, 3\)"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "not finite"),
    ):
        with pytest.raises(EvaluationError, match=rf"covariance_b .*{said}"):
            frechet_distance_of_gaussians(mean, good, mean, matrix)
    with pytest.raises(EvaluationError, match="moments has 1 row"):
        frechet_distance(moments_of(np.ones((1, 2))), moments_of(np.ones((3, 2))))
    with pytest.raises(EvaluationError, match=r"b\.mean has 3 dimensions and a\.mean 2"):
        frechet_distance(moments_of(np.ones((2, 2))), moments_of(np.ones((2, 3))))
