"""Samplers on Gaussian data, where every step is linear and the outcome is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import SamplerState, ancestral, ddim, sample, time_grid

MEAN, DEVIATION = 0.3, 0.5
KINDS = ("eps", "x0", "v")


def all_of_it(info):
    return info


def denoiser(name, num_steps, predicts="eps"):
    return gaussian_denoiser(float64(chain(name, num_steps).alpha_bar), MEAN, DEVIATION, predicts)


def outcome(name, num_steps, variance):
    """Mean and variance of ancestral sampling with the best denoiser, step by step in float64.

    x_s = w_x0 x0_hat + w_x_t x_t + noise and x0_hat is linear in x_t, so Gaussians stay Gaussian.
    """
    tables, mean, spread = chain(name, num_steps), 0.0, 1.0
    for t in reversed(range(num_steps)):
        a, b = map(float, tables.signal_and_noise(t))
        gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2)
        weight_x0, weight_x_t, added = map(float, tables.posterior(t, t - 1))
        if variance == "large" and t > 0:
            added = float(tables.betas[t])
        slope = weight_x0 * gain + weight_x_t
        mean = slope * mean + weight_x0 * MEAN * (1 - a * gain)
        spread = slope**2 * spread + added
    return mean, spread


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_sampling_of_gaussian_data(variance, predicts):
    # 20,000 samples; mean and variance within 4.5 standard errors of the exact outcome of these
    # steps, which is the data's but for an error that falls as 1 / T. p < 1e-5 at a fixed seed.
    name, num_steps, samples = "linear_log_snr", 250, 20_000
    sampler = ancestral(
        getattr(schedules, name)(num_steps),
        denoiser(name, num_steps, predicts),
        predicts=predicts,
        variance=variance,
        clip_x0=False,
    )
    times = jnp.arange(num_steps)[::-1]
    x0 = np.asarray(sample(sampler, jax.random.key(0), (samples, 1), times).x0, np.float64)
    mean, spread = outcome(name, num_steps, variance)
    assert abs(x0.mean() - mean) < 4.5 * np.sqrt(spread / samples)
    assert abs(x0.var() - spread) < 4.5 * spread * np.sqrt(2 / samples)
    assert abs(mean - MEAN) < 0.01
    assert abs(spread - DEVIATION**2) < 0.02


def test_the_error_of_ancestral_sampling_falls_with_t():
    # Of the reference itself: the data are the limit, or the test above would prove little.
    for variance in ("small", "large"):
        errors = [
            abs(outcome("linear_log_snr", num_steps, variance)[1] - DEVIATION**2)
            for num_steps in (250, 1000)
        ]
        assert errors[0] > 2.5 * errors[1]  # 4, less what the chain's two ends leave


@pytest.mark.parametrize(("t", "s"), [(999, 998), (999, 500), (500, 20), (20, 19), (1, 0), (0, -1)])
def test_ddim_with_all_the_noise_is_ancestral(t, s):
    schedule, predict = schedules.linear(1000), denoiser("linear", 1000)
    state = SamplerState(jnp.linspace(-3.0, 3.0, 64).reshape(8, 8))
    for clip in (False, True):
        both = [
            sampler.step(jax.random.key(0), state, jnp.int32(t), jnp.int32(s))
            for sampler in (
                ddim(schedule, predict, eta=1.0, clip_x0=clip),
                ancestral(schedule, predict, variance="small", clip_x0=clip),
            )
        ]
        np.testing.assert_allclose(both[0][0].x_t, both[1][0].x_t, atol=3e-5)
        np.testing.assert_array_equal(both[0][1].x0_hat, both[1][1].x0_hat)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_ddim_splits_the_noise_into_kept_and_fresh(eta):
    # Who knows the data moves q(x_t | x_0) onto q(x_s | x_0): of eps = 1 a share is kept, the rest
    # of the variance is drawn. 20,000 samples, within 4.5 standard errors: p < 1e-5.
    tables, t, s, samples = chain("linear", 1000), 500, 300, 20_000
    (a_t, b_t), (a_s, b_s) = ((float(v) for v in tables.signal_and_noise(i)) for i in (t, s))
    data = 0.4
    sampler = ddim(
        schedules.linear(1000), lambda x_t, t: jnp.full_like(x_t, data), predicts="x0", eta=eta
    )
    state = SamplerState(jnp.full((samples, 1), a_t * data + b_t))
    x_s = np.asarray(sampler.step(jax.random.key(0), state, jnp.int32(t), jnp.int32(s))[0].x_t)
    fresh = eta**2 * float(tables.posterior(t, s)[2])
    kept = np.sqrt(b_s**2 - fresh)
    assert abs(x_s.mean() - a_s * data - kept) < 4.5 * np.sqrt(fresh / samples) + 1e-5
    assert abs(x_s.var() - fresh) < 4.5 * fresh * np.sqrt(2 / samples) + 1e-5


def test_ddim_is_a_first_order_solver_of_the_probability_flow():
    # On Gaussian data the flow keeps (x - a mean) / sqrt(a^2 deviation^2 + b^2) as it is.
    tables, schedule = chain("linear", 1000), schedules.linear(1000)
    sampler = ddim(schedule, denoiser("linear", 1000), clip_x0=False)
    a, b = map(float, tables.signal_and_noise(999))
    errors = []
    for num_steps in (25, 50, 100, 200):
        samples = sample(
            sampler,
            jax.random.key(0),
            (64, 1),
            time_grid(schedule, num_steps),
            keep=all_of_it,
        )
        x_T = np.asarray(sampler.init(jax.random.split(jax.random.key(0))[0], (64, 1)).x_t)
        exact = MEAN + DEVIATION * (x_T - a * MEAN) / np.sqrt(a**2 * DEVIATION**2 + b**2)
        errors.append(np.abs(samples.x0 - exact).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert (ratios > 1.7).all()
    assert (ratios < 2.3).all()


@pytest.mark.parametrize("predicts", KINDS)
def test_ddim_without_noise_depends_on_its_start_alone(predicts):
    schedule, predict = schedules.linear(10), denoiser("linear", 10, predicts)
    sampler = ddim(schedule, predict, predicts=predicts)
    state = sampler.init(jax.random.key(0), (4, 2))
    ends = [
        sampler.step(jax.random.key(seed), state, jnp.int32(9), jnp.int32(4))[0].x_t
        for seed in (1, 2)
    ]
    np.testing.assert_array_equal(*ends)


SAMPLERS = {
    "ancestral small": lambda *args, **kw: ancestral(*args, variance="small", **kw),
    "ancestral large": lambda *args, **kw: ancestral(*args, variance="large", **kw),
    "ddim": ddim,
    "ddim with noise": lambda *args, **kw: ddim(*args, eta=0.7, **kw),
}


@pytest.fixture(params=SAMPLERS, scope="module")
def make(request):
    return SAMPLERS[request.param]


@pytest.mark.parametrize("predicts", KINDS)
def test_who_knows_the_data_ends_on_them(make, predicts):
    schedule, data = schedules.cosine(100), jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    a, b = map(np.sqrt, map(float64, chain("cosine", 100)[1:3]))

    def predict(x_t, t):
        at, bt = (jnp.asarray(table, jnp.float32)[t][:, None] for table in (a, b))
        eps = (x_t - at * data) / bt
        return {"x0": data, "eps": eps, "v": at * eps - bt * data}[predicts]

    sampler = make(schedule, predict, predicts=predicts)
    x0 = sample(sampler, jax.random.key(0), data.shape, time_grid(schedule, 20)).x0
    np.testing.assert_allclose(x0, data, atol=0 if predicts == "x0" else 1e-6)


def test_the_trajectory_is_every_step_and_ends_with_the_images(make):
    schedule = schedules.linear(20)
    sampler = make(schedule, denoiser("linear", 20))
    times, shape = time_grid(schedule, 7), (2, 4, 4, 1)
    with_steps = sample(sampler, jax.random.key(0), shape, times, keep=all_of_it)
    assert with_steps.x0.shape == shape
    assert with_steps.x0.dtype == jnp.float32
    assert {leaf.shape for leaf in with_steps.trajectory} == {(7, *shape)}
    np.testing.assert_array_equal(with_steps.trajectory.x_s[-1], with_steps.x0)
    # The last step adds no noise and believes what it says.
    np.testing.assert_allclose(with_steps.trajectory.x0_hat[-1], with_steps.x0, atol=1e-6)
    without = sample(sampler, jax.random.key(0), shape, times)
    assert without.trajectory is None
    np.testing.assert_allclose(without.x0, with_steps.x0, atol=1e-6)


def test_clipping_keeps_what_is_believed_inside(make):
    schedule = schedules.linear(20)
    times = time_grid(schedule, 20)
    for clip in (True, False):
        sampler = make(schedule, lambda x_t, t: 5.0 * x_t, predicts="x0", clip_x0=clip)
        steps = sample(sampler, jax.random.key(0), (16, 2), times, keep=all_of_it).trajectory
        assert (jnp.abs(steps.x0_hat).max() <= 1.0) == clip


def test_one_trace_and_the_key_decides(make):
    traces, schedule = [], schedules.linear(10)

    def predict(x_t, t):
        traces.append((x_t.dtype, t.shape))
        return 0.1 * x_t

    run = jax.jit(lambda key, times: sample(make(schedule, predict), key, (3, 2), times).x0)
    times = time_grid(schedule, 5)
    first, again, other = (run(jax.random.key(seed), times) for seed in (0, 0, 1))
    run(jax.random.key(0), times - 1)
    assert traces == [(jnp.float32, (3,))]
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).all()


@pytest.mark.parametrize(
    ("num_steps", "grid"),
    [(10, range(9, -1, -1)), (1, [9]), (2, [9, 0]), (4, [9, 6, 3, 0]), (5, [9, 7, 5, 3, 0])],
)
def test_time_grid(num_steps, grid):
    times = time_grid(schedules.linear(10), num_steps)
    assert times.dtype == jnp.int32
    np.testing.assert_array_equal(times, list(grid))


@pytest.mark.parametrize("T", [2, 7, 1000, 100_000])
def test_time_grid_falls_evenly_and_never_repeats(T):
    schedule = schedules.linear_log_snr(T)
    for num_steps in {2, T // 3, T - 1, T} - {0, 1}:
        times = np.asarray(time_grid(schedule, num_steps), np.int64)
        assert (times[0], times[-1], len(times)) == (T - 1, 0, num_steps)
        steps = -np.diff(times)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("num_steps", [0, -1, 11])
def test_time_grid_has_between_one_and_all_times(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; a chain of T = 10"):
        time_grid(schedules.linear(10), num_steps)


def test_arguments_that_cannot_be(without_annotation_checks):
    schedule, key = schedules.linear(10), jax.random.key(0)
    predict = denoiser("linear", 10)
    with pytest.raises(ValueError, match="variance is 'medium'"):
        ancestral(schedule, predict, variance="medium")
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta is"):
            ddim(schedule, predict, eta=eta)
    for times in (jnp.zeros(3), jnp.zeros((2, 2), jnp.int32), jnp.zeros(0, jnp.int32)):
        with pytest.raises(ValueError, match="times has shape"):
            sample(samplers.ddim(schedule, predict), key, (1, 1), times)
