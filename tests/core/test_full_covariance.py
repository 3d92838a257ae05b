"""Full covariances against 50 digits, scipy, samples and their diagonal special case."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from exact import float64
from hypothesis import given
from hypothesis import strategies as st
from marks import thorough_but

from ddpm_jax.gaussians import (
    entropy_diagonal,
    entropy_full,
    kl_diagonal,
    kl_full,
    log_density_diagonal,
    log_density_full,
)

full = jax.jit(kl_full)


def random_factor(rng, d, condition):
    """Cholesky factor, in float64, of a covariance with eigenvalues from 1 to 1 / condition."""
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return np.linalg.cholesky(basis * np.geomspace(1, 1 / condition, d) @ basis.T)


def near_factor(rng, factor, distance):
    """Of a covariance that differs from the given one by `distance`, measured in its own units."""
    d = factor.shape[-1]
    change = rng.normal(size=(d, d)) / np.sqrt(d)
    return np.linalg.cholesky(factor @ (np.eye(d) + distance * change @ change.T) @ factor.T)


def in_float32(*arrays):
    return tuple(jnp.asarray(np.float32(array)) for array in arrays)


def kl_of_matrices(mean_q, factor_q, mean_p, factor_p):
    """The textbook's trace, inverse and determinants, in as many digits as mpmath is told."""
    mean_q, factor_q, mean_p, factor_p = (
        mp.matrix(np.asarray(a).tolist()) for a in (mean_q, factor_q, mean_p, factor_p)
    )
    covariance_q, covariance_p = factor_q * factor_q.T, factor_p * factor_p.T
    product, difference = covariance_p**-1 * covariance_q, mean_q - mean_p
    trace = sum(product[i, i] for i in range(product.rows))
    distance = (difference.T * covariance_p**-1 * difference)[0]
    return (trace - product.rows + distance - mp.log(mp.det(product))) / 2


@pytest.mark.parametrize(
    ("condition", "tolerance"), [(1.0, 5e-7), (1e2, 5e-7), (1e4, 3e-6), (1e6, 2e-5)]
)
@pytest.mark.parametrize("distance", thorough_but([1.0], [1e-6, 1e-3, 1.0, 1e3]))
def test_full_kl_against_fifty_digits(condition, tolerance, distance):
    # The same float32 factors go to both, so the error is that of the arithmetic alone: 1e-7, 2e-7,
    # 5e-7, 1.4e-5. It grows with the condition, and not as the KL falls to 1e-12.
    rng = np.random.default_rng(int(condition))
    factor_p = [random_factor(rng, 5, condition) for _ in range(4)]
    factor_q = [near_factor(rng, factor, distance) for factor in factor_p]
    mean_q = [distance * factor @ rng.normal(size=5) for factor in factor_p]
    case = in_float32(mean_q, factor_q, np.zeros((4, 5)), factor_p)
    expected = float64([kl_of_matrices(*arrays) for arrays in zip(*case, strict=True)])
    np.testing.assert_allclose(full(*case), expected, rtol=tolerance)


@pytest.mark.parametrize(("condition", "tolerance"), [(1e2, 2e-6), (1e6, 5e-5)])
def test_full_density_and_entropy_against_scipy(condition, tolerance):
    # scipy gets the covariance of the float32 factor in float64, 1e-10 of which is noise at 1e6.
    rng = np.random.default_rng(1)
    (factor, mean, z) = in_float32(
        random_factor(rng, 6, condition), rng.normal(size=6), rng.normal(size=(50, 6))
    )
    wide = np.asarray(factor, np.float64)
    reference = scipy.stats.multivariate_normal(np.asarray(mean, np.float64), wide @ wide.T)
    x = z @ factor.T + jnp.broadcast_to(mean, z.shape)
    means, factors = jnp.broadcast_to(mean, x.shape), jnp.broadcast_to(factor, (50, 6, 6))
    expected = reference.logpdf(np.asarray(x, np.float64))
    # Relative to the largest of the sum's terms.
    scale = np.maximum(np.abs(expected), 10.0)
    error = np.abs(np.asarray(log_density_full(x, means, factors), np.float64) - expected)
    assert (error / scale).max() < tolerance
    np.testing.assert_allclose(entropy_full(factor), reference.entropy(), rtol=1e-6, atol=1e-6)


@pytest.mark.thorough
def test_full_is_diagonal_where_the_covariance_is():
    # From vanishing variances, 1e-36, to 1e30; q and p within a factor of 10 and 10 deviations.
    rng = np.random.default_rng(6)
    factor_p = np.float32(10 ** rng.uniform(-18, 15, (100, 5)))
    factor_q = np.float32(factor_p * 10 ** rng.uniform(-0.5, 0.5, (100, 5)))
    mean_p = np.float32(factor_p * rng.normal(size=(100, 5)))
    mean_q = np.float32(factor_p * rng.normal(size=(100, 5)) * 3)
    mean_q, mean_p, variance_q, variance_p = in_float32(mean_q, mean_p, factor_q**2, factor_p**2)
    factor_q, factor_p = in_float32(*(f[..., None] * np.eye(5) for f in (factor_q, factor_p)))

    expected = jnp.sum(kl_diagonal(mean_q, variance_q, mean_p, variance_p), axis=-1)
    np.testing.assert_allclose(full(mean_q, factor_q, mean_p, factor_p), expected, rtol=2e-6)
    slopes = jax.grad(lambda *case: jnp.sum(kl_full(*case)), argnums=(0, 1, 2, 3))
    assert all(np.isfinite(slope).all() for slope in slopes(mean_q, factor_q, mean_p, factor_p))
    expected = jnp.sum(log_density_diagonal(mean_q, mean_p, variance_p), axis=-1)
    actual = log_density_full(mean_q, mean_p, factor_p)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-4)
    expected = jnp.sum(entropy_diagonal(variance_p), axis=-1)
    np.testing.assert_allclose(entropy_full(factor_p), expected, rtol=2e-6, atol=1e-4)


@pytest.mark.thorough
@given(st.integers(0, 2**16), st.integers(1, 5), st.floats(-8, 8), st.floats(-5, 5))
def test_full_kl_is_a_distance_of_shapes(seed, d, log_scale, shift):
    """Never negative, 0 from itself, and blind to a shift, a scale and a rotation of both."""
    rng = np.random.default_rng(seed)
    mean_q, mean_p = rng.normal(size=(2, d))
    factor_q, factor_p = random_factor(rng, d, 10.0), random_factor(rng, d, 10.0)
    value = full(*in_float32(mean_q, factor_q, mean_p, factor_p))
    assert value.shape == ()
    assert value > 0.0
    assert full(*in_float32(mean_q, factor_q, mean_q, factor_q)) == 0.0

    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    turn = np.exp(log_scale) * turn
    moved = (turn @ mean_q + shift, turn @ factor_q, turn @ mean_p + shift, turn @ factor_p)
    moved = [np.linalg.cholesky(a @ a.T) if a.ndim == 2 else a for a in moved]
    # What the shift costs: the means' roundings, in deviations of at least exp(log_scale) / 3.
    lost = 1e-6 * (1.0 + abs(shift) * np.exp(-log_scale))
    np.testing.assert_allclose(full(*in_float32(*moved)), value, rtol=20 * lost, atol=20 * lost)


@pytest.mark.thorough
def test_full_kl_is_the_mean_log_ratio():
    # 200,000 samples; within 4.5 standard errors of their mean, p < 1e-5 at a fixed seed.
    rng, size = np.random.default_rng(2), 200_000
    mean_q, mean_p = rng.normal(size=(2, 3))
    factor_q, factor_p = random_factor(rng, 3, 20.0), random_factor(rng, 3, 5.0)
    x = mean_q + rng.normal(size=(size, 3)) @ factor_q.T
    q, p = (
        scipy.stats.multivariate_normal(mean, factor @ factor.T)
        for mean, factor in ((mean_q, factor_q), (mean_p, factor_p))
    )
    ratio = q.logpdf(x) - p.logpdf(x)
    value = full(*in_float32(mean_q, factor_q, mean_p, factor_p))
    assert abs(value - ratio.mean()) < 4.5 * ratio.std() / np.sqrt(size)


@pytest.mark.thorough
def test_full_kl_slopes_against_finite_differences():
    rng = np.random.default_rng(3)
    factor = random_factor(rng, 3, 10.0)
    case = in_float32(
        rng.normal(size=3), near_factor(rng, factor, 1e-2), rng.normal(size=3), factor
    )
    slope = jax.grad(kl_full, argnums=(0, 1, 2, 3))(*case)
    for i, array in enumerate(case):
        for index in np.ndindex(array.shape):

            def shifted(shift, i=i, index=index):
                moved = [np.asarray(a, np.float64).astype(object) for a in case]
                moved[i][index] += shift
                return kl_of_matrices(*moved)

            is_read = array.ndim == 1 or index[0] >= index[1]
            expected = float(mp.diff(shifted, 0)) if is_read else 0.0
            np.testing.assert_allclose(slope[i][index], expected, rtol=1e-4, atol=1e-5)


def test_what_stands_above_the_diagonal_is_not_read():
    rng = np.random.default_rng(4)
    mean_q, mean_p = in_float32(*rng.normal(size=(2, 3)))
    factor_q, factor_p = in_float32(random_factor(rng, 3, 9.0), random_factor(rng, 3, 9.0))
    rubbish = jnp.triu(jnp.full((3, 3), jnp.nan), 1)
    value = kl_full(mean_q, factor_q + rubbish, mean_p, factor_p + rubbish)
    np.testing.assert_array_equal(value, kl_full(mean_q, factor_q, mean_p, factor_p))
    value = log_density_full(mean_q, mean_p, factor_p + rubbish)
    np.testing.assert_array_equal(value, log_density_full(mean_q, mean_p, factor_p))
    np.testing.assert_array_equal(entropy_full(factor_p + rubbish), entropy_full(factor_p))


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 3, 4)])
def test_factors_are_square(without_annotation_checks, shape):
    with pytest.raises(ValueError, match="cholesky has shape"):
        entropy_full(jnp.ones(shape))
    with pytest.raises(ValueError, match="mean_q has shape"):
        kl_full(jnp.ones(()), jnp.ones(shape), jnp.ones(()), jnp.ones(shape))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_of_full_covariances(dtype):
    rng = np.random.default_rng(5)
    case = [jnp.asarray(a, dtype) for a in rng.normal(size=(2, 3))]
    case += [jnp.asarray(random_factor(rng, 3, 9.0), dtype) for _ in range(2)]
    mean_q, mean_p, factor_q, factor_p = case
    for function, arguments in (
        (kl_full, (mean_q, factor_q, mean_p, factor_p)),
        (log_density_full, (mean_q, mean_p, factor_p)),
        (entropy_full, (factor_p,)),
    ):
        value = function(*arguments)
        assert value.dtype == dtype
        once = function(*(a.astype(jnp.float32) for a in arguments)).astype(dtype)
        np.testing.assert_array_equal(value, once)
