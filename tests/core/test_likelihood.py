"""Bits per dimension of data whose best denoiser, and entropy, are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser
from fused import q_sample, vlb_terms
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import thorough_but

from ddpm_jax import (
    bits_per_dim,
    estimate_bits_per_dim,
    flow_bits_per_dim,
    schedules,
    timesteps,
)


@pytest.mark.parametrize("predicts", thorough_but(["eps"], ["eps", "x0", "v"]))
def test_kl_of_the_best_denoiser_of_gaussian_data(predicts):
    # 20,000 examples of 2 pixels, 50 steps. The best denoiser errs by the posterior variance of
    # x_0, so KL_t is on average (SNR_{t-1} - SNR_t) / 2 times that. Each within 4.5 standard
    # errors, at a fixed seed: p < 1e-5.
    mean, deviation, num_steps, examples = 0.3, 0.5, 50, 20_000
    tables = chain("cosine", num_steps)
    alpha_bar, noise = float64(tables.alpha_bar), float64(tables.noise_power)
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
    ("variance", "levels"),
    thorough_but(
        [("small", 17)], [("small", 17), ("large", 17), ("learned_range", 17), ("large", None)]
    ),
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
        nats = vlb_terms(
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
@pytest.mark.parametrize("function", [bits_per_dim, estimate_bits_per_dim])
def test_an_explicit_mesh_that_is_set_splits_the_images_alone(function):
    # With the mesh set, times are whole on every device by their type, and the images are split.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    told = {"predicts": "v", "levels": 17, "chunk": 5}
    if function is estimate_bits_per_dim:
        told["num_times"] = 5
    x0 = jnp.linspace(-1.0, 1.0, 17)[jnp.arange(8 * 6) % 17].reshape(8, 6)

    def total(x0):
        schedule, key = schedules.linear(12), jax.random.key(0)
        return function(schedule, lambda x_t, t: 0.5 * x_t, key, x0, **told).total

    expected = total(x0)
    with jax.set_mesh(mesh):
        split = jax.device_put(x0, NamedSharding(mesh, PartitionSpec("data")))
        actual = jax.jit(total)(split)
    assert len(actual.sharding.device_set) == 8
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-5)


def expected_terms(name, num_steps, mean, deviation, x0):
    """E of each of the ELBO's terms over the noise, `[T, batch]`, and the prior term, in nats.

    For continuous data and the best denoiser of N(mean, deviation^2), in float64: the error of
    x0_hat is (x_0 - mean)(1 - gain a) - gain b eps.
    """
    tables = chain(name, num_steps)
    alpha_bar, noise = float64(tables.alpha_bar), float64(tables.noise_power)
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_the_best_proposal_leaves_the_noise_alone():
    # A predictor whose error does not depend on the noise, so that nothing at all is left.
    name, num_steps = "linear_log_snr", 50
    x0 = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    tables = chain(name, num_steps)
    a, b = np.sqrt(float64(tables.alpha_bar)), np.sqrt(float64(tables.noise_power))
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
    with pytest.raises(TypeError, match="predict returned one array and variance is"):
        whole(variance="learned_range")
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


@pytest.mark.thorough
def test_bfloat16_data_have_the_bits_of_the_same_data_in_float32(grey_images):
    # x_t rounded to bfloat16 is not the chain's, and its bits were below the bound.
    schedule, told = schedules.linear(50), {"predicts": "x0", "levels": 17}

    def predict(x_t, t):
        return 0.9 * x_t.astype(jnp.float32)

    def bits(images):
        whole = bits_per_dim(schedule, predict, jax.random.key(0), images, **told)
        some = estimate_bits_per_dim(
            schedule, predict, jax.random.key(0), images, num_times=4, **told
        )
        return whole.total, some.total

    for narrow, wide in zip(bits(grey_images.astype(jnp.bfloat16)), bits(grey_images), strict=True):
        np.testing.assert_array_equal(narrow, wide)
