"""Processes of many modes against their definitions as dense matrices, and against the loop."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import BLURRING, SCHEDULE, cases_of
from exact import chain, float64
from exact_modes import (
    COVARIANCE,
    FALLING,
    NAMES,
    SHAPE,
    SIZE,
    build,
    dense,
    heat,
)
from fused import (
    convert,
    kl_weight,
    q_posterior,
    q_posterior_variance,
    q_sample,
    q_step,
    q_transition,
)
from marks import thorough_but
from mpmath import mp

from ddpm_jax import bases, forward, processes, q_chain, samplers, schedules

SPECTRAL = NAMES[1:]
T = 50
PAIRS = [(1, 0), (2, 1), (25, 24), (49, 48), (49, 0), (30, 7), (20, 3), (0, -1), (49, -1)]

every_process = pytest.mark.parametrize(
    "name", thorough_but(["blurring", "correlated", "per_pixel"], SPECTRAL)
)


def images(x):
    return jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def filled(values):
    """What was looked up, for every mode of the data: `[times, d]` in float64."""
    return np.broadcast_to(np.float64(values), (len(values), *SHAPE)).reshape(len(values), -1)


def in_ulps(found, expected):
    """Errors in last places of float32; 0 where both are 0 or infinite."""
    expected, found = np.asarray(expected, np.float64), filled(found)
    error = np.subtract(found, expected, out=np.zeros_like(expected), where=found != expected)
    finite = np.where(np.isfinite(expected), expected, 1.0)
    return np.abs(error) / np.spacing(np.abs(finite).astype(np.float32))


# Tables.


@every_process
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_tables_are_those_of_the_definition(name, num_steps):
    exact, process = dense(name, num_steps), build(name, num_steps)
    t = jnp.arange(num_steps, dtype=jnp.int32)
    log_snr = exact.log_signal - exact.log_noise
    a2, b2 = np.exp(exact.log_signal), np.exp(exact.log_noise)
    for what, expected in (
        ("signal", np.sqrt(a2)),
        ("signal_variance", a2),
        ("noise", np.sqrt(b2)),
        ("noise_variance", b2),
        ("snr", np.exp(log_snr)),
        ("power", a2 + b2),
    ):
        worst = in_ulps(getattr(process, what)(t), expected).max()
        print(f"{name}, T = {num_steps}: {what} {worst:.1f} ulp")
        assert worst < 4
    np.testing.assert_allclose(
        filled(jnp.exp(process.log_prior_variance)[None])[0], np.exp(exact.log_prior), rtol=1e-6
    )
    missing = -np.expm1(exact.log_noise[-1:] - exact.log_prior)
    np.testing.assert_allclose(filled(process.prior(1)[1]), missing, atol=5e-7)
    np.testing.assert_array_equal(process.network_time(t), t)


@pytest.mark.thorough
@every_process
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_neighbouring_times_keep_all_digits(name, num_steps):
    # Everything made of differences of logarithms; those of float32 would have 4 to 5 digits left.
    exact, process = dense(name, num_steps), build(name, num_steps)
    t = jnp.arange(1, num_steps, dtype=jnp.int32)
    log_snr, b2 = exact.log_signal - exact.log_noise, np.exp(exact.log_noise)
    fall, snr = np.diff(log_snr, axis=0), np.exp(log_snr)
    kept = np.diff(exact.log_signal, axis=0)
    weight_x0 = 0.5 * snr[:-1] * -np.expm1(fall)
    power = np.exp(exact.log_signal) + b2
    for what, found, expected in (
        ("log SNR", process.log_snr_difference(t, t - 1), fall),
        ("log a^2", process.log_alpha_bar_difference(t, t - 1), kept),
        ("beta", process.beta(t), b2[1:] * -np.expm1(fall)),
        ("posterior", q_posterior_variance(process, t, t - 1), b2[:-1] * -np.expm1(fall)),
        ("eps", kl_weight(process, t, predicts="eps"), 0.5 * np.expm1(-fall)),
        ("x0", kl_weight(process, t, predicts="x0"), weight_x0),
        ("v", kl_weight(process, t, predicts="v"), weight_x0 * b2[1:] / power[1:] ** 2),
    ):
        # A mode that blur has done with changes by less than the digits of two parts hold; where
        # signal and noise both come and go ("rotated"), their differences cancel.
        worst = in_ulps(found, expected)[np.abs(expected) > 1e-9].max()
        print(f"{name}, T = {num_steps}: {what} {worst:.1f} ulp")
        # The expm1 of jax 0.10 is 3 last places off; 0.12's leaves 7 in all.
        assert worst < (30 if name == "rotated" else 10)


def test_the_data_stand_at_minus_one():
    t = jnp.array([-1])
    for name in SPECTRAL:
        process = build(name)
        assert np.all(process.signal(t) == 1.0)
        assert np.all(process.noise_variance(t) == 0.0)
        assert np.isposinf(process.snr(t)).all()
        outside = jnp.array([-2, T])
        for table in (process.signal, process.noise, process.snr, process.beta):
            assert np.isnan(table(outside)).all()


def test_where_snr_would_rise_there_is_no_number():
    process = build("blurring")
    late, early = jnp.array([20]), jnp.array([10])
    assert np.isnan(process.log_snr_difference(early, late)).all()
    assert np.isnan(q_posterior_variance(process, early, late)).all()
    assert np.all(process.log_snr_difference(late, late) == 0.0)


# Constructors.


def test_isotropic_is_the_schedule_itself():
    schedule = schedules.cosine(10)
    assert processes.isotropic(schedule) is schedule


def test_blurring_is_the_papers():
    # Hoogeboom & Salimans 2022: x_t = V alpha_t V^T x + sigma_t eps with sigma_t shared by all.
    made = schedules.cosine(20)
    process = processes.blurring(made, (5, 4, 3), max_blur=3.0, min_scale=0.01)
    scale = heat(20, (5, 4, 3), 3.0, 0.01).reshape(20, 5, 4, 3)
    signal, noise = zip(*[chain("cosine", 20).signal_and_noise(t) for t in range(20)], strict=True)
    t = jnp.arange(20, dtype=jnp.int32)
    expected = float64(signal)[:, None, None, None] * scale[..., :1]
    np.testing.assert_allclose(process.signal(t), expected, rtol=1e-6)
    np.testing.assert_allclose(process.noise(t)[:, 0, 0, 0], float64(noise), rtol=1e-6)
    assert np.ptp(np.asarray(process.noise(t)), axis=(1, 2)).max() == 0.0
    assert np.all(process.prior(1)[0] == 1.0)


@pytest.mark.thorough
@pytest.mark.parametrize("min_scale", [1.0, 1e-3, 1e-17])
def test_blur_of_any_scale_keeps_all_digits(min_scale):
    process = processes.blurring(schedules.cosine(T), SHAPE, min_scale=min_scale)
    log_power = np.asarray(process.log_signal_variance, np.float64).sum(axis=0)
    found = log_power[:, 3, 2, 0] - log_power[:, 0, 0, 0]  # the mean of an image is never blurred
    for t, kept in enumerate(found):
        sigma = 20 * mp.sin(mp.pi * (t + 1) / T / 2) ** 2
        blurred = mp.exp(-((mp.pi * 3 / 4) ** 2 + (mp.pi * 2 / 3) ** 2) * sigma**2 / 2)
        expected = 2 * mp.log((1 - mp.mpf(min_scale)) * blurred + mp.mpf(min_scale))
        assert abs(kept - expected) <= 1e-11 * (1 + abs(expected))


def test_without_blur_there_is_ddpm():
    schedule, t = schedules.cosine(20), jnp.arange(20, dtype=jnp.int32)
    process = processes.blurring(schedule, (3, 2, 1), max_blur=0.0)
    expected = np.asarray(schedule.signal(t))[:, None, None, None]
    np.testing.assert_allclose(process.signal(t), np.broadcast_to(expected, (20, 3, 2, 1)), 1e-6)


def test_a_covariance_is_that_of_the_noise():
    # Lambda for images of shape SHAPE, by its matrix and by its spectrum.
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance = root @ root.T + 0.1 * np.eye(6)
    by_matrix = processes.correlated(schedules.cosine(9), covariance, shape=(2, 3))
    t, eye = jnp.full(6, 4), jnp.eye(6).reshape(6, 2, 3)
    noise = flat(q_sample(by_matrix, jnp.zeros((6, 2, 3)), t, eye))
    _, b = chain("cosine", 9).signal_and_noise(4)
    np.testing.assert_allclose(noise @ noise.T, float(b) ** 2 * covariance, rtol=1e-5, atol=1e-6)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    by_spectrum = processes.correlated(
        schedules.cosine(9), spectrum=eigenvalues, basis=bases.orthonormal(vectors.T)
    )
    flat_noise = q_sample(by_spectrum, jnp.zeros((6, 6)), t, jnp.eye(6))
    np.testing.assert_allclose(np.square(flat_noise).sum(), np.square(noise).sum(), rtol=1e-5)


def test_a_stationary_covariance_by_its_spectrum():
    # Of a ring of 8 pixels, built by its definition and by the FFT of its first row.
    distance = np.minimum(np.arange(8), 8 - np.arange(8))
    row = np.exp(-0.7 * distance)
    covariance = np.array([np.roll(row, i) for i in range(8)])
    process = processes.correlated(
        schedules.cosine(9), spectrum=np.fft.fft(row).real, basis=bases.fourier((0,))
    )
    t, nothing = jnp.full(8, 8), jnp.zeros((8, 8))
    noise = flat(q_sample(process, nothing, t, jnp.eye(8)))
    b2 = float(chain("cosine", 9).noise_power[8])
    np.testing.assert_allclose(noise @ noise.T, b2 * covariance, atol=1e-6)


def test_equal_snr_drowns_all_modes_at_once():
    # 20,000 images with the spectrum FALLING: power of the signal over that of the noise.
    process, t = build("equal_snr"), 20
    rng = np.random.default_rng(0)
    modes = rng.normal(size=(20_000, SIZE)) * np.sqrt(FALLING.ravel())
    x0 = modes @ dense("equal_snr").matrix
    shared = jnp.full(len(x0), t)
    signal = process.basis.to_modes(q_sample(process, images(x0), shared, images(0.0 * x0)))
    noise = process.noise_variance(shared[:1])[0]
    ratio = np.square(signal).mean(axis=0) / noise
    np.testing.assert_allclose(ratio, math.exp(chain("cosine", T).log_snr[t]), rtol=0.06)


def test_per_pixel_is_prior_grad_and_mulan():
    rng = np.random.default_rng(1)
    c = rng.uniform(0.3, 2.0, size=(4, 6)).astype(np.float32)
    x0, eps = rng.normal(size=(2, 4, 6)).astype(np.float32)
    t = np.array([0, 3, 9, 11])
    alpha_bar = float64(chain("cosine", 12).alpha_bar)[t, None]
    # PriorGrad, eq. 4: noise N(0, Sigma(c)), the schedule untouched.
    log_snr = np.repeat(float64(chain("cosine", 12).log_snr)[:, None], 6, axis=1)
    prior_grad = processes.per_pixel(log_snr, variance=lambda c: c**2, condition=jnp.asarray(c))
    found = q_sample(prior_grad, *map(jnp.asarray, (x0, t.astype(np.int32), eps)))
    expected = np.sqrt(alpha_bar) * x0 + np.sqrt(1.0 - alpha_bar) * c * eps
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(prior_grad.prior(4)[0], c**2, rtol=1e-6)

    # MuLAN, eq. 8: a polynomial in time with coefficients made of the condition, per pixel.
    def gamma(c):
        u = jnp.linspace(0.0, 1.0, 12)[None, :, None]
        return 6.0 - 12.0 * (c[:, None] * u + u**3) / (c[:, None] + 1.0)

    mulan = processes.per_pixel(gamma, condition=jnp.asarray(c))
    found = q_sample(mulan, *map(jnp.asarray, (x0, t.astype(np.int32), eps)))
    u = np.linspace(0.0, 1.0, 12)[t, None]
    log_snr = 6.0 - 12.0 * (c * u + u**3) / (c + 1.0)
    a2 = 1.0 / (1.0 + np.exp(-log_snr))
    np.testing.assert_allclose(found, np.sqrt(a2) * x0 + np.sqrt(1.0 - a2) * eps, atol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("make", ["blurring", "correlated"])
def test_a_schedule_that_leaves_no_signal_is_welcome(make):
    schedule = schedules.zero_terminal_snr(schedules.cosine(10))
    process = {
        "blurring": lambda: processes.blurring(schedule, SHAPE),
        "correlated": lambda: processes.correlated(schedule, COVARIANCE, shape=SHAPE),
    }[make]()
    assert process.zero_terminal_snr
    last, rng = jnp.full(3, 9), np.random.default_rng(0)
    assert np.all(process.signal(last) == 0.0)
    assert np.all(process.snr(last) == 0.0)
    x0, eps = images(rng.normal(size=(3, SIZE))), images(rng.normal(size=(3, SIZE)))
    x_t = q_sample(process, x0, last, eps)
    np.testing.assert_array_equal(x_t, q_sample(process, 0.0 * x0, last, eps))
    mean, variance = q_posterior(process, x0, x_t, last, last - 1)
    assert np.isfinite(mean).all()
    expected = process.noise_variance(last - 1)
    np.testing.assert_allclose(variance, expected, rtol=1e-6)
    v = convert(process, x0, x_t, last, source="x0", target="v")
    np.testing.assert_allclose(
        convert(process, v, x_t, last, source="v", target="x0"), x0, atol=2e-6
    )
    with pytest.raises(ValueError, match="predicts is 'eps'"):
        kl_weight(process, last, predicts="eps")


# q against dense matrices.


@every_process
def test_q_is_that_of_the_matrices(name):
    exact, process, rng = dense(name), build(name), np.random.default_rng(2)
    x0, x_t, eps = (rng.normal(size=(len(PAIRS), SIZE)) for _ in range(3))
    t, s = (jnp.asarray(times, jnp.int32) for times in zip(*PAIRS, strict=True))
    sampled = flat(q_sample(process, images(x0), t, images(eps)))
    moved = flat(q_transition(process, images(x0), t, s, images(eps)))
    stepped = flat(q_step(process, images(x0), t, images(eps)))
    mean, variance = q_posterior(process, images(x0), images(x_t), t, s)
    variance = filled(variance)
    for i, (late, early) in enumerate(PAIRS):
        expected = exact.signal(late) @ x0[i] + exact.noise(late) @ eps[i]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(sampled[i], expected, atol=2e-6 * scale)
        for found, before in ((moved, early), (stepped, late - 1)):
            step, added = exact.transition(late, before)
            values, vectors = np.linalg.eigh(added)
            root = vectors @ np.diag(np.sqrt(values)) @ vectors.T  # symmetric, as B^T b B is
            expected = step @ x0[i] + root @ eps[i]
            np.testing.assert_allclose(found[i], expected, atol=2e-6 * np.abs(expected).max())
        if early >= 0:
            on_x0, on_x_t, covariance = exact.posterior(late, early)
            expected = on_x0 @ x0[i] + on_x_t @ x_t[i]
            np.testing.assert_allclose(flat(mean)[i], expected, atol=5e-6 * np.abs(expected).max())
            of_modes = exact.of_modes(variance[i])
            np.testing.assert_allclose(of_modes, covariance, atol=3e-6 * covariance.max())
        else:
            np.testing.assert_allclose(flat(mean)[i], x0[i], atol=2e-6)
            np.testing.assert_array_equal(variance[i], 0.0)


@pytest.mark.thorough
@every_process
def test_averaged_over_x_t_the_posterior_is_q_of_x_s(name):
    process, pairs = build(name), PAIRS[:-2]
    t, s = (jnp.asarray(times, jnp.int32) for times in zip(*pairs, strict=True))
    rng = np.random.default_rng(3)
    x0 = images(rng.normal(size=(len(pairs), SIZE)))
    middle = q_sample(process, x0, t, jnp.zeros_like(x0))
    mean, _ = q_posterior(process, x0, middle, t, s)
    expected = q_sample(process, x0, s, jnp.zeros_like(x0))
    np.testing.assert_allclose(mean, expected, atol=5e-6 * float(jnp.abs(expected).max()))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["blurring", "correlated", "per_pixel"])
def test_the_loop_has_the_moments_of_the_closed_form(name):
    # 100,000 chains of 12 steps. All means and covariances within 5 standard errors at a fixed
    # seed: 180 of them, p < 1e-3 together.
    samples, walked, rng = 100_000, 12, np.random.default_rng(4)
    exact, process = dense(name, 16), build(name, 16)
    x0 = rng.normal(size=SIZE)
    start = jnp.broadcast_to(images(x0), (samples, *SHAPE))
    key_chain, key_eps = jax.random.split(jax.random.key(0))
    by_loop = jax.jit(q_chain, static_argnums=3)(process, key_chain, start, walked)
    at_once = q_sample(
        process, start, jnp.full(samples, walked - 1), jax.random.normal(key_eps, start.shape)
    )
    mean = exact.signal(walked - 1) @ x0
    covariance = exact.noise(walked - 1) @ exact.noise(walked - 1)
    variances = np.diag(covariance)
    spread = np.sqrt((covariance**2 + np.outer(variances, variances)) / samples)
    for x in map(flat, (by_loop, at_once)):
        assert (np.abs(x.mean(axis=0) - mean) < 5 * np.sqrt(variances / samples)).all()
        assert (np.abs(np.cov(x.T) - covariance) < 5 * spread).all()


@pytest.mark.thorough
@every_process
def test_conversions_are_those_of_the_matrices(name):
    exact, process, rng = dense(name), build(name), np.random.default_rng(5)
    for t in (0, 20, 49):
        x0, eps = rng.normal(size=(2, 3, SIZE))
        signal, noise = exact.signal(t), exact.noise(t)
        x_t = x0 @ signal + eps @ noise  # both symmetric
        known = {
            "x0": x0,
            "eps": eps,
            "v": eps @ signal - x0 @ noise,
            "score": -eps @ np.linalg.inv(noise),
        }
        for source, target in itertools.permutations(known, 2):
            found = convert(
                process,
                images(known[source]),
                images(x_t),
                jnp.full(3, t),
                source=source,
                target=target,
            )
            a, b = exact.a(t), exact.b(t)
            # Digits go where a small a or b divides what was rounded.
            lost = max(1.0, (b / a).max() if target in ("x0", "v") else (a / b).max())
            lost = max(lost, 1 / b.min()) if "score" in (source, target) else lost
            scale = max(np.abs(known[target]).max(), np.abs(known[source]).max())
            np.testing.assert_allclose(flat(found), known[target], atol=6e-6 * lost * scale)


# One shared mode.

SHARED = processes.spectral(
    *(
        np.exp(np.float64(part))[:, None, None]
        for part in (
            float64(chain("cosine", 12).log_alpha_bar),
            float64(chain("cosine", 12).log_alpha_bar) - float64(chain("cosine", 12).log_snr),
        )
    ),
    prior_variance=np.ones((1, 1)),
)
OF_SCHEDULE, OF_SHARED = cases_of(SCHEDULE), cases_of(SHARED)


@pytest.mark.thorough
@pytest.mark.parametrize("name", OF_SCHEDULE)
def test_one_shared_mode_is_the_schedule_in_every_function(name):
    one, other = (case[name] for case in (OF_SCHEDULE, OF_SHARED))
    expected, found = (jax.jit(case.function)(**case.arrays) for case in (one, other))
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.squeeze(leaf), like, rtol=2e-5, atol=3e-6)


class Own:
    """A user's class with the members of a modal process, and none of the package's."""

    def __init__(self, process):
        names = (name for name in vars(processes.Modal) if not name.startswith("_"))
        vars(self).update({name: getattr(process, name) for name in names})


@pytest.mark.parametrize("process", [SCHEDULE, BLURRING], ids=["one mode", "modes"])
def test_a_class_of_a_users_own_is_a_process(process):
    own, expected = cases_of(Own(process)), cases_of(process)
    for name in ("q_sample", "q_posterior", "vlb_terms", "sample, ancestral", "log_density"):
        arrays = expected[name].arrays
        values = (jax.tree.leaves(case[name].function(**arrays)) for case in (own, expected))
        for actual, same in zip(*values, strict=True):
            np.testing.assert_array_equal(actual, same)


def test_a_users_class_is_refused_by_the_member_that_it_lacks(without_annotation_checks):
    own = Own(SCHEDULE)
    del own.power
    with pytest.raises(TypeError, match="process is a Own without `power`; a process of modes has"):
        samplers.time_grid(own, 3)


def test_a_process_may_have_a_q_sample_of_its_own():
    own, x0, t = Own(SCHEDULE), images(np.ones(SHAPE)), jnp.array([3])
    own.q_sample = lambda x0, t, eps: x0 + 7.0
    np.testing.assert_array_equal(forward.q_sample(own, x0, t, x0), x0 + 7.0)
