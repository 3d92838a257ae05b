"""Each closed form against quadrature or 50 digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from exact import float64, log_probability_and_slope, ulps
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.gaussians import discretized_log_likelihood, kl_diagonal, kl_to_standard_normal

kl = jax.jit(kl_diagonal)


def floats(*values):
    return jnp.array(values, jnp.float32)


@pytest.mark.parametrize(
    ("mean_q", "variance_q", "mean_p", "variance_p"),
    [(0.0, 1.0, 0.0, 1.0), (0.5, 0.25, -1.0, 4.0), (2.0, 9.0, 1.5, 0.5), (0.0, 1.0, 0.0, 1.125)],
)
def test_kl_is_the_integral(mean_q, variance_q, mean_p, variance_p):
    q = scipy.stats.norm(mean_q, np.sqrt(variance_q))
    p = scipy.stats.norm(mean_p, np.sqrt(variance_p))
    integral, _ = scipy.integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *q.interval(1 - 1e-15), epsabs=1e-10
    )
    value = kl(floats(mean_q), floats(variance_q), floats(mean_p), floats(variance_p))
    np.testing.assert_allclose(value, [integral], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("ratio", [1e-6, 0.4, 0.5, 0.9, 0.9999, 1.0001, 1.4, 1.6, 5.0, 1e6])
def test_kl_keeps_its_digits_when_the_variances_are_close(ratio):
    variance_p = np.float32(0.3)
    variance_q = np.float32(ratio) * variance_p
    value = kl(floats(0.0), floats(variance_q), floats(0.0), floats(variance_p))
    r = mp.mpf(float(variance_q)) / mp.mpf(float(variance_p))
    assert ulps(value, [(r - 1 - mp.log(r)) / 2]).max() < 8


@given(
    st.floats(-3, 3, width=32),
    st.floats(2**-20, 2**20, width=32),
    st.floats(2**-20, 2**20, width=32),
)
def test_kl_is_never_negative_and_zero_only_at_equality(mean, variance_q, variance_p):
    value = kl(floats(mean), floats(variance_q), floats(mean), floats(variance_p))[0]
    assert value > 0.0 if variance_q != variance_p else value == 0.0


@pytest.mark.parametrize("one_minus_variance", [1e-20, 1e-12, 1e-6, 4e-5, 1e-2, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("mean", [0.0, 1e-10, 0.006])
def test_kl_to_standard_normal_down_to_nothing(mean, one_minus_variance):
    mean, m = np.float32(mean), np.float32(one_minus_variance)
    value = kl_to_standard_normal(floats(mean), floats(m))
    exact_mean, exact_m = mp.mpf(float(mean)), mp.mpf(float(m))
    expected = (exact_mean**2 - exact_m - mp.log1p(-exact_m)) / 2
    # Below float32's smallest normal number there is only zero.
    np.testing.assert_allclose(value, float64([expected]), rtol=1e-6, atol=1e-38)


# The discretized log likelihood. Values relative to max(1, |log p|): in float32 the logarithm of
# a probability e^-5000 cannot be better than 5000 times its last place.

DEVIATIONS = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
MEANS = np.float32([-50, -3, -1, -0.998, -0.3, 0, 1e-3, 0.5, 1, 1.2, 7, 1000])


@pytest.fixture(scope="module")
def value_and_slope():
    """`(x, mean, deviation)` vectors and `levels` to log p and its derivative in the mean."""

    def total(mean, x, deviation, levels):
        values = discretized_log_likelihood(x, mean, deviation, levels=levels)
        return jnp.sum(values), values

    both = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=3)

    def compute(x, mean, deviation, levels):
        (_, values), slope = both(mean, x, deviation, levels)
        return values, slope

    return compute


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_log_likelihood_and_gradient_against_fifty_digits(value_and_slope, levels, deviation):
    grid = np.linspace(-1, 1, levels).astype(np.float32)
    x = grid[[0, levels // 3, levels // 2, levels - 1]]
    x, mean = (jnp.asarray(side.ravel()) for side in np.meshgrid(x, np.append(MEANS, x)))
    deviations = jnp.full(x.shape, deviation, jnp.float32)
    values, slopes = value_and_slope(x, mean, deviations, levels)
    expected = [
        log_probability_and_slope(*case, levels) for case in zip(x, mean, deviations, strict=True)
    ]
    expected, expected_slopes = (float64(side) for side in zip(*expected, strict=True))
    # Wide bins: below 4e-6. Bins of 1 / 1275 deviations are told apart by few of float32's digits.
    tolerance = 5e-5 if deviation == 10.0 else 5e-6
    error = np.abs(values - expected) / np.maximum(1.0, np.abs(expected))
    assert error.max() < tolerance
    error = np.abs(slopes - expected_slopes) / np.maximum(1.0, np.abs(expected_slopes))
    assert error.max() < 5e-5


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_bins_share_out_all_probability(value_and_slope, levels, deviation):
    grid = jnp.linspace(-1.0, 1.0, levels)
    for mean in (0.0, 0.123, -1.0, 2.5):
        log_p, _ = value_and_slope(
            grid, jnp.full(levels, mean), jnp.full(levels, deviation), levels
        )
        total = np.exp(np.asarray(log_p, np.float64)).sum()
        np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_the_outer_bins_are_open(value_and_slope):
    x, mean, deviation = floats(-1.0, 1.0), floats(-30.0, 30.0), floats(0.01, 0.01)
    values, slopes = value_and_slope(x, mean, deviation, 256)
    np.testing.assert_array_equal(values, [0.0, 0.0])
    np.testing.assert_array_equal(slopes, [0.0, 0.0])


def test_a_mean_far_away_is_pulled_back(value_and_slope):
    mean = floats(-1e6, -1e3, -2.0, 2.0, 1e3, 1e6)
    x, deviation = jnp.zeros(6), jnp.full(6, 1e-3)
    values, slopes = value_and_slope(x, mean, deviation, 256)
    assert np.isfinite(values).all()
    # Beyond all bins the slope is that of the density at the nearer edge.
    edge = np.sign(mean) / 255
    np.testing.assert_allclose(slopes, (edge - np.asarray(mean)) / 1e-6, rtol=1e-5)


def test_fewer_than_two_levels_are_none():
    with pytest.raises(ValueError, match="levels is 1"):
        discretized_log_likelihood(floats(0.0), floats(0.0), floats(1.0), levels=1)
