"""Beside diffusers, an implementation that shares nothing with this one but the papers.

Both are given the same x_t, the same outputs of a network and the same noise. What should come of
them is worked out from tables in 50 digits, so that where the two differ a test says who is right.
With diffusers 0.42 they differ in

    tables         alpha_bar is a product in float32 there, and everything else is made of it: what
                   1 - alpha_bar is in cancels, and keeps 3 to 4 digits at small t. Ours has 7.
    zero SNR       rescaled in float32, too; DPM-Solver takes 2^-24 for 0, which reads 2^-12 x_t
                   out of pure noise; eps is divided by 0, where ours refuses it.
    ddim           goes down by T // n, whatever the next time of the grid is: wrong where the
                   spacing is uneven. It keeps an eps_hat that the x0_hat cut off contradicts,
                   unless told: with eta = 1 that is not ancestral sampling.
    last step      noise is left out at t = 0 and not at s = -1: "fixed_large" on a trailing grid
                   ends in noise. Ho et al. 2020 add none.
    inversion      v and x0 of time t are read with the a and b of s: twice the error, and 0 / 0.
    trailing grid  now and then has a time too many, t = -1, because T / n was rounded.
    DPM-Solver     takes the grid of n + 1 points without the last.
    thresholding   is a plain cut at 1, unless sample_max_value is told to be more.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import chain, float64, ulps
from peers import (
    KEY,
    KINDS,
    NAMES,
    SHAPE,
    T,
    diffusers,
    judge,
    noise_of,
    schedule_of,
    scheduling_ddpm,
    to_torch,
    torch,
)

from ddpm_jax import q_posterior, q_sample, simple_loss
from ddpm_jax.samplers import SamplerState, ancestral, ddim, dpm_solver_pp, static_threshold

pytestmark = pytest.mark.thorough

BOTH = [
    *itertools.product(["linear"], KINDS),
    *itertools.product(["zero_terminal_snr"], ["x0", "v"]),
]


def relative_errors(actual, expected):
    pairs = zip(np.asarray(actual), expected, strict=True)
    return float64([abs((mp.mpf(float(a)) - e) / e) for a, e in pairs])


# ---- tables


@pytest.mark.parametrize("name", NAMES)
def test_tables(name):
    # The largest relative errors, measured; ours are those of float32's rounding, 6e-8, and 4e-7
    # for what a posterior has to compute.
    #                      linear  quadratic  cosine  sigmoid_betas  zero_terminal_snr
    #   betas              1e-7    3e-7       6e-8    2e-7           2e-3
    #   alpha_bar          4e-7    8e-7       1e-5    5e-7           1e-6
    #   1 - alpha_bar      2e-4    2e-4       5e-4    1e-4           9e-4
    #   posterior variance 4e-4    5e-4       9e-4    5e-4           2e-3
    #   weight of x0       4e-4    6e-4       1e-3    5e-4           3e-3
    # Theirs is a product in float32, and everything else is made of it: 1 - alpha_bar of an
    # alpha_bar near 1, and beta as 1 - alpha_bar_t / alpha_bar_s of two near neighbours.
    tables, schedule = chain(name, T), schedule_of(name, T)
    peer = diffusers.DDPMScheduler(T, **NAMES[name])
    posteriors = [tables.posterior(t, t - 1) for t in range(1, T)]
    t, ones, zeros = jnp.arange(1, T), jnp.ones((T - 1,)), jnp.zeros((T - 1,))
    weight_x0, variance = q_posterior(schedule, ones, zeros, t, t - 1)
    alpha_bar = peer.alphas_cumprod
    before, after = alpha_bar[:-1], alpha_bar[1:]
    step = 1 - after / before
    live = T - 1 if schedule.zero_terminal_snr else T  # where a relative error means anything
    rows = [
        ("betas", schedule.betas, peer.betas, tables.betas),
        ("alpha_bar", schedule.alpha_bar[:live], alpha_bar[:live], tables.alpha_bar[:live]),
        ("noise", schedule.noise_power, 1 - alpha_bar, tables.noise_power),
        ("variance", variance, (1 - before) / (1 - after) * step, [p[2] for p in posteriors]),
        ("weight", weight_x0, before**0.5 * step / (1 - after), [p[0] for p in posteriors]),
    ]
    for quantity, ours, theirs, exact in rows:
        table = quantity in ("betas", "alpha_bar", "noise")
        assert ulps(ours, exact).max() <= (0.51 if table else 6.0)
        errors = relative_errors(ours, exact).max(), relative_errors(theirs, exact).max()
        assert errors[1] < 1e-2  # 3e-3 with zero terminal SNR, and 4e-3 in its release 0.42.1
        assert errors[1] > (200 if quantity in ("noise", "variance", "weight") else 0.9) * errors[0]


def test_the_last_of_zero_terminal_snr():
    # No signal is left: alpha_bar is 0. Their DPM-Solver puts 2^-24 there, so as to divide by it.
    tables = chain("zero_terminal_snr", T)
    assert tables.alpha_bar[-1] == 0
    last = {
        peer: float(getattr(diffusers, peer)(T, **NAMES["zero_terminal_snr"]).alphas_cumprod[-1])
        for peer in ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")
    }
    assert list(last.values()) == [0.0, 0.0, 2.0**-24]
    assert schedule_of("zero_terminal_snr", T).alpha_bar[-1] == 0.0


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of how they hand tensors over
def test_eps_where_no_signal_is_left():
    # x_t is the noise there. Theirs divides by 0, or by 2^-12 what is all rounding; ours refuses.
    x_t, eps_hat = torch.full(SHAPE, 0.5), torch.full(SHAPE, 0.25)
    peer = diffusers.DDIMScheduler(T, clip_sample=False, **NAMES["zero_terminal_snr"])
    peer.set_timesteps(10)
    assert not torch.isfinite(peer.step(eps_hat, T - 1, x_t).prev_sample).any()
    peer = diffusers.DPMSolverMultistepScheduler(T, **NAMES["zero_terminal_snr"])
    peer.set_timesteps(timesteps=[T - 1])
    assert float(peer.step(eps_hat, T - 1, x_t).prev_sample.min()) > 1000.0
    for sampler in (ancestral, ddim, dpm_solver_pp):
        with pytest.raises(ValueError, match="leaves no signal"):
            sampler(schedule_of("zero_terminal_snr", T), lambda x_t, t: x_t, predicts="eps")


# ---- one step, on the same inputs


@functools.cache
def inputs(name, predicts, pairs):
    """x_t, an output that is wrong by a third, and the weights of signal and noise at each t."""
    rng, shape = np.random.default_rng(0), (len(pairs), *SHAPE)
    x0, eps, wrong = rng.uniform(-1.2, 1.2, shape), rng.normal(size=shape), rng.normal(size=shape)
    weights = [chain(name, T).signal_and_noise(t) for t, _ in pairs]
    a, b = np.array([float64(w) for w in weights]).T.reshape(2, -1, 1, 1, 1)
    output = {"eps": eps, "x0": x0, "v": a * eps - b * x0}[predicts] + wrong / 3
    x_t, output = (np.float32(array) for array in (a * x0 + b * eps, output))
    wide = x_t.astype(np.float64), output.astype(np.float64)
    x0_hat = {
        "eps": lambda x_t, output: (x_t - b * output) / a,
        "x0": lambda x_t, output: output,
        "v": lambda x_t, output: a * x_t - b * output,
    }[predicts](*wide)
    return x_t, output, x0_hat, a, b


def our_steps(make, pairs, x_t, outputs):
    """x_s of every pair of times, the network's outputs being given."""

    def step(x_t, outputs, t, s):
        sampler = make(lambda x_t, t: outputs)
        return sampler.step(KEY, SamplerState(x_t), t, s)[0].x_t

    t, s = jnp.array(pairs).T
    return jax.jit(jax.vmap(step))(jnp.asarray(x_t), jax.tree.map(jnp.asarray, outputs), t, s)


PAIRS = ((999, 998), (999, 500), (500, 499), (500, 20), (20, 19), (2, 1), (1, 0), (0, -1))


@pytest.mark.parametrize("t", [0, 1, 20, 500, 999])
@pytest.mark.parametrize("name", NAMES)
def test_q_sample_and_the_target_v(name, t):
    peer, schedule = diffusers.DDPMScheduler(T, **NAMES[name]), schedule_of(name, T)
    x0, eps = np.float32(np.random.default_rng(0).normal(size=(2, *SHAPE)))
    times, ours = jnp.full(SHAPE[:1], t), (jnp.asarray(x0), jnp.asarray(eps))
    theirs = to_torch(x0), to_torch(eps), torch.full(SHAPE[:1], t)
    a, b = map(float, chain(name, T).signal_and_noise(t))
    near = {"ours_within": 5e-7, "theirs_within": 5e-5}
    x_t = q_sample(schedule, ours[0], times, ours[1])
    judge(x_t, peer.add_noise(*theirs), a * x0.astype(float) + b * eps, **near)

    def loss(prediction):  # mean((v - prediction)^2), so that its slope at 0 tells v
        per_example = simple_loss(schedule, prediction, ours[0], times, ours[1], predicts="v")
        return jnp.sum(per_example)

    v = -jax.grad(loss)(jnp.zeros(SHAPE)) * (x0[0].size / 2)
    judge(v, peer.get_velocity(*theirs), a * eps.astype(float) - b * x0, **near)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
@pytest.mark.parametrize(("name", "predicts"), BOTH)
def test_ancestral_step(name, predicts, variance, clip, monkeypatch):
    tables, schedule, noise = chain(name, T), schedule_of(name, T), noise_of(KEY)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kw: to_torch(noise))
    x_t, output, x0_hat, *_ = inputs(name, predicts, PAIRS)
    u = np.linspace(-0.2, 1.2, x_t.size, dtype=np.float32).reshape(x_t.shape)
    learned = variance == "learned_range"
    theirs, exact = [], []
    for i, (t, s) in enumerate(PAIRS):
        peer = diffusers.DDPMScheduler(
            T,
            variance_type=variance if learned else f"fixed_{variance}",
            prediction_type=KINDS[predicts],
            clip_sample=clip,
            **NAMES[name],
        )
        peer.set_timesteps(timesteps=[t, s] if s >= 0 else [t])  # any t and s go together
        both = [output[i], 2 * u[i] - 1] if learned else [output[i]]
        both = to_torch(np.concatenate(both, axis=1))
        theirs.append(peer.step(both, t, to_torch(x_t[i])).prev_sample)
        weight_x0, weight_x_t, small = tables.posterior(t, s)
        large = 1 - tables.alpha_bar[t] / tables.alpha_bar[s] if s >= 0 else mp.mpf(0)
        if s == -1:
            added = 0.0
        elif learned:
            added = np.exp(u[i] * float(mp.log(large)) + (1.0 - u[i]) * float(mp.log(small)))
        else:
            added = float(small if variance == "small" else large)
        believed = np.clip(x0_hat[i], -1.0, 1.0) if clip else x0_hat[i]
        mean = float(weight_x0) * believed + float(weight_x_t) * x_t[i].astype(float)
        exact.append(mean + np.sqrt(added) * noise)
    ours = our_steps(
        lambda predict: ancestral(
            schedule,
            predict,
            predicts=predicts,
            variance=variance,
            threshold=static_threshold if clip else None,
        ),
        PAIRS,
        x_t,
        (output, u) if learned else output,
    )
    judge(ours, np.stack(theirs), np.stack(exact), ours_within=3e-6, theirs_within=1e-3)


STRIDES = ((999, 998), (999, 499), (500, 400), (120, 20), (20, 19), (2, 1), (1, 0), (0, -1))
"""Pairs that their DDIM can be brought to: t - s has to be T // n for a whole n."""


def their_ddim(t, stride, output, x_t, noise, *, eta=0.0, corrected=True, **arguments):
    peer = diffusers.DDIMScheduler(T, **arguments)
    peer.set_timesteps(T // stride)
    return peer.step(
        to_torch(output),
        t,
        to_torch(x_t),
        eta=eta,
        use_clipped_model_output=corrected,
        variance_noise=to_torch(noise) if eta else None,
    ).prev_sample


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize(("name", "predicts"), BOTH)
def test_ddim_step(name, predicts, eta, clip):
    tables, schedule, noise = chain(name, T), schedule_of(name, T), noise_of(KEY)
    x_t, output, x0_hat, a, b = inputs(name, predicts, STRIDES)
    theirs, exact = [], []
    for i, (t, s) in enumerate(STRIDES):
        arguments = {"prediction_type": KINDS[predicts], "clip_sample": clip, **NAMES[name]}
        theirs.append(their_ddim(t, t - s, output[i], x_t[i], noise, eta=eta, **arguments))
        believed = np.clip(x0_hat[i], -1.0, 1.0) if clip else x0_hat[i]
        eps_hat = (x_t[i] - a[i] * believed) / b[i]
        a_s, b_s = map(float, tables.signal_and_noise(s)) if s >= 0 else (1.0, 0.0)
        added = eta**2 * float(tables.posterior(t, s)[2])
        exact.append(a_s * believed + np.sqrt(b_s**2 - added) * eps_hat + np.sqrt(added) * noise)
    ours = our_steps(
        lambda predict: ddim(
            schedule,
            predict,
            predicts=predicts,
            eta=eta,
            threshold=static_threshold if clip else None,
        ),
        STRIDES,
        x_t,
        output,
    )
    judge(ours, np.stack(theirs), np.stack(exact), ours_within=3e-6, theirs_within=1e-3)


def test_ddim_with_an_output_that_a_threshold_contradicts():
    # Song et al. 2021, section 4.1: with eta = 1, DDIM is ancestral sampling. It is, if eps_hat is
    # made again of the x0_hat that was cut off: ours by default, theirs if told to.
    pair, name = (500, 400), "linear"
    x_t, output, *_ = inputs(name, "eps", (pair,))
    tables, noise = chain(name, T), noise_of(KEY)
    a, b = map(float, tables.signal_and_noise(pair[0]))
    believed = np.clip((x_t - b * output) / a, -1.0, 1.0)
    weight_x0, weight_x_t, added = map(float, tables.posterior(*pair))
    exact = weight_x0 * believed + weight_x_t * x_t + np.sqrt(added) * noise
    ours = our_steps(lambda p: ddim(schedule_of(name, T), p, eta=1.0), (pair,), x_t, output)
    step = functools.partial(their_ddim, 500, 100, output[0], x_t[0], noise, eta=1.0)
    judge(ours, step(corrected=True)[None], exact, ours_within=1e-6, theirs_within=1e-5)
    uncorrected = step(corrected=False).numpy()
    assert np.abs(uncorrected - exact).max() > 0.1
    predicted = functools.partial(ddim, noise_after_threshold=False)
    ours = our_steps(lambda p: predicted(schedule_of(name, T), p, eta=1.0), (pair,), x_t, output)
    np.testing.assert_allclose(ours[0], uncorrected, atol=1e-5)


def test_ddim_onto_the_data_or_onto_the_first_step():
    # set_alpha_to_one is whether the last step goes to s = -1. If not, it goes to t = 0 and leaves
    # the noise of one step in the images, 1 % of linear's standard deviation.
    name, noise = "linear", noise_of(KEY)
    x_t, output, *_ = inputs(name, "eps", ((99, -1), (99, 0)))
    x_t, output = x_t[[0, 0]], output[[0, 0]]
    predict = functools.partial(ddim, schedule_of(name, T), threshold=None)
    ours = our_steps(predict, ((99, -1), (99, 0)), x_t, output)
    for i, to_one in enumerate((True, False)):
        theirs = their_ddim(
            99, 100, output[0], x_t[0], noise, clip_sample=False, set_alpha_to_one=to_one
        )
        np.testing.assert_allclose(ours[i], theirs, atol=2e-6)
    assert np.abs(ours[0] - ours[1]).max() > 0.01


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 30)])
def test_ddim_goes_where_the_network_is_told_it_is(spacing, steps):
    # Who knows eps moves x_t to q_sample at the next time. Theirs goes down by T // n and not to
    # the next time of its own grid, which is another one unless the grid is leading or n divides
    # T: the network is then told 888 of images with the noise of 899.
    tables, peer = chain("linear", T), diffusers.DDIMScheduler(T, timestep_spacing=spacing)
    peer.set_timesteps(steps)
    grid = itertools.pairwise(peer.timesteps.tolist())
    t, s = next((t, s) for t, s in grid if t - s != T // steps)
    x0, eps = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 1, *SHAPE))

    def x(t):
        a, b = map(float, tables.signal_and_noise(t))
        return a * x0 + b * eps

    x_t, output = np.float32(x(t)), np.float32(eps)
    ours = our_steps(lambda p: ddim(schedule_of("linear", T), p), ((t, s),), x_t, output)
    theirs = their_ddim(t, T // steps, output[0], x_t[0], None, timestep_spacing=spacing).numpy()
    assert np.abs(ours - x(s)).max() < 1e-5
    assert np.abs(theirs - x(t - T // steps)).max() < 1e-5
    assert np.abs(theirs - x(s)).max() > 1e-4


def test_the_last_ancestral_step_adds_no_noise():
    # Ho et al. 2020, algorithm 2. Theirs leaves the noise out at t = 0 alone: on a trailing grid,
    # which ends above 0, "fixed_large" adds sqrt(1 - alpha_bar_t) of it to the finished images.
    pair = (99, -1)
    x_t, output, x0_hat, _, b = inputs("linear", "eps", (pair,))
    predict = functools.partial(ancestral, schedule_of("linear", T), variance="large")
    ours = our_steps(functools.partial(predict, threshold=None), (pair,), x_t, output)
    assert np.abs(ours - x0_hat).max() < 1e-5
    peer = diffusers.DDPMScheduler(
        T, timestep_spacing="trailing", variance_type="fixed_large", clip_sample=False
    )
    peer.set_timesteps(10)
    assert peer.timesteps[-1] == pair[0]
    generator = torch.Generator().manual_seed(0)
    theirs = peer.step(to_torch(output[0]), 99, to_torch(x_t[0]), generator=generator).prev_sample
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).numpy()
    assert np.abs(theirs.numpy() - (x0_hat[0] + b[0] * noise)).max() < 1e-5
    assert float(b[0, 0, 0, 0]) > 0.3
