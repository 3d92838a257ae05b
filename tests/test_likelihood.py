"""Bits per dimension of data whose best denoiser, and entropy, are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser

from ddpm_jax import bits_per_dim, schedules


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
