"""The best denoiser against quadrature, linear algebra in float64, 50 digits and simulation."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from exact import chain, ulps
from exact_mixtures import (
    LINE,
    ONE,
    SPACE,
    denoise_float64,
    log_density_float64,
    random_mixture,
    rotation,
)
from fused import convert, denoise, elbo_terms, entropy, entropy_estimate, log_density, q_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import thorough_but

from ddpm_jax import analytic, samplers, schedules

TARGETS = ("eps", "x0", "v", "score")
KINDS = TARGETS[:3]
NAMES = ("linear", "cosine", "linear_log_snr")


def f32(values):
    return jnp.asarray(values, jnp.float32)


def times(t, batch):
    return jnp.full(batch, t, jnp.int32)


def from_x0_hat(x0_hat, x_t, a, b):
    """All four targets from E[x_0 | x_t], by definition; for float64 or more."""
    eps_hat = (x_t - a * x0_hat) / b
    return {"eps": eps_hat, "x0": x0_hat, "v": a * eps_hat - b * x0_hat, "score": -eps_hat / b}


def tolerance(target, b):
    """Some last places of x_t, as large as they can become in the target."""
    return 3e-6 * {"eps": 1 / b, "x0": 1.0, "v": 1 / b, "score": 1 / b**2}[target]


def cumulative_on_the_line(x0):
    weights, means, variances = (part.reshape(2, 1) for part in LINE)
    return (weights * scipy.stats.norm.cdf(x0, means, np.sqrt(variances))).sum(axis=0)


@pytest.mark.parametrize("name", thorough_but(["linear", "cosine"], NAMES))
@pytest.mark.parametrize("t", [0, 1, 30, 500, 990, 999])
def test_on_a_line_the_denoiser_is_an_integral(name, t):
    # The trapezoidal rule over x_0, which for integrands that fall off smoothly is exact.
    schedule, data = getattr(schedules, name)(1000), analytic.mixture(*LINE)
    a, b = map(float, chain(name, 1000).signal_and_noise(t))
    x_t = np.float32([-2.0, -1.0, -0.6, -0.3, 0.0, 0.1, 0.5, 1.5, 3.0])
    weights, means, variances = (part.reshape(2, 1) for part in LINE)
    for x in x_t.astype(np.float64):
        low, high = max(-12.0, (x - 12 * b) / a), min(12.0, (x + 12 * b) / a)
        x0 = np.linspace(low, high, 20_001)
        prior = (weights * scipy.stats.norm.pdf(x0, means, np.sqrt(variances))).sum(axis=0)
        log_likelihood = -0.5 * ((x - a * x0) / b) ** 2
        density = prior * np.exp(log_likelihood - log_likelihood.max())
        x0_hat = scipy.integrate.trapezoid(x0 * density) / scipy.integrate.trapezoid(density)
        for target, expected in from_x0_hat(x0_hat, x, a, b).items():
            found = denoise(data, schedule, f32([[x]]), times(t, 1), target=target)
            error = abs(float(found[0, 0]) - expected)
            assert error < tolerance(target, b), (target, x)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variance", [0.0, 2.0**-14, 0.25, 4.0])
def test_no_digits_are_lost_around_a_mean_of_zero(name, variance):
    # x_t is then known to its last place, and so is every answer: nothing cancels.
    t, x_t, tables = [0, 1, 10, 1000, 3990, 3999], mp.mpf(3) / 128, chain(name, 4000)
    data, schedule = analytic.gaussian([0.0], [[variance]]), getattr(schedules, name)(4000)
    expected = {target: [] for target in TARGETS}
    for a, b in map(tables.signal_and_noise, t):
        x0_hat = a * mp.mpf(variance) / (a**2 * mp.mpf(variance) + b**2) * x_t
        for target, value in from_x0_hat(x0_hat, x_t, a, b).items():
            expected[target].append(value)
    for target in TARGETS:
        at = jnp.array(t, jnp.int32)
        found = denoise(data, schedule, jnp.full(6, 3 / 128), at, target=target)
        assert ulps(found, expected[target]).max() < 8, target


SHAPES = st.sampled_from([(), (1,), (2,), (3, 2), (2, 2, 1)])
SEEDS = st.integers(0, 2**16)


@pytest.mark.thorough
@settings(max_examples=10)
@given(SEEDS, SHAPES, st.integers(1, 3), st.sampled_from(NAMES))
def test_in_space_the_denoiser_is_linear_algebra(seed, shape, components, name):
    rng, dimensions = np.random.default_rng(seed), math.prod(shape)
    parts = random_mixture(rng, components, dimensions)
    data, schedule = analytic.mixture(*parts), getattr(schedules, name)(1000)
    x_t = f32(1.5 * rng.normal(size=(5, *shape)))
    exact_x_t = np.asarray(x_t, np.float64).reshape(5, -1)
    for t in (0, 1, 400, 999):
        a, b = map(float, chain(name, 1000).signal_and_noise(t))
        x0_hat = denoise_float64(parts, a, b, exact_x_t)
        for target, expected in from_x0_hat(x0_hat, exact_x_t, a, b).items():
            found = denoise(data, schedule, x_t, times(t, 5), target=target)
            assert found.shape == x_t.shape
            error = np.abs(np.asarray(found).reshape(5, -1) - expected).max()
            # Between components that are narrow against b, x_0 turns quickly too.
            assert error < tolerance(target, b) * (3 if target != "x0" else 1 / b), (target, t)
        found = log_density(data, schedule, x_t, times(t, 5))
        expected = log_density_float64(parts, a, b, exact_x_t)
        np.testing.assert_allclose(found, expected, rtol=1e-5 / b, atol=2e-5)


@pytest.mark.thorough
@settings(max_examples=5)
@given(SEEDS, st.integers(2, 4), st.integers(2, 3))
def test_the_order_of_components_and_the_axes_of_space_are_nothing_to_it(
    seed, components, dimensions
):
    rng, schedule = np.random.default_rng(seed), schedules.cosine(100)
    weights, means, covariances = random_mixture(rng, components, dimensions)
    x_t = rng.normal(size=(6, dimensions))
    order, turn = rng.permutation(components), rotation(rng, dimensions)
    data = analytic.mixture(weights, means, covariances)
    permuted = analytic.mixture(weights[order], means[order], covariances[order])
    turned = analytic.mixture(weights, means @ turn.T, turn @ covariances @ turn.T)
    for t in (5, 99):
        at, b = times(t, 6), float(schedule.noise(times(t, 1))[0])
        for target in TARGETS:
            found, again, there = (
                np.asarray(denoise(which, schedule, f32(x), at, target=target))
                for which, x in ((data, x_t), (permuted, x_t), (turned, x_t @ turn.T))
            )
            accepted = 10 * tolerance(target, b)
            np.testing.assert_allclose(again, found, rtol=0, atol=accepted)
            np.testing.assert_allclose(there, found @ turn.T, rtol=0, atol=accepted)


@pytest.mark.parametrize("t", [0, 20, 500, 980])
def test_the_targets_convert_into_one_another(t):
    data, schedule = analytic.mixture(*SPACE), schedules.linear(1000)
    a, b = map(float, chain("linear", 1000).signal_and_noise(t))
    x_t, at = jax.random.normal(jax.random.key(0), (20, 3)), times(t, 20)
    hats = {target: denoise(data, schedule, x_t, at, target=target) for target in TARGETS}
    for source in KINDS:
        for target in KINDS:
            found = convert(schedule, hats[source], x_t, at, source=source, target=target)
            np.testing.assert_allclose(found, hats[target], rtol=0, atol=5e-6 / min(a, b))
    np.testing.assert_allclose(hats["eps"], -b * hats["score"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [-1, 0, 3, 50, 99])
def test_the_score_is_the_slope_of_the_log_density(t):
    # Slopes by JAX, and by central differences of scipy's densities in float64.
    parts = SPACE[0], SPACE[1], SPACE[2] + 0.05 * np.eye(3)
    data, schedule = analytic.mixture(*parts), schedules.cosine(100)
    a, b = (1.0, 0.0) if t == -1 else map(float, chain("cosine", 100).signal_and_noise(t))
    x_t, at = jax.random.normal(jax.random.key(t + 2), (12, 3)), times(t, 12)
    score = denoise(data, schedule, x_t, at, target="score")
    slope = jax.grad(lambda x_t: jnp.sum(log_density(data, schedule, x_t, at)))(x_t)
    np.testing.assert_allclose(score, slope, rtol=2e-5, atol=2e-5)
    exact, step = np.asarray(x_t, np.float64), 1e-5
    for i, unit in enumerate(np.eye(3)):
        ahead, behind = (
            log_density_float64(parts, a, b, exact + sign * step * unit) for sign in (1, -1)
        )
        difference = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(score[:, i], difference, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("t", [-1, 0, 500, 999])
def test_densities_are_those_of_scipy_and_integrate_to_one(t):
    data, schedule = analytic.mixture(*LINE), schedules.linear(1000)
    a, b = (1.0, 0.0) if t == -1 else map(float, chain("linear", 1000).signal_and_noise(t))
    x_t = np.linspace(-8, 8, 4001).astype(np.float32)[:, None]
    found = np.asarray(log_density(data, schedule, f32(x_t), times(t, 4001)), np.float64)
    expected = log_density_float64(LINE, a, b, x_t.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    total = scipy.integrate.trapezoid(np.exp(found), x_t[:, 0].astype(np.float64))
    assert abs(total - 1.0) < 1e-6


@pytest.fixture(scope="module")
def noised():
    """50,000 draws of the mixture in space, noised at t = 30 of 50: data, schedule, x0, x_t, t."""
    data, schedule = analytic.mixture(*SPACE), schedules.cosine(50)
    key_data, key_eps = jax.random.split(jax.random.key(0))
    x0 = analytic.sample(data, key_data, (50_000, 3))
    eps, t = jax.random.normal(key_eps, x0.shape), times(30, len(x0))
    return data, schedule, x0, eps, q_sample(schedule, x0, t, eps), t


@pytest.mark.thorough
@pytest.mark.parametrize("target", KINDS)
def test_what_the_denoiser_misses_is_unrelated_to_what_it_saw(noised, target):
    # The conditional mean, and nothing else, leaves an error that has mean zero times any function
    # of x_t. 50,000 draws, 5 functions of 3 coordinates: within 4.5 standard errors, p < 1e-4.
    data, schedule, x0, eps, x_t, t = noised
    a, b = map(float, chain("cosine", 50).signal_and_noise(30))
    truth = {"x0": x0, "eps": eps, "v": a * eps - b * x0}[target]
    error = truth - denoise(data, schedule, x_t, t, target=target)
    for seen in (jnp.ones_like(x_t), x_t, x_t**2, jnp.sin(3 * x_t), jnp.roll(x_t, 1, axis=1)):
        product = np.asarray(error * seen, np.float64)
        standard_error = product.std(axis=0) / math.sqrt(len(product))
        assert (np.abs(product.mean(axis=0)) < 4.5 * standard_error).all()


@pytest.mark.thorough
@pytest.mark.parametrize("t", [0, 10, 30, 49])
def test_the_error_of_gaussian_data_is_the_posterior_variance(t):
    # 50,000 draws; E|x_0 - x0_hat|^2 within 4.5 standard errors of the trace of the conditional
    # covariance, C - a^2 C (a^2 C + b^2 I)^-1 C. p < 1e-5.
    data, schedule = analytic.gaussian(*ONE), schedules.cosine(50)
    key_data, key_eps = jax.random.split(jax.random.key(t))
    x0 = analytic.sample(data, key_data, (50_000, 3))
    x_t = q_sample(schedule, x0, times(t, len(x0)), jax.random.normal(key_eps, x0.shape))
    x0_hat = denoise(data, schedule, x_t, times(t, len(x0)), target="x0")
    error = np.asarray(jnp.sum((x0 - x0_hat) ** 2, axis=1), np.float64)
    a, b = map(float, chain("cosine", 50).signal_and_noise(t))
    c = ONE[1]
    left = np.trace(c - a**2 * c @ np.linalg.solve(a**2 * c + b**2 * np.eye(3), c))
    assert abs(error.mean() - left) < 4.5 * error.std() / math.sqrt(len(error))


def test_draws_have_the_distribution(noised):
    # Kolmogorov and Smirnov on the line, p > 1e-3; in space means and covariances of 50,000 draws
    # within 4.5 standard errors, p < 1e-4, and as `mean` and `covariance` say to rounding.
    line = analytic.sample(analytic.mixture(*LINE), jax.random.key(1), (20_000,))
    assert scipy.stats.kstest(np.asarray(line, np.float64), cumulative_on_the_line).pvalue > 1e-3
    data, _, x0, *_ = noised
    weights, means, covariances = SPACE
    mean = weights @ means
    second = np.einsum("k,kde->de", weights, covariances + np.einsum("kd,ke->kde", means, means))
    covariance = second - np.outer(mean, mean)
    np.testing.assert_allclose(analytic.mean(data), mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(analytic.covariance(data), covariance, rtol=1e-6, atol=1e-6)
    x0 = np.asarray(x0, np.float64)
    products = np.einsum("nd,ne->nde", x0 - mean, x0 - mean)
    for draws, expected in ((x0, mean), (products, covariance)):
        standard_error = draws.std(axis=0) / math.sqrt(len(draws))
        assert (np.abs(draws.mean(axis=0) - expected) < 4.5 * standard_error).all()


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", KINDS)
def test_samplers_that_ask_the_predictor_end_on_the_data(predicts):
    # 4,000 draws by ancestral sampling in 400 steps, by the test of Kolmogorov and Smirnov:
    # p > 1e-3. What the steps and the ends of the chain leave of an error is far below.
    data, schedule = analytic.mixture(*LINE), schedules.linear_log_snr(400)
    predict = analytic.predictor(data, schedule, predicts=predicts)
    sampler = samplers.ancestral(schedule, predict, predicts=predicts, threshold=None)
    steps = samplers.time_grid(schedule, 400)
    draws = samplers.sample(sampler, jax.random.key(0), (4000, 1, 1), steps).x0
    found = np.asarray(draws, np.float64).ravel()
    assert scipy.stats.kstest(found, cumulative_on_the_line).pvalue > 1e-3


def test_times_outside_the_chain_give_nan():
    data, schedule, at = analytic.mixture(*LINE), schedules.linear(10), jnp.array([-2, 10])
    x_t = jnp.zeros((2, 1))
    for target in TARGETS:
        assert np.isnan(denoise(data, schedule, x_t, at, target=target)).all()
    assert np.isnan(log_density(data, schedule, x_t, at)).all()


def test_draws_have_any_shape_and_follow_the_key():
    data, key = analytic.gaussian(np.zeros(6), np.eye(6)), jax.random.key(0)
    images = analytic.sample(data, key, (4, 3, 2, 1))
    assert (images.shape, images.dtype) == ((4, 3, 2, 1), jnp.float32)
    np.testing.assert_array_equal(images.reshape(4, 6), analytic.sample(data, key, (4, 6)))
    assert (images != analytic.sample(data, jax.random.key(1), (4, 3, 2, 1))).all()


# The ends: data of no variance, and a chain that leaves nothing of them.


def ends_in_noise():
    """A chain whose last alpha_bar is 0."""
    return schedules.zero_terminal_snr(schedules.linear(6, 0.1, 0.5))


@jax.jit
def slopes_of_all(data, schedule, x_t, t):
    def total(x_t):
        hats = [denoise(data, schedule, x_t, t, target=target) for target in TARGETS]
        return sum(jnp.sum(jnp.sin(hat)) for hat in hats) + jnp.sum(
            log_density(data, schedule, x_t, t)
        )

    return jax.grad(total)(x_t)


@pytest.mark.thorough
def test_where_nothing_is_left_of_the_data_their_mean_is_the_answer():
    data, schedule, last = analytic.mixture(*SPACE), ends_in_noise(), times(5, 4)
    x_t = jax.random.normal(jax.random.key(0), (4, 3))
    mean = np.broadcast_to(SPACE[0] @ SPACE[1], (4, 3))
    expected = {"eps": x_t, "x0": mean, "v": -mean, "score": -x_t}
    for target in TARGETS:
        found = denoise(data, schedule, x_t, last, target=target)
        np.testing.assert_allclose(found, expected[target], rtol=1e-6, atol=1e-6)
    normal = scipy.stats.multivariate_normal(np.zeros(3))
    found = log_density(data, schedule, x_t, last)
    np.testing.assert_allclose(found, normal.logpdf(x_t), rtol=1e-6)
    assert np.isfinite(slopes_of_all(data, schedule, x_t, last)).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0, 999])
def test_data_without_variance(name, t):
    # Points: x0_hat is their mean, weighted with how near each is; slopes are finite everywhere.
    points = np.array([[-1.0, 0.0], [1.0, 0.5], [1.0, 0.4]])
    parts = np.array([0.5, 0.3, 0.2]), points, np.zeros((3, 2, 2))
    data, schedule = analytic.mixture(*parts), getattr(schedules, name)(1000)
    a, b = map(float, chain(name, 1000).signal_and_noise(t))
    x_t = f32(np.concatenate([a * points, [[0.0, 0.25], [30.0, -30.0]]]))
    exact = np.asarray(x_t, np.float64)
    log_likelihood = -np.sum((exact[:, None] - a * points) ** 2, axis=2) / (2 * b**2)
    nearness = scipy.special.softmax(np.log(parts[0]) + log_likelihood, axis=1)
    for target, expected in from_x0_hat(nearness @ points, exact, a, b).items():
        found = denoise(data, schedule, x_t, times(t, 5), target=target)
        assert np.isfinite(found).all()
        # Far from all points the nearest depends on the last places of x_t.
        error = np.abs(found - expected)[:3].max()
        assert error < 10 * tolerance(target, b), target
    assert np.isfinite(slopes_of_all(data, schedule, x_t, times(t, 5))).all()


def test_a_singular_covariance_has_no_density_without_noise():
    data, schedule = analytic.gaussian([0.0, 1.0], np.diag([0.0, 1.0])), schedules.linear(10)
    x_t = jnp.zeros((2, 2))
    assert not np.isfinite(log_density(data, schedule, x_t, times(-1, 2))).any()
    assert np.isfinite(log_density(data, schedule, x_t, times(0, 2))).all()


def test_eigenvalues_that_rounding_leaves_of_a_zero_are_zeros():
    root = np.array([[1.0], [1 / 3], [-0.7]])
    data = analytic.gaussian(np.zeros(3), root @ root.T)
    assert data.variances[0, :2].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(data.variances[0, 2], np.sum(root**2), rtol=1e-6)
    # 12 orders of magnitude are no rounding in float64.
    small = analytic.gaussian(np.zeros(2), np.diag([1.0, 1e-12]))
    np.testing.assert_allclose(small.variances[0], [1e-12, 1.0], rtol=1e-6)


# What a function owes its callers: data and schedule are arrays like any others.


def everything(data, one):
    """All that can be computed of a mixture and of one Gaussian."""
    schedule, key = schedules.cosine(10), jax.random.key(0)
    x_t, at = jax.random.normal(key, (4, 3)), times(3, 4)
    return (
        denoise(data, schedule, x_t, at, target="v"),
        log_density(data, schedule, x_t, at),
        analytic.sample(data, key, (4, 3)),
        analytic.mean(data),
        analytic.covariance(data),
        entropy_estimate(data, key, 20),
        entropy(one),
        elbo_terms(one, schedule),
    )


@pytest.mark.thorough
def test_data_may_be_compiled_mapped_and_differentiated():
    pairs = [
        (analytic.mixture(SPACE[0], m, SPACE[2] + np.eye(3)), analytic.gaussian(m[0], ONE[1]))
        for m in (SPACE[1], SPACE[1] + 0.2)
    ]
    compiled = jax.jit(everything)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    mapped = jax.jit(jax.vmap(everything))(*stacked)
    for i, pair in enumerate(pairs):
        alone = jax.tree.leaves(compiled(*pair))
        for all_of_it, one in zip(jax.tree.leaves(mapped), alone, strict=True):
            np.testing.assert_allclose(all_of_it[i], one, rtol=2e-5, atol=1e-5)

    def total(pair):
        return sum(jnp.mean(leaf) for leaf in jax.tree.leaves(everything(*pair)))

    slope_of, step = jax.jit(jax.value_and_grad(total)), 1e-2
    data, one = pairs[0]
    slopes = slope_of(pairs[0])[1]
    for field in ("means", "variances"):
        shifted = [
            tuple(d._replace(**{field: getattr(d, field) + sign * step}) for d in (data, one))
            for sign in (1, -1)
        ]
        ahead, behind = (slope_of(pair)[0] for pair in shifted)
        slope = sum(jnp.sum(getattr(part, field)) for part in slopes)
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=2e-2, atol=2e-3)


@pytest.mark.thorough
def test_dtype_and_precision_stay():
    data, schedule = analytic.mixture(*SPACE), schedules.linear(10)
    x_t, at = jax.random.normal(jax.random.key(0), (4, 3), jnp.bfloat16), times(5, 4)
    found = denoise(data, schedule, x_t, at, target="v")
    in_full = denoise(data, schedule, x_t.astype(jnp.float32), at, target="v")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, in_full.astype(jnp.bfloat16))

    def wide(x_t):
        key = jax.random.key(0)
        return (
            denoise(data, schedule, x_t, at, target="x0"),
            log_density(data, schedule, x_t, at),
            analytic.sample(data, key, (4, 3)),
            entropy_estimate(data, key, 4).mean,
        )

    with jax.enable_x64(True):
        dtypes = [leaf.dtype for leaf in jax.eval_shape(wide, jnp.zeros((4, 3), jnp.float64))]
    assert dtypes == [jnp.float64, jnp.float64, jnp.float32, jnp.float32]


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        ("gaussian", (np.zeros((2, 1)), EYE), r"mean has shape \(2, 1\); it has to be \(d,\)"),
        ("gaussian", (np.zeros(0), np.zeros((0, 0))), r"mean has shape \(0,\)"),
        ("gaussian", (np.zeros(3), EYE), r"covariance has shape \(2, 2\); .* \(3, 3\)"),
        ("gaussian", ([0.0, np.nan], EYE), r"mean\[1\] is nan"),
        ("gaussian", (np.zeros(2), 1e39 * EYE), r"covariance\[0, 0\] is 1e\+39; float32"),
        (
            "gaussian",
            (np.zeros(2), [[1.0, 0.3], [0.2, 1.0]]),
            r"covariance is not symmetric: \[0, 1\] is 0.3, \[1, 0\] 0.2",
        ),
        ("gaussian", (np.zeros(2), [[1.0, 2.0], [2.0, 1.0]]), "covariance has the eigenvalue -1;"),
        ("mixture", ([0.5, 0.4], np.zeros((2, 2)), [EYE, EYE]), "weights sum to 0.9; they have"),
        ("mixture", ([1.5, -0.5], np.zeros((2, 2)), [EYE, EYE]), r"weights\[1\] is -0.5; every"),
        ("mixture", ([1.0, 0.0], np.zeros((2, 2)), [EYE, EYE]), r"weights\[1\] is 0; every"),
        ("mixture", ([0.5, 0.5], np.zeros((3, 2)), [EYE, EYE]), r"means has shape \(3, 2\)"),
        ("mixture", ([1.0], np.zeros((1, 2)), EYE), r"covariances has shape \(2, 2\)"),
        (
            "mixture",
            ([0.5, 0.5], np.zeros((2, 2)), [EYE, -EYE]),
            r"covariances\[1\] has the eigenvalue -1;",
        ),
    ],
)
def test_data_that_cannot_be(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(analytic, make)(*arguments)


def test_rounding_of_what_is_given_is_no_error():
    cov = np.cov(np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)[:, [0, 1, 0]].T)
    data = analytic.gaussian(np.zeros(3, np.float32), cov.astype(np.float32))
    assert (np.asarray(data.variances) >= 0.0).all()
    thirds = analytic.mixture(np.full(3, 1 / 3, np.float32), np.zeros((3, 1)), np.ones((3, 1, 1)))
    np.testing.assert_allclose(jnp.exp(thirds.log_weights).sum(), 1.0, rtol=1e-7)


def test_arguments_that_cannot_be(without_annotation_checks):
    several, schedule = analytic.mixture(*SPACE), schedules.linear(10)
    x_t, at = jnp.zeros((2, 3)), times(0, 2)
    for wrong in (jnp.zeros((2, 4)), jnp.zeros((2,)), jnp.zeros((6, 1)), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"x_t has shape .*; the data have 3 dimensions"):
            denoise(several, schedule, wrong, at, target="x0")
        with pytest.raises(ValueError, match=r"x_t has shape .*; the data have 3 dimensions"):
            log_density(several, schedule, wrong, at)
    with pytest.raises(ValueError, match=r"shape is \(2, 4\); the data have 3 dimensions"):
        analytic.sample(several, jax.random.key(0), (2, 4))
    with pytest.raises(ValueError, match="target is 'noise'; it is one of 'eps', 'x0', 'v', 'sco"):
        denoise(several, schedule, x_t, at, target="noise")
    with pytest.raises(ValueError, match="predicts is 'noise'"):
        analytic.predictor(several, schedule, predicts="noise")
    with pytest.raises(ValueError, match="num is 1;"):
        entropy_estimate(several, jax.random.key(0), 1)
    with pytest.raises(ValueError, match=r"data have 3 components; .*entropy_estimate"):
        entropy(several)
    with pytest.raises(ValueError, match=r"data have 3 components; .*vlb_terms"):
        elbo_terms(several, schedule)
