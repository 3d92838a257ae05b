"""Where samplers begin and end: few steps, steep chains, tiny steps, and the step onto the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from ddpm_jax import schedules
from ddpm_jax.analytic import gaussian, mixture, predictor
from ddpm_jax.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_single,
    heun,
    midpoint,
    probability_flow,
    sample,
    time_grid,
    unipc,
)

pytestmark = pytest.mark.thorough

# Weights, means and deviation of the components.
GAUSSIAN = ((1.0,), (0.3,), 0.5)
MIXTURE = ((0.4, 0.6), (-0.6, 0.7), 0.3)
SHARES = np.linspace(0.05, 0.95, 9)


def quantiles(data, sigma):
    """Of x_t / a_t: along the flow of one-dimensional data the distribution function stays."""
    weights, means, deviation = data
    spread = np.hypot(deviation, sigma)

    def cdf(y):
        return sum(w * special.ndtr((y - m) / spread) for w, m in zip(weights, means, strict=True))

    ends = -10 * spread, 10 * spread
    return np.array([optimize.brentq(lambda y, p=p: cdf(y) - p, *ends) for p in SHARES])


def known(data, schedule):
    weights, means, deviation = data
    square = np.array([[deviation**2]])
    if len(weights) == 1:
        data = gaussian(list(means), square)
    else:
        data = mixture(list(weights), [[m] for m in means], [square] * len(means))
    return predictor(data, schedule, predicts="v")


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize(
    ("make", "steps", "gain"),
    [
        (schedules.linear, 50, 4),
        (schedules.cosine, 50, 4),
        (schedules.sigmoid, 50, 4),
        (schedules.linear_log_snr, 50, 2),  # a last step that is 6 times the one before it
        (schedules.linear_log_snr, 200, 20),  # 26 times
    ],
)
def test_adams_bashforth_keeps_its_order_onto_the_data(data, make, steps, gain):
    # Against what the last step alone would cost at first order, on the exact flow.
    schedule = make(1000)
    times = time_grid(schedule, steps, "trailing")
    log_snr = np.asarray(schedule.log_snr_parts, np.float64).sum(axis=0)
    sigma = np.exp(-0.5 * log_snr)[np.asarray(times)]
    signal = np.sqrt(special.expit(log_snr))[np.asarray(times)]
    predict = known(data, schedule)
    start = jnp.asarray(signal[0] * quantiles(data, sigma[0]), jnp.float32)[:, None]
    sampler = probability_flow(schedule, predict, predicts="v", threshold=None)
    found = sample(sampler, jax.random.key(0), start.shape, times, start=start).x0[:, 0]
    exact = quantiles(data, 0.0)
    x_t = jnp.asarray(signal[-1] * quantiles(data, sigma[-1]), jnp.float32)[:, None]
    v = predict(x_t, jnp.full(len(x_t), times[-1]))
    first_order = signal[-1] * x_t - np.sqrt(special.expit(-log_snr[times[-1]])) * v
    error, of_the_last = (np.abs(x - exact).max() for x in (found, first_order[:, 0]))
    assert error < of_the_last / gain


def test_a_step_much_longer_than_those_before_it_enlarges_no_errors():
    # A network whose eps_hat is off by 1e-3, now up and now down: three steps of one time, and one
    # over the whole chain, where the cubic through them would make 1e3 of it.
    schedule, times = schedules.linear(1000), jnp.array([999, 998, 997, 996, 0])

    def network(size):
        return lambda x_t, t: 0.5 * x_t + size * (1.0 - 2.0 * (t[:, None] % 2).astype(x_t.dtype))

    def draw(size, order):
        sampler = probability_flow(schedule, network(size), order=order, threshold=None)
        start = jnp.linspace(-1.0, 1.0, 5)[:, None]
        return sample(sampler, jax.random.key(0), start.shape, times, start=start).x0

    change = {k: float(jnp.abs(draw(1e-3, k) - draw(0.0, k)).max()) for k in (1, 4)}
    assert change[4] < 2 * change[1]


def learned_range(process, predict, **options):
    def pair(x_t, t):
        return predict(x_t, t), jnp.full_like(x_t, 0.3)

    return ancestral(process, pair, variance="learned_range", **options)


SAMPLERS = {
    "ancestral small": ancestral,
    "ancestral large": functools.partial(ancestral, variance="large"),
    "ancestral learned range": learned_range,
    "ddim": ddim,
    "ddim, eta 0.5": functools.partial(ddim, eta=0.5),
    "ddim, eta 1": functools.partial(ddim, eta=1.0),
    "dpm_solver_pp 2M": dpm_solver_pp,
    "dpm_solver_pp 2M, stochastic": functools.partial(dpm_solver_pp, stochastic=True),
    "dpm_solver_pp 3M": functools.partial(dpm_solver_pp, order=3),
    "dpm_solver_pp 3M, stochastic": functools.partial(dpm_solver_pp, order=3, stochastic=True),
    "dpm_solver_pp_single 2": dpm_solver_pp_single,
    "dpm_solver_pp_single 3": functools.partial(dpm_solver_pp_single, order=3),
    "unipc 2": functools.partial(unipc, order=2),
    "unipc 3": unipc,
    "unipc 3, predictor": functools.partial(unipc, corrector=False),
    "midpoint": midpoint,
    "heun": heun,
    **{f"probability_flow {k}": functools.partial(probability_flow, order=k) for k in (2, 3, 4)},
}
STEEP = {
    # All of 40 steps, so that one program serves them.
    "cosine(4000)": schedules.respaced(schedules.cosine(4000), [*range(0, 3800, 100), 3998, 3999]),
    "log SNR from 60 to -60": schedules.linear_log_snr(40, 60.0, -60.0),
    "log SNR from 80 to -160": schedules.linear_log_snr(40, 80.0, -160.0),
    "betas of 1e-12": schedules.from_betas(np.full(40, 1e-12)),
    "tiny steps between large ones": schedules.from_betas(np.resize([1e-12] * 5 + [0.9], 40)),
    "no signal at the end": schedules.zero_terminal_snr(
        schedules.respaced(schedules.cosine(4000), [*range(0, 3800, 100), 3998, 3999])
    ),
    "no signal after tiny steps": schedules.zero_terminal_snr(
        schedules.from_betas(np.append(np.resize([1e-12] * 5 + [0.3], 39), 0.3))
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_few_steps_of_steep_chains_are_finite(name):
    @jax.jit
    def step(schedule, state, t, s):
        sampler = SAMPLERS[name](
            schedule, lambda x_t, t: 0.5 * jnp.tanh(x_t), predicts="x0", threshold=None
        )
        state = sampler.init(jax.random.key(0), (2, 3), None) if state is None else state
        return sampler.step(jax.random.key(1), state, t, s)[0]

    for chain, schedule in STEEP.items():
        grids = [
            np.asarray(time_grid(schedule, count, spacing))
            for count in (1, 2, 3, 5, 40)
            for spacing in ("linspace", "trailing")
        ]
        grids += [np.array([39, 38, 37, 36, 0]), np.array([38, 20, 19, 18, 17, 0])]
        for grid in grids:
            state = None
            for t, s in zip(grid, [*grid[1:], -1], strict=True):
                state = step(schedule, state, jnp.int32(t), jnp.int32(s))
            assert np.isfinite(state.x_t).all(), (chain, grid)
            assert np.abs(state.x_t).max() < 100, (chain, grid)
