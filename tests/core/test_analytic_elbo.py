"""What the best denoiser costs: entropies, and the expected ELBO against 50 digits."""

import math

import jax
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from exact import chain, float64
from exact_mixtures import LINE, ONE, SPACE, log_density_float64, random_mixture, rotation
from fused import elbo_terms, entropy, entropy_estimate
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_jax import analytic, bits_per_dim, schedules

KINDS = ("eps", "x0", "v")
NAMES = ("linear", "cosine", "linear_log_snr")
SEEDS = st.integers(0, 2**16)

elbo_jit = jax.jit(elbo_terms)


def test_entropy_of_a_gaussian():
    expected = scipy.stats.multivariate_normal(*ONE).entropy()
    np.testing.assert_allclose(entropy(analytic.gaussian(*ONE)), expected, rtol=1e-6)
    flat = analytic.gaussian(SPACE[1][2], SPACE[2][2])
    assert entropy(flat) == -math.inf


def test_entropy_of_a_mixture_by_quadrature():
    # 100,000 draws: within 4 standard errors, p < 1e-4. The standard error is that of -log p, whose
    # variance is another integral.
    x0 = np.linspace(-6.0, 6.0, 20_001)
    nats = -log_density_float64(LINE, 1.0, 0.0, x0[:, None])
    expected = scipy.integrate.trapezoid(np.exp(-nats) * nats, x0)
    spread = math.sqrt(scipy.integrate.trapezoid(np.exp(-nats) * (nats - expected) ** 2, x0))
    data = analytic.mixture(*LINE)
    estimate = entropy_estimate(data, jax.random.key(0), 100_000)
    assert abs(estimate.mean - expected) < 4 * estimate.standard_error
    np.testing.assert_allclose(estimate.standard_error, spread / math.sqrt(100_000), rtol=0.02)


def elbo_in_fifty_digits(tables, mean, variances):
    """Prior, KL terms for t >= 1, decoder. KLs between q's posteriors with and without x0_hat."""
    power = sum(m**2 for m in mean) + sum(variances)
    a2, d = tables.alpha_bar[-1], len(mean)
    prior = (a2 * power - d * a2 - d * mp.log(1 - a2)) / 2
    left = [
        sum(1 / (1 / v + a2 / b2) for v in variances)
        for a2, b2 in zip(tables.alpha_bar, tables.noise_power, strict=True)
    ]
    kl = []
    for t in range(1, len(left)):
        weight, _, variance = tables.posterior(t, t - 1)
        kl.append(weight**2 * left[t] / (2 * variance))
    beta = tables.betas[0]
    return prior, kl, d * mp.log(2 * mp.pi * beta) / 2 + left[0] / (2 * beta)


@pytest.mark.parametrize("name", NAMES)
def test_elbo_terms_in_fifty_digits(name):
    mean, variances = [0.25, -1.0, 0.5], [0.125, 1.0, 4.0]
    prior, kl, decoder = elbo_in_fifty_digits(
        chain(name, 1000), list(map(mp.mpf, mean)), list(map(mp.mpf, variances))
    )
    turn = rotation(np.random.default_rng(0), 3)
    data = analytic.gaussian(turn @ mean, turn @ np.diag(variances) @ turn.T)
    terms = elbo_terms(data, getattr(schedules, name)(1000))
    np.testing.assert_allclose(terms.prior, float(prior), rtol=2e-6)
    np.testing.assert_allclose(terms.per_step[1:], float64(kl), rtol=2e-6)
    np.testing.assert_allclose(terms.decoder, float(decoder), rtol=2e-6)
    np.testing.assert_allclose(terms.per_step[0], terms.decoder, rtol=0)
    np.testing.assert_allclose(terms.kl, float(sum(kl)), rtol=2e-6)
    np.testing.assert_allclose(terms.total, float(prior + sum(kl) + decoder), rtol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", KINDS)
def test_elbo_terms_are_the_means_of_the_losses(predicts):
    # 20,000 draws, 20 steps: each term within 4.5 standard errors, p < 1e-3 for all 60 together.
    num_steps, draws, (mean, covariance) = 20, 20_000, ONE
    data, schedule = analytic.gaussian(mean, covariance), schedules.cosine(num_steps)
    key_data, key = jax.random.split(jax.random.key(3))
    x0 = analytic.sample(data, key_data, (draws, 3, 1))
    predict = analytic.predictor(data, schedule, predicts=predicts)
    bits = jax.jit(
        lambda x0: bits_per_dim(schedule, predict, key, x0, predicts=predicts, levels=None)
    )(x0)
    terms, to_nats = elbo_terms(data, schedule), 3 * math.log(2)
    for found, expected in (
        (bits.prior, terms.prior),
        (bits.per_step.T, terms.per_step),
        (bits.total, terms.total),
    ):
        nats = np.asarray(found, np.float64) * to_nats
        standard_error = nats.std(axis=0) / math.sqrt(draws)
        assert (np.abs(nats.mean(axis=0) - expected) < 4.5 * standard_error).all()


@pytest.mark.thorough
def test_the_elbo_ends_on_the_entropy_and_the_excess_falls_with_t():
    # The chain reaches far beyond the data at both ends, so steps are all that is left to cost.
    covariance = [[0.5, 0.2], [0.2, 0.3]]
    data = analytic.gaussian([0.3, -0.5], covariance)
    steps = np.array([100, 400, 1600])
    excess = np.array(
        [
            elbo_jit(data, schedules.linear_log_snr(int(T), 14.0, -14.0)).total - entropy(data)
            for T in steps
        ]
    )
    assert (excess > 0.0).all()
    slope = np.polyfit(np.log(steps), np.log(excess), 1)[0]
    assert abs(slope + 1.0) < 0.05
    # A KL term is (exp(h) - 1) / 2 f, with h the step in log SNR and f = SNR lambda / (1 + SNR
    # lambda); h / 2 f would be the integral's. What is over is h / 4 (integral f - f at the end).
    step, snr_max = 28.0 / (steps - 1), math.exp(14.0)
    signal = snr_max * np.linalg.eigvalsh(covariance)
    first_order = step / 4 * np.sum(np.log1p(signal) - signal / (1 + signal))
    np.testing.assert_allclose(excess[-1], first_order[-1], rtol=0.02)


@pytest.mark.thorough
@settings(max_examples=15)
@given(SEEDS, st.sampled_from([1, 3]), st.sampled_from(NAMES), st.sampled_from([2, 100]))
def test_the_elbo_is_never_below_the_entropy(seed, dimensions, name, num_steps):
    _, means, covariances = random_mixture(np.random.default_rng(seed), 1, dimensions)
    data = analytic.gaussian(means[0], covariances[0] + 1e-3 * np.eye(dimensions))
    terms = elbo_jit(data, getattr(schedules, name)(num_steps))
    assert min(terms.prior, terms.per_step[1:].min()) >= 0.0
    assert terms.total - entropy(data) > -1e-5 * abs(terms.total)


def test_the_elbo_of_a_chain_that_ends_in_noise():
    mean, variances = [0.25, -1.0], [0.5, 0.0]
    schedule = schedules.zero_terminal_snr(schedules.linear(6, 0.1, 0.5))
    terms = elbo_terms(analytic.gaussian(mean, np.diag(variances)), schedule)
    alpha_bar, noise = (
        np.asarray(table, np.float64) for table in (schedule.alpha_bar, schedule.noise_power)
    )
    snr, left = alpha_bar / noise, 0.5 * noise / (0.5 * alpha_bar + noise)
    assert terms.prior == 0.0
    np.testing.assert_allclose(terms.per_step[1:], (snr[:-1] - snr[1:]) / 2 * left[1:], rtol=1e-5)
