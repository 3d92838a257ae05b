"""RePaint on two correlated Gaussian pixels, where the right answer is known, and its contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser
from marks import thorough_but

from ddpm_jax import schedules
from ddpm_jax.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_single,
    heun,
    inpaint,
    midpoint,
    probability_flow,
    sample,
    time_grid,
    unipc,
)

T = 100
SCHEDULE = schedules.linear_log_snr(T)
DEVIATION, CORRELATION = 0.5, 0.8
SAMPLERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm_solver_pp": dpm_solver_pp,
    "dpm_solver_pp, stochastic": lambda *args, **kw: dpm_solver_pp(*args, stochastic=True, **kw),
    "dpm_solver_pp_single": dpm_solver_pp_single,
    "unipc": unipc,
    "midpoint": midpoint,
    "heun": heun,
    "probability_flow": probability_flow,
}


def correlated(x_t, t):
    """x0_hat of two pixels: along their sum and their difference they are independent."""
    alpha_bar = float64(chain("linear_log_snr", T).alpha_bar)
    rotation = jnp.sqrt(0.5) * jnp.array([[1.0, 1.0], [1.0, -1.0]])
    parts = [
        gaussian_denoiser(alpha_bar, 0.0, DEVIATION * np.sqrt(1 + sign * CORRELATION), "x0")(
            (x_t @ rotation)[:, column : column + 1], t
        )
        for column, sign in enumerate((1, -1))
    ]
    return jnp.concatenate(parts, axis=1) @ rotation


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["ancestral", "ddim", "dpm_solver_pp", "probability_flow", "unipc"]
)
def test_more_resamplings_come_closer_to_the_conditional(name):
    # 4,000 samples: the standard error of the mean is below 0.007, and what is asked of it is
    # further away than 3 of these. Mean and variance together are judged by their KL in nats.
    value, samples, times = 0.8, 4_000, time_grid(SCHEDULE, 25)
    mean, variance = CORRELATION * value, DEVIATION**2 * (1 - CORRELATION**2)
    known = jnp.tile(jnp.array([[value, jnp.nan]]), (samples, 1))
    mask = jnp.tile(jnp.array([[True, False]]), (samples, 1))
    sampler = SAMPLERS[name](SCHEDULE, correlated, predicts="x0", threshold=None)
    far, kl = [], []
    for resamplings in (1, 4, 16):
        painter = inpaint(sampler, SCHEDULE, known, mask, resamplings=resamplings)
        x0 = np.asarray(sample(painter, jax.random.key(0), (samples, 2), times).x0, np.float64)
        np.testing.assert_array_equal(x0[:, 0], np.float32(value))
        ratio = x0[:, 1].var() / variance
        far.append(abs(x0[:, 1].mean() - mean))
        kl.append(0.5 * (ratio - 1 - np.log(ratio) + far[-1] ** 2 / variance))
    print(f"{name}: mean off by {np.round(far, 3)}, KL {np.round(kl, 3)} nats")
    assert far[0] > 0.2
    assert far[1] < 0.6 * far[0]
    assert far[2] < 0.05
    assert kl[0] > 2 * kl[1] > 2 * kl[2]


@pytest.mark.parametrize("resamplings", [1, 3])
@pytest.mark.parametrize("name", thorough_but(["ancestral", "ddim"], SAMPLERS))
def test_known_pixels_come_out_exactly(name, resamplings):
    known = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2), minval=-1.0)
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, known.shape)
    sampler = SAMPLERS[name](SCHEDULE, lambda x_t, t: 0.5 * x_t)
    painter = inpaint(sampler, SCHEDULE, known, mask, resamplings=resamplings)
    samples = sample(
        painter,
        jax.random.key(0),
        known.shape,
        jnp.array([99, 60, 20]),
        keep=lambda info: info.x_s,
    )
    np.testing.assert_array_equal(samples.x0[mask], known[mask])
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x0)
    assert not np.isin(samples.x0[~mask], known[~mask]).any()
    assert np.isfinite(samples.trajectory).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"ancestral", "dpm_solver_pp, stochastic"}))
def test_with_nothing_known_it_is_the_sampler(name):
    # Memory and all: nothing is drawn that would tell them apart.
    sampler = SAMPLERS[name](SCHEDULE, lambda x_t, t: jnp.sin(x_t))
    shape, times = (3, 4), time_grid(SCHEDULE, 9)
    nothing = inpaint(sampler, SCHEDULE, jnp.zeros(shape), jnp.zeros(shape, bool))
    x0 = [sample(one, jax.random.key(0), shape, times).x0 for one in (sampler, nothing)]
    np.testing.assert_allclose(*x0, atol=1e-5)


@pytest.mark.thorough
def test_between_the_steps_what_is_known_is_noised_as_it_should_be():
    # 20,000 samples of q(x_s | known) with s of each step; within 4.5 standard errors: p < 1e-5.
    samples, times = 20_000, [80, 50, 20]
    known, mask = jnp.full((samples, 1), 0.4), jnp.ones((samples, 1), bool)
    painter = inpaint(ddim(SCHEDULE, lambda x_t, t: x_t), SCHEDULE, known, mask, resamplings=2)
    kept = sample(
        painter, jax.random.key(0), (samples, 1), jnp.array(times), keep=lambda info: info.x_s
    ).trajectory
    tables = chain("linear_log_snr", T)
    for x_s, s in zip(np.asarray(kept, np.float64), times[1:], strict=False):
        a, b = map(float, tables.signal_and_noise(s))
        assert abs(x_s.mean() - 0.4 * a) < 4.5 * b / np.sqrt(samples)
        assert abs(x_s.var() - b**2) < 4.5 * b**2 * np.sqrt(2 / samples)


@pytest.mark.thorough
def test_one_trace_however_often_it_is_resampled():
    traces = []

    def predict(x_t, t):
        traces.append(t.shape)
        return 0.1 * x_t

    known, mask = jnp.zeros((3, 2)), jnp.eye(3, 2, dtype=bool)

    def run(key, resamplings):
        sampler = probability_flow(SCHEDULE, predict)
        painter = inpaint(sampler, SCHEDULE, known, mask, resamplings=resamplings)
        return sample(painter, key, (3, 2), time_grid(SCHEDULE, 4)).x0

    for resamplings, traced in ((1, 1), (2, 2), (9, 2)):  # the passes that go back, and the last
        traces.clear()
        jax.eval_shape(functools.partial(run, resamplings=resamplings), jax.random.key(0))
        assert len(traces) == traced


def test_refused(without_annotation_checks):
    known, mask = jnp.zeros((2, 3)), jnp.zeros((2, 3), bool)
    sampler = ddim(SCHEDULE, lambda x_t, t: x_t)
    with pytest.raises(TypeError, match="known has dtype int32"):
        inpaint(sampler, SCHEDULE, known.astype(jnp.int32), mask)
    for wrong in (known, 1):
        with pytest.raises(TypeError, match=r"mask is a (float32|int); it has to be an array of b"):
            inpaint(sampler, SCHEDULE, known, wrong)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        inpaint(sampler, SCHEDULE, known, mask[0])
    with pytest.raises(ValueError, match="resamplings is 0"):
        inpaint(sampler, SCHEDULE, known, mask, resamplings=0)
    painter = inpaint(sampler, SCHEDULE, known, mask)
    with pytest.raises(ValueError, match=r"shape is \(4, 3\); it has to be that of known, \(2, 3"):
        sample(painter, jax.random.key(0), (4, 3), jnp.array([3]))
