"""Samplers on processes of many modes: the same orders, and each mode for itself.

Three modes in a turned basis, none of which keeps a^2 + b^2 at 1, with Gaussian data of another
variance in each. Tables are float64 here, to see an order and not the rounding; see test_solvers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orders import DIFFUSIONS, FLOWS, STEPS, T, bound, even_times, in_float64, slope

from ddpm_jax import bases, convert, flow_bits_per_dim, processes, q_sample, samplers, schedules
from ddpm_jax.processes import Spectral

U = np.linspace(0.0, 1.0, T)[:, None]
LOG_A2 = -np.array([3.0, 5.0, 9.0]) * U
LOG_B2 = np.array([-7.0, -6.0, -8.0]) + np.array([7.5, 6.0, 7.0]) * U
A, B = np.exp(0.5 * LOG_A2), np.exp(0.5 * LOG_B2)
MEAN, DATA_VARIANCE = np.array([0.2, -0.1, 0.4]), np.array([0.3, 0.6, 0.1])
MARGINAL = A**2 * DATA_VARIANCE + B**2
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
STARTS = np.random.default_rng(1).normal(size=(8, 3))


def wide_process():
    nothing = np.zeros_like(LOG_A2)
    return Spectral(
        log_signal_variance=jnp.asarray(np.stack([LOG_A2, nothing])),
        log_noise_variance=jnp.asarray(np.stack([LOG_B2, nothing])),
        log_prior_variance=jnp.asarray(np.log(MARGINAL[-1])),
        network_times=jnp.arange(T, dtype=jnp.int32),
        basis=bases.Basis(jnp.asarray(TURN), "orthonormal", shape=(3,)),
    )


def denoiser(mean=MEAN):
    """E[x_0 | x_t] of data that are Gaussian and independent in the modes."""

    def predict(x_t, t):
        a, gain = jnp.asarray(A)[t], jnp.asarray(A * DATA_VARIANCE / MARGINAL)[t]
        return (mean[None] + gain * (x_t @ TURN.T - a * mean[None])) @ TURN

    return predict


@pytest.mark.thorough
@pytest.mark.parametrize("name", FLOWS)
def test_order_of_the_flow(name):
    # Along the flow of Gaussian data each mode keeps its distance from the mean, in deviations.
    published, make = FLOWS[name]
    from_mean = STARTS @ TURN.T - A[-1] * MEAN
    exact = A[0] * MEAN + from_mean * np.sqrt(MARGINAL[0] / MARGINAL[-1])
    errors = []
    with in_float64():
        sampler = make(wide_process(), denoiser(), predicts="x0", threshold=None)
        for num_steps in STEPS:
            kept = samplers.sample(
                sampler,
                jax.random.key(0),
                STARTS.shape,
                even_times(num_steps),
                start=jnp.asarray(STARTS),
                keep=lambda info: info.x_s,
            ).trajectory
            errors.append(np.abs(kept[-2] @ TURN.T - exact).max())
    print(f"order of {name}, three modes: published {published}, measured {slope(errors):.2f}")
    # The first steps of Adams-Bashforth are of lower order, and order 4 is where they still show.
    # That of 3M is all that is left here, of second order.
    first_steps = {"probability_flow 4": 0.75, "dpm_solver_pp 3M": 1.05, "unipc 3, predictor": 1.05}
    assert slope(errors) > published - first_steps.get(name, 0.25)
    # Of Gaussian data the leading error of the midpoint rule cancels over the whole flow.
    assert slope(errors) < published + (1.25 if name == "midpoint" else 0.25)


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_order_of_the_law(name):
    # Each mode is affine in its own start and its own noise: least squares with more samples than
    # unknowns reads the weights off, and would not fit if modes mixed.
    published, make = DIFFUSIONS[name]

    def halfway(x_t, t):
        return denoiser()(x_t, t), jnp.full_like(x_t, 0.5)

    errors = []
    for num_steps in STEPS:
        samples = num_steps + 20
        with in_float64():
            network = halfway if "learned" in name else denoiser()
            sampler = make(wide_process(), network, predicts="x0", threshold=None)
            times, key = even_times(num_steps), jax.random.key(0)
            start = jax.random.normal(jax.random.key(1), (samples, 3), jnp.float64)
            keep = {"start": start, "keep": lambda info: info.x_s}
            path = samplers.sample(sampler, key, start.shape, times, **keep).trajectory
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.split(key)[1]))
            draw = functools.partial(jax.random.normal, shape=start.shape, dtype=jnp.float64)
            noise = jax.vmap(draw)(keys(times[:-1]))
        start, noise, end = (np.asarray(part) @ TURN.T for part in (start, noise, path[-2]))
        off = 0.0
        for k in range(3):
            design = np.concatenate([start[:, k][None], np.ones((1, samples)), noise[:, :, k]]).T
            weights = np.linalg.lstsq(design, end[:, k], rcond=None)[0]
            np.testing.assert_allclose(design @ weights, end[:, k], atol=1e-10)
            variance = weights[0] ** 2 * MARGINAL[-1, k] + np.sum(weights[2:] ** 2)
            off = max(off, abs(variance / MARGINAL[0, k] - 1.0))
        errors.append(off)
    print(f"order of {name}, three modes: published {published}, measured {slope(errors):.2f}")
    assert abs(slope(errors) - published) < 0.25


@pytest.mark.thorough
def test_order_of_the_flow_likelihood():
    # Against the exact density of the data. The prior is the chain's own marginal at T - 1.
    x0 = np.sqrt(DATA_VARIANCE) * np.random.default_rng(2).normal(size=(8, 3))
    exact = -0.5 * np.sum(x0**2 / DATA_VARIANCE + np.log(2 * np.pi * DATA_VARIANCE), axis=-1)
    errors = []
    with in_float64():
        for num_steps in STEPS:
            found = flow_bits_per_dim(
                wide_process(),
                denoiser(np.zeros(3)),
                jax.random.key(0),
                jnp.asarray(x0 @ TURN),
                even_times(num_steps),
                predicts="x0",
                levels=None,
            )
            errors.append(np.abs(found.log_density - exact).max())
    print(f"flow likelihood of three modes: {errors}, order {slope(errors):.2f}")
    assert abs(slope(errors) - 2.0) < 0.25
    assert errors[-1] < 1e-3


@pytest.fixture(scope="module")
def blurred():
    return processes.blurring(schedules.linear_log_snr(40, 6.0, -6.0), (4, 3, 1), max_blur=1.0)


def images(seed, batch=4):
    return 0.5 * jax.random.normal(jax.random.key(seed), (batch, 4, 3, 1))


def bent(x_t, t):
    return 0.3 * x_t + 0.2 * jnp.sin(x_t)


@pytest.mark.thorough
def test_inversion_and_back(blurred):
    times = samplers.time_grid(blurred, 40)
    x_T = samplers.ddim_inversion(blurred, bent, images(0), times, predicts="v", iterations=20)
    down = samplers.ddim(blurred, bent, predicts="v", threshold=None)
    back = samplers.sample(down, jax.random.key(0), x_T.shape, times, start=x_T).x0
    np.testing.assert_allclose(back, images(0), atol=2e-4)


@pytest.mark.thorough
def test_inpainting_keeps_what_is_known(blurred):
    known, mask = images(1), images(2) > 0.0
    inner = samplers.ancestral(blurred, bent, predicts="v")
    painted = samplers.inpaint(inner, blurred, known, mask, resamplings=2)
    times = samplers.time_grid(blurred, 8, "log_snr")
    x0 = samplers.sample(painted, jax.random.key(3), known.shape, times).x0
    np.testing.assert_array_equal(np.asarray(x0)[mask], np.asarray(known)[mask])


@pytest.mark.thorough
def test_a_guided_network_says_the_same_in_all_three_quantities(blurred):
    x0_hat, t = images(4), jnp.array([0, 7, 21, 39])
    x_t = q_sample(blurred, images(5), t, images(6))
    guided = {}
    for predicts in ("x0", "v", "eps"):
        said = convert(blurred, x0_hat, x_t, t, source="x0", target=predicts)
        network = samplers.guidance.classifier(
            blurred,
            lambda x, t, said=said: said,
            lambda x, t: -jnp.sum(x**4, axis=(1, 2, 3)),
            predicts=predicts,
            scale=0.3,
        )
        guided[predicts] = convert(blurred, network(x_t, t), x_t, t, source=predicts, target="eps")
    # The score moves by the classifier's gradient, whatever the modes are.
    score = convert(blurred, x0_hat, x_t, t, source="x0", target="score") - 0.3 * 4.0 * x_t**3
    expected = convert(blurred, score, x_t, t, source="score", target="eps")
    for eps_hat in guided.values():
        np.testing.assert_allclose(eps_hat, expected, rtol=2e-4, atol=2e-4)


def test_the_prior_has_the_covariance_of_the_noise():
    near = np.exp(-np.abs(np.subtract.outer(np.arange(6), np.arange(6))) / 2.0)
    process = processes.correlated(schedules.cosine(50), near, shape=(3, 2))
    sampler = samplers.ancestral(process, lambda x_t, t: x_t)
    n = 20_000
    x_T = np.asarray(sampler.init(jax.random.key(0), (n, 3, 2), None).x_t).reshape(n, 6)
    # The standard error of a covariance is at most sqrt(2 / n); five of them, for 36 elements.
    assert np.abs(x_T.T @ x_T / n - near).max() < 5 * np.sqrt(2 / n)


@pytest.mark.parametrize("make", [bound(samplers.ddim), bound(samplers.ancestral)])
def test_one_shared_mode_is_the_schedule(make):
    schedule = schedules.cosine(20)
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)[:, None, None, None]
    one = np.asarray(schedule.noise_power, np.float64)[:, None, None, None]
    shared = processes.spectral(alpha_bar, one, bases.dct(), prior_variance=np.ones((1, 1, 1)))
    times = samplers.time_grid(schedule, 10)
    ours, theirs = (
        samplers.sample(make(process, bent, predicts="v"), jax.random.key(1), (4, 4, 3, 1), times)
        for process in (shared, schedule)
    )
    np.testing.assert_allclose(ours.x0, theirs.x0, atol=2e-5)


@pytest.mark.thorough
def test_inversion_from_silence_into_noise_of_any_size():
    # Where no signal is left x_t is b_t eps, and b_t is 1 for white noise alone.
    process = processes.correlated(
        schedules.zero_terminal_snr(schedules.cosine(40)), np.diag([4.0, 0.25])
    )
    x0, times = STARTS[:, :2].astype(np.float32), samplers.time_grid(process, 40)

    def predict(x_t, t):
        return 0.3 * x_t

    x_T = samplers.ddim_inversion(
        process, predict, jnp.asarray(x0), times, predicts="v", iterations=40
    )
    down = samplers.ddim(process, predict, predicts="v", threshold=None)
    back = samplers.sample(down, jax.random.key(0), x_T.shape, times, start=x_T).x0
    np.testing.assert_allclose(back, x0, atol=2e-4)


SOLVERS = {
    "2M": samplers.dpm_solver_pp,
    "2M, stochastic": bound(samplers.dpm_solver_pp, stochastic=True),
    "3M": bound(samplers.dpm_solver_pp, order=3),
    "2S": samplers.dpm_solver_pp_single,
    "3S": bound(samplers.dpm_solver_pp_single, order=3),
    "unipc": samplers.unipc,
    "midpoint": samplers.midpoint,
    "probability_flow": samplers.probability_flow,
    "learned range": bound(samplers.ancestral, variance="learned_range"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SOLVERS)
def test_a_mode_whose_snr_stays_has_a_sample_all_the_same(name):
    # Gaussian data, independent in two modes, so that neither knows of the other's times.
    falling = np.linspace(5.0, -5.0, 20)
    stays = np.clip(falling, -2.0, 1.5)
    moves = [t for t in reversed(range(20)) if t == 0 or stays[t - 1] != stays[t]]

    def sampled(second, times):
        process = processes.per_pixel(np.stack([falling, second], axis=1))

        def predict(x_t, t):
            a, b2 = process.signal(t), process.noise_variance(t)
            x0_hat = 0.5 * a * x_t / (0.5 * jnp.square(a) + b2)
            return (x0_hat, jnp.zeros_like(x_t)) if name == "learned range" else x0_hat

        sampler = SOLVERS[name](process, predict, predicts="x0", threshold=None)
        times = jnp.asarray(times, jnp.int32)
        return np.asarray(samplers.sample(sampler, jax.random.key(0), (8, 2), times).x0)

    every = list(reversed(range(20)))
    found = sampled(stays, every)
    np.testing.assert_allclose(found[:, 0], sampled(falling, every)[:, 0], rtol=1e-5)
    assert np.isfinite(found).all()
    if name == "probability_flow":  # it remembers across the steps on which nothing happened
        np.testing.assert_allclose(found[:, 1], sampled(stays, moves)[:, 1], rtol=1e-4)
