"""Heun's rule with noise: against the paper's algorithm in NumPy, and which times it rises to."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import processes, schedules
from ddpm_jax.samplers import heun, sample, stochastic_heun, time_grid

SHAPE = (3, 4)
KEY = jax.random.key(4)
SIGMA = np.geomspace(0.01, 60.0, 150)
TIMES = [149, 131, 120, 96, 70, 51, 33, 12, 3]
RECIPES = {
    "all levels": {"gamma": 0.4},
    "some, and more noise": {"gamma": 0.3, "sigma_min": 0.05, "sigma_max": 5.0, "noise_scale": 1.1},
    "finer than the chain": {"gamma": 0.02},
}


CHAINS = {
    "variance exploding": np.ones_like(SIGMA),
    "variance preserving": 1.0 / np.sqrt(1.0 + SIGMA**2),
}
"""The same levels twice, and the signal a, by which x is y = x / a scaled."""


def denoise(y, sigma, np=np):
    """D(y; sigma), no denoiser of anything, but one that depends on both."""
    return np.tanh(y / np.sqrt(1.0 + sigma**2) + 0.3 * np.log(sigma))


def karras(y, noises, *, gamma, sigma_min=0.0, sigma_max=np.inf, noise_scale=1.0):
    """Karras et al. 2022, algorithm 2, whose raised levels are those that the network has."""
    path = []
    levels = [*SIGMA[TIMES], 0.0]
    for (sigma, following), noise in zip(itertools.pairwise(levels), noises, strict=True):
        raised = (1.0 + gamma * (sigma_min <= sigma <= sigma_max)) * sigma
        raised = SIGMA[np.abs(SIGMA - raised).argmin()]
        y = y + np.sqrt(raised**2 - sigma**2) * noise_scale * noise
        slope = (y - denoise(y, raised)) / raised
        moved = y + (following - raised) * slope
        if following > 0.0:
            slope = 0.5 * slope + 0.5 * (moved - denoise(moved, following)) / following
            moved = y + (following - raised) * slope
        y = moved
        path.append(y)
    return np.stack(path)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CHAINS)
def test_every_step_is_the_published_one(name, recipe):
    signal = CHAINS[name]
    table, levels = jnp.asarray(signal, jnp.float32), jnp.asarray(SIGMA, jnp.float32)

    def predict(x_t, t):
        return denoise(x_t / table[t][:, None], levels[t][:, None], jnp)

    schedule = schedules.from_signal_noise(signal, signal * SIGMA)
    sampler = stochastic_heun(schedule, predict, predicts="x0", threshold=None, **RECIPES[recipe])
    start = np.random.default_rng(0).normal(size=SHAPE) * SIGMA[-1]
    path = sample(
        sampler,
        KEY,
        SHAPE,
        jnp.array(TIMES),
        start=jnp.asarray(signal[-1] * start, jnp.float32),
        keep=lambda info: info.x_s,
    ).trajectory
    steps = jax.random.split(KEY)[1]
    noises = [jax.random.normal(jax.random.fold_in(steps, t), SHAPE) for t in TIMES]
    expected = karras(start, np.asarray(noises, np.float64), **RECIPES[recipe])
    expected *= np.append(signal[TIMES[1:]], 1.0)[:, None, None]
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    difference = np.abs((path - expected) / scale).max()
    print(f"EDM, {name}, {recipe}: largest relative difference {difference:.1e}")
    assert difference < 3e-6


def raised_times(process, shape, times, **options):
    """The time that the network gets first at each step, which it returns as the data."""
    ndim = len(shape)

    def predict(x_t, t):
        return jnp.broadcast_to(t.astype(jnp.float32).reshape(-1, *[1] * (ndim - 1)), x_t.shape)

    sampler = stochastic_heun(process, predict, predicts="x0", threshold=None, **options)
    times = jnp.asarray(times)
    infos = sample(sampler, KEY, shape, times, keep=lambda info: info.x0_hat).trajectory
    return np.asarray(infos).reshape(len(times), -1)[:, 0]


def test_many_modes_rise_by_the_mean_of_log_sigma():
    process = processes.blurring(schedules.linear_log_snr(60, 6.0, -6.0), (4, 3, 1), max_blur=1.0)
    sigma, times = np.exp(-0.5 * process.mean_log_snr()), time_grid(process, 12)
    expected = [np.abs(sigma - 1.3 * sigma[t]).argmin() for t in times.tolist()]
    np.testing.assert_array_equal(raised_times(process, (2, 4, 3, 1), times, gamma=0.3), expected)
    assert (np.array(expected[1:]) > np.asarray(times)[1:]).all()


def test_pure_noise_is_not_raised_and_nothing_is_raised_to_it():
    schedule = schedules.zero_terminal_snr(schedules.linear(20))
    times = [19, 18, 10, 3]
    found = raised_times(schedule, (2, 3), times, gamma=0.4)
    assert found[:2].tolist() == [19, 18]
    assert (found[2:] > times[2:]).all()


def test_without_churn_it_is_heun():
    schedule, times = schedules.cosine(50), jnp.array([49, 30, 11, 2])
    x0 = [
        sample(make(schedule, lambda x_t, t: jnp.sin(x_t), **options), KEY, SHAPE, times).x0
        for make, options in (
            (heun, {}),
            (stochastic_heun, {"gamma": 0.0}),
            (stochastic_heun, {"gamma": 0.4, "sigma_min": 1e9, "sigma_max": 1e9}),
        )
    ]
    np.testing.assert_array_equal(x0[0], x0[1])
    np.testing.assert_allclose(x0[0], x0[2], atol=1e-6)  # nothing is within these levels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.42}, r"gamma is 0.42; it has to be in \[0, sqrt\(2\) - 1\]"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma": 0.1, "sigma_min": -1.0}, "sigma_min is -1.0 and sigma_max inf"),
        ({"gamma": 0.1, "sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min is 2.0 and sigma_max 1.0"),
        ({"gamma": 0.1, "noise_scale": 0.0}, "noise_scale is 0.0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        stochastic_heun(schedules.cosine(5), lambda x_t, t: x_t, **options)
