"""Differences of nearly equal numbers, against 50 digits: at all times, near data and near noise.

Exact identities take their place, so that what is left is float32's rounding of each factor.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64

from ddpm_jax import processes, schedules
from ddpm_jax.losses import prior_term, vlb_terms
from ddpm_jax.samplers import SamplerState, ddim

pytestmark = pytest.mark.thorough

T = 1000
SCHEDULES = ("linear", "cosine", "sigmoid", "linear_log_snr", "constant", "shifted", "respaced")
NEIGHBOURS = [(t, t - 1) for t in range(1, T)]
FAR = [
    tuple(sorted(map(int, pair))[::-1])
    for pair in np.random.default_rng(0).integers(0, T, (400, 2))
]
PAIRS = NEIGHBOURS + [(t, s) for t, s in FAR if s < t]


@functools.cache
def relative_step(name):
    """1 - SNR_t / SNR_s and b_s^2 / b_t^2 - 1 of PAIRS, in 50 digits."""
    tables = chain(name, T)
    noise = tables.noise_power
    snr = [a / b for a, b in zip(tables.alpha_bar, noise, strict=True)]
    return [(1 - snr[t] / snr[s], noise[s] / noise[t] - 1) for t, s in PAIRS]


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_ddim_leaves_of_the_noise(name):
    # Its step is linear in x_t: with x0_hat = 0 the slope is sqrt(b_s^2 - sigma^2) / b_t.
    schedule = build(name, T)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def slope(eta, t, s):
        sampler = ddim(schedule, lambda x_t, t: 0.0 * x_t, predicts="x0", eta=eta)

        def step(x_t):
            return sampler.step(jax.random.key(0), SamplerState(x_t), t, s)[0].x_t

        return jax.jvp(step, (jnp.ones((1, 1)),), (jnp.ones((1, 1)),))[1][0, 0]

    t, s = (jnp.array(times) for times in zip(*PAIRS, strict=True))
    for eta in (0.0, 0.5, 0.999, 1.0):
        of_sigma = mp.mpf(float(np.float32(eta))) ** 2
        exact = [
            mp.sqrt((1 + ratio) * (1 - of_sigma * step)) for step, ratio in relative_step(name)
        ]
        np.testing.assert_allclose(slope(jnp.float32(eta), t, s), float64(exact), rtol=2e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("u", [1.0, 0.5])
def test_the_kl_of_variances_that_are_close(name, u):
    # Without an error of the mean the KL is that of the variances alone: d = u log(b_s^2 / b_t^2).
    schedule, t, zero = build(name, T), jnp.arange(1, T), jnp.zeros((T - 1, 1))
    learned = None if u == 1.0 else jnp.full((T - 1, 1), u)
    found = jax.jit(
        functools.partial(
            vlb_terms,
            predicts="x0",
            levels=None,
            variance="large" if learned is None else "learned_range",
        )
    )(schedule, zero, zero, zero, t, interpolation=learned)
    d = [u * mp.log1p(ratio) for _, ratio in relative_step(name)[: T - 1]]
    exact = [(mp.expm1(value) - value) / 2 for value in d]
    np.testing.assert_allclose(found, float64(exact), rtol=3e-6)


@pytest.mark.parametrize("beta", [1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 0.2, 0.9, 0.99999])
def test_the_prior_of_chains_that_add_little_noise_and_much(beta):
    schedule, x0 = schedules.from_betas(np.full(4, beta)), jnp.array([[0.7]])
    noise = -mp.expm1(4 * mp.log1p(-mp.mpf(beta)))
    exact = ((1 - noise) * mp.mpf(0.7) ** 2 + noise - 1 - mp.log(noise)) / 2
    np.testing.assert_allclose(prior_term(schedule, x0), float64([exact]), rtol=1e-6)
    alpha_bar = np.exp(np.cumsum(np.log1p(np.full(4, -beta))))[:, None]
    modes = processes.spectral(
        alpha_bar, -np.expm1(np.cumsum(np.log1p(np.full(4, -beta))))[:, None], prior_variance=[1.0]
    )
    np.testing.assert_allclose(prior_term(modes, x0), float64([exact]), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "linear_log_snr"])
def test_the_noise_of_a_mode_grows_as_that_of_the_schedule(name):
    tables, (t, s) = chain(name, T), (jnp.array(times) for times in zip(*PAIRS, strict=True))
    modes = processes.spectral(
        float64(tables.alpha_bar)[:, None], float64(tables.noise_power)[:, None]
    )
    exact = float64([-mp.log1p(ratio) for _, ratio in relative_step(name)])
    found = build(name, T).log_noise_difference(t, s)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    # Its tables are given in float64, which near 1 knows them to 1e-16.
    np.testing.assert_allclose(modes.log_noise_difference(t, s)[:, 0], exact, rtol=1e-6, atol=3e-16)
