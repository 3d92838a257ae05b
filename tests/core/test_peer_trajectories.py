"""Beside diffusers, as in `test_peers`: whole trajectories, grids of times, thresholds, guidance.

The network is the best denoiser of Gaussian data, the same function for both.
"""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser
from peers import (
    KEY,
    KINDS,
    NAMES,
    SHAPE,
    T,
    diffusers,
    judge,
    noise_of,
    rescale_noise_cfg,
    schedule_of,
    to_torch,
)

from ddpm_jax import schedules
from ddpm_jax.samplers import (
    ddim,
    ddim_inversion,
    dpm_solver_pp,
    dynamic_threshold,
    guidance,
    heun,
    probability_flow,
    sample,
    static_threshold,
    time_grid,
)

# NumPy's, of how their schedulers hand it tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.thorough,
]

MEAN, DEVIATION = 0.3, 0.5


@functools.cache
def denoiser(name, predicts):
    return gaussian_denoiser(float64(chain(name, T).alpha_bar), MEAN, DEVIATION, predicts)


def their_output(name, predicts, x_t, t):
    output = denoiser(name, predicts)(jnp.asarray(x_t.numpy()), jnp.full(SHAPE[:1], int(t)))
    return to_torch(output)


def start():
    return np.float32(np.random.default_rng(0).normal(size=SHAPE))


def exact_dpm_solver(name, x_t, times, noises, *, last=-1):
    """DPM-Solver++ 2M of Lu et al. 2022, with noise if there are `noises`, weights in 50 digits."""
    tables, before, x = chain(name, T), None, x_t.astype(np.float64)
    for i, (t, s) in enumerate(itertools.pairwise([*times, last])):
        a, b = tables.signal_and_noise(t)
        gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2)
        x0_hat = float(gain) * x + float(MEAN * (1 - a * gain))
        h = mp.inf if s == -1 else (tables.log_snr[s] - tables.log_snr[t]) / 2
        ahead = x0_hat
        if before is not None and s != -1 and before[1] != mp.inf:
            ahead = x0_hat + float(h / before[1] / 2) * (x0_hat - before[0])
        if noises is not None:
            weight_x0, weight_x_t, added = map(float, tables.posterior(t, s))
            x = weight_x0 * ahead + weight_x_t * x + np.sqrt(added) * noises[i]
        elif s == -1:
            x = ahead
        else:
            a_s, b_s = tables.signal_and_noise(s)
            x = float(b_s / b) * x - float(a_s * mp.expm1(-h)) * ahead
        before = x0_hat, h
    return x


def their_dpm_solver(name, predicts, times, noises, **arguments):
    peer = diffusers.DPMSolverMultistepScheduler(
        T,
        prediction_type=KINDS[predicts],
        algorithm_type="dpmsolver++" if noises is None else "sde-dpmsolver++",
        **NAMES[name],
        **arguments,
    )
    x_t = to_torch(start())
    peer.set_timesteps(timesteps=times)
    for i, t in enumerate(peer.timesteps):
        noise = None if noises is None else to_torch(noises[i])
        output = their_output(name, predicts, x_t, t)
        x_t = peer.step(output, t, x_t, variance_noise=noise).prev_sample
    return x_t


def our_dpm_solver(name, predicts, times, keys, *, last=-1):
    sampler = dpm_solver_pp(
        schedule_of(name, T),
        denoiser(name, predicts),
        predicts=predicts,
        stochastic=keys is not None,
        threshold=None,
    )
    step, state = jax.jit(sampler.step), sampler.init(KEY, SHAPE, jnp.asarray(start()))
    for i, (t, s) in enumerate(itertools.pairwise([*times, last])):
        key = KEY if keys is None else keys[i]
        state, _ = step(key, state, jnp.int32(t), jnp.int32(s))
    return state.x_t


GRIDS = {
    "few": [999, 800, 600, 500, 250, 100],
    "many": [999, 937, 874, 812, 749, 687, 624, 562, 500, 437, 375, 312, 250, 187, 125, 62, 20],
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    ("name", "predicts"), [*itertools.product(["linear"], KINDS), ("cosine", "v")]
)
def test_dpm_solver(name, predicts, stochastic, grid):
    times = GRIDS[grid]
    keys = list(jax.random.split(KEY, len(times))) if stochastic else None
    noises = [noise_of(key) for key in keys] if stochastic else None
    judge(
        our_dpm_solver(name, predicts, times, keys),
        their_dpm_solver(name, predicts, times, noises),
        exact_dpm_solver(name, start(), times, noises),
        ours_within=2e-6,
        theirs_within=2e-5,
    )


def test_where_the_dpm_solver_ends():
    # final_sigmas_type: "zero" is our step onto the data, "sigma_min" one onto t = 0, after which
    # the images still have the noise of one step.
    times = GRIDS["many"]
    for last, name in ((-1, "zero"), (0, "sigma_min")):
        judge(
            our_dpm_solver("linear", "eps", times, None, last=last),
            their_dpm_solver("linear", "eps", times, None, final_sigmas_type=name),
            exact_dpm_solver("linear", start(), times, None, last=last),
            ours_within=2e-6,
            theirs_within=2e-5,
        )


def test_dpm_solver_out_of_pure_noise():
    # Their alpha_bar of 2^-24 in the place of 0 reads 2^-12 x_t out of pure noise, and makes the
    # first step's length in log SNR finite, so that the second continues x0_hat from it.
    name, times = "zero_terminal_snr", GRIDS["many"]
    exact = exact_dpm_solver(name, start(), times, None)
    ours = np.asarray(our_dpm_solver(name, "v", times, None))
    theirs = their_dpm_solver(name, "v", times, None).numpy()
    assert np.abs(ours - exact).max() < 2e-6
    assert 1e-4 < np.abs(theirs - exact).max() < 1e-3


IN_SIGMA = {
    "EulerDiscreteScheduler": (ddim, {}),
    "EulerAncestralDiscreteScheduler": (ddim, {"eta": 1.0}),
    "HeunDiscreteScheduler": (heun, {}),
    "LMSDiscreteScheduler": (probability_flow, {}),
}
"""Schedulers that step y = x / a, and ours, which are the same in x."""


@pytest.mark.parametrize("name", IN_SIGMA)
def test_schedulers_in_sigma(name, monkeypatch):
    make, options = IN_SIGMA[name]
    schedule, times = schedule_of("linear", T), time_grid(schedule_of("linear", T), 20, "trailing")
    steps = jax.random.split(KEY)[1]
    noises = iter([to_torch(noise_of(jax.random.fold_in(steps, t))) for t in times])
    module = getattr(diffusers, name).__module__
    if options:
        monkeypatch.setattr(sys.modules[module], "randn_tensor", lambda *_, **__: next(noises))
    peer = getattr(diffusers, name)(
        T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing"
    )
    peer.set_timesteps(20)
    a, _ = map(float, chain("linear", T).signal_and_noise(T - 1))
    y = to_torch(start() / a)
    for t in peer.timesteps:
        output = their_output("linear", "eps", peer.scale_model_input(y, t), t)
        y = peer.step(output, t, y).prev_sample
    sampler = make(schedule, denoiser("linear", "eps"), threshold=None, **options)
    ours = sample(sampler, KEY, SHAPE, times, start=jnp.asarray(start())).x0
    difference = np.abs(ours - y.numpy()).max() / np.abs(y.numpy()).max()
    print(f"{name}: largest relative difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("predicts", KINDS)
def test_ddim_inversion(predicts, steps):
    # The flow that both follow upwards keeps (x - a mean) / sqrt(a^2 deviation^2 + b^2) as it is.
    # Once round, ours reads the output at the t that the network was told. Theirs reads it at s:
    # the same for eps, twice the error for v, and 0 / 0 in the first step for x0.
    tables, x0 = chain("linear", T), np.float32(MEAN + DEVIATION * start())
    arguments = {"clip_sample": False, "prediction_type": KINDS[predicts]}
    peer = diffusers.DDIMInverseScheduler(T, **arguments)
    peer.set_timesteps(steps)
    theirs = to_torch(x0)
    for t in peer.timesteps:
        theirs = peer.step(their_output("linear", predicts, theirs, t), int(t), theirs).prev_sample
    times = jnp.asarray(peer.timesteps.numpy()[::-1].copy(), jnp.int32)
    ours = ddim_inversion(
        schedule_of("linear", T),
        denoiser("linear", predicts),
        jnp.asarray(x0),
        times,
        predicts=predicts,
    )
    a, b = map(float, tables.signal_and_noise(int(times[0])))
    exact = a * MEAN + np.sqrt(a**2 * DEVIATION**2 + b**2) * (x0.astype(float) - MEAN) / DEVIATION
    errors = [np.abs(np.asarray(x) - exact).max() for x in (ours, theirs)]
    assert errors[0] < 2.0 / steps
    match predicts:
        case "eps":
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        case "v":
            assert 1.5 < errors[1] / errors[0] < 3.0
        case "x0":
            assert np.isnan(errors[1])


# ---- grids, thresholds, guidance


def their_grid(peer, steps, spacing, T=T):
    peer = getattr(diffusers, peer)(T, timestep_spacing=spacing)
    peer.set_timesteps(steps)
    return peer.timesteps.numpy()


@pytest.mark.parametrize("steps", [2, 3, 10, 30, 50, 999, 1000])
@pytest.mark.parametrize("peer", ["DDPMScheduler", "DDIMScheduler"])
def test_grids(peer, steps):
    schedule = schedule_of("linear", T)
    for spacing in ("leading", "trailing", "linspace"):
        ours = time_grid(schedule, steps, spacing)
        np.testing.assert_array_equal(ours, their_grid(peer, steps, spacing))


@pytest.mark.parametrize(("T", "steps"), [(50, 29), (100, 97), (1000, 61), (1000, 201)])
def test_a_trailing_grid_has_as_many_times_as_it_was_asked_for(T, steps):
    # Theirs counts down from T by T / n rounded to a double, and where that falls short arrives
    # above 0 once more: a step too many, at t = -1, for which Python looks up the last alpha_bar.
    theirs = their_grid("DDPMScheduler", steps, "trailing", T)
    assert (len(theirs), theirs[-1]) == (steps + 1, -1)
    exact = [int(mp.nint(T - mp.mpf(i) * T / steps)) - 1 for i in range(steps)]
    ours = time_grid(schedules.linear(T), steps, "trailing")
    np.testing.assert_array_equal(ours, exact)
    np.testing.assert_array_equal(theirs[:-1], exact)


def test_grids_of_their_dpm_solver():
    # It thinks of n + 1 points, the last of which is the data: leading and linspace are those of
    # n + 1 steps without t = 0, and trailing is as above.
    schedule, peer = schedule_of("linear", T), "DPMSolverMultistepScheduler"
    for steps in (3, 10, 20, 37):
        leading, linspace, trailing = (
            their_grid(peer, steps, spacing) for spacing in ("leading", "linspace", "trailing")
        )
        np.testing.assert_array_equal(leading, time_grid(schedule, steps + 1, "leading")[:-1])
        np.testing.assert_array_equal(trailing, time_grid(schedule, steps, "trailing"))
        np.testing.assert_array_equal(linspace, time_grid(schedule, steps + 1, "linspace")[:-1])


@pytest.mark.parametrize("peer", ["DDPMScheduler", "DDIMScheduler"])
def test_thresholds(peer):
    # Saharia et al. 2022, section 2.3: s = max(1, quantile). Theirs bounds s by sample_max_value
    # too, and that is 1 unless told otherwise, so that "thresholding" alone is a plain cut at 1.
    x0_hat = np.float32(np.random.default_rng(0).normal(size=(5, *SHAPE[1:], 6))) * 2
    x0_hat[1] *= 0.1
    largest_and_ours = (
        (1.0, static_threshold),
        (1.5, dynamic_threshold(0.9, maximum=1.5)),
        (1e9, dynamic_threshold(0.9)),
    )
    for largest, ours in largest_and_ours:
        theirs = getattr(diffusers, peer)(
            T, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=largest
        )._threshold_sample(to_torch(x0_hat))
        exact = x0_hat.astype(np.float64)
        s = np.quantile(np.abs(exact).reshape(5, -1), 0.9, axis=1).reshape(-1, 1, 1, 1)
        s = np.clip(s, 1.0, largest)
        exact = np.clip(exact, -s, s) / s
        judge(ours(jnp.asarray(x0_hat)), theirs, exact, ours_within=5e-7, theirs_within=5e-7)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance(rescale):
    with_condition, without = np.float32(np.random.default_rng(0).normal(size=(2, *SHAPE)))
    predict = guidance.classifier_free(
        lambda x_t, t: jnp.asarray(with_condition),
        lambda x_t, t: jnp.asarray(without),
        scale=7.5,
        rescale=rescale,
    )
    ours = predict(jnp.zeros(SHAPE), jnp.zeros(SHAPE[:1], jnp.int32))
    guided = to_torch(without) + 7.5 * (to_torch(with_condition) - to_torch(without))
    theirs = rescale_noise_cfg(guided, to_torch(with_condition), guidance_rescale=rescale)
    exact = without + 7.5 * (with_condition.astype(np.float64) - without)
    axes = {"axis": (1, 2), "keepdims": True}
    ratio = with_condition.astype(np.float64).std(**axes) / exact.std(**axes)
    exact = exact * (1.0 + rescale * (ratio - 1.0))
    judge(ours, theirs, exact, ours_within=1e-6, theirs_within=1e-6)
