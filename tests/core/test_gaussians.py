"""Each closed form for diagonal covariances against quadrature or 50 digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from exact import float64, ulps
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax import gaussians
from ddpm_jax.gaussians import (
    entropy_diagonal,
    kl_diagonal,
    kl_shared_variance,
    kl_standardized,
    kl_to_standard_normal,
    log_density_diagonal,
)

kl = jax.jit(kl_diagonal)
LARGEST = float(np.finfo(np.float32).max)


def floats(*values):
    return jnp.array(values, jnp.float32)


def exactly(*arrays):
    """Rows of float32 arrays as mpmath numbers."""
    columns = ([mp.mpf(float(value)) for value in array] for array in arrays)
    return zip(*columns, strict=True)


def slopes(function, *arrays):
    """Derivative of each element in each argument, for functions that work element by element."""
    argnums = tuple(range(len(arrays)))
    return jax.jit(jax.grad(lambda *a: jnp.sum(function(*a)), argnums))(*arrays)


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


@pytest.mark.thorough
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


@pytest.fixture(scope="module")
def pairs():
    """Mean and variance of q and p: variances from 1e-37 to 1e30, ratios near 1 and far off."""
    rng, size = np.random.default_rng(0), 500
    variance_p = np.float32(10 ** rng.uniform(-36, 30, size))
    log_ratio = rng.choice([-1, 1], size) * 10 ** rng.uniform(-7, 1, size)
    log_q = np.clip(np.log(variance_p.astype(np.float64)) + log_ratio, np.log(1e-37), None)
    deviation = np.sqrt(variance_p.astype(np.float64))
    mean_q, mean_p = (
        deviation * rng.normal(size=size) * 10 ** rng.uniform(-4, 2, size) for _ in range(2)
    )
    return tuple(jnp.asarray(np.float32(a)) for a in (mean_q, np.exp(log_q), mean_p, variance_p))


@pytest.mark.thorough
def test_kl_and_its_slopes_over_float32s_range(pairs):
    # 4.7 ulps and, for slopes relative to the sum of their terms, 2.2e-7. A quotient's own
    # derivative has variance_p^2 in it and gave NaN below 1e-19.
    expected, expected_slopes, scales = [], [], []
    for mean_q, variance_q, mean_p, variance_p in exactly(*pairs):
        error, r = (mean_q - mean_p) / mp.sqrt(variance_p), variance_q / variance_p
        expected.append((r - 1 - mp.log(r) + error**2) / 2)
        in_mean = error / mp.sqrt(variance_p)
        in_q, in_p = (r - 1) / variance_q / 2, (1 - r - error**2) / variance_p / 2
        expected_slopes.append((in_mean, in_q, -in_mean, in_p))
        whole = (1 + r + error**2) / variance_p / 2
        scales.append((abs(in_mean), abs(in_q), abs(in_mean), whole))
    assert ulps(kl(*pairs), expected).max() < 7
    for slope, wanted, scale in zip(
        slopes(kl_diagonal, *pairs),
        np.transpose(expected_slopes),
        np.transpose(scales),
        strict=True,
    ):
        wanted, scale = float64(wanted), float64(scale)
        fits = scale < LARGEST
        assert fits.sum() > 480
        assert not np.isnan(slope).any()
        assert (np.abs(slope - wanted)[fits] <= 5e-7 * scale[fits]).all()


@pytest.mark.parametrize(
    ("variance_q", "variance_p"), [(1e-30, 1e30), (1e-37, 1e10), (1e-20, 1e25)]
)
def test_a_ratio_that_underflows_has_a_logarithm(variance_q, variance_p):
    value = kl(floats(0.0), floats(variance_q), floats(0.0), floats(variance_p))
    ((q, p),) = exactly(floats(variance_q), floats(variance_p))
    assert ulps(value, [(q / p - 1 - mp.log(q / p)) / 2]).max() < 2


@pytest.mark.thorough
@given(st.floats(-50, 50, width=16), st.integers(-30, 30), st.floats(-3, 3, width=16))
def test_kl_knows_no_origin_and_no_unit(shift, exponent, mean):
    # Shifts of half-precision numbers and powers of two are exact, so nothing may change at all.
    mean_q, mean_p, variance_q, variance_p = floats(mean, 0.5, 0.3, 0.7)[:, None]
    value, scale = kl(mean_q, variance_q, mean_p, variance_p), 2.0**exponent
    shifted = kl(mean_q + shift, variance_q, mean_p + shift, variance_p)
    scaled = kl(scale * mean_q, scale**2 * variance_q, scale * mean_p, scale**2 * variance_p)
    np.testing.assert_allclose(shifted, value, rtol=2e-5 if shift else 0)
    np.testing.assert_array_equal(scaled, value)


def test_kl_of_a_shared_variance(pairs):
    mean_q, _, mean_p, variance = pairs
    expected = [(q - p) ** 2 / (2 * v) for q, p, v in exactly(mean_q, mean_p, variance)]
    assert ulps(kl_shared_variance(mean_q, mean_p, variance), expected).max() < 4
    in_mean, _, in_variance = slopes(kl_shared_variance, mean_q, mean_p, variance)
    error = float64([(q - p) / v for q, p, v in exactly(mean_q, mean_p, variance)])
    fits = error**2 < LARGEST
    np.testing.assert_allclose(in_mean, error, rtol=5e-7)
    np.testing.assert_allclose(in_variance[fits], -0.5 * error[fits] ** 2, rtol=1e-6, atol=1e-37)


def test_squares_that_leave_float32s_range_before_their_half():
    mean = floats(2e19)
    np.testing.assert_allclose(kl_shared_variance(mean, 0 * mean, floats(1.0)), 2e38, rtol=1e-6)
    np.testing.assert_allclose(kl_standardized(mean, 0 * mean), 2e38, rtol=1e-6)
    np.testing.assert_allclose(log_density_diagonal(mean, 0 * mean, floats(1.0)), -2e38, rtol=1e-6)


SIZES = np.concatenate([np.geomspace(1e-18, 80, 150), [0.99999994, 1.0, 1.0000001, 0.5]])
LOG_RATIOS = np.float32(np.concatenate([SIZES, -SIZES, [-87.0]]))


@pytest.mark.parametrize("error", [0.0, 1e-6, 3.0])
def test_standardized_kl_and_its_slopes(error):
    d, errors = jnp.asarray(LOG_RATIOS), jnp.full(LOG_RATIOS.shape, error, jnp.float32)
    expected = [(mp.expm1(x) - x + e**2) / 2 for x, e in exactly(d, errors)]
    assert ulps(kl_standardized(errors, d), expected).max() < 3
    in_error, in_ratio = slopes(kl_standardized, errors, d)
    np.testing.assert_array_equal(in_error, errors)
    # What expm1 itself is off by: 0.5 in jax 0.12, 3.4 in jax 0.10.
    assert ulps(in_ratio, [mp.expm1(x) / 2 for (x,) in exactly(d)]).max() < 4


def test_equal_gaussians_are_no_distance_apart():
    zero = floats(0.0)
    assert kl_standardized(zero, zero) == 0.0
    assert slopes(kl_standardized, zero, zero) == (0.0, 0.0)


@pytest.mark.thorough
def test_entropy_and_log_density_over_float32s_range(pairs):
    x, _, mean, variance = pairs
    two_pi, rows = 2 * mp.pi, list(exactly(x, mean, variance))
    expected = float64([(mp.log(two_pi * v) + 1) / 2 for _, _, v in rows])
    np.testing.assert_allclose(entropy_diagonal(variance), expected, rtol=3e-7, atol=3e-7)
    expected = float64([-((a - b) ** 2 / v + mp.log(two_pi * v)) / 2 for a, b, v in rows])
    scale = float64([((a - b) ** 2 / v + abs(mp.log(v))) / 2 + 1 for a, b, v in rows])
    log_density = np.asarray(log_density_diagonal(x, mean, variance), np.float64)
    assert (np.abs(log_density - expected) / scale).max() < 3e-7
    in_x, in_mean, in_variance = slopes(log_density_diagonal, x, mean, variance)
    precise = float64([(b - a) / v for a, b, v in rows])
    np.testing.assert_allclose(in_x, precise, rtol=5e-7)
    np.testing.assert_array_equal(in_mean, -in_x)
    wanted, whole = (float64([((a - b) ** 2 / v + k) / v / 2 for a, b, v in rows]) for k in (-1, 1))
    fits = whole < LARGEST
    assert (np.abs(in_variance - wanted)[fits] <= 5e-7 * whole[fits]).all()


@pytest.mark.parametrize("variance", [1e-8, 0.3, 40.0])
def test_entropy_is_the_integral_of_the_log_density(variance):
    q = scipy.stats.norm(0.2, np.sqrt(variance))
    density = jax.jit(log_density_diagonal)

    def integrand(x):
        point = floats(x - 0.2)  # of a shifted Gaussian: float32 has no digits for 0.2 + 1e-4
        return -q.pdf(x) * float(density(point, floats(0.0), floats(variance))[0])

    integral, _ = scipy.integrate.quad(integrand, *q.interval(1 - 1e-12), epsrel=1e-7)
    np.testing.assert_allclose(entropy_diagonal(floats(variance)), [integral], rtol=1e-5)


CASES = {
    "kl_diagonal": (0.4, 0.5, -0.3, 1.7),
    "kl_shared_variance": (0.4, -0.3, 1.7),
    "kl_standardized": (0.4, -0.01),
    "kl_to_standard_normal": (0.4, 0.01),
    "entropy_diagonal": (1.7,),
    "log_density_diagonal": (0.4, -0.3, 1.7),
}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_rounded_once(name, dtype):
    function, arguments = getattr(gaussians, name), [jnp.array([a], dtype) for a in CASES[name]]
    value = function(*arguments)
    assert value.dtype == dtype
    once = function(*(a.astype(jnp.float32) for a in arguments)).astype(dtype)
    np.testing.assert_array_equal(value, once)
