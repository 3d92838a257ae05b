"""The process that a config names. Runs of them are in test_cli.py and test_resume.py."""

import dataclasses
import math

import chex
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import tiny
from paths import ROOT

from ddpm_jax import config as configs
from ddpm_jax import processes
from ddpm_jax.config import (
    Blurring,
    ConfigError,
    EqualSNR,
    Isotropic,
    Jit,
    exponential_spectrum,
    make_schedule,
    measured_spectrum,
)
from ddpm_jax.data import Arrays, ImageSet, read_digits
from ddpm_jax.experiment import build

SHAPE = (8, 6, 3)


def config_of(process):
    return dataclasses.replace(tiny.get_config(), process=process, mesh=Jit(data=1))


def make_process(config, shape, measured=None):
    return configs.make_process(config.schedule, config.process, shape, measured)


def cosines(n):
    """The orthonormal DCT as a matrix, from its definition."""
    matrix = np.array(
        [[math.cos(math.pi * k * (2 * x + 1) / (2 * n)) for x in range(n)] for k in range(n)]
    )
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_isotropic_is_the_schedule():
    config = config_of(Isotropic())
    chex.assert_trees_all_equal(make_process(config, SHAPE), make_schedule(config.schedule))


def test_numbers_reach_the_process():
    config = config_of(Blurring(max_blur=3.0, min_scale=0.2))
    blurring = processes.blurring(
        make_schedule(config.schedule), SHAPE, max_blur=3.0, min_scale=0.2
    )
    chex.assert_trees_all_equal(make_process(config, SHAPE), blurring)
    unused = np.zeros(SHAPE)
    unused[0, 0] = 4.0
    floored = make_process(config_of(EqualSNR(floor=0.25)), SHAPE, unused)
    noise = floored.noise_variance(jnp.array([3]))[0]
    np.testing.assert_allclose(noise / noise[0, 0, 0], np.where(unused > 0.0, 1.0, 0.25), rtol=1e-6)


def test_equal_snr_wants_a_spectrum():
    with pytest.raises(ConfigError, match="process: equal_snr needs the spectrum of the images"):
        make_process(config_of(EqualSNR()), SHAPE)


def test_correlation_falls_as_it_says():
    """Far from the borders of a large image: that of its middle with the pixels around it."""
    n, length = 48, 1.5
    modes = exponential_spectrum((n, n, 1), length)[..., 0]
    basis = cosines(n)
    # Of pixel (24, 24) with all others: B^T diag(lambda) B, one column of it.
    point = np.outer(basis[:, 24], basis[:, 24])
    covariance = basis.T @ (modes * point) @ basis
    correlation = covariance / covariance[24, 24]
    distance = np.abs(np.arange(n) - 24)[:, None] + np.abs(np.arange(n) - 24)[None, :]
    expected = np.vectorize(lambda r: float(mpmath.exp(-mpmath.mpf(int(r)) / length)))(distance)
    near = np.s_[16:33, 16:33]
    np.testing.assert_allclose(correlation[near], expected[near], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("length", [0.0, 0.3, 2.0, 100.0])
def test_pixels_keep_the_variance_that_the_schedule_says(length):
    spectrum = exponential_spectrum(SHAPE, length)
    assert spectrum.shape == (8, 6, 1)
    assert spectrum.min() > 0.0
    variances = np.einsum("kx,ly,kl->xy", cosines(8) ** 2, cosines(6) ** 2, spectrum[..., 0])
    assert variances.mean() == pytest.approx(1.0, abs=1e-12)
    if length == 0.0:
        np.testing.assert_array_equal(spectrum, 1.0)


def test_spectrum_is_the_variance_of_the_cosine_modes():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 17, size=(50, *SHAPE), dtype=np.uint8)
    images = ImageSet("noise", train=Arrays(levels), held_out=Arrays(levels[:1]), levels=17)
    modes = np.einsum("kx,ly,bxyc->bklc", cosines(8), cosines(6), levels / 8.0 - 1.0)
    np.testing.assert_allclose(measured_spectrum(images), modes.var(axis=0), rtol=1e-5)


def test_equal_snr_drowns_all_modes_of_the_digits_alike():
    experiment = build(config_of(EqualSNR()))
    log_snr = np.asarray(make_schedule(experiment.config.schedule).log_snr, np.float64)
    data = experiment.images.train.images / 8.0 - 1.0
    variance = np.einsum("kx,ly,bxyc->bklc", cosines(8), cosines(8), data).var(axis=0)
    t = jnp.arange(experiment.process.num_steps)
    ratio = np.asarray(experiment.process.snr(t), np.float64) * variance
    expected = np.broadcast_to(log_snr[:, None, None, None], ratio.shape)
    np.testing.assert_allclose(np.log(ratio), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "cost", "in_finer_steps"),
    [("digits_blurring", 0.012, 0.003), ("digits_correlated", 0.033, 0.032)],
)
@pytest.mark.thorough
def test_a_perfect_network_pays_what_the_configs_say(name, cost, in_finer_steps):
    """KL terms of Gaussian data with the digits' covariance, by matrices, beside white noise."""
    images = read_digits()
    data = (images.train.images / 8.0 - 1.0).reshape(len(images.train), -1)
    basis = np.kron(cosines(8), cosines(8))
    covariance = basis @ (np.cov(data, rowvar=False) + 1e-6 * np.eye(64)) @ basis.T
    precision = np.linalg.inv(covariance)

    def bits_per_dim(config, num_steps):
        schedule = dataclasses.replace(config.schedule, num_steps=num_steps)
        process = make_process(dataclasses.replace(config, schedule=schedule), images.image_shape)
        snr = np.asarray(process.snr(jnp.arange(num_steps)), np.float64).reshape(num_steps, -1)
        snr = np.broadcast_to(snr, (num_steps, 64))
        unknown = [np.diag(np.linalg.inv(precision + np.diag(row))) for row in snr[1:]]
        return 0.5 * np.sum(-np.diff(snr, axis=0) * unknown) / (64 * math.log(2.0))

    white, other = (configs.load(ROOT / "configs" / f"{n}.py") for n in ("digits", name))
    for num_steps, expected in ((250, cost), (1000, in_finer_steps)):
        more = bits_per_dim(other, num_steps) - bits_per_dim(white, num_steps)
        assert more == pytest.approx(expected, abs=5e-4)
