"""The density of the probability flow: of Gaussians, of mixtures, of grey levels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact import affine_of_x, chain, float64, gaussian_denoiser, gaussian_slopes
from marks import thorough_but

from ddpm_jax import bits_per_dim, flow_bits_per_dim, schedules
from ddpm_jax.likelihood import dequantize
from ddpm_jax.samplers import time_grid


def test_dequantized_levels_fill_their_bins_evenly():
    # 40,000 values of 5 levels: a chi-square test of 50 cells, at significance 1e-4.
    x0 = jnp.tile(jnp.linspace(-1.0, 1.0, 5), (8000, 1))
    x = np.asarray(dequantize(jax.random.key(0), x0, 5))
    assert np.abs(x - x0).max() <= 0.25 + 1e-6
    counts, _ = np.histogram(x, bins=50, range=(-1.25, 1.25))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    with pytest.raises(ValueError, match="levels is 1"):
        dequantize(jax.random.key(0), x0, 1)


def flow(name, num_steps, predict, x0, steps, predicts="v", **arguments):
    schedule = getattr(schedules, name)(num_steps)
    arguments = {"key": jax.random.key(3), "levels": None} | arguments
    return jax.jit(
        lambda x0, times: flow_bits_per_dim(
            schedule, predict, x0=x0, times=times, predicts=predicts, **arguments
        )
    )(jnp.asarray(x0, jnp.float32), time_grid(schedule, steps))


@pytest.mark.parametrize(
    ("name", "predicts"),
    thorough_but([("cosine", "v")], [("linear", "eps"), ("linear_log_snr", "x0"), ("cosine", "v")]),
)
def test_the_flow_of_gaussian_data_is_of_second_order(name, predicts):
    # The flow of the best denoiser keeps (x - a mean) / sqrt(a^2 deviation^2 + b^2) as it is, so
    # the density that it gives to x_0 by way of N(0, I) is known; and the data's own is close.
    num_steps, mean, deviation = 1025, 0.3, 0.5
    x0 = mean + deviation * np.random.default_rng(0).normal(size=(32, 2))
    a, b = map(float, chain(name, num_steps).signal_and_noise(num_steps - 1))
    stretch = math.hypot(a * deviation, b) / deviation
    x_T = a * mean + stretch * (x0 - mean)
    exact = scipy.stats.norm.logpdf(x_T).sum(axis=1) + 2 * math.log(stretch)
    of_data = scipy.stats.norm.logpdf(x0, mean, deviation).sum(axis=1)

    alpha_bar = float64(chain(name, num_steps).alpha_bar)
    predict = gaussian_denoiser(alpha_bar, mean, deviation, predicts)
    errors, steps = [], (17, 33, 129)
    for count in steps:
        found = flow(name, num_steps, predict, x0, count, predicts)
        errors.append(np.abs(found.log_density - exact).max())
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -2.15 < slope < -1.85
    assert errors[-1] < 2e-3
    np.testing.assert_allclose(found.log_density, of_data, atol=0.02)
    np.testing.assert_allclose(found.x_T, x_T, atol=2e-3)
    np.testing.assert_allclose(
        found.bits_per_dim, -found.log_density / (2 * math.log(2)), rtol=1e-6
    )


@pytest.mark.thorough
def test_a_chain_that_leaves_no_signal_has_the_density_of_the_data():
    num_steps, mean, deviation = 1025, 0.3, 0.5
    schedule = schedules.zero_terminal_snr(schedules.linear(num_steps))
    x0 = mean + deviation * np.random.default_rng(0).normal(size=(32, 2))
    alpha_bar = np.exp(np.asarray(schedule.log_alpha_bar_parts, np.float64).sum(axis=0))
    predict = gaussian_denoiser(alpha_bar, mean, deviation, "v")
    found = flow_bits_per_dim(
        schedule,
        predict,
        jax.random.key(0),
        jnp.asarray(x0, jnp.float32),
        time_grid(schedule, 257),
        predicts="v",
        levels=None,
    )
    exact = scipy.stats.norm.logpdf(x0, mean, deviation).sum(axis=1)
    np.testing.assert_allclose(found.log_density, exact, atol=1e-3)
    np.testing.assert_allclose(found.x_T, (x0 - mean) / deviation, atol=1e-3)


@pytest.mark.thorough
def test_the_flow_of_a_respaced_chain_is_that_of_its_times():
    schedule, times = schedules.cosine(200), np.arange(4, 200, 15)
    predict = gaussian_denoiser(float64(chain("cosine", 200).alpha_bar), 0.3, 0.5, "eps")
    key, x0 = jax.random.key(0), jnp.linspace(-1.0, 1.0, 8)[:, None]
    one, other = (
        flow_bits_per_dim(chain, predict, key, x0, grid, predicts="eps", levels=None)
        for chain, grid in (
            (schedule, jnp.asarray(times[::-1].astype(np.int32))),
            (schedules.respaced(schedule, times), jnp.arange(len(times))[::-1]),
        )
    )
    np.testing.assert_allclose(one.log_density, other.log_density, rtol=1e-5)
    np.testing.assert_allclose(one.x_T, other.x_T, rtol=1e-5, atol=1e-6)


COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.25]])


def correlated_denoiser(alpha_bar):
    """The best v_hat for N(0, COVARIANCE), whose Jacobian is not diagonal: a matrix for each t."""
    a, b = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    marginal = alpha_bar[:, None, None] * COVARIANCE + (b**2)[:, None, None] * np.eye(2)
    x0_hat = a[:, None, None] * COVARIANCE @ np.linalg.inv(marginal)
    v_hat = (a[:, None, None] * np.eye(2) - x0_hat) / b[:, None, None]
    matrices = jnp.asarray(v_hat, jnp.float32)
    return lambda x_t, t: jnp.einsum("bij,bj->bi", matrices[t], x_t), v_hat


@pytest.mark.thorough
def test_probes_estimate_the_divergence_without_bias():
    # 4000 examples at one place, each with signs of its own. The mean within 4.5 standard errors
    # and 1e-3 for the steps; the variances are known to 2.2% each.
    name, num_steps, examples = "cosine", 1025, 4000
    predict, v_hat = correlated_denoiser(float64(chain(name, num_steps).alpha_bar))
    place = np.array([0.4, -0.3])
    x0 = np.tile(place, (examples, 1))
    exact = scipy.stats.multivariate_normal.logpdf(place, np.zeros(2), COVARIANCE)
    variance = {}
    for probes in (1, 4):
        density = np.asarray(
            flow(name, num_steps, predict, x0, 129, num_probes=probes).log_density, np.float64
        )
        assert abs(density.mean() - exact) < 4.5 * density.std() / math.sqrt(examples) + 1e-3
        variance[probes] = density.var()
    assert abs(variance[1] / variance[4] / 4 - 1) < 0.15
    # One draw of signs for the whole way would add up, z^T J z = tr J + 2 z_1 z_2 J_12: 160 times
    # the variance of signs that are fresh at each of the 129 times.
    angle = np.arccos(np.sqrt(float64(chain(name, num_steps).alpha_bar)))
    once = (2 * np.trapezoid(v_hat[:, 0, 1], angle)) ** 2
    assert variance[1] < once / 100


def bins_denoiser(alpha_bar, shares):
    """The best x0_hat for levels of these shares, dequantized: a sum over points in every bin."""
    per_bin, width = 100, 2.0 / (len(shares) - 1)
    offsets = (np.arange(per_bin) + 0.5) / per_bin - 0.5
    points = (np.linspace(-1.0, 1.0, len(shares))[:, None] + width * offsets).ravel()
    points, shares = (
        jnp.asarray(table, jnp.float32)[None] for table in (points, np.repeat(shares, per_bin))
    )
    table = jnp.asarray(alpha_bar, jnp.float32)

    def predict(x_t, t):
        a = jnp.sqrt(table[t])[:, None]
        distance = x_t - a * points
        weights = jax.nn.softmax(jnp.log(shares) - 0.5 * distance**2 / (1.0 - a**2), axis=1)
        return weights @ points.T

    return predict


@pytest.mark.thorough
def test_the_flow_of_grey_levels_pays_the_cross_entropy():
    # Levels told apart by their shares alone: the flow of a model with shares Q pays
    # -sum P log2 Q bits, which is the entropy at Q = P and more elsewhere. 300 places in each bin;
    # 0.02 bits for the edges of the bins, which the steps of the flow pass over.
    truth, num_steps = np.array([0.4, 0.3, 0.2, 0.1]), 1025
    alpha_bar = float64(chain("linear_log_snr", num_steps).alpha_bar)
    x0 = np.repeat(np.linspace(-1.0, 1.0, 4), 300)[:, None]
    paid = {}
    for shares in ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)):
        predict = bins_denoiser(alpha_bar, np.array(shares))
        bits = flow("linear_log_snr", num_steps, predict, x0, 129, "x0", levels=4).bits_per_dim
        paid[shares] = truth @ np.asarray(bits, np.float64).reshape(4, 300).mean(axis=1)
        assert abs(paid[shares] + truth @ np.log2(shares)) < 0.02
    assert paid[tuple(truth)] < paid[0.1, 0.2, 0.3, 0.4] - 0.3


@pytest.mark.thorough
def test_the_flow_and_the_bound_agree_on_the_better_model():
    # 2000 examples; models that believe in other deviations than the data's 0.5. The best one's
    # bound is above its flow, which is the density of the data, by an excess of order 1 / T.
    name, num_steps = "linear_log_snr", 257
    schedule, alpha_bar = (
        getattr(schedules, name)(num_steps),
        float64(chain(name, num_steps).alpha_bar),
    )
    x0 = 0.3 + 0.5 * np.random.default_rng(0).normal(size=(2000, 2))

    @jax.jit
    def both(slope, shift, x0, times):
        predict, options = affine_of_x(slope, shift), {"predicts": "v", "levels": None}
        along = flow_bits_per_dim(schedule, predict, jax.random.key(3), x0, times, **options)
        bound = bits_per_dim(schedule, predict, jax.random.key(0), x0, **options)
        return along.bits_per_dim.mean(), bound.total.mean()

    by_flow, by_bound = {}, {}
    for deviation in (0.35, 0.45, 0.5, 0.6, 0.9):
        tables = gaussian_slopes(alpha_bar, 0.3, deviation, "v")
        bits = both(*tables, jnp.asarray(x0, jnp.float32), time_grid(schedule, 65))
        by_flow[deviation], by_bound[deviation] = map(float, bits)
    assert sorted(by_flow, key=by_flow.get) == sorted(by_bound, key=by_bound.get)
    assert by_flow[0.5] - 0.01 < by_bound[0.5] < by_flow[0.5] + 0.15
    of_data = -scipy.stats.norm.logpdf(x0, 0.3, 0.5).mean() / math.log(2)
    assert abs(by_flow[0.5] - of_data) < 0.01
