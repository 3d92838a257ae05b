"""Continuous time: its value by quadrature, the 1/T of discrete chains, and published losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_mixtures import LINE
from scipy.special import expit

from ddpm_jax import analytic, kl_weight, q_sample, schedules, vlb_terms
from ddpm_jax.likelihood import continuous_bits_per_dim
from ddpm_jax.likelihood.continuous import nats_per_log_snr
from ddpm_jax.losses import prior_term

MAX, MIN = 7.0, -8.0
ENDS = {"log_snr_max": MAX, "log_snr_min": MIN}
KEY = jax.random.key(3)
VARIANCES = np.array([0.05, 0.3, 1.0, 4.0])
DEVIATION = jnp.asarray(np.sqrt(VARIANCES), jnp.float32)[None]
STEPS = np.array([50, 100, 200, 400, 800])


def levels_of(log_snr, like):
    """a and b of eq. (2), as columns."""
    column = log_snr.reshape(-1, *(1,) * (like.ndim - 1))
    return jnp.sqrt(jax.nn.sigmoid(column)), jnp.sqrt(jax.nn.sigmoid(-column))


def perfect(predicts):
    """The best denoiser of independent normals of these variances, at any log SNR."""

    def predict(x, log_snr):
        a, b = levels_of(log_snr, x)
        scaled = x / (jnp.square(a * DEVIATION) + jnp.square(b))
        variance = jnp.square(DEVIATION)
        gains = {"eps": b, "x0": a * variance, "v": a * b * (1.0 - variance)}
        return gains[predicts] * scaled

    return predict


def perfect_of_line(x, log_snr):
    """eps_hat of the mixture `LINE`."""
    weights, means, variances = (jnp.asarray(part.reshape(1, 2), jnp.float32) for part in LINE)
    a, b = levels_of(log_snr, x)
    spread = jnp.square(a) * variances + jnp.square(b)
    away = x - a * means
    log_joint = jnp.log(weights) - 0.5 * (jnp.square(away) / spread + jnp.log(spread))
    shares = jax.nn.softmax(log_joint, axis=1)
    return b * jnp.sum(shares * away / spread, axis=1, keepdims=True)


def error_of_normals(log_snr):
    """E|eps - eps_hat|^2 of the best denoiser, in float64: SNR var(x_0 | x_t), summed."""
    signal = np.exp(log_snr)[..., None] * VARIANCES
    return np.sum(signal / (1.0 + signal), axis=-1)


def error_of_line(log_snr):
    """The same of the mixture `LINE`, an integral over x_t."""
    weights, means, variances = (part.ravel() for part in LINE)
    a2, b2 = expit(log_snr)[:, None, None], expit(-log_snr)[:, None, None]
    x = np.linspace(-7.0, 7.0, 1401)[None, :, None]
    spread = a2 * variances + b2
    away = x - np.sqrt(a2) * means
    joint = weights * np.exp(-0.5 * away**2 / spread) / np.sqrt(2.0 * np.pi * spread)
    density = joint.sum(axis=2)
    mean = means + np.sqrt(a2) * variances * away / spread
    overall = (joint * mean).sum(axis=2) / density
    left = joint * (variances * b2 / spread + (mean - overall[..., None]) ** 2)
    return np.exp(log_snr) * left.sum(axis=2).sum(axis=1) * 0.01


def integral(error, log_snr_max=MAX, log_snr_min=MIN, nodes=200):
    """1/2 of the integral of `error` over log SNR, by Gauss and Legendre."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * (log_snr_max - log_snr_min)
    return 0.5 * half * weights @ error(0.5 * (log_snr_max + log_snr_min) + half * places)


def estimate(predict, x0, *, key=KEY, **options):
    options = {"predicts": "eps", "levels": None, "num_times": 8, "chunk": 8} | ENDS | options
    return continuous_bits_per_dim(predict, key, x0, **options)


# The value


@pytest.mark.parametrize(("log_snr_max", "low", "high"), [(MAX, 0.0, 1e-3), (2.0, 0.2, 0.4)])
def test_the_parts_are_those_of_the_closed_form(log_snr_max, low, high):
    # 4,000 examples: each mean within 4.5 standard errors, p < 1e-5.
    x0 = DEVIATION * jax.random.normal(jax.random.key(0), (4000, 4))
    found = estimate(perfect("eps"), x0, log_snr_max=log_snr_max)
    a2, b2 = expit(MIN), expit(-MIN)
    noise = expit(-log_snr_max)
    left = VARIANCES / (VARIANCES * expit(log_snr_max) + noise)  # var(x_0 | x) over the noise's
    expected = {
        "prior": 0.5 * np.sum(a2 * VARIANCES + b2 - 1.0 - np.log(b2)),
        "decoder": 0.5 * np.sum(np.log(2.0 * np.pi * noise) + left),
        # the integral of v e^l / (1 + v e^l)
        "kl": 0.5 * np.sum(np.log1p(VARIANCES * np.exp(log_snr_max)))
        - 0.5 * np.sum(np.log1p(VARIANCES * np.exp(MIN))),
    }
    expected["total"] = sum(expected.values())
    assert expected["kl"] == pytest.approx(integral(error_of_normals, log_snr_max), rel=1e-9)
    for name, value in expected.items():
        nats = np.asarray(getattr(found, name), np.float64) * 4 * math.log(2)
        assert abs(nats.mean() - value) < 4.5 * nats.std() / math.sqrt(4000), name
    # A chain that begins with more noise leaves more to the decoder: the ends count.
    entropy = 0.5 * np.sum(np.log(2.0 * np.pi * math.e * VARIANCES))
    assert low < expected["total"] - entropy < high


@pytest.mark.thorough
def test_the_integral_of_a_mixture_is_that_by_quadrature():
    # 20,000 examples: within 4.5 standard errors, p < 1e-5.
    data = analytic.mixture(*LINE)
    x0 = analytic.sample(data, jax.random.key(1), (20_000, 1))
    nats = np.asarray(estimate(perfect_of_line, x0).kl, np.float64) * math.log(2)
    expected = integral(error_of_line)
    assert abs(nats.mean() - expected) < 4.5 * nats.std() / math.sqrt(20_000)
    assert nats.std() / math.sqrt(20_000) < 0.01 * expected


@pytest.mark.thorough
def test_whatever_the_network_predicts_the_error_is_that_of_eps():
    x0 = DEVIATION * jax.random.normal(jax.random.key(0), (16, 4))
    eps, *others = (estimate(perfect(kind), x0, predicts=kind) for kind in ("eps", "x0", "v"))
    for other in others:
        np.testing.assert_allclose(other.kl, eps.kl, rtol=2e-4)
        np.testing.assert_allclose(other.decoder, eps.decoder, rtol=2e-4, atol=2e-4)


def test_prior_and_decoder_are_those_of_a_chain_with_these_ends():
    x0 = jnp.linspace(-1.0, 1.0, 17)[jax.random.randint(KEY, (5, 2, 3), 0, 17)]
    found = estimate(lambda x, log_snr: 0.9 * x, x0, levels=17, num_times=4, decoder_draws=3)
    chain, to_bits = schedules.linear_log_snr(40, MAX, MIN), 1.0 / (6 * math.log(2))
    np.testing.assert_allclose(found.prior, prior_term(chain, x0) * to_bits, rtol=1e-6)
    t, nats = jnp.zeros(5, jnp.int32), []
    for i in range(3):
        eps = jax.random.normal(jax.random.fold_in(KEY, 4 + i), x0.shape)
        x = q_sample(chain, x0, t, eps)
        nats.append(vlb_terms(chain, 0.9 * x, x0, x, t, predicts="eps", levels=17))
    np.testing.assert_allclose(found.decoder, np.mean(nats, axis=0) * to_bits, rtol=1e-5)


# Chains of T steps


def order_and_coefficient(excess):
    slope, _ = np.polyfit(np.log(STEPS), np.log(excess), 1)
    return -slope, excess[-1] * STEPS[-1]


def coefficient_of(error):
    """Of 1 / T, in nats: a term is (e^h - 1) / 2 times the error at the far end of its step h."""
    first, last = error(np.array([MAX])), error(np.array([MIN]))
    return (MAX - MIN) / 4 * (2.0 * integral(error) - first + last).item()


@pytest.mark.parametrize("error", [error_of_normals, error_of_line])
def test_chains_approach_it_as_one_over_t(error):
    excess = []
    for num_steps in STEPS:
        chain = schedules.linear_log_snr(int(num_steps), MAX, MIN)
        t = jnp.arange(1, num_steps, dtype=jnp.int32)
        weight = np.asarray(kl_weight(chain, t, predicts="eps"), np.float64)
        excess.append(weight @ error(chain.mean_log_snr()[1:]) - integral(error))
    order, coefficient = order_and_coefficient(np.array(excess))
    assert 0.95 < order < 1.05
    assert coefficient == pytest.approx(coefficient_of(error), rel=0.02)


def test_the_whole_bound_approaches_it_as_one_over_t():
    data = analytic.gaussian(np.zeros(4), np.diag(VARIANCES))
    terms = [
        jax.jit(lambda chain: analytic.elbo_terms(data, chain))(
            schedules.linear_log_snr(int(num_steps), MAX, MIN)
        )
        for num_steps in STEPS
    ]
    ends = np.array([one.prior + one.decoder for one in terms], np.float64)
    np.testing.assert_allclose(ends, ends[0], rtol=1e-6)
    excess = np.array([one.kl for one in terms], np.float64) - integral(error_of_normals)
    order, coefficient = order_and_coefficient(excess)
    assert 0.95 < order < 1.05
    assert coefficient == pytest.approx(coefficient_of(error_of_normals), rel=0.02)


# Schedules between the same ends


def line(u):
    return MAX + u * (MIN - MAX)


def cosine(u):
    """That of a cosine, from MAX to MIN: -2 log tan of an angle that grows evenly."""
    first, last = (math.atan(math.exp(-0.5 * end)) for end in (MAX, MIN))
    return -2.0 * jnp.log(jnp.tan(first + u * (last - first)))


def wild(u):
    """Three stairs."""
    return MAX + (MIN - MAX) * (u - 0.95 * jnp.sin(6.0 * jnp.pi * u) / (6.0 * jnp.pi))


SCHEDULES = (line, cosine, wild)


def test_the_integral_does_not_depend_on_the_schedule():
    x0, eps = jax.random.normal(KEY, (2, 1, 4))
    u = jnp.asarray((np.arange(4000) + 0.5) / 4000, jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def by(log_snr):
        value, slope = jax.vmap(jax.value_and_grad(log_snr))(u)
        each = jnp.broadcast_to(eps[None], (4000, 1, 4))
        nats = nats_per_log_snr(perfect("v"), x0, value[:, None], each, predicts="v")
        return jnp.mean(-slope * nats[:, 0])

    values = [by(log_snr) for log_snr in SCHEDULES]
    np.testing.assert_allclose(values, values[0], rtol=2e-5)


def test_estimates_differ_by_their_errors_alone_and_the_errors_by_the_schedule():
    # The same example 4,000 times: means within 4.5 standard errors of their difference, p < 1e-5.
    x0 = jnp.broadcast_to(DEVIATION, (4000, 4))
    means, variances = [], []
    for log_snr in SCHEDULES:
        found = estimate(perfect("eps"), x0, log_snr=log_snr)
        total = np.asarray(found.total, np.float64)
        means.append(total.mean())
        variances.append(total.var() / 4000)
        # The stated variance is an unbiased estimate of that over draws.
        stated = np.mean(np.square(found.standard_error, dtype=np.float64))
        assert stated == pytest.approx(total.var(), rel=0.12)
    for i in (1, 2):
        assert abs(means[0] - means[i]) < 4.5 * math.sqrt(variances[0] + variances[i])
    assert max(variances) > 1.5 * min(variances)


@pytest.mark.thorough
def test_the_best_density_is_the_root_of_the_second_moment():
    # One stratum, 20,000 times. Powers of the best density are worse, below and above it.
    ends, cells = {"log_snr_max": 3.0, "log_snr_min": -5.0}, 80
    middle = jnp.asarray(3.0 - 8.0 * (np.arange(cells) + 0.5) / cells, jnp.float32)
    x0 = jnp.ones((20_000, 1))

    def shrunk(x, log_snr):
        return 0.5 * x

    each = jnp.broadcast_to(middle[:, None], (cells, 1000))
    eps = jax.random.normal(KEY, (cells, 1000, 1))
    nats = nats_per_log_snr(shrunk, x0[:1000], each, eps, predicts="x0")
    best = jnp.sqrt(jnp.mean(jnp.square(nats), axis=1))
    options = {"num_times": 2, "chunk": 2, "predicts": "x0"} | ends
    found = [estimate(shrunk, x0, density=best**power, **options).kl for power in (0, 0.6, 1, 1.4)]
    means, deviations = np.mean(found, axis=1), np.std(found, axis=1)
    assert np.argmin(deviations) == 2
    assert deviations[0] > 1.5 * deviations[2]
    assert (np.abs(means - means[2]) < 4.5 * np.hypot(deviations, deviations[2]) / 141).all()


# Kingma et al. 2021, written from the paper with its gamma = -log SNR, in NumPy


def vdm_inputs(gamma, x, eps):
    """z_t of eq. 1 and 3, with alpha^2 = sigmoid(-gamma) and sigma^2 = sigmoid(gamma)."""
    return np.sqrt(expit(-gamma))[:, None] * x + np.sqrt(expit(gamma))[:, None] * eps


def vdm_network(z, gamma):
    """Some eps_hat."""
    return 0.4 * z + 0.1 * np.sin(gamma)[:, None]


def vdm_as_predict(x, log_snr):
    return 0.4 * x - 0.1 * jnp.sin(log_snr)[:, None]


def test_the_terms_of_t_steps_are_those_of_eq_14():
    num_steps, (x, eps) = 20, np.random.default_rng(0).normal(size=(2, 20, 6)).astype(np.float32)
    i = np.arange(1, num_steps + 1)
    gamma_s, gamma_t = (-MAX + (MAX - MIN) * step / num_steps for step in (i - 1, i))
    error = eps - vdm_network(vdm_inputs(gamma_t, x, eps), gamma_t)
    expected = num_steps / 2 * np.expm1(gamma_t - gamma_s) * np.sum(error**2, axis=1)

    chain, t = schedules.linear_log_snr(num_steps + 1, MAX, MIN), jnp.asarray(i, jnp.int32)
    z = q_sample(chain, jnp.asarray(x), t, jnp.asarray(eps))
    eps_hat = vdm_as_predict(z, chain.log_snr[t])
    terms = vlb_terms(chain, eps_hat, jnp.asarray(x), z, t, predicts="eps", levels=None)
    np.testing.assert_allclose(num_steps * terms, expected, rtol=5e-6)


def test_the_estimate_is_that_of_eq_15_and_17():
    batch, num_times, x = 3, 10, np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    losses = []
    for i in range(num_times):
        key_u, key_noise = jax.random.split(jax.random.fold_in(KEY, i))
        u = (i // 2 + np.asarray(jax.random.uniform(key_u, (batch,)), np.float64)) / (num_times / 2)
        eps = np.asarray(jax.random.normal(key_noise, x.shape), np.float64)
        gamma, slope = -MAX + (MAX - MIN) * u**3, 3.0 * (MAX - MIN) * u**2
        z = vdm_inputs(gamma, x, eps)
        eps_hat = vdm_network(z, gamma)
        of_eps = slope / 2 * np.sum((eps - eps_hat) ** 2, axis=1)
        x_hat = (z - np.sqrt(expit(gamma))[:, None] * eps_hat) / np.sqrt(expit(-gamma))[:, None]
        of_snr = -np.exp(-gamma) * slope  # the derivative of SNR = e^-gamma
        np.testing.assert_allclose(-of_snr / 2 * np.sum((x - x_hat) ** 2, axis=1), of_eps)
        losses.append(of_eps)
    losses = np.stack(losses) / (6 * math.log(2))
    found = estimate(
        vdm_as_predict,
        jnp.asarray(x),
        num_times=num_times,
        chunk=4,
        log_snr=lambda u: MAX + (MIN - MAX) * u**3,
    )
    np.testing.assert_allclose(found.kl, losses.mean(axis=0), rtol=5e-6)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_times": 5}, "num_times is 5; it has to be even"),
        ({"num_times": 0}, "num_times is 0"),
        ({"decoder_draws": 1}, "decoder_draws is 1; a standard error takes at least 2"),
        ({"chunk": 0}, "chunk is 0"),
        ({"predicts": "noise"}, "predicts is 'noise'"),
        ({"log_snr_max": MIN}, "log_snr_max is -8.0, log_snr_min is -8.0"),
        ({"log_snr_min": -math.inf}, "both have to be finite"),
        ({"log_snr": lambda u: 6.0 + u * (MIN - 6.0)}, r"log_snr\(0\) is 6; .* log_snr_max = 7"),
        ({"log_snr": lambda u: MAX - u}, r"log_snr\(1\) is 6; it has to be log_snr_min = -8"),
        ({"log_snr": line, "density": jnp.ones(3)}, "log_snr and density are both given"),
        ({"density": jnp.ones((3, 1))}, "density has shape"),
        ({"density": jnp.array([1.0, 0.0])}, "density is not above 0"),
    ],
)
def test_refused(without_annotation_checks, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(perfect("eps"), jnp.zeros((2, 4)), **options)


def test_a_log_snr_that_rises_gives_nan():
    def turning(u):
        return line(u) + 12.0 * jnp.sin(2.0 * jnp.pi * u)

    found = estimate(perfect("eps"), jnp.zeros((64, 4)), log_snr=turning)
    assert jnp.isnan(found.kl).all()
