"""Bits per dimension of data whose best denoiser, and entropy, are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact import chain, float64, gaussian_denoiser
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax import (
    bits_per_dim,
    estimate_bits_per_dim,
    flow_bits_per_dim,
    losses,
    q_sample,
    schedules,
    timesteps,
)
from ddpm_jax.likelihood import dequantize
from ddpm_jax.samplers import time_grid


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_kl_of_the_best_denoiser_of_gaussian_data(predicts):
    # 20,000 examples of 2 pixels, 50 steps. The best denoiser errs by the posterior variance of
    # x_0, so KL_t is on average (SNR_{t-1} - SNR_t) / 2 times that. Each within 4.5 standard
    # errors, at a fixed seed: p < 1e-5.
    mean, deviation, num_steps, examples = 0.3, 0.5, 50, 20_000
    tables = chain("cosine", num_steps)
    alpha_bar, noise = float64(tables.alpha_bar), float64(tables.one_minus_alpha_bar)
    snr = alpha_bar / noise
    left = deviation**2 * noise / (alpha_bar * deviation**2 + noise)
    expected = (snr[:-1] - snr[1:]) / 2 * left[1:] / math.log(2)

    key_data, key = jax.random.split(jax.random.key(0))
    x0 = mean + deviation * jax.random.normal(key_data, (examples, 2))
    predict = gaussian_denoiser(alpha_bar, mean, deviation, predicts)
    schedule = schedules.cosine(num_steps)
    bits = jax.jit(
        lambda x0: bits_per_dim(schedule, predict, key, x0, predicts=predicts, levels=256)
    )(x0)

    for found, exact in ((bits.per_step[1:].T, expected), (bits.kl, expected.sum())):
        found = np.asarray(found, np.float64)
        standard_error = found.std(axis=0) / math.sqrt(examples)
        assert (np.abs(found.mean(axis=0) - exact) < 4.5 * standard_error).all()


def grey_level_denoiser(alpha_bar, levels):
    """E[x_0 | x_t] of pixels that take each of `levels` values equally often."""
    grid = jnp.linspace(-1.0, 1.0, levels)
    table = jnp.asarray(alpha_bar, jnp.float32)

    def predict(x_t, t):
        a = jnp.sqrt(table[t])[:, None, None]
        distance = x_t[..., None] - a * grid.reshape(1, 1, -1)
        weights = jax.nn.softmax(-0.5 * distance**2 / (1.0 - a**2), axis=-1)
        return weights @ grid

    return predict


@pytest.mark.parametrize("levels", [2, 5])
def test_the_best_model_pays_the_entropy_and_an_excess_that_falls_with_t(levels):
    # 512 examples of 16 independent pixels, each level equally often: log2(levels) bits. The
    # bound is loose by c / T to first order. Within 4 standard errors, at a fixed seed: p < 1e-4.
    examples, pixels = 512, 16
    key_data, key = jax.random.split(jax.random.key(0))
    data = jax.random.randint(key_data, (examples, pixels), 0, levels)
    x0 = jnp.linspace(-1.0, 1.0, levels)[data]
    excess, standard_error = {}, {}
    for num_steps in (50, 400):
        predict = grey_level_denoiser(float64(chain("linear_log_snr", num_steps).alpha_bar), levels)
        schedule = schedules.linear_log_snr(num_steps)
        bits = bits_per_dim(schedule, predict, key, x0, predicts="x0", levels=levels)
        total = np.asarray(bits.total, np.float64)
        excess[num_steps] = total.mean() - math.log2(levels)
        standard_error[num_steps] = total.std() / math.sqrt(examples)
    assert excess[400] > -4 * standard_error[400]
    both = math.hypot(standard_error[400], standard_error[50] / 8)
    assert abs(excess[400] - excess[50] / 8) < 4 * both


@pytest.fixture(scope="module")
def grey_images():
    return jnp.linspace(-1.0, 1.0, 17)[jnp.arange(24) % 17].reshape(2, 3, 4)


def test_the_parts_add_up(grey_images):
    schedule = schedules.linear(12)
    bits = bits_per_dim(
        schedule, lambda x_t, t: 0.3 * x_t, jax.random.key(0), grey_images, predicts="v", levels=17
    )
    assert bits.per_step.shape == (12, 2)
    np.testing.assert_array_equal(bits.per_step[0], bits.decoder)
    np.testing.assert_allclose(bits.per_step[1:].sum(axis=0), bits.kl, rtol=1e-6)
    np.testing.assert_allclose(bits.prior + bits.kl + bits.decoder, bits.total, rtol=1e-6)
    assert (np.asarray(bits.per_step) >= 0.0).all()
    assert (np.asarray(bits.prior) >= 0.0).all()


def test_a_perfect_model_pays_only_for_the_prior_and_the_last_step(grey_images):
    schedule = schedules.linear_log_snr(12)
    bits = bits_per_dim(
        schedule,
        lambda x_t, t: grey_images,
        jax.random.key(0),
        grey_images,
        predicts="x0",
        levels=17,
    )
    np.testing.assert_array_equal(bits.kl, np.zeros(2))


def test_one_compilation_serves_every_schedule_of_a_length(grey_images):
    traces = []

    def predict(x_t, t):
        traces.append(None)
        return x_t

    @jax.jit
    def compute(schedule, key, x0):
        return bits_per_dim(schedule, predict, key, x0, predicts="eps", levels=17)

    for seed, schedule in enumerate((schedules.linear(40), schedules.cosine(40))):
        compute(schedule, jax.random.key(seed), grey_images)
    assert len(traces) == 1


def test_the_program_does_not_grow_with_the_chain(grey_images):
    def program(num_steps):
        return jax.make_jaxpr(
            lambda key: bits_per_dim(
                schedules.linear(num_steps),
                lambda x_t, t: x_t,
                key,
                grey_images,
                predicts="eps",
                levels=17,
            )
        )(jax.random.key(0))

    equations = [str(program(num_steps)).count(" = ") for num_steps in (10, 1000)]
    assert equations[0] == equations[1]


def mixing(x_t, t):
    """A predictor whose pixels see one another and the time."""
    flat = x_t.reshape(len(x_t), -1)
    mixed = flat @ jnp.cos(jnp.arange(144.0)).reshape(12, 12) / 4
    return jnp.tanh(mixed + 0.01 * t[:, None].astype(x_t.dtype)).reshape(x_t.shape)


@pytest.mark.parametrize(
    ("variance", "levels"), [("small", 17), ("large", 17), ("learned_range", 17), ("large", None)]
)
def test_every_term_is_that_of_a_loop_over_time(grey_images, variance, levels):
    # A chain that visits few times of a longer one, so that t is not what the network is told.
    schedule = schedules.respaced(schedules.cosine(100), range(9, 100, 10))
    key = jax.random.key(0)

    def predict(x_t, t):
        prediction = mixing(x_t, t)
        return (prediction, 0.3 + prediction) if variance == "learned_range" else prediction

    found = bits_per_dim(
        schedule,
        predict,
        key,
        grey_images,
        predicts="v",
        levels=levels,
        variance=variance,
        chunk=4,
    )
    for t in range(10):
        times = jnp.full(2, t)
        eps = jax.random.normal(jax.random.fold_in(key, t), grey_images.shape)
        x_t = q_sample(schedule, grey_images, times, eps)
        output = predict(x_t, 10 * times + 9)
        prediction, interpolation = output if variance == "learned_range" else (output, None)
        nats = losses.vlb_terms(
            schedule,
            prediction,
            grey_images,
            x_t,
            times,
            predicts="v",
            levels=levels,
            variance=variance,
            interpolation=interpolation,
        )
        np.testing.assert_allclose(found.per_step[t], nats / (12 * math.log(2)), rtol=1e-5)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("function", [bits_per_dim, estimate_bits_per_dim])
def test_chunks_change_the_speed_and_nothing_else(grey_images, function, chunk):
    # 17 times have no divisor. What a compiler does to sums of more rows is in the last digits.
    schedule = schedules.linear(17)
    drawn = {"num_times": 17} if function is estimate_bits_per_dim else {}
    one, other = (
        jax.jit(
            lambda x0, chunk=chunk: function(
                schedule,
                mixing,
                jax.random.key(0),
                x0,
                predicts="v",
                levels=17,
                chunk=chunk,
                **drawn,
            )
        )(grey_images)
        for chunk in (1, chunk)
    )
    for leaf, expected in zip(other, one, strict=True):
        assert leaf.shape == expected.shape
        np.testing.assert_allclose(leaf, expected, rtol=2e-6)


def test_the_network_is_given_as_many_rows_as_the_chunk_says(grey_images):
    rows = []

    def predict(x_t, t):
        rows.append((x_t.shape, t.shape))
        return x_t

    for chunk, batch in ((1, 2), (5, 10), (100, 24)):
        jax.eval_shape(
            lambda x0, chunk=chunk: bits_per_dim(
                schedules.linear(12),
                predict,
                jax.random.key(0),
                x0,
                predicts="v",
                levels=17,
                chunk=chunk,
            ),
            grey_images,
        )
        assert rows.pop() == ((batch, 3, 4), (batch,))
        assert not rows


def wide(x_t, t):
    """A predictor that needs 4096 numbers for each row."""
    hidden = jnp.tanh(x_t.reshape(len(x_t), 12) @ jnp.ones((12, 4096)))
    return (hidden @ jnp.ones((4096, 12)) / 4096).reshape(x_t.shape)


def test_memory_grows_with_the_chunk_and_not_with_the_chain(grey_images):
    def temporary(num_steps, chunk):
        schedule = schedules.linear(num_steps)
        compiled = jax.jit(
            lambda x0: bits_per_dim(
                schedule, wide, jax.random.key(0), x0, predicts="v", levels=17, chunk=chunk
            )
        )
        return compiled.lower(grey_images).compile().memory_analysis().temp_size_in_bytes

    rows = 4 * 4096 * 2  # bytes that the network needs for one time
    small, long, chunked = temporary(100, 1), temporary(1000, 1), temporary(100, 50)
    assert small > rows
    assert long - small < 900 * 2 * 4 * 2  # the results: 900 more times of 2 examples, twice
    assert chunked > 50 * rows


def test_chunks_stay_on_the_devices_of_their_examples():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x0 = jax.device_put(jnp.zeros((8, 3, 4)), split)
    compiled = jax.jit(
        lambda x0: (
            bits_per_dim(
                schedules.linear(12),
                lambda x_t, t: x_t,
                jax.random.key(0),
                x0,
                predicts="v",
                levels=17,
                chunk=5,
            ).total
        ),
        out_shardings=split,
    )
    program = compiled.lower(x0).compile().as_text()
    for moved in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert moved not in program


def expected_terms(name, num_steps, mean, deviation, x0):
    """E of each of the ELBO's terms over the noise, `[T, batch]`, and the prior term, in nats.

    For continuous data and the best denoiser of N(mean, deviation^2), in float64: the error of
    x0_hat is (x_0 - mean)(1 - gain a) - gain b eps.
    """
    tables = chain(name, num_steps)
    alpha_bar, noise = float64(tables.alpha_bar), float64(tables.one_minus_alpha_bar)
    gain = np.sqrt(alpha_bar) * deviation**2 / (alpha_bar * deviation**2 + noise)
    shrunk = np.square(1 - gain * np.sqrt(alpha_bar))[:, None, None]
    error = np.square(x0 - mean)[None] * shrunk + (gain**2 * noise)[:, None, None]
    snr = alpha_bar / noise
    terms = np.diff(-snr, prepend=-np.inf)[:, None, None] / 2 * error
    terms[0] = error[0] / noise[0] / 2 + np.log(2 * np.pi * noise[0]) / 2  # noise_0 = beta_0
    prior = (alpha_bar[-1] * x0**2 - alpha_bar[-1] - np.log1p(-alpha_bar[-1])) / 2
    return terms.sum(axis=-1), prior.sum(axis=-1)


def estimated(name, num_steps, x0, num_times, probabilities=None, predict=None):
    predict = predict or gaussian_denoiser(float64(chain(name, num_steps).alpha_bar), 0.3, 0.5, "v")
    schedule = getattr(schedules, name)(num_steps)
    return jax.jit(
        lambda x0: estimate_bits_per_dim(
            schedule,
            predict,
            jax.random.key(2),
            x0,
            predicts="v",
            levels=None,
            num_times=num_times,
            probabilities=probabilities,
            chunk=20,
        )
    )(x0)


def test_the_standard_error_of_an_estimate_covers_the_truth():
    # 2000 examples of 8 pixels, 1000 draws from 50 terms each. The mean error within 4.5 standard
    # errors of 0 (p < 1e-5); of the intervals of 1.96, 95% hold the truth, within 4.5 standard
    # errors of a share of 2000 and 1% for draws that are not quite normal.
    name, num_steps, examples, num_times = "linear_log_snr", 50, 2000, 1000
    x0 = 0.3 + 0.5 * np.random.default_rng(0).normal(size=(examples, 8))
    terms, prior = expected_terms(name, num_steps, 0.3, 0.5, x0)
    exact = (terms.sum(axis=0) + prior) / (8 * math.log(2))
    size = np.sqrt(np.mean(terms**2, axis=1))
    error = {}
    for kind, p in (("uniform", None), ("importance", jnp.asarray(size / size.sum(), jnp.float32))):
        found = estimated(name, num_steps, jnp.asarray(x0, jnp.float32), num_times, p)
        off = np.asarray(found.total, np.float64) - exact
        assert abs(off.mean()) < 4.5 * off.std() / math.sqrt(examples)
        covered = np.mean(np.abs(off) < 1.96 * found.standard_error)
        assert abs(covered - 0.95) < 0.01 + 4.5 * math.sqrt(0.05 * 0.95 / examples)
        np.testing.assert_allclose(np.mean(found.standard_error**2), np.mean(off**2), rtol=0.2)
        error[kind] = np.sqrt(np.mean(found.standard_error**2))
    assert error["importance"] < 0.4 * error["uniform"]  # 0.35


def test_a_history_of_losses_lowers_the_standard_error():
    # Cosine, 200 steps. The history holds terms that the library computed, ten at each time.
    name, num_steps = "cosine", 200
    x0 = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (100, 8))
    schedule = schedules.cosine(num_steps)
    predict = gaussian_denoiser(float64(chain(name, num_steps).alpha_bar), 0.3, 0.5, "v")
    history = timesteps.loss_history(num_steps)
    compute = jax.jit(
        lambda x0: bits_per_dim(
            schedule, predict, jax.random.key(1), x0, predicts="v", levels=None, chunk=10
        )
    )
    terms = compute(x0[:10]).per_step
    history = timesteps.update_history(
        history, jnp.repeat(jnp.arange(num_steps), 10), terms.ravel()
    )
    p = timesteps.probabilities(history)
    uniform, importance = (estimated(name, num_steps, x0, 100, each) for each in (None, p))
    ratio = np.sqrt(np.mean(importance.standard_error**2) / np.mean(uniform.standard_error**2))
    assert ratio < 0.2  # 0.17; as many uniform draws as 34 times these


def test_the_best_proposal_leaves_the_noise_alone():
    # A predictor whose error does not depend on the noise, so that nothing at all is left.
    name, num_steps = "linear_log_snr", 50
    x0 = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    tables = chain(name, num_steps)
    a, b = np.sqrt(float64(tables.alpha_bar)), np.sqrt(float64(tables.one_minus_alpha_bar))
    wrong_by = 0.1
    at, bt = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)

    def predict(x_t, t):
        truth = jnp.tile(x0[:, None], (1, len(x_t) // 3, 1)).reshape(x_t.shape)
        return (at[t][:, None] * x_t - truth - wrong_by) / bt[t][:, None]

    snr = (a / b) ** 2
    terms = np.diff(-snr, prepend=-np.inf) / 2 * 4 * wrong_by**2
    terms[0] = 4 * (wrong_by**2 / b[0] ** 2 + np.log(2 * np.pi * b[0] ** 2)) / 2
    size = np.abs(terms)
    found = estimated(name, num_steps, x0, 40, jnp.asarray(size / size.sum(), jnp.float32), predict)
    prior = (a[-1] ** 2 * np.square(x0) + b[-1] ** 2 - 1 - 2 * np.log(b[-1])) / 2
    exact = (terms.sum() + prior.sum(axis=1)) / (4 * math.log(2))
    np.testing.assert_allclose(found.total, exact, rtol=1e-5)
    assert (found.standard_error < 1e-6 * found.total).all()


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
    ("name", "predicts"), [("linear", "eps"), ("linear_log_snr", "x0"), ("cosine", "v")]
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


def test_a_chain_that_leaves_no_signal_has_the_density_of_the_data():
    num_steps, mean, deviation = 1025, 0.3, 0.5
    schedule = schedules.zero_terminal_snr(schedules.linear(num_steps))
    x0 = mean + deviation * np.random.default_rng(0).normal(size=(32, 2))
    alpha_bar = np.exp(np.asarray(schedule.log_alpha_bar, np.float64).sum(axis=0))
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


def test_the_flow_and_the_bound_agree_on_the_better_model():
    # 2000 examples; models that believe in other deviations than the data's 0.5. The best one's
    # bound is above its flow, which is the density of the data, by an excess of order 1 / T.
    name, num_steps = "linear_log_snr", 257
    x0 = 0.3 + 0.5 * np.random.default_rng(0).normal(size=(2000, 2))
    alpha_bar = float64(chain(name, num_steps).alpha_bar)
    by_flow, by_bound = {}, {}
    for deviation in (0.35, 0.45, 0.5, 0.6, 0.9):
        predict = gaussian_denoiser(alpha_bar, 0.3, deviation, "v")
        by_flow[deviation] = float(flow(name, num_steps, predict, x0, 65).bits_per_dim.mean())
        by_bound[deviation] = float(
            bits_per_dim(
                schedules.linear_log_snr(num_steps),
                predict,
                jax.random.key(0),
                jnp.asarray(x0, jnp.float32),
                predicts="v",
                levels=None,
            ).total.mean()
        )
    assert sorted(by_flow, key=by_flow.get) == sorted(by_bound, key=by_bound.get)
    assert by_flow[0.5] - 0.01 < by_bound[0.5] < by_flow[0.5] + 0.15
    of_data = -scipy.stats.norm.logpdf(x0, 0.3, 0.5).mean() / math.log(2)
    assert abs(by_flow[0.5] - of_data) < 0.01


def test_arguments_that_cannot_be(grey_images, without_annotation_checks):
    falling = jnp.arange(12)[::-1]
    schedule = schedules.linear(12)

    def calling(function, **defaults):
        def call(schedule=schedule, **arguments):
            arguments = defaults | {"predicts": "v", "levels": 17} | arguments
            return function(schedule, mixing, jax.random.key(0), grey_images, **arguments)

        return call

    whole = calling(bits_per_dim)
    estimate = calling(estimate_bits_per_dim, num_times=2)
    along = calling(flow_bits_per_dim, times=falling)

    for function in (whole, estimate, along):
        with pytest.raises(ValueError, match="predicts is 'eps', and the schedule leaves no"):
            function(schedules.zero_terminal_snr(schedule), predicts="eps")
        with pytest.raises(ValueError, match="predicts is 'noise'"):
            function(predicts="noise")
        with pytest.raises(ValueError, match="levels is 1"):
            function(levels=1)
    for function in (whole, estimate):
        with pytest.raises(ValueError, match="chunk is 0"):
            function(chunk=0)
        with pytest.raises(ValueError, match="variance is 'medium'"):
            function(variance="medium")
    with pytest.raises(ValueError, match="num_times is 1"):
        estimate(num_times=1)
    with pytest.raises(ValueError, match="probabilities has shape"):
        estimate(probabilities=jnp.ones(11))
    with pytest.raises(TypeError, match="probabilities has dtype int32"):
        estimate(probabilities=falling)
    with pytest.raises(ValueError, match="num_probes is 0"):
        along(num_probes=0)
    with pytest.raises(ValueError, match="times has shape"):
        along(times=falling[:0])
    with pytest.raises(TypeError, match="times has dtype float32"):
        along(times=jnp.ones(3))
    for wrong in (falling[::-1], jnp.array([5, 5, 0])):
        found = along(times=wrong)
        assert np.isnan(found.log_density).all()
        assert np.isnan(found.bits_per_dim).all()
