"""The KL shortcut by modes against dense Gaussians, what it costs, and what it is not."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import log_probability_and_slope
from exact_modes import COVARIANCE, FALLING, NAMES, SHAPE, SIZE, build, dense
from fused import (
    elbo_terms,
    entropy,
    fixed_variance,
    kl_weight,
    prior_term,
    simple_loss,
    vlb_terms,
    weighted_loss,
)
from marks import thorough_but

from ddpm_jax import analytic, bases, bits_per_dim, gaussians, losses, processes, schedules

KINDS = ("eps", "x0", "v")
TIMES = (1, 2, 17, 35, 49)

every_process = pytest.mark.parametrize("name", thorough_but(["blurring", "correlated"], NAMES[1:]))


def images(x):
    return jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)


@contextlib.contextmanager
def in_float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def kl_of_dense(mean_q, covariance_q, mean_p, covariance_p):
    """`kl_full` of Cholesky factors, all in float64."""
    with in_float64():
        factors = (jnp.linalg.cholesky(jnp.asarray(c)) for c in (covariance_q, covariance_p))
        factor_q, factor_p = factors
        return float(
            gaussians.kl_full(jnp.asarray(mean_q), factor_q, jnp.asarray(mean_p), factor_p)
        )


def draw(name, seed, times=TIMES):
    """x_0, x_t, and what a network that errs might say of x_0, in float64."""
    rng, exact = np.random.default_rng(seed), dense(name)
    x0 = np.float64(np.float32(rng.uniform(-1.0, 1.0, size=(len(times), SIZE))))
    eps, error = rng.normal(size=(2, len(times), SIZE))
    x_t = np.stack(
        [exact.signal(t) @ x + exact.noise(t) @ e for t, x, e in zip(times, x0, eps, strict=True)]
    )
    x_t = np.float64(np.float32(x_t))
    return x0, x_t, x0 + 0.3 * error


def predicted(name, x0_hat, x_t, kind, times=TIMES):
    """The network's output that means x0_hat."""
    exact, outputs = dense(name), []
    for t, guess, seen in zip(times, x0_hat, x_t, strict=True):
        eps_hat = np.linalg.solve(exact.noise(t), seen - exact.signal(t) @ guess)
        v_hat = exact.signal(t) @ eps_hat - exact.noise(t) @ guess
        outputs.append({"x0": guess, "eps": eps_hat, "v": v_hat}[kind])
    return images(np.stack(outputs))


@every_process
@pytest.mark.parametrize("predicts", KINDS)
def test_the_shortcut_is_the_kl_of_the_dense_posteriors(name, predicts):
    x0, x_t, x0_hat = draw(name, 0)
    found = vlb_terms(
        build(name),
        predicted(name, x0_hat, x_t, predicts),
        images(x0),
        images(x_t),
        jnp.array(TIMES),
        predicts=predicts,
        levels=None,
    )
    expected = []
    for i, t in enumerate(TIMES):
        on_x0, on_x_t, covariance = dense(name).posterior(t, t - 1)
        means = (on_x0 @ x + on_x_t @ x_t[i] for x in (x0[i], x0_hat[i]))
        mean_q, mean_p = means
        expected.append(kl_of_dense(mean_q, covariance, mean_p, covariance))
    # Between float32 predictions of size 1 the KL is known to 1e-5 of itself, and to what their
    # rounding adds to an error that may be far smaller than they are.
    weight = np.float64(kl_weight(build(name), jnp.array(TIMES), predicts=predicts))
    rounding = 1e-6 * np.sqrt(weight.reshape(len(TIMES), -1).max(axis=1) * SIZE * expected)
    error = np.abs(np.float64(found) - expected)
    assert (error < 1e-5 * np.array(expected) + rounding).all()
    if predicts == "x0":
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.thorough
@every_process
@pytest.mark.parametrize("variance", ["large", "learned_range"])
def test_with_other_variances_too(name, variance):
    x0, x_t, x0_hat = draw(name, 1)
    exact, rng = dense(name), np.random.default_rng(2)
    u = (
        np.float64(np.float32(rng.uniform(-0.2, 1.2, size=x0.shape)))
        if "range" in variance
        else 1.0
    )
    u = np.broadcast_to(u, x0.shape)
    found = vlb_terms(
        build(name),
        images(x0_hat),
        images(x0),
        images(x_t),
        jnp.array(TIMES),
        predicts="x0",
        levels=None,
        variance=variance,
        interpolation=images(u) if variance == "learned_range" else None,
    )
    expected = []
    for i, t in enumerate(TIMES):
        on_x0, on_x_t, small = exact.posterior(t, t - 1)
        _, large = exact.transition(t, t - 1)
        of_modes = [np.diag(exact.matrix @ c @ exact.matrix.T) for c in (small, large)]
        log_variance = u[i] * np.log(of_modes[1]) + (1 - u[i]) * np.log(of_modes[0])
        mean_q, mean_p = (on_x0 @ x + on_x_t @ x_t[i] for x in (x0[i], x0_hat[i]))
        expected.append(kl_of_dense(mean_q, small, mean_p, exact.of_modes(np.exp(log_variance))))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@every_process
def test_the_prior_term_is_the_kl_of_dense_gaussians(name):
    exact, x0 = dense(name), draw(name, 3)[0]
    last = len(exact.log_signal) - 1
    left, prior = exact.noise(last) @ exact.noise(last), exact.of_modes(np.exp(exact.log_prior))
    expected = [kl_of_dense(exact.signal(last) @ x, left, np.zeros(SIZE), prior) for x in x0]
    np.testing.assert_allclose(prior_term(build(name), images(x0)), expected, rtol=1e-5, atol=1e-6)


def scalar_chain(name, mode):
    """The chain of one mode alone."""
    tables = (np.exp(part[:, mode : mode + 1]) for part in dense(name)[:2])
    prior = np.exp(dense(name).log_prior[mode : mode + 1])
    return processes.spectral(*tables, prior_variance=prior)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["blurring", "rotated"])
def test_a_process_is_as_many_scalar_chains_as_it_has_modes(name):
    times = (0, *TIMES)
    x0, x_t, x0_hat = draw(name, 4, times)
    t = jnp.array(times)
    whole = vlb_terms(
        build(name), images(x0_hat), images(x0), images(x_t), t, predicts="x0", levels=None
    )
    whole = whole + prior_term(build(name), images(x0))
    parts, to_modes = 0.0, dense(name).matrix.T
    for mode in range(SIZE):
        of_mode = [
            jnp.asarray((x @ to_modes)[:, mode : mode + 1], jnp.float32) for x in (x0_hat, x0, x_t)
        ]
        chain = scalar_chain(name, mode)
        parts += vlb_terms(chain, *of_mode, t, predicts="x0", levels=None)
        parts += prior_term(chain, of_mode[1])
    np.testing.assert_allclose(whole, parts, rtol=3e-5, atol=1e-4)


def largest(jaxpr):
    """Elements of the largest array that a program makes, sub-programs included."""
    sizes = [math.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars]
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                sizes.append(largest(inner))
    return max(sizes)


@pytest.mark.thorough
@pytest.mark.parametrize("basis", ["dct", "fourier"])
def test_no_matrix_of_the_datas_size_is_formed(basis):
    # 32 x 32 images: a covariance would have a million entries, an image has a thousand.
    spectrum = np.ones((32, 32, 1))
    process = processes.correlated(
        schedules.cosine(10), spectrum=spectrum, basis=getattr(bases, basis)()
    )
    x = jnp.zeros((2, 32, 32, 1))
    program = jax.make_jaxpr(lambda x, t: vlb_terms(process, x, x, x, t, predicts="v", levels=256))(
        x, jnp.array([0, 3])
    )
    assert largest(program.jaxpr) <= 32 * x.size  # the tails of an erf, say; not d^2


# What a plain squared error would say.

DATA = 0.3 * np.diag(FALLING.ravel()) + 0.05 * COVARIANCE
STEPS = 200


def expected_errors(name):
    """E of the best denoiser's squared error in each mode at each t, `[T, d]` for each kind."""
    exact, unknown = dense(name, STEPS), []
    for t in range(STEPS):
        seen = np.linalg.solve(exact.noise(t), exact.signal(t))
        left = np.linalg.inv(np.linalg.inv(DATA) + seen.T @ seen)
        unknown.append(np.diag(exact.matrix @ left @ exact.matrix.T))
    x0, a2, b2 = np.array(unknown), np.exp(exact.log_signal), np.exp(exact.log_noise)
    return {"x0": x0, "eps": a2 / b2 * x0, "v": np.square(a2 + b2) / b2 * x0}


AGREE = [("correlated", "eps"), ("periodic", "eps"), ("equal_snr", "eps")]
DIFFER = [
    *(("correlated", "x0"), ("correlated", "v"), ("periodic", "x0"), ("equal_snr", "x0")),
    *(("blurring", kind) for kind in KINDS),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "predicts"), AGREE + DIFFER)
def test_a_plain_squared_error_is_not_the_elbo(name, predicts):
    # The best denoiser's KL terms, exactly, with the weight of each mode and with the schedule's
    # for all: DDPM's loss on another process. In bits per dimension.
    process, t = build(name, STEPS), jnp.arange(1, STEPS, dtype=jnp.int32)
    errors = expected_errors(name)[predicts][1:]
    weight = np.broadcast_to(
        np.float64(kl_weight(process, t, predicts=predicts)), (STEPS - 1, *SHAPE)
    ).reshape(STEPS - 1, SIZE)
    to_bits, data = 1.0 / (SIZE * math.log(2.0)), analytic.gaussian(np.zeros(SIZE), DATA)
    terms = elbo_terms(data, process)
    right = np.sum(weight * errors) * to_bits
    np.testing.assert_allclose(right, terms.kl * to_bits, rtol=1e-4)
    of_schedule = np.float64(kl_weight(schedules.cosine(STEPS), t, predicts=predicts))
    plain = np.sum(of_schedule[:, None] * errors) * to_bits
    print(f"{name}, {predicts}: KL {right:.3f} bits/dim, by the plain error {plain - right:+.3f}")
    if (name, predicts) in AGREE:
        np.testing.assert_allclose(weight, np.tile(of_schedule[:, None], (1, SIZE)), rtol=1e-5)
        np.testing.assert_allclose(plain, right, rtol=1e-5)
        return
    assert abs(plain - right) > 0.09
    if (name, predicts) in (("periodic", "x0"), ("equal_snr", "x0")):  # and it is no bound at all
        claimed = plain + (terms.prior + terms.decoder) * to_bits
        assert claimed < entropy(data) * to_bits - 0.1


# The bound, whole.


def whitened(covariance):
    """What data are to noise of COVARIANCE: the same as these are to white noise."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    root = vectors / np.sqrt(values) @ vectors.T
    return root @ covariance @ root, 0.5 * np.log(values).sum()


@pytest.mark.thorough
def test_correlated_noise_is_white_noise_of_whitened_data():
    schedule = schedules.linear_log_snr(100, 10.0, -10.0)
    process = processes.correlated(schedule, COVARIANCE, shape=SHAPE)
    found = elbo_terms(analytic.gaussian(np.zeros(SIZE), DATA), process)
    other, volume = whitened(DATA)
    expected = elbo_terms(analytic.gaussian(np.zeros(SIZE), other), schedule)
    np.testing.assert_allclose(found.per_step[1:], expected.per_step[1:], rtol=2e-5)
    np.testing.assert_allclose(found.prior, expected.prior, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.decoder, expected.decoder + volume, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["blurring", "correlated", "per_pixel"])
def test_the_elbo_ends_on_the_entropy_and_the_excess_falls_with_t(name):
    # The chains reach far beyond the data at both ends, so steps are all that is left to cost.
    data, steps = analytic.gaussian(np.zeros(SIZE), DATA), np.array([100, 400, 1600])
    excess = []
    for num_steps in map(int, steps):
        schedule = schedules.linear_log_snr(num_steps, 14.0, -14.0)
        process = {
            "blurring": lambda s=schedule: processes.blurring(s, SHAPE, max_blur=1.0),
            "correlated": lambda s=schedule: processes.correlated(s, COVARIANCE, shape=SHAPE),
            "per_pixel": lambda n=num_steps: processes.per_pixel(
                np.linspace(14.0, -14.0, n)[:, None, None, None]
                * np.linspace(1.0, 1.1, SIZE).reshape(SHAPE)
            ),
        }[name]()
        excess.append(float(elbo_terms(data, process).total - entropy(data)))
    assert min(excess) > 0.0
    slope = np.polyfit(np.log(steps), np.log(excess), 1)[0]
    print(f"{name}: above the entropy by {np.round(excess, 4)} nats, order {-slope:.3f}")
    assert abs(slope + 1.0) < 0.07


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "predicts"), [("blurring", "v"), ("correlated", "eps")])
def test_bits_per_dim_has_the_expected_terms(name, predicts):
    # 2,000 draws of the data: all means within 4.5 standard errors at a fixed seed.
    num_steps, draws = 12, 2000
    process, data = build(name, num_steps), analytic.gaussian(np.full(SIZE, 0.2), DATA)
    key, key_data = jax.random.split(jax.random.key(0))
    x0 = analytic.sample(data, key_data, (draws, *SHAPE))
    predict = analytic.predictor(data, process, predicts=predicts)
    bits = jax.jit(
        lambda x0: bits_per_dim(process, predict, key, x0, predicts=predicts, levels=None)
    )(x0)
    terms, to_nats = elbo_terms(data, process), SIZE * math.log(2.0)
    for found, expected in (
        (bits.prior, terms.prior),
        (bits.per_step.T, terms.per_step),
        (bits.total, terms.total),
    ):
        nats = np.asarray(found, np.float64) * to_nats
        standard_error = nats.std(axis=0) / math.sqrt(draws)
        assert (np.abs(nats.mean(axis=0) - expected) < 4.5 * standard_error + 1e-5).all()
    assert terms.total > entropy(data)


# The decoder.

GREY = np.linspace(-1.0, 1.0, 5)
PAIR = (2, 1, 1)


def pairs_of_pixels():
    """Every grey image of two pixels, `[25, 2, 1, 1]`."""
    first, second = np.meshgrid(GREY, GREY, indexing="ij")
    return jnp.asarray(np.stack([first.ravel(), second.ravel()], axis=1), jnp.float32).reshape(
        -1, *PAIR
    )


DECODERS = {
    "dct": lambda: processes.equal_snr(
        schedules.linear(10, 0.05, 0.3), [[[1.0]], [[0.1]]], bases.dct()
    ),
    "fourier": lambda: processes.correlated(
        schedules.linear(10, 0.05, 0.3), spectrum=[[[1.0]], [[0.3]]], basis=bases.fourier()
    ),
    "orthonormal": lambda: processes.spectral(
        np.linspace(0.9, 0.1, 10)[:, None, None, None] * np.ones(PAIR),
        np.linspace(0.05, 0.9, 10)[:, None, None, None] * np.float64([[[1.0]], [[2.0]]]),
        bases.orthonormal([[0.6, 0.8], [-0.8, 0.6]], PAIR),
    ),
    "pixels": lambda: processes.per_pixel(
        np.linspace(3.0, -5.0, 10)[:, None, None, None] + np.float64([[[0.0]], [[1.0]]])
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("variance", ["small", "learned_range"])
def test_the_decoder_is_a_distribution_over_grey_images(name, variance):
    process, grey = DECODERS[name](), pairs_of_pixels()
    x_t = jnp.broadcast_to(jnp.array([0.4, -0.7]).reshape(1, *PAIR), grey.shape)
    t = jnp.zeros(len(grey), jnp.int32)
    u = jnp.broadcast_to(jnp.array([0.3, 1.2]).reshape(1, *PAIR), grey.shape)
    nats = vlb_terms(
        process,
        0.5 * x_t,
        grey,
        x_t,
        t,
        predicts="x0",
        levels=len(GREY),
        variance=variance,
        interpolation=u if variance == "learned_range" else None,
    )
    assert abs(np.exp(-np.float64(nats)).sum() - 1.0) < 1e-5


@pytest.mark.parametrize("name", DECODERS)
def test_the_decoder_cuts_bins_pixel_by_pixel(name):
    # Each pixel with its own variance, the diagonal of that of the first step; 50 digits.
    process, grey = DECODERS[name](), pairs_of_pixels()
    matrix = {
        "dct": np.float64([[1, 1], [1, -1]]) / math.sqrt(2.0),
        "fourier": np.float64([[1, 1], [1, -1]]) / math.sqrt(2.0),
        "orthonormal": np.float64([[0.6, 0.8], [-0.8, 0.6]]),
        "pixels": np.eye(2),
    }[name]
    beta = np.float64(process.beta(jnp.zeros(1, jnp.int32))).ravel()
    deviation = np.sqrt(np.diag(matrix.T @ np.diag(beta) @ matrix))
    mean = np.float32([0.2, -0.35])
    x0_hat = jnp.broadcast_to(jnp.asarray(mean).reshape(1, *PAIR), grey.shape)
    t = jnp.zeros(len(grey), jnp.int32)
    nats = vlb_terms(process, x0_hat, grey, x0_hat, t, predicts="x0", levels=len(GREY))
    for found, image in zip(nats, np.asarray(grey).reshape(-1, 2), strict=True):
        parts = [
            log_probability_and_slope(*of_pixel, len(GREY))[0]
            for of_pixel in zip(image, mean, deviation, strict=True)
        ]
        np.testing.assert_allclose(found, -float(sum(parts)), rtol=1e-5)


# Losses that say the same of every prediction.


@pytest.mark.thorough
@every_process
def test_a_weighting_means_the_same_whatever_is_predicted(name):
    x0, x_t, x0_hat = draw(name, 5)
    t, exact = jnp.array(TIMES), dense(name)
    eps = np.stack(
        [
            np.linalg.solve(exact.noise(i), seen - exact.signal(i) @ x)
            for i, x, seen in zip(TIMES, x0, x_t, strict=True)
        ]
    )
    for of in KINDS:
        found = {
            predicts: weighted_loss(
                build(name),
                predicted(name, x0_hat, x_t, predicts),
                images(x0),
                t,
                images(eps),
                predicts=predicts,
                weighting=losses.constant(of),
            )
            for predicts in KINDS
        }
        simple = simple_loss(
            build(name),
            predicted(name, x0_hat, x_t, of),
            images(x0),
            t,
            images(eps),
            predicts=of,
        )
        for loss in found.values():
            np.testing.assert_allclose(loss, simple, rtol=2e-3)


@pytest.mark.thorough
def test_the_range_of_a_learned_variance_is_that_of_each_mode():
    exact, process = dense("rotated"), build("rotated")
    t, s = jnp.array([1, 20, 49]), jnp.array([0, 11, 3])
    for variance, expected in (
        ("small", [exact.posterior(int(i), int(j))[2] for i, j in zip(t, s, strict=True)]),
        ("large", [exact.transition(int(i), int(j))[1] for i, j in zip(t, s, strict=True)]),
    ):
        found = fixed_variance(process, t, s, variance=variance)
        for row, covariance in zip(np.float64(found).reshape(3, -1), expected, strict=True):
            np.testing.assert_allclose(
                exact.of_modes(row), covariance, atol=2e-6 * covariance.max()
            )
