"""The measured order of every solver is its published one; and steps against the papers' formulas.

Times are integers, tables float32: to see an order and not the rounding, the tables here are
float64, a straight line in log SNR whose grids divide evenly, written without the library.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser
from marks import thorough_but
from orders import DIFFUSIONS, FLOWS, STEPS, T, bound, even_times, in_float64, slope
from scipy import optimize, special

from ddpm_jax import schedules
from ddpm_jax.samplers import (
    SamplerState,
    ddim,
    ddim_inversion,
    dpm_solver_pp,
    probability_flow,
    sample,
    time_grid,
)
from ddpm_jax.schedules import Schedule

LOG_SNR = np.linspace(7.0, -8.0, T)
A, B = np.sqrt(special.expit(LOG_SNR)), np.sqrt(special.expit(-LOG_SNR))
# Weights, means and deviation of the components.
GAUSSIAN = ((1.0,), (0.3,), 0.5)
MIXTURE = ((0.4, 0.6), (-0.6, 0.7), 0.3)
STARTS = np.linspace(-2.5, 2.5, 11)


def rows(gaussian, mixture):
    """A number for each start of Gaussian data, then of the mixture."""
    return np.repeat([gaussian, mixture], len(STARTS))[:, None]


BOTH = ((rows(0.5, 0.4), rows(0.5, 0.6)), (rows(0.3, -0.6), rows(0.3, 0.7)), rows(0.5, 0.3))
"""The two in one batch, so that one program is compiled for both."""


def wide_schedule():
    """The chain with float64 tables, which the library itself never makes."""
    nothing = np.zeros(T)
    return Schedule(
        betas=jnp.full(T, jnp.nan),
        alpha_bar=jnp.asarray(A**2),
        noise_power=jnp.asarray(B**2),
        log_alpha_bar_parts=jnp.asarray(np.stack([-np.logaddexp(0.0, -LOG_SNR), nothing])),
        log_noise_parts=jnp.asarray(np.stack([-np.logaddexp(0.0, LOG_SNR), nothing])),
        log_snr_parts=jnp.asarray(np.stack([LOG_SNR, nothing])),
        prior_table=jnp.asarray([1.0, A[-1] ** 2]),
        network_times=jnp.arange(T, dtype=jnp.int32),
    )


def denoiser(data):
    """E[x_0 | x_t]: responsibilities of the components, each of them Gaussian."""
    weights, means, deviation = data

    def predict(x_t, t):
        a, b = jnp.asarray(A)[t].reshape(-1, 1), jnp.asarray(B)[t].reshape(-1, 1)
        variance = a**2 * deviation**2 + b**2
        logits = jnp.stack(
            [
                np.log(w) - 0.5 * (x_t - a * m) ** 2 / variance
                for w, m in zip(weights, means, strict=True)
            ]
        )
        share = jnp.exp(logits - logits.max(axis=0, keepdims=True))
        share = share / share.sum(axis=0, keepdims=True)
        gain = a * deviation**2 / variance
        return sum(r * (m + gain * (x_t - a * m)) for r, m in zip(share, means, strict=True))

    return predict


def cdf(data, t, x):
    weights, means, deviation = data
    spread = np.sqrt(A[t] ** 2 * deviation**2 + B[t] ** 2)
    return sum(
        w * special.ndtr((x - A[t] * m) / spread) for w, m in zip(weights, means, strict=True)
    )


@functools.cache
def flow_to_the_start(data):
    """Along the flow of one-dimensional data the distribution function keeps its value."""
    exact = [
        optimize.brentq(lambda y, p=p: cdf(data, 0, y) - p, -9, 9, xtol=1e-14)
        for p in cdf(data, T - 1, STARTS)
    ]
    return np.array(exact)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FLOWS)
def test_order_of_the_flow(name):
    # From x at T - 1 to x at t = 0, where the exact map is known; the step onto the data is left.
    published, make = FLOWS[name]
    exact = np.stack([flow_to_the_start(GAUSSIAN), flow_to_the_start(MIXTURE)])
    errors = []
    with in_float64():
        sampler = make(wide_schedule(), denoiser(BOTH), predicts="x0", threshold=None)
        start = jnp.asarray(np.tile(STARTS, 2)[:, None])
        for num_steps in STEPS:
            kept = sample(
                sampler,
                jax.random.key(0),
                start.shape,
                even_times(num_steps),
                start=start,
                keep=lambda info: info.x_s,
            ).trajectory
            errors.append(np.abs(kept[-2].reshape(2, -1) - exact).max(axis=1))
    for data, of_data in zip(("Gaussian", "mixture"), np.transpose(errors), strict=True):
        measured = slope(of_data)
        print(f"order of {name}, {data}: published {published}, measured {measured:.2f}")
        assert measured > published - 0.25
        # Of Gaussian data the leading errors of midpoint and 3M cancel over the whole flow.
        lent = name in ("midpoint", "dpm_solver_pp 3M", "unipc 3, predictor")
        assert measured < published + (1.25 if lent and data == "Gaussian" else 0.25)


@functools.cache
def law(name, num_steps):
    """Of x at t = 0 and of the data: slope in x at T - 1, shift, and weights of the noise drawn.

    For Gaussian data every step is affine in x, in what is remembered and in its noise, and so is
    their chain: more samples than unknowns, and least squares reads all weights off exactly.
    """
    make, predict, samples = (FLOWS | DIFFUSIONS)[name][1], denoiser(GAUSSIAN), num_steps + 20

    def halfway(x_t, t):
        return predict(x_t, t), jnp.full_like(x_t, 0.5)

    with in_float64():
        network = halfway if "learned" in name else predict
        sampler = make(wide_schedule(), network, predicts="x0", threshold=None)
        times, key = even_times(num_steps), jax.random.key(0)
        start = jax.random.normal(jax.random.key(1), (samples, 1), jnp.float64)
        path = sample(
            sampler, key, start.shape, times, start=start, keep=lambda info: info.x_s
        ).trajectory
        steps_key = jax.random.split(key)[1]
        noise = jax.vmap(
            lambda t: jax.random.normal(jax.random.fold_in(steps_key, t), (samples,), jnp.float64)
        )(times[:-1])
    ends = path[-2:, :, 0].T
    design = np.concatenate([start.T, np.ones((1, samples)), noise]).T
    weights = np.linalg.lstsq(design, ends, rcond=None)[0]
    np.testing.assert_allclose(design @ weights, ends, atol=1e-10)
    return [(column[0], column[1], column[2:]) for column in weights.T]


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_order_of_the_law(name):
    # Started from the chain's own marginal, the variance at t = 0 is that of the data and the noise
    # there, but for the solver's error. The mean of Gaussian data is exact at any step.
    published = DIFFUSIONS[name][0]
    _, (mean,), deviation = GAUSSIAN
    variances = A**2 * deviation**2 + B**2
    errors = []
    for num_steps in STEPS:
        slope_, shift, noise = law(name, num_steps)[0]
        assert abs(slope_ * A[-1] * mean + shift - A[0] * mean) < 1e-12
        errors.append(abs(slope_**2 * variances[-1] + np.sum(noise**2) - variances[0]))
    print(f"order of {name}: published {published}, measured {slope(errors):.2f}")
    assert abs(slope(errors) - published) < 0.25


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*FLOWS, *DIFFUSIONS])
def test_moments_converge_to_those_of_the_data(name):
    # From the prior down to images, nothing left out. What the step onto the data takes away and
    # the prior's mismatch are of the order of exp(-7) and exp(-8), whatever the solver.
    _, (mean,), deviation = GAUSSIAN
    errors = []
    for num_steps in (4, 6, 256):
        slope_, shift, noise = law(name, num_steps)[1]
        errors.append(abs(slope_**2 + np.sum(noise**2) - deviation**2))
        assert abs(shift - mean) < 0.01
    assert errors[-1] < 0.01
    assert errors[-1] < max(errors)


# Steps against the formulas of the papers, in float64 and in the papers' own variables.

UNEVEN = (49, 41, 38, 27, 23, 10, 3, 0)
TABLES = chain("cosine", 50)
SIGNAL, NOISE = np.sqrt(float64(TABLES.alpha_bar)), np.sqrt(float64(TABLES.noise_power))
START = np.linspace(-2.0, 2.0, 12).reshape(3, 4)


def bent(x_t, t, xp=np):
    """A network that is no straight line in anything."""
    return 0.9 * xp.tanh(1.5 * x_t + 0.3 * xp.sin(0.2 * t))


def noises(key, t):
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.split(key)[1], t), (3, 4)))


def lu_2m(key, *, stochastic):
    """Lu et al. 2022, algorithm 2, and SDE-DPM-Solver++(2M) beside it."""
    lam, x, path, before, h_before = np.log(SIGNAL / NOISE), START, [], None, None
    for t, s in itertools.pairwise(UNEVEN):
        h = lam[s] - lam[t]
        d = bent(x, t)
        x0_hat, before_that = d, before
        if before_that is not None:
            r = h_before / h
            d = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * before_that
        if stochastic:
            x = NOISE[s] / NOISE[t] * np.exp(-h) * x + SIGNAL[s] * (1 - np.exp(-2 * h)) * d
            x = x + NOISE[s] * np.sqrt(1 - np.exp(-2 * h)) * noises(key, t)
        else:
            x = NOISE[s] / NOISE[t] * x - SIGNAL[s] * (np.exp(-h) - 1) * d
        before, h_before = x0_hat, h
        path.append(x)
    return [*path, bent(x, 0)]


def karras_heun(key):
    """Karras et al. 2022, algorithm 1, for y = x / a and D(y, sigma) = x0_hat."""
    sigma, y, path = NOISE / SIGNAL, START / SIGNAL[UNEVEN[0]], []
    for t, s in itertools.pairwise(UNEVEN):
        d = (y - bent(SIGNAL[t] * y, t)) / sigma[t]
        euler = y + (sigma[s] - sigma[t]) * d
        d_next = (euler - bent(SIGNAL[s] * euler, s)) / sigma[s]
        y = y + (sigma[s] - sigma[t]) * (d / 2 + d_next / 2)
        path.append(SIGNAL[s] * y)
    return [*path, bent(SIGNAL[0] * y, 0)]


def adams_bashforth(key, *, order):
    """The integral of the polynomial through the last slopes, by numpy's own polynomials."""
    sigma, y, path, seen = NOISE / SIGNAL, START / SIGNAL[UNEVEN[0]], [], []
    sigma, signal = np.append(sigma, 0.0), np.append(SIGNAL, 1.0)  # the data are at s = -1
    for t, s in itertools.pairwise([*UNEVEN, -1]):
        seen = [(sigma[t], (y - bent(SIGNAL[t] * y, t)) / sigma[t]), *seen][:order]
        for place, slope_ in seen:
            others = np.poly1d([other for other, _ in seen if other != place], r=True)
            integral = (others / others(place)).integ()
            y = y + (integral(sigma[s]) - integral(sigma[t])) * slope_
        path.append(signal[s] * y)
    return path


def mean_of_polynomial(nodes, values, h, pace=1.0):
    """The mean over z in [0, h] of the polynomial through the values, by Gauss's quadrature."""
    z, w = np.polynomial.legendre.leggauss(20)
    z, w = (z + 1) * h / 2, w * np.exp(pace * h * (z - 1) / 2)
    mean = 0.0
    for node, value in zip(nodes, values, strict=True):
        others = np.poly1d([other for other in nodes if other != node], r=True)
        mean = mean + np.sum(w * others(z)) / others(node) / np.sum(w) * value
    return mean


def exponential_adams(key, *, order, stochastic=False):
    """3M: the flow, or the reverse diffusion, of the parabola through the last x0_hat; after 2M."""
    lam, x, path, seen = np.log(SIGNAL / NOISE), START, [], []
    for t, s in itertools.pairwise(UNEVEN):
        h = lam[s] - lam[t]
        seen = [(lam[t], bent(x, t)), *seen][:order]
        nodes, values = [place - lam[t] for place, _ in seen], [value for _, value in seen]
        if len(seen) == 2:
            d = values[0] - h / 2 / nodes[1] * (values[0] - values[1])
        else:
            d = mean_of_polynomial(nodes, values, h, 2.0 if stochastic else 1.0)
        if stochastic:
            x = NOISE[s] / NOISE[t] * np.exp(-h) * x + SIGNAL[s] * (1 - np.exp(-2 * h)) * d
            x = x + NOISE[s] * np.sqrt(1 - np.exp(-2 * h)) * noises(key, t)
        else:
            x = NOISE[s] / NOISE[t] * x + SIGNAL[s] * (1 - np.exp(-h)) * d
        path.append(x)
    return [*path, bent(x, 0)]


def lu_single(key, *, order):
    """Lu et al. 2022, algorithm 1 (2S), and 3S with its mean over the step in every stage."""
    lam, path, x = np.log(SIGNAL / NOISE), [], START
    for first in range(0, len(UNEVEN) - 1, order):
        block, start, seen = UNEVEN[first : first + order + 1], x, []
        for t, s in itertools.pairwise(block):
            seen.append((lam[t] - lam[block[0]], bent(x, t)))
            h = lam[s] - lam[block[0]]
            if order == 2 and len(seen) == 2:
                r = seen[1][0] / h
                d = (1 - 1 / (2 * r)) * seen[0][1] + 1 / (2 * r) * seen[1][1]
            else:
                d = mean_of_polynomial(*zip(*seen, strict=True), h)
            x = NOISE[s] / NOISE[block[0]] * start - SIGNAL[s] * (np.exp(-h) - 1) * d
            path.append(x)
    return [*path, bent(x, 0)]


def zhao_unipc(key, *, order, variant):
    """Zhao et al. 2023, algorithms 5 and 7 and their system of equations, in data prediction."""
    lam = np.log(SIGNAL / NOISE)

    def update(x, t, s, seen, x0_hat_s=None):
        h, (_, m_0) = lam[s] - lam[t], seen[0]
        base = NOISE[s] / NOISE[t] * x - SIGNAL[s] * np.expm1(-h) * m_0
        r = [(place - lam[t]) / h for place, _ in seen[1:]]
        d = [value - m_0 for _, value in seen[1:]]
        if x0_hat_s is not None:
            r, d = [*r, 1.0], [*d, x0_hat_s - m_0]
        big = -h if variant == "bh1" else np.expm1(-h)
        phi = [np.expm1(-h) / -h]  # phi_1, and phi_{k+1} = (phi_k - 1 / k!) / -h
        for k in range(1, len(r) + 1):
            phi.append((phi[-1] - 1 / math.factorial(k)) / -h)
        g = [-h * phi[k] * math.factorial(k) for k in range(1, len(r) + 1)]
        if len(r) == 1:
            rho = [0.5]
        else:
            rho = np.linalg.solve(np.vander(r, increasing=True).T, np.array(g) / big)
        bend = sum(p * d_k / r_k for p, d_k, r_k in zip(rho, d, r, strict=True))
        return base - SIGNAL[s] * big * bend

    x, path, seen, before = START, [], [], None
    for t, s in itertools.pairwise([*UNEVEN, None]):
        x0_hat = bent(x, t)
        if before is not None:
            x = update(*before, x0_hat)
        if s is None:
            return [*path, x0_hat]
        seen = [(lam[t], x0_hat), *seen][:order]
        before = x, t, s, seen
        x = update(*before)
        path.append(x)


def flow_midpoint(key):
    """The midpoint rule for dy = (eps_hat - x0_hat) du, by its Butcher table (0, 1 / 2r)."""
    u, scale = NOISE / (SIGNAL + NOISE), SIGNAL + NOISE
    u, scale = np.append(u, 0.0), np.append(scale, 1.0)  # the data are at s = -1

    def velocity(y, t):
        x0_hat = bent(scale[t] * y, t)
        return (scale[t] * y - SIGNAL[t] * x0_hat) / NOISE[t] - x0_hat

    y, path, times = START / scale[UNEVEN[0]], [], [*UNEVEN, -1]
    for first in range(0, len(UNEVEN), 2):
        t, middle, *end = times[first : first + 3]
        v = velocity(y, t)
        half = y + (u[middle] - u[t]) * v
        path.append(scale[middle] * half)
        for s in end:
            r = (u[middle] - u[t]) / (u[s] - u[t])
            v = (1 - 1 / (2 * r)) * v + 1 / (2 * r) * velocity(half, middle)
            y = y + (u[s] - u[t]) * v
            path.append(scale[s] * y)
    return path


PUBLISHED = {
    "dpm_solver_pp 2M": bound(lu_2m, stochastic=False),
    "dpm_solver_pp 2M, stochastic": bound(lu_2m, stochastic=True),
    "dpm_solver_pp 3M": bound(exponential_adams, order=3),
    "dpm_solver_pp 3M, stochastic": bound(exponential_adams, order=3, stochastic=True),
    "dpm_solver_pp_single 2": bound(lu_single, order=2),
    "dpm_solver_pp_single 3": bound(lu_single, order=3),
    **{
        f"unipc {k}, {variant}": bound(zhao_unipc, order=k, variant=variant)
        for k in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    "midpoint": flow_midpoint,
    "heun": karras_heun,
    **{f"probability_flow {k}": bound(adams_bashforth, order=k) for k in (1, 2, 3, 4)},
}


QUICK = ("dpm_solver_pp 2M", "heun", "probability_flow 4", "unipc 3, bh1", "midpoint")


@pytest.mark.parametrize("name", thorough_but(QUICK, PUBLISHED))
def test_every_step_is_the_published_one(name):
    sampler = (FLOWS | DIFFUSIONS)[name][1](
        schedules.cosine(50),
        lambda x_t, t: bent(x_t, t.astype(jnp.float32)[:, None], jnp),
        predicts="x0",
        threshold=None,
    )
    key = jax.random.key(4)
    path = sample(
        sampler,
        key,
        START.shape,
        jnp.array(UNEVEN),
        start=jnp.asarray(START, jnp.float32),
        keep=lambda info: info.x_s,
    ).trajectory
    np.testing.assert_allclose(path, np.stack(PUBLISHED[name](key)), atol=5e-5)


STEPS_OF_ONE = [(999, 998), (999, 500), (500, 20), (20, 19), (1, 0), (0, -1)]


@pytest.mark.thorough
@pytest.mark.parametrize(("t", "s"), STEPS_OF_ONE)
def test_first_order_solvers_are_ddim(t, s):
    schedule = schedules.linear(1000)
    state = SamplerState(jnp.linspace(-3.0, 3.0, 64).reshape(8, 8))

    def step(make, **options):
        sampler = make(schedule, lambda x_t, t: 0.3 * jnp.sin(x_t), predicts="x0", **options)
        state_ = sampler.init(jax.random.key(0), (8, 8), state.x_t)
        return sampler.step(jax.random.key(1), state_, jnp.int32(t), jnp.int32(s))[0].x_t

    for eta, stochastic in ((0.0, False), (1.0, True)):
        expected = step(ddim, eta=eta)
        for order in (1, 2):  # 2M remembers nothing on its first step
            actual = step(dpm_solver_pp, stochastic=stochastic, order=order)
            np.testing.assert_allclose(actual, expected, atol=3e-5)
    for order in (1, 4):
        np.testing.assert_allclose(step(probability_flow, order=order), step(ddim), atol=3e-5)


def test_euler_of_flow_matching_is_ddim():
    # dx/du = eps - x0 = (x - x0) / u on x = (1 - u) x0 + u eps, in the clock u of the chain.
    schedule, times = schedules.rectified_flow(40), [39, 30, 18, 4, 1]
    sampler = ddim(
        schedule,
        lambda x_t, t: bent(x_t, t.astype(jnp.float32)[:, None], jnp),
        predicts="x0",
        threshold=None,
    )
    start = jnp.asarray(START, jnp.float32)
    x0 = sample(sampler, jax.random.key(0), START.shape, jnp.array(times), start=start).x0
    x = START
    for t, s in itertools.pairwise([*times, -1]):
        x = x + (s - t) / 40 * (x - bent(x, t)) / ((t + 1) / 40)
    np.testing.assert_allclose(x0, x, atol=2e-6)


@pytest.mark.thorough
def test_inversion_finds_the_way_back():
    # Round trips from the data: once round errs with the step, often round not at all.
    schedule = schedules.linear(1000)
    predict = gaussian_denoiser(float64(chain("linear", 1000).alpha_bar), 0.3, 0.5, "v")
    x0 = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (8, 3))
    sampler = ddim(schedule, predict, predicts="v", threshold=None)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def error(num_steps, iterations):
        times = time_grid(schedule, num_steps)
        x_T = ddim_inversion(schedule, predict, x0, times, predicts="v", iterations=iterations)
        back = sample(sampler, jax.random.key(1), x0.shape, times, start=x_T).x0
        return jnp.abs(back - x0).max()

    once = [float(error(num_steps, 1)) for num_steps in (50, 100, 200)]
    assert all(1.6 < one / other < 2.4 for one, other in itertools.pairwise(once))
    more = [once[0], *(float(error(50, iterations)) for iterations in (3, 40))]
    assert all(one > 5 * other for one, other in itertools.pairwise(more))
    assert more[-1] < 1e-4


def test_inversion_out_of_silence():
    # No signal is left at T - 1, and going round there would go nowhere: the step is solved.
    schedule = schedules.zero_terminal_snr(schedules.linear(1000))
    predict = gaussian_denoiser(np.asarray(schedule.alpha_bar, np.float64), 0.3, 0.5, "v")
    x0, times = jnp.linspace(-0.5, 1.0, 6).reshape(2, 3), time_grid(schedule, 50)
    x_T = ddim_inversion(schedule, predict, x0, times, predicts="v", iterations=40)
    sampler = ddim(schedule, predict, predicts="v", threshold=None)
    back = sample(sampler, jax.random.key(1), x0.shape, times, start=x_T).x0
    np.testing.assert_allclose(back, x0, atol=1e-4)
    assert float(jnp.ptp(x_T)) > 1.0
