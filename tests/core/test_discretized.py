"""Grey levels under a Gaussian cut into bins, against 50 digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import float64, log_probability_and_slopes
from hypothesis import given
from hypothesis import strategies as st
from marks import thorough_but

from ddpm_jax.gaussians import discretized_log_likelihood

LEVELS = [2, 17, 256, 65536]
DEVIATIONS = [1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 1e3, 1e34]
MEANS = np.float32([-50, -3, -1, -0.998, -0.3, 0, 1e-6, 1e-3, 0.5, 1, 1.2, 7, 1000])
LARGEST = np.finfo(np.float32).max


def floats(*values):
    return jnp.array(values, jnp.float32)


def grid(levels):
    return np.asarray(jnp.linspace(-1.0, 1.0, levels))


def total(x, mean, deviation, levels):
    values = discretized_log_likelihood(x, mean, deviation, levels=levels)
    return jnp.sum(values), values


slopes_and_values = jax.jit(jax.grad(total, argnums=(1, 2), has_aux=True), static_argnums=3)


def compute(x, mean, deviation, levels):
    """log p, its slope in the mean and its slope in the deviation, of vectors."""
    slopes, values = slopes_and_values(*map(jnp.asarray, (x, mean, deviation)), levels)
    return values, *slopes


def exact(x, mean, deviation, levels):
    """The same, with digits enough for e^-z^2 at z = 1e40, where 50 are none."""
    digits = 50 if np.min(deviation) > 1e-6 else 150
    with mp.workdps(digits):
        cases = [
            log_probability_and_slopes(*case, levels)
            for case in zip(x, mean, deviation, strict=True)
        ]
    return tuple(float64(side) for side in zip(*cases, strict=True))


def worst(actual, expected, scale):
    """The largest error relative to max(scale, |expected|)."""
    error = np.abs(np.asarray(actual, np.float64) - expected)
    return (error / np.maximum(scale, np.abs(expected))).max()


def cases(levels, deviation):
    """The border, two inner levels; means near and far, on the levels, on their edges and off."""
    x, half_bin = grid(levels)[[0, levels // 3, levels // 2, levels - 1]], 1.0 / (levels - 1)
    around = [np.float32(x + k * half_bin) for k in (0.0, 0.99, 1.0, -1.01, 1.7)]
    x, mean = (side.ravel() for side in np.meshgrid(x, np.concatenate([MEANS, *around])))
    return x, mean, np.full(x.shape, deviation, np.float32)


# Values relative to max(1, |log p|): in float32 the logarithm of a probability e^-5000 cannot be
# better than 5000 times its last place. Slopes relative to max(1 / deviation, |slope|).
# The worst over this grid is 2.3e-7 for values and 8e-7 for slopes. Differences of two log Phi,
# which were here before, had 2e-3 and 4e-2 at 65536 levels and deviation 10, and 1e-4 for the
# values of 2 levels at deviation 1e-4, whose edges float32 rounds.
@pytest.mark.parametrize("levels", thorough_but([256], LEVELS))
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_values_and_slopes_against_fifty_digits(levels, deviation):
    x, mean, deviations = cases(levels, deviation)
    values, slopes, slopes_deviation = compute(x, mean, deviations, levels)
    expected, expected_slopes, expected_deviation = exact(x, mean, deviations, levels)
    assert worst(values, expected, 1.0) < 4e-7
    assert worst(slopes, expected_slopes, 1.0 / deviation) < 1.5e-6
    assert worst(slopes_deviation, expected_deviation, 1.0 / deviation) < 1.5e-6


@pytest.mark.thorough
@given(
    st.sampled_from(LEVELS),
    st.integers(0, 65535),
    st.floats(-9, 9),
    st.floats(-3, 6),
    st.sampled_from([-1, 1]),
)
def test_anywhere_in_any_regime(levels, level, log_deviation, log_distance, side):
    # Deviations from e-9 to e+9 half bins, means from 1e-3 to 1e6 deviations away.
    x = grid(levels)[[level % levels]]
    deviation = np.float32([np.exp(log_deviation) / (levels - 1)])
    mean = np.float32(x + side * 10**log_distance * deviation)
    values, *slopes = compute(x, mean, deviation, levels)
    expected, *expected_slopes = exact(x, mean, deviation, levels)
    assert values[0] <= 0.0
    assert worst(values, expected, 1.0) < 4e-7
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        assert worst(slope, expected_slope, 1.0 / deviation) < 3e-6


@pytest.mark.thorough
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("deviation", [1e-12, 1e-20, 1e-30, 1.2e-38])
def test_vanishing_deviations(levels, deviation):
    # Inside the bin 0, outside what float32 can say, on the edge log(1/2). Edges are 1 / (levels
    # - 1) from a level: exact in float32 for 2 and 17 levels, off by roundings for the others.
    x, mean, deviations = cases(levels, deviation)
    values, *slopes = compute(x, mean, deviations, levels)
    expected, *expected_slopes = exact(x, mean, deviations, levels)
    beyond = expected < -LARGEST
    np.testing.assert_array_equal(np.isneginf(values), beyond)
    np.testing.assert_allclose(values[~beyond], expected[~beyond], rtol=1e-6, atol=1e-12)
    if deviation < 1e-15:
        assert {-np.inf, 0.0} <= {float(value) for value in values}
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        # Beyond float32's range they are held at its end.
        held = np.clip(expected_slope, -float(LARGEST), float(LARGEST))
        np.testing.assert_allclose(slope, held, rtol=2e-6, atol=1e-12)


@pytest.mark.thorough
def test_deviations_below_normal_numbers():
    # 1e-38 is no normal number and read as 0: the limit of log p, and never NaN.
    levels = 17
    x, mean, deviations = cases(levels, 1e-38)
    values, *slopes = compute(x, mean, deviations, levels)
    limit, *_ = exact(x, mean, np.full(x.shape, 1.2e-38, np.float32), levels)
    np.testing.assert_allclose(values, np.where(limit < -LARGEST, -np.inf, limit), rtol=1e-6)
    assert np.isfinite(slopes).all()


@pytest.mark.thorough
def test_no_weight_on_an_infinite_loss_is_no_gradient():
    def nothing(mean, deviation):
        log_p = discretized_log_likelihood(floats(0.0), mean, deviation, levels=256)
        return jnp.sum(jnp.where(log_p < -1e30, 0.0, log_p))

    slopes = jax.grad(nothing, argnums=(0, 1))(floats(1.0), floats(1e-30))
    np.testing.assert_array_equal(slopes, 0.0)


@pytest.mark.parametrize("levels", thorough_but([256], [2, 3, *LEVELS[1:]]))
@pytest.mark.parametrize("deviation", [1e-4, 1e-2, 0.1, 1.0, 10.0])
def test_bins_share_out_all_probability(levels, deviation):
    # float32's own grid of 65536 levels is off by 1e-3 of a bin. Else a few bins have all of it,
    # and logarithms of some last places of error.
    means = (0.0, 0.123, -1.0, 2.5)
    x, mean = (side.ravel() for side in np.meshgrid(grid(levels), np.float32(means)))
    values, *_ = compute(x, mean, np.full(x.shape, deviation, np.float32), levels)
    sums = np.exp(np.asarray(values, np.float64)).reshape(len(means), levels).sum(axis=1)
    np.testing.assert_allclose(
        sums, 1.0, atol=5e-4 if levels == 65536 and deviation < 1e-3 else 4e-6
    )


@pytest.mark.parametrize("levels", thorough_but([256], LEVELS))
def test_the_two_outer_bins_alone_are_open(levels):
    x, deviation = grid(levels), np.full(levels, 0.01, np.float32)
    for side, owner in ((-30.0, 0), (30.0, levels - 1)):
        values, *slopes = compute(x, np.full(levels, side, np.float32), deviation, levels)
        assert values[owner] == 0.0
        assert (np.delete(values, owner) < -1e6).all()
        assert slopes[0][owner] == slopes[1][owner] == 0.0


@pytest.mark.thorough
def test_a_mean_far_away_is_pulled_back():
    mean = floats(-1e6, -1e3, -2.0, 2.0, 1e3, 1e6)
    values, slopes, _ = compute(jnp.zeros(6), mean, jnp.full(6, 1e-3), 256)
    assert np.isfinite(values).all()
    # Beyond all bins the slope is that of the density at the nearer edge.
    edge = np.sign(mean) / 255
    np.testing.assert_allclose(slopes, (edge - np.asarray(mean)) / 1e-6, rtol=1e-6)


def test_infinite_means_and_nan():
    x, mean = floats(0.0, -1.0, 1.0, 0.0, -1.0), floats(np.inf, -np.inf, -np.inf, np.nan, np.nan)
    values, *slopes = compute(x, mean, jnp.full(5, 0.1), 256)
    np.testing.assert_array_equal(values, [-np.inf, 0.0, -np.inf, np.nan, np.nan])
    assert not np.isnan(np.stack(slopes)[:, :3]).any()


@pytest.mark.thorough
def test_second_derivatives():
    # A narrow bin, a wide one far from the mean and around it, and open ones on both sides.
    x, mean = floats(0.0, 0.0, 0.0, -1.0, -1.0, 1.0), floats(0.3, 0.5, 0.01, -1.2, -0.5, 0.0)
    deviation = floats(1.0, 0.03, 0.02, 0.1, 0.1, 0.5)

    def log_p(x, mean, deviation):
        return discretized_log_likelihood(x, mean, deviation, levels=17)

    curvature = jax.vmap(jax.hessian(log_p, argnums=(1, 2)))(x, mean, deviation)
    for i, (value, at, spread) in enumerate(zip(x, mean, deviation, strict=True)):
        for row in (0, 1):
            for column in (0, 1):

                def slope(shift, case=(value, at, spread), row=row, column=column):
                    point = [mp.mpf(float(number)) for number in case]
                    point[1 + column] += shift
                    return slopes_of(*point)[row]

                expected = float(mp.diff(slope, 0))
                np.testing.assert_allclose(curvature[row][column][i], expected, rtol=2e-4)


def slopes_of(x, mean, deviation, levels=17):
    """As in `exact`, from mpmath's numerical derivative of log p, which does not know the slope."""
    half_bin = mp.mpf(1) / (levels - 1)

    def log_p(mean, deviation):
        above = mp.mpf(1) if x > 1 - half_bin else mp.ncdf((x + half_bin - mean) / deviation)
        below = mp.mpf(0) if x < half_bin - 1 else mp.ncdf((x - half_bin - mean) / deviation)
        return mp.log(above - below)

    return mp.diff(log_p, (mean, deviation), (1, 0)), mp.diff(log_p, (mean, deviation), (0, 1))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype):
    x = jnp.linspace(-1.0, 1.0, 17).astype(dtype)
    mean, deviation = (0.9 * x + 0.01).astype(dtype), jnp.full(17, 0.3, dtype)
    values, *slopes = compute(x, mean, deviation, 17)
    expected, *expected_slopes = exact(x, mean, deviation, 17)
    for actual, wanted in zip((values, *slopes), (expected, *expected_slopes), strict=True):
        assert actual.dtype == dtype
        half_a_place = 0.51 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=half_a_place)


@pytest.mark.parametrize("levels", [-1, 0, 1, 65537])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match=f"levels is {levels}"):
        discretized_log_likelihood(floats(0.0), floats(0.0), floats(1.0), levels=levels)
