"""Bits per dimension from few images and times: what they estimate, and how far off they are."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import parallel, schedules
from ddpm_jax.data import read_digits
from ddpm_jax.evaluation import likelihood, monitor
from ddpm_jax.likelihood import spread_times

SCHEDULE = schedules.linear_log_snr(12)
DIGITS = read_digits()


def bind(params, labels=None, with_variance=False):
    del labels, with_variance
    return lambda x_t, t: params * x_t + 0.01 * t[:, None, None, None].astype(x_t.dtype)


def model_on(devices, images=40):
    held_out = dataclasses.replace(
        DIGITS.held_out,
        images=DIGITS.held_out.images[:images],
        labels=DIGITS.held_out.labels[:images],
    )
    return likelihood.TrainedModel(
        process=SCHEDULE,
        bind=bind,
        predicts="x0",
        variance="small",
        labelled=False,
        images=dataclasses.replace(DIGITS, held_out=held_out),
        mesh=parallel.make_mesh(devices=jax.devices()[:devices]),
        key=jax.random.key(3),
        seed=4,
        held_out_loss=lambda params: math.nan,
    )


def make(model, **options):
    options = {"num_images": 30, "num_times": 4, "batch_size": 16, **options}
    return monitor.make_monitor(model, **options)


def test_all_times_of_all_images_are_the_whole_bound():
    whole, *_ = likelihood.bits_per_dim(
        model_on(1), jnp.float32(0.5), num_times=None, batch_size=40
    )
    found = make(model_on(1), num_images=1000, num_times=1000)(jnp.float32(0.5))
    assert found["held_out_bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-6)
    assert (found["held_out_images"], found["held_out_times"]) == (40, 12)


def test_the_number_depends_on_neither_batch_nor_mesh_and_repeats_to_the_bit():
    measure = make(model_on(1))
    one = measure(jnp.float32(0.5))
    assert measure(jnp.float32(0.6)) != one
    assert measure(jnp.float32(0.5)) == one
    other = make(model_on(8), batch_size=7)(jnp.float32(0.5))
    assert other == pytest.approx(one, rel=1e-6)


def test_one_image_has_no_error():
    assert math.isnan(monitor._error(np.ones(1)))


def test_the_error_is_that_of_the_choice_of_images_and_times():
    # 3,000 choices of 64 of 10,000 images, with images, times and their interaction that matter.
    rng = np.random.default_rng(0)
    num_steps, images = 60, 10_000
    trend = 5.0 * np.exp(-np.arange(num_steps) / 6.0)
    of_image, slope = rng.gamma(2.0, 1.0, images), rng.normal(1.0, 0.3, images)
    whole = num_steps * of_image.mean() / 20 + trend.sum() * slope.mean()
    off, errors = [], []
    for seed in range(3000):
        numbers = np.random.default_rng((seed, 1)).choice(images, 64, replace=False)
        times, lengths = spread_times(num_steps, 6, 64, seed=seed, sizes=trend)
        terms = of_image[numbers] / 20 + slope[numbers] * trend[times]
        bits = (lengths * terms).sum(axis=0)
        off.append(bits.mean() - whole)
        errors.append(monitor._error(bits))
    # The mean is within 4.5 of its standard errors (p < 1e-5). The error states a little too much:
    # where a stretch ends and begins again, successive times are far apart.
    assert abs(np.mean(off)) < 4.5 * np.std(off) / math.sqrt(3000)
    assert 1.0 < np.mean(np.square(errors)) / np.var(off) < 1.5


@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.cosine(1000)])
def test_sizes_are_the_terms_of_white_gaussian_data(schedule):
    # The KL of step t is (SNR(t-1) - SNR(t)) / 2 times the least squared error, 1 / (1 + SNR(t)).
    snr = np.exp(schedule.mean_log_snr())
    exact = 0.5 * (snr[:-1] - snr[1:]) / (1.0 + snr[1:])
    sizes = monitor.term_sizes(schedule)
    assert sizes[0] == 0.0
    np.testing.assert_allclose(sizes[300:-1], exact[299:-1], rtol=0.02)
    assert sizes.sum() == pytest.approx(0.5 * np.log((1 + snr[0]) / (1 + snr[-1])))
