"""The best denoiser under processes of many modes, against dense matrices in float64."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from exact_mixtures import random_mixture
from exact_modes import NAMES, SHAPE, SIZE, build, dense
from fused import denoise, elbo_terms, entropy, log_density, q_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import thorough_but

from ddpm_jax import analytic, bases, processes, schedules

TARGETS = ("eps", "x0", "v", "score")
SPECTRAL = NAMES[1:]
TIMES = (0, 1, 20, 40, 49)


def images(x):
    return jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)


def times(t, batch):
    return jnp.full(batch, t, jnp.int32)


def exact_answers(parts, process, t, x_t):
    """The four targets and log q(x_t), by conditioning joint Gaussians in pixels."""
    signal, noise = process.signal(t), process.noise(t)
    x0_hat, log_joint = [], []
    for weight, m, c in zip(*parts, strict=True):
        marginal = scipy.stats.multivariate_normal(
            signal @ m, signal @ c @ signal.T + noise @ noise.T
        )
        gain = np.linalg.solve(marginal.cov, signal @ c).T
        x0_hat.append(m + (x_t - marginal.mean) @ gain.T)
        log_joint.append(math.log(weight) + marginal.logpdf(x_t))
    log_joint = np.array(log_joint)
    shares = scipy.special.softmax(log_joint, axis=0)
    x0 = np.einsum("kb,kbd->bd", shares, np.array(x0_hat))
    eps = np.linalg.solve(noise, (x_t - x0 @ signal.T).T).T
    return {
        "eps": eps,
        "x0": x0,
        "v": eps @ signal.T - x0 @ noise.T,
        "score": -np.linalg.solve(noise, eps.T).T,
    }, scipy.special.logsumexp(log_joint, axis=0)


@pytest.mark.parametrize("name", thorough_but(["blurring", "correlated"], SPECTRAL))
@pytest.mark.parametrize("t", thorough_but([20], TIMES))
def test_the_denoiser_is_linear_algebra(name, t):
    rng, process = np.random.default_rng(t), dense(name)
    parts = random_mixture(rng, 3, SIZE)
    x0 = rng.multivariate_normal(parts[1][1], parts[2][1], size=6)
    x_t = x0 @ process.signal(t).T + rng.normal(size=(6, SIZE)) @ process.noise(t).T
    x_t = np.asarray(images(x_t), np.float64).reshape(6, SIZE)
    expected, log_q = exact_answers(parts, process, t, x_t)
    data, least, largest = analytic.mixture(*parts), process.b(t).min(), process.a(t).max()
    for target in TARGETS:
        found = denoise(data, build(name), images(x_t), times(t, 6), target=target)
        found = np.asarray(found, np.float64).reshape(6, SIZE)
        # Some last places of x_t, as large as they can become in the target.
        places = {"eps": 1 / least, "x0": 1.0, "v": 1 / least, "score": 1 / least**2}
        assert np.abs(found - expected[target]).max() < 1e-5 * places[target] * max(1.0, largest)
    found = log_density(data, build(name), images(x_t), times(t, 6))
    np.testing.assert_allclose(found, log_q, rtol=1e-5, atol=1e-4)


@pytest.mark.thorough
def test_a_signal_far_above_the_noise_costs_no_more_digits_than_it_has():
    # SNR around e^13 and singular data: the covariance of x_t has a condition of 1e6, of which its
    # factor, had it been formed, would lose all digits. 50 digits.
    rng, dimensions = np.random.default_rng(0), 4
    log_snr = np.array([[14.0, 13.0, 12.0, 11.0], [0.0, 0.0, 0.0, 0.0]])
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    covariance = turn @ np.diag([1.0, 0.5, 0.3, 0.0]) @ turn.T
    process, data = processes.per_pixel(log_snr), analytic.gaussian(np.zeros(4), covariance)
    a2 = [1 / (1 + mp.exp(-mp.mpf(value))) for value in log_snr[0]]
    root = turn * np.sqrt([1.0, 0.5, 0.3, 0.0])
    a, b = np.sqrt(np.float64([float(v) for v in a2])), np.sqrt(1 / (1 + np.exp(log_snr[0])))
    x_t = np.float32(a * (rng.normal(size=(64, 4)) @ root.T) + b * rng.normal(size=(64, 4)))
    b_exact = [mp.sqrt(1 - value) for value in a2]
    joint = mp.matrix(dimensions)
    for i in range(dimensions):
        for j in range(dimensions):
            joint[i, j] = mp.sqrt(a2[i] * a2[j]) * mp.mpf(covariance[i, j])
        joint[i, i] += 1 - a2[i]
    solved = [mp.lu_solve(joint, mp.matrix([mp.mpf(float(v)) for v in row])) for row in x_t]
    eps = np.array([[float(b_exact[i] * row[i]) for i in range(4)] for row in solved])
    found = denoise(data, process, jnp.asarray(x_t), times(0, 64), target="eps")
    error = np.abs(np.asarray(found, np.float64) - eps).max()
    a, b = np.float32(a), np.float32(b)
    formed = a[:, None] * np.float32(covariance) * a + np.diag(b**2)
    squared = np.abs(b * np.linalg.solve(formed, x_t.T).T - eps).max()
    print(f"eps_hat off by {error:.1e}, from the covariance of x_t by {squared:.1e}")
    assert error < 2e-4
    assert squared > 30 * error


@pytest.mark.parametrize("name", thorough_but(["blurring"], SPECTRAL))
def test_before_the_chain_the_density_is_that_of_the_data(name):
    rng = np.random.default_rng(1)
    mean, root = rng.normal(size=SIZE), rng.normal(size=(SIZE, SIZE))
    covariance = root @ root.T / SIZE + 0.1 * np.eye(SIZE)
    normal = scipy.stats.multivariate_normal(mean, covariance)
    x = normal.rvs(5, random_state=2)
    found = log_density(analytic.gaussian(mean, covariance), build(name), images(x), times(-1, 5))
    np.testing.assert_allclose(found, normal.logpdf(x), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("t", [0, 10, 49])
def test_the_score_is_the_slope_of_the_log_density(t):
    data = analytic.mixture(*random_mixture(np.random.default_rng(3), 2, SIZE))
    process, x_t = build("blurring"), jax.random.normal(jax.random.key(0), (4, *SHAPE))
    slope = jax.jit(jax.grad(lambda x: log_density(data, process, x, times(t, 4)).sum()))(x_t)
    score = denoise(data, process, x_t, times(t, 4), target="score")
    np.testing.assert_allclose(slope, score, rtol=2e-3, atol=2e-3 * float(jnp.abs(score).max()))


@pytest.mark.thorough
def test_components_are_weighed_over_all_modes_and_in_any_shape():
    parts = random_mixture(np.random.default_rng(5), 3, 4)
    log_snr = np.linspace(4.0, -4.0, 10)[:, None] + np.array([0.0, 1.0, -2.0, 3.0])
    x_t, t = jax.random.normal(jax.random.key(0), (6, 4)), jnp.arange(6, dtype=jnp.int32)
    flat = denoise(analytic.mixture(*parts), processes.per_pixel(log_snr), x_t, t, target="v")
    image = denoise(
        analytic.mixture(*parts),
        processes.per_pixel(log_snr.reshape(10, 2, 2)),
        x_t.reshape(6, 2, 2),
        t,
        target="v",
    )
    np.testing.assert_allclose(image.reshape(6, 4), flat, atol=1e-6)


def shared_mode(schedule):
    """The schedule's own tables as a process of many modes that has one."""
    log_alpha_bar = np.asarray(schedule.log_alpha_bar_parts, np.float64).sum(axis=0)
    tables = np.exp(log_alpha_bar), -np.expm1(log_alpha_bar)
    return processes.spectral(
        *(table[:, None, None, None] for table in tables), prior_variance=np.ones((1, 1, 1))
    )


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
def test_one_shared_mode_is_the_schedule(target):
    schedule = schedules.cosine(20)
    data = analytic.mixture(*random_mixture(np.random.default_rng(7), 3, SIZE))
    x_t, t = jax.random.normal(jax.random.key(0), (20, *SHAPE)), jnp.arange(20, dtype=jnp.int32)
    one, many = (
        np.asarray(denoise(data, process, x_t, t, target=target))
        for process in (schedule, shared_mode(schedule))
    )
    scale = np.abs(one).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(many / scale, one / scale, atol=5e-5)
    np.testing.assert_allclose(
        log_density(data, shared_mode(schedule), x_t, t),
        log_density(data, schedule, x_t, t),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("predicts", TARGETS[:3])
def test_where_no_signal_is_left_the_mean_is_the_answer(predicts):
    # a = 0 in one mode at T - 1, and in the others not.
    rng, t = np.random.default_rng(8), times(1, 5)
    signal = np.array([[0.9, 0.9, 0.8], [0.0, 0.3, 0.5]])
    parts = random_mixture(rng, 1, 3)
    x_t = np.float32(rng.normal(size=(5, 3)))
    process = processes.spectral(signal, 1.0 - signal)
    found = denoise(analytic.mixture(*parts), process, jnp.asarray(x_t), t, target=predicts)
    a, b, ((m,), (c,)) = np.sqrt(signal[1]), np.sqrt(1.0 - signal[1]), parts[1:]
    solved = np.linalg.solve(a[:, None] * c * a + np.diag(b**2), (x_t - a * m).T).T
    eps, x0 = b * solved, m + (a * solved) @ c
    expected = {"eps": eps, "x0": x0, "v": a * eps - b * x0}[predicts]
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.thorough
def test_data_without_variance_are_their_points():
    points, process = np.random.default_rng(9).normal(size=(2, SIZE)), build("correlated")
    data = analytic.mixture([0.5, 0.5], points, np.zeros((2, SIZE, SIZE)))
    t = jnp.arange(8, dtype=jnp.int32)
    x_t = q_sample(process, images(np.tile(points, (4, 1))), t, jnp.zeros((8, *SHAPE)))
    x0_hat = denoise(data, process, x_t, t, target="x0")
    np.testing.assert_allclose(x0_hat.reshape(8, SIZE), np.tile(points, (4, 1)), atol=1e-5)


@pytest.mark.thorough
def test_each_example_has_the_tables_of_its_condition():
    falling = np.linspace(5.0, -5.0, 12)[:, None] + np.array([0.0, 1.0, -1.0])
    offsets = np.array([-0.7, 0.0, 1.3])
    both = processes.per_pixel(
        lambda c: jnp.asarray(falling, jnp.float32)[None] + c[:, None, None],
        condition=jnp.asarray(offsets, jnp.float32),
    )
    data = analytic.mixture(*random_mixture(np.random.default_rng(2), 2, 3))
    x_t, t = jax.random.normal(jax.random.key(0), (6, 3)), jnp.array([0, 5, 3, 11, 7, 2])
    together = denoise(data, both, x_t, t, target="v")  # two neighbours share an example
    for i, offset in enumerate(offsets):
        alone, rows = processes.per_pixel(falling + offset), slice(2 * i, 2 * i + 2)
        found = denoise(data, alone, x_t[rows], t[rows], target="v")
        np.testing.assert_allclose(together[rows], found, rtol=2e-4, atol=2e-5)


def test_times_outside_the_chain_give_nan():
    data = analytic.gaussian(np.zeros(SIZE), np.eye(SIZE))
    x_t, t = jnp.ones((3, *SHAPE)), jnp.array([-2, 50, 3])
    bad = np.isnan(denoise(data, build("blurring"), x_t, t, target="x0")).all(axis=(1, 2, 3))
    assert bad.tolist() == [True, True, False]
    assert np.isnan(log_density(data, build("blurring"), x_t, t)).tolist() == [True, True, False]


def dense_elbo(mean, covariance, process):
    """E KL of dense Gaussians at each t, in float64: prior, decoder and steps."""
    steps = [None]
    power = covariance + np.outer(mean, mean)
    for t in range(1, len(process.log_signal)):
        on_x0, _, variance = process.posterior(t, t - 1)
        steps.append(
            0.5
            * np.trace(np.linalg.solve(variance, on_x0 @ unknown(covariance, process, t) @ on_x0.T))
        )
    first = process.noise(0) @ process.noise(0)
    steps[0] = 0.5 * (
        np.linalg.slogdet(2 * np.pi * first)[1]
        + np.trace(np.linalg.solve(first, unknown(covariance, process, 0)))
    )
    last, prior = len(steps) - 1, process.of_modes(np.exp(process.log_prior))
    signal, left = process.signal(last), process.noise(last) @ process.noise(last)
    whole = left + signal @ power @ signal.T
    log_ratio = np.linalg.slogdet(prior)[1] - np.linalg.slogdet(left)[1]
    return 0.5 * (np.trace(np.linalg.solve(prior, whole)) - SIZE + log_ratio), np.array(steps)


def unknown(covariance, process, t):
    """Cov[x_0 | x_t]."""
    inverse_noise = np.linalg.inv(process.noise(t))
    seen = inverse_noise @ process.signal(t)
    return np.linalg.inv(np.linalg.inv(covariance) + seen.T @ seen)


@pytest.mark.parametrize("name", thorough_but(["blurring"], NAMES))
def test_elbo_terms_are_those_of_dense_gaussians(name):
    rng = np.random.default_rng(11)
    mean, root = rng.normal(size=SIZE), rng.normal(size=(SIZE, SIZE))
    covariance = root @ root.T / SIZE + 0.05 * np.eye(SIZE)
    prior, steps = dense_elbo(mean, covariance, dense(name))
    terms = elbo_terms(analytic.gaussian(mean, covariance), build(name))
    np.testing.assert_allclose(terms.prior, prior, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(terms.per_step[1:], steps[1:], rtol=3e-5)
    np.testing.assert_allclose(terms.decoder, steps[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(terms.total, prior + steps.sum(), rtol=1e-5)
    assert terms.total > entropy(analytic.gaussian(mean, covariance))


@pytest.mark.thorough
@settings(max_examples=10)
@given(st.integers(0, 2**16), st.sampled_from(SPECTRAL))
def test_the_elbo_is_never_below_the_entropy(seed, name):
    _, means, covariances = random_mixture(np.random.default_rng(seed), 1, SIZE)
    data = analytic.gaussian(means[0], covariances[0] + 1e-3 * np.eye(SIZE))
    terms = elbo_terms(data, build(name))
    assert min(terms.prior, terms.per_step[1:].min()) >= 0.0
    assert terms.total - entropy(data) > -1e-5 * abs(terms.total)


@pytest.mark.thorough
def test_the_elbo_of_one_shared_mode_is_that_of_the_schedule():
    schedule = schedules.cosine(20)
    data = analytic.gaussian(np.ones(SIZE), np.diag(np.linspace(0.0, 2.0, SIZE)))
    for one, other in zip(
        elbo_terms(data, schedule),
        elbo_terms(data, shared_mode(schedule), shape=SHAPE),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_arguments_that_cannot_be(without_annotation_checks):
    data, process = analytic.gaussian(np.zeros(6), np.eye(6)), build("blurring")
    with pytest.raises(ValueError, match=r"shape is \(4, 3, 1\); the data have 6 dimensions"):
        elbo_terms(data, process)
    coloured = processes.blurring(schedules.cosine(4), (3, 1, 2))
    with pytest.raises(ValueError, match="give the shape of one example"):
        elbo_terms(data, coloured)
    assert np.isfinite(elbo_terms(data, coloured, shape=(3, 1, 2)).total)
    with pytest.raises(ValueError, match=r"x_t has shape \(2, 4, 3, 1\); .* 6 values"):
        denoise(data, process, jnp.zeros((2, *SHAPE)), times(0, 2), target="x0")
    conditioned = processes.per_pixel(
        lambda c: (
            jnp.linspace(3.0, -3.0, 6)[None, :, None] + 0.0 * c[:, None, None].repeat(6, axis=2)
        ),
        condition=jnp.zeros(2),
    )
    with pytest.raises(ValueError, match="tables for 2 examples"):
        elbo_terms(data, conditioned)
    for wrong in (bases.dct(), None):
        with pytest.raises(TypeError, match=r"process is a .*; it has to be a schedule"):
            analytic.predictor(data, wrong, predicts="eps")
        with pytest.raises(TypeError, match="process is a "):
            elbo_terms(data, wrong)
