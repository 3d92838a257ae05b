"""Samplers on Gaussian data, where every step is linear and the outcome is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser
from gaussian_samplers import DEVIATION, MEAN, SAMPLERS, denoiser
from marks import thorough_but

from ddpm_jax import schedules
from ddpm_jax.forward import q_posterior, q_sample
from ddpm_jax.samplers import (
    SamplerState,
    ancestral,
    ddim,
    heun,
    inpaint,
    sample,
    static_threshold,
    time_grid,
)
from ddpm_jax.samplers.guidance import classifier, classifier_free

KINDS = ("eps", "x0", "v")


def all_of_it(info):
    return info


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


@pytest.mark.thorough
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
        threshold=None,
    )
    times = jnp.arange(num_steps)[::-1]
    x0 = np.asarray(sample(sampler, jax.random.key(0), (samples, 1), times).x0, np.float64)
    mean, spread = outcome(name, num_steps, variance)
    assert abs(x0.mean() - mean) < 4.5 * np.sqrt(spread / samples)
    assert abs(x0.var() - spread) < 4.5 * spread * np.sqrt(2 / samples)
    assert abs(mean - MEAN) < 0.01
    assert abs(spread - DEVIATION**2) < 0.02


@pytest.mark.thorough
def test_the_error_of_ancestral_sampling_falls_with_t():
    # Of the reference itself: the data are the limit, or the test above would prove little.
    for variance in ("small", "large"):
        errors = [
            abs(outcome("linear_log_snr", num_steps, variance)[1] - DEVIATION**2)
            for num_steps in (250, 1000)
        ]
        assert errors[0] > 2.5 * errors[1]  # 4, less what the chain's two ends leave


@pytest.mark.parametrize(
    ("t", "s"),
    thorough_but([(999, 500)], [(999, 998), (999, 500), (500, 20), (20, 19), (1, 0), (0, -1)]),
)
def test_ddim_with_all_the_noise_is_ancestral(t, s):
    schedule, predict = schedules.linear(1000), denoiser("linear", 1000)
    state = SamplerState(jnp.linspace(-3.0, 3.0, 64).reshape(8, 8))
    for clip in (None, static_threshold):
        both = [
            sampler.step(jax.random.key(0), state, jnp.int32(t), jnp.int32(s))
            for sampler in (
                ddim(schedule, predict, eta=1.0, threshold=clip),
                ancestral(schedule, predict, variance="small", threshold=clip),
            )
        ]
        np.testing.assert_allclose(both[0][0].x_t, both[1][0].x_t, atol=3e-5)
        np.testing.assert_array_equal(both[0][1].x0_hat, both[1][1].x0_hat)


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_ddim_is_a_first_order_solver_of_the_probability_flow():
    # On Gaussian data the flow keeps (x - a mean) / sqrt(a^2 deviation^2 + b^2) as it is.
    tables, schedule = chain("linear", 1000), schedules.linear(1000)
    sampler = ddim(schedule, denoiser("linear", 1000), threshold=None)
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


@pytest.mark.thorough
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


QUICK = ("ancestral small", "ddim", "dpm_solver_pp 2M", "heun", "probability_flow 4")


@pytest.fixture(params=thorough_but(QUICK, SAMPLERS), scope="module")
def make(request):
    return SAMPLERS[request.param]


@pytest.fixture(
    params=[
        *("ancestral learned range", "ddim with noise", "dpm_solver_pp 2M, stochastic"),
        *("heun", "probability_flow 4", "unipc 3", "dpm_solver_pp_single 3", "midpoint"),
    ],
    scope="module",
)
def maker(request):
    """One of each family, for what their options have no part in."""
    return SAMPLERS[request.param]


@pytest.mark.thorough
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
    # Where x0 is what is predicted, all that is left is the last place.
    rtol, atol = (3e-7, 0) if predicts == "x0" else (1e-7, 1e-6)
    np.testing.assert_allclose(x0, data, rtol=rtol, atol=atol)


def test_the_trajectory_is_every_step_and_ends_with_the_images(maker):
    schedule = schedules.linear(20)
    sampler = maker(schedule, denoiser("linear", 20))
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


@pytest.mark.thorough
def test_clipping_keeps_what_is_believed_inside(maker):
    schedule = schedules.linear(20)
    times = time_grid(schedule, 20)
    for clip in (static_threshold, None):
        sampler = maker(schedule, lambda x_t, t: 5.0 * x_t, predicts="x0", threshold=clip)
        steps = sample(sampler, jax.random.key(0), (16, 2), times, keep=all_of_it).trajectory
        assert (jnp.abs(steps.x0_hat).max() <= 1.0) == (clip is not None)


@pytest.mark.thorough
def test_one_trace_and_the_key_decides(maker):
    calls = 2 if maker is heun else 1
    traces, schedule = [], schedules.linear(10)

    def predict(x_t, t):
        traces.append((x_t.dtype, t.shape))
        return 0.1 * x_t

    # Without a threshold, or two images could meet at 1.
    run = jax.jit(
        lambda key, times: sample(maker(schedule, predict, threshold=None), key, (3, 2), times).x0
    )
    times = time_grid(schedule, 5)
    first, again, other = (run(jax.random.key(seed), times) for seed in (0, 0, 1))
    run(jax.random.key(0), times - 1)
    assert traces == [(jnp.float32, (3,))] * calls
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).all()


def test_every_sampler_draws_the_data(make):
    # 20,000 samples; mean and variance within 4.5 standard errors of the data's, and what 125 steps
    # of a first-order sampler leave. p < 1e-5 at a fixed seed.
    name, num_steps, samples = "linear_log_snr", 250, 20_000
    schedule = getattr(schedules, name)(num_steps)
    sampler = make(schedule, denoiser(name, num_steps, "v"), predicts="v", threshold=None)
    times = time_grid(schedule, 125)
    x0 = np.asarray(sample(sampler, jax.random.key(0), (samples, 1), times).x0, np.float64)
    assert abs(x0.mean() - MEAN) < 4.5 * DEVIATION / np.sqrt(samples) + 0.01
    assert abs(x0.var() - DEVIATION**2) < 4.5 * DEVIATION**2 * np.sqrt(2 / samples) + 0.02


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", ["x0", "v"])
def test_chains_that_leave_no_signal(make, predicts):
    # Out of pure noise, who knows the data ends on them.
    schedule, data = schedules.zero_terminal_snr(schedules.linear(1000)), jnp.linspace(-1.0, 1.0, 8)
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    a, b = (jnp.asarray(np.sqrt(table), jnp.float32) for table in (alpha_bar, 1.0 - alpha_bar))

    def knows(x_t, t):
        at, bt = a[t][:, None], b[t][:, None]
        eps = (x_t - at * data[:, None]) / bt
        return {"x0": data[:, None], "v": at * eps - bt * data[:, None]}[predicts]

    sampler = make(schedule, knows, predicts=predicts)
    run = sample(
        sampler, jax.random.key(0), (8, 1), time_grid(schedule, 12), keep=lambda info: info
    )
    np.testing.assert_allclose(run.x0[:, 0], data, atol=1e-4)  # `knows` divides by b
    assert all(np.isfinite(leaf).all() for leaf in run.trajectory)
    with pytest.raises(ValueError, match="predicts is 'eps', and the schedule leaves no signal"):
        make(schedule, knows, predicts="eps")


@pytest.mark.thorough
def test_out_of_pure_noise_who_knows_the_law_draws_it(make):
    # 20,000 samples; what 100 steps leave is 0.04 at most.
    schedule, samples = schedules.zero_terminal_snr(schedules.linear(1000)), 20_000
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    predict = gaussian_denoiser(alpha_bar, MEAN, DEVIATION, "v")
    sampler = make(schedule, predict, predicts="v", threshold=None)
    times = time_grid(schedule, 100, "trailing")
    x0 = np.asarray(sample(sampler, jax.random.key(0), (samples, 1), times).x0, np.float64)
    assert abs(x0.mean() - MEAN) < 4.5 * DEVIATION / np.sqrt(samples) + 0.01
    assert abs(x0.var() - DEVIATION**2) < 4.5 * DEVIATION**2 * np.sqrt(2 / samples) + 0.04


@pytest.mark.thorough
def test_a_respaced_chain_is_the_chain_at_its_times(maker):
    schedule, times = schedules.linear(1000), [10, 100, 300, 700, 850, 999]
    predict = denoiser("linear", 1000)

    def path(schedule, times):
        """The same keys for both, which `sample` folds from the index in the chain."""
        sampler = maker(schedule, predict)

        def step(state, pair):
            key, (t, s) = jax.random.fold_in(jax.random.key(1), pair[2]), pair[:2]
            return sampler.step(key, state, t, s)

        pairs = jnp.array([*times[:0:-1]]), jnp.array([*times[-2::-1]]), jnp.arange(len(times) - 1)
        return jax.lax.scan(step, sampler.init(jax.random.key(0), (4, 3), None), pairs)[1]

    of_all = path(schedule, [-1, *times])
    of_few = path(schedules.respaced(schedule, times), range(-1, 6))
    for one, other in zip(of_all, of_few, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


@pytest.mark.thorough
def test_any_sampler_any_guidance_and_inpainting_in_one_trace(maker):
    schedule, traces = schedules.cosine(20), []
    one, without = denoiser("cosine", 20), denoiser("linear", 20)

    def counted(x_t, t):
        traces.append(t.shape)
        return one(x_t, t)

    free = classifier_free(counted, without, scale=3.0, interval=(2, 15), rescale=0.7)
    both = classifier(schedule, free, lambda x_t, t: -jnp.sum(jnp.square(x_t), axis=1), scale=0.5)
    known, mask = jnp.full((3, 4), 0.2), jnp.eye(3, 4, dtype=bool)
    painter = inpaint(maker(schedule, both), schedule, known, mask, resamplings=2)
    run = jax.jit(lambda key: sample(painter, key, (3, 4), time_grid(schedule, 9)).x0)
    for seed in range(2):
        x0 = run(jax.random.key(seed))
        assert np.isfinite(x0).all()
        np.testing.assert_array_equal(x0[mask], known[mask])
    assert len(traces) == (4 if maker is heun else 2)  # there and back, and the last time


@pytest.mark.thorough
@pytest.mark.bits_of_two_programs
def test_start_takes_the_place_of_the_noise(maker):
    schedule = schedules.linear(20)
    sampler, key = maker(schedule, denoiser("linear", 20)), jax.random.key(0)
    times, shape = time_grid(schedule, 6), (4, 2)
    drawn = sampler.init(jax.random.split(key)[0], shape, None).x_t
    plain, given = (sample(sampler, key, shape, times, start=x).x0 for x in (None, drawn))
    np.testing.assert_array_equal(plain, given)
    # An image that is noised a little, and led back: it stays near itself.
    x0 = jnp.linspace(-0.5, 0.5, 8).reshape(shape)
    start = q_sample(schedule, x0, jnp.full(4, 1), jax.random.normal(key, shape))
    near = sample(sampler, key, shape, jnp.array([1, 0]), start=start).x0
    assert jnp.abs(near - x0).max() < 0.1
    sampler = maker(schedule, lambda x_t, t: 0.5 * x_t)
    half = sample(sampler, key, shape, times, start=drawn.astype(jnp.bfloat16)).x0
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"start has shape \(2, 4\); it has to be `shape`, \(4, 2"):
        sample(sampler, key, shape, times, start=drawn.T)


@pytest.mark.parametrize("interpolation", thorough_but([0.3], [0.0, 0.3, 1.0, 1.2]))
def test_the_learned_variance_is_between_the_two_logarithms(interpolation):
    schedule, tables, x_t = schedules.linear(1000), chain("linear", 1000), jnp.ones((5, 2))
    sampler = ancestral(
        schedule,
        lambda x_t, t: (0.1 * x_t, jnp.full_like(x_t, interpolation)),
        predicts="x0",
        variance="learned_range",
    )
    key = jax.random.key(3)
    for t, s in ((999, 800), (500, 499), (1, 0)):
        x_s = sampler.step(key, SamplerState(x_t), jnp.int32(t), jnp.int32(s))[0].x_t
        mean, _ = q_posterior(schedule, 0.1 * x_t, x_t, jnp.full(5, t), jnp.full(5, s))
        small, large = tables.posterior(t, s)[2], 1 - tables.alpha_bar[t] / tables.alpha_bar[s]
        deviation = float(large**interpolation * small ** (1 - interpolation)) ** 0.5
        noise = np.asarray(jax.random.normal(key, (5, 2)))
        np.testing.assert_allclose(x_s - mean, deviation * noise, rtol=1e-4, atol=3e-7)
    onto_data = sampler.step(key, SamplerState(x_t), jnp.int32(7), jnp.int32(-1))[0].x_t
    np.testing.assert_array_equal(onto_data, 0.1 * x_t)


@pytest.mark.thorough
def test_a_key_for_each_image_makes_it_its_own(maker):
    schedule, keys = schedules.linear(20), jax.random.split(jax.random.key(5), 6)
    sampler, times = maker(schedule, denoiser("linear", 20)), time_grid(schedule, 7)
    draw = jax.jit(lambda key: sample(sampler, key, (*key.shape, 4, 2), times).x0)
    whole = draw(keys)
    assert len({row.tobytes() for row in np.asarray(whole)}) == 6
    order = np.array([4, 0, 5, 3, 1, 2])
    np.testing.assert_array_equal(draw(keys[order]), whole[order])
    for size in (1, 2, 3):
        parts = [draw(keys[first : first + size]) for first in range(0, 6, size)]
        # Each size is a program of its own, in which the compiler fuses other multiply-adds.
        np.testing.assert_allclose(jnp.concatenate(parts), whole, rtol=0.0, atol=1e-6)
    # Not a matter of one key for all: that draws the noise of the batch at once.
    one = sample(sampler, keys[0], (6, 4, 2), times).x0
    assert (np.asarray(one)[1:] != np.asarray(whole)[1:]).any()


def test_one_key_draws_what_it_always_drew():
    # Step by step with jax.random, as `sample` says: fold_in(key, t) of the second half of the key.
    schedule, key, shape = schedules.linear(20), jax.random.key(3), (4, 2)
    predict, times = denoiser("linear", 20), [19, 11, 4]
    start, steps = jax.random.split(key)
    x = jax.random.normal(start, shape)
    for t, s in zip(times, [*times[1:], -1], strict=True):
        at, to = jnp.full(4, t), jnp.full(4, s)
        a, b = (
            np.sqrt(np.asarray(table)[t]) for table in (schedule.alpha_bar, 1 - schedule.alpha_bar)
        )
        x0_hat = (x - b * predict(x, at)) / a
        mean, variance = q_posterior(schedule, jnp.clip(x0_hat, -1.0, 1.0), x, at, to)
        noise = jax.random.normal(jax.random.fold_in(steps, t), shape)
        x = mean + (jnp.sqrt(variance.reshape(-1, 1)) * noise if s >= 0 else 0.0)
    found = sample(ancestral(schedule, predict, variance="small"), key, shape, jnp.array(times)).x0
    np.testing.assert_allclose(found, x, atol=2e-5)


@pytest.mark.thorough
def test_eta_may_be_traced():
    schedule = schedules.linear(10)

    def draw(eta):
        sampler = ddim(schedule, denoiser("linear", 10), eta=eta)
        return sample(sampler, jax.random.key(0), (2, 3), jnp.array([9, 5, 0])).x0

    etas = jnp.array([0.0, 0.6, 1.0])
    each = [draw(float(eta)) for eta in etas]
    np.testing.assert_allclose(jax.vmap(draw)(etas), jnp.stack(each), atol=1e-6)
    np.testing.assert_allclose(draw(etas[1]), each[1], atol=1e-6)
