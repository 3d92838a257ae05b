"""Gamma noise against scipy's gamma, quadrature, the chain walked, and conditioning by rejection.

Every Kolmogorov-Smirnov test here is of 100,000 draws at a fixed seed and has the significance
1e-5: a correct law fails one in 100,000.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from exact import chain as exact_chain
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import thorough_but

from ddpm_jax import forward, schedules
from ddpm_jax.processes import gamma

T, BATCH, DRAWS = 12, 8, 100_000
SCHEDULE, TABLES = schedules.cosine(T), exact_chain("cosine", T)
LEGENDRE = np.polynomial.legendre.leggauss(400)
CRITICAL = float(scipy.stats.kstwo.isf(1e-5, DRAWS))


def shape_of(t, theta_0):
    """k_bar_t, summed step by step in 50 digits."""
    steps = zip(TABLES.betas[: t + 1], TABLES.alpha_bar[: t + 1], strict=True)
    return float(sum((beta / alpha_bar for beta, alpha_bar in steps), mp.mpf(0)) / theta_0**2)


def theta_for(t, k_bar):
    """The theta_0 that gives the noise at t the shape k_bar."""
    return np.sqrt(shape_of(t, 1.0) / k_bar)


def at(time, count=DRAWS):
    return jnp.full(count, time, jnp.int32)


def law(eps, k):
    """P(E < eps) of the standardized Gamma(k)."""
    return scipy.special.gammainc(k, np.maximum(k + np.sqrt(k) * np.asarray(eps, np.float64), 0.0))


def assert_law(eps, k):
    """Kolmogorov-Smirnov at 500 quantiles, which float32 tells apart from the lower end."""
    eps = np.sort(np.asarray(eps, np.float64).ravel())
    assert eps.shape == (DRAWS,)
    total = scipy.special.gammaincinv(k, (np.arange(500) + 0.5) / 500)
    total = total[total > 1e-5 * k]
    cut = (total - k) / np.sqrt(k)
    found = np.searchsorted(eps, cut) / DRAWS
    assert np.abs(found - scipy.special.gammainc(k, total)).max() < CRITICAL


walk = jax.jit(forward.q_chain, static_argnums=3)
draw_noise = jax.jit(
    lambda chain, key, t: chain.draw_noise(key, (*t.shape, 1), t)  # one compilation for all tests
)
draw_transition_noise = jax.jit(
    lambda chain, key, t, s: chain.draw_transition_noise(key, (*t.shape, 1), t, s)
)
posterior_sample = jax.jit(
    lambda chain, key, x0, x_t, t, s: chain.posterior_sample(key, x0, x_t, t, s)
)


@pytest.mark.parametrize(
    "k", thorough_but([0.7, 9e3], [0.05, 0.7, 3.0, 150.0, 9e3, 1.1e4, 1e6, 3e9])
)
def test_noise_is_the_standardized_gamma(k):
    eps = draw_noise(gamma(SCHEDULE, theta_for(7, k)), jax.random.key(0), at(7))
    assert eps.dtype == jnp.float32
    assert_law(eps, k)
    z = np.asarray(eps, np.float64)
    fourth = 3.0 + 6.0 / k
    assert abs(z.mean()) < 4.5 / np.sqrt(DRAWS)
    assert abs(z.var() - 1.0) < 4.5 * np.sqrt((fourth - 1.0) / DRAWS)
    if k > 1.0:  # G - k in float32 has 1,300 values within 3 deviations at k = 3e9
        assert len(np.unique(z)) > 0.8 * DRAWS


@pytest.mark.thorough
def test_the_skewness_of_a_large_gamma():
    # 2 / sqrt(k) = 0.019; its standard error for 2 million draws is 0.0017.
    k = 1.1e4
    chain, keys = gamma(SCHEDULE, theta_for(7, k)), jax.random.split(jax.random.key(1), 20)
    z = np.float64(np.concatenate([draw_noise(chain, each, at(7)) for each in keys]))
    z = (z - z.mean()) / z.std()
    assert abs(np.mean(z**3) - 2.0 / np.sqrt(k)) < 4.5 * np.sqrt(6.0 / len(z))


@pytest.mark.thorough
@pytest.mark.parametrize("k", [1e2, 1e3, 1e4])
def test_what_the_proposal_of_a_large_gamma_is_off_by(k):
    # Total variation between the gamma and the proposal without its test, by quadrature over z.
    d, z = k - 1.0 / 3.0, np.linspace(-9.0, 9.0, 200_001)
    x = d * (1.0 + z / (3.0 * np.sqrt(d))) ** 3
    slope = np.sqrt(d) * (1.0 + z / (3.0 * np.sqrt(d))) ** 2
    density = np.exp((k - 1.0) * np.log(x / k) - (x - k)) * slope
    density /= np.trapezoid(density, z)
    distance = 0.5 * np.trapezoid(np.abs(density - scipy.stats.norm.pdf(z)), z)
    assert 0.01 / k < distance < 0.02 / k


@pytest.mark.thorough
@pytest.mark.parametrize("theta_0", [0.05, 0.8])
def test_the_chain_walked_has_the_law_of_the_closed_form(theta_0):
    chain, x0, last, middle = gamma(SCHEDULE, theta_0), jnp.full((DRAWS, 1), 0.6), 9, 4
    a, b = map(float, TABLES.signal_and_noise(last))
    assert_law(
        (walk(chain, jax.random.key(2), x0, last + 1) - a * 0.6) / b, shape_of(last, theta_0)
    )

    at_once = forward.q_sample(chain, x0, at(last), draw_noise(chain, jax.random.key(3), at(last)))
    assert_law((at_once - a * 0.6) / b, shape_of(last, theta_0))

    eps = draw_transition_noise(chain, jax.random.key(4), at(last), at(middle))
    assert_law(eps, shape_of(last, theta_0) - shape_of(middle, theta_0))
    before = chain.q_sample(x0, at(middle), draw_noise(chain, jax.random.key(5), at(middle)))
    both = forward.q_transition(chain, before, at(last), at(middle), eps)
    assert_law((both - a * 0.6) / b, shape_of(last, theta_0))


def test_one_step_is_the_noise_of_the_paper():
    # g_t - E g_t with g_t ~ Gamma(k_t, theta_t), from the paper's own parameters.
    theta_0, t = 0.5, 6
    chain, x = gamma(SCHEDULE, theta_0), jnp.full((DRAWS, 1), -0.4)
    beta, alpha_bar = float(TABLES.betas[t]), float(TABLES.alpha_bar[t])
    k, theta = beta / (alpha_bar * theta_0**2), np.sqrt(alpha_bar) * theta_0
    eps = jax.jit(chain.draw_step_noise, static_argnums=1)(jax.random.key(6), x.shape, at(t))
    stepped = chain.q_step(x, at(t), eps)
    noise = np.asarray(stepped, np.float64) + 0.4 * np.sqrt(1.0 - beta)
    assert_law(noise / (theta * np.sqrt(k)), k)


@pytest.mark.thorough
def test_the_means_are_those_of_the_gaussian_chain():
    pairs = jnp.array([(t, s) for t in range(T) for s in range(-1, t)], jnp.int32)
    t, s = pairs.T
    x0 = 0.1 * jax.random.normal(jax.random.key(7), (len(pairs), 3))
    x_t = 0.1 * jax.random.normal(jax.random.key(8), (len(pairs), 3))
    for theta_0 in (1e-6, 1e-2):
        mean, variance = gamma(SCHEDULE, theta_0).q_posterior(x0, x_t, t, s)
        expected_mean, expected_variance = forward.q_posterior(SCHEDULE, x0, x_t, t, s)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-6, atol=1e-7)
        if theta_0 == 1e-6:  # where the whole posterior is that of the Gaussian chain
            whole = jnp.broadcast_to(expected_variance[:, None], variance.shape)
            np.testing.assert_allclose(variance, whole, rtol=1e-4)


def by_quadrature(theta_0, x0, x_t, t, s):
    """Mean and variance of q(x_s | x_t, x_0) by Bayes' rule: q(x_t | x_s) q(x_s | x_0), summed."""
    (a_s, _), (a_t, _) = TABLES.signal_and_noise(s), TABLES.signal_and_noise(t)
    a_s, a_t = float(a_s), float(a_t)
    k_s, k_rest = shape_of(s, theta_0), shape_of(t, theta_0) - shape_of(s, theta_0)
    low = a_s * (x0 - theta_0 * k_s)  # g_s is 0 there, and the noise after s at the other end
    high = a_s * (x_t / a_t + theta_0 * k_rest)
    node, weight = LEGENDRE
    x_s = low + (high - low) * (node + 1.0) / 2.0
    g_s = (x_s - a_s * x0) / (a_s * theta_0) + k_s
    g_rest = (x_t - a_t / a_s * x_s) / (a_t * theta_0) + k_rest
    log_density = (k_s - 1.0) * np.log(g_s) - g_s + (k_rest - 1.0) * np.log(g_rest) - g_rest
    weight = weight * np.exp(log_density - log_density.max())
    mean = np.average(x_s, weights=weight)
    return mean, np.average((x_s - mean) ** 2, weights=weight)


@pytest.mark.parametrize(("theta_0", "t", "s"), [(0.2, 7, 3), (0.5, 10, 8), (0.15, 4, 2)])
def test_posterior_moments_by_quadrature(theta_0, t, s):
    for x0, x_t in [(0.3, 0.1), (-0.5, 0.4)]:
        x0, x_t = np.float32([x0, x_t])
        arrays = jnp.full((1, 1), x0), jnp.full((1, 1), x_t), at(t, 1), at(s, 1)
        mean, variance = gamma(SCHEDULE, theta_0).q_posterior(*arrays)
        expected = by_quadrature(np.float32(theta_0).item(), float(x0), float(x_t), t, s)
        np.testing.assert_allclose(float(mean[0, 0]), float(expected[0]), rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(float(variance[0, 0]), float(expected[1]), rtol=1e-5)


@pytest.mark.thorough
def test_the_posterior_is_what_is_left_of_chains_that_end_there():
    # Rejection: 4 million chains by NumPy's gammas, kept where x_t falls within 0.01 of a value.
    # Mean, variance and third moment of x_s within 4.5 standard errors of those of 100,000 draws.
    theta_0, t, s, x0 = 0.6, 7, 4, 0.5
    rng, count = np.random.default_rng(9), 4_000_000
    k_s, k_t = shape_of(s, theta_0), shape_of(t, theta_0)
    a_s, a_t = (float(TABLES.signal_and_noise(i)[0]) for i in (s, t))
    by_s, after = rng.gamma(k_s, size=count), rng.gamma(k_t - k_s, size=count)
    x_s = a_s * (x0 + theta_0 * (by_s - k_s))
    x_t = a_t * (x0 + theta_0 * (by_s + after - k_t))
    for value in (-0.2, 1.0):
        kept = np.abs(x_t - value) < 0.01
        n = int(kept.sum())
        assert n > 5000
        ends = jnp.asarray(np.resize(x_t[kept], (DRAWS, 1)), jnp.float32)
        arrays = jnp.full_like(ends, x0), ends, at(t), at(s)
        chain = gamma(SCHEDULE, theta_0)
        drawn = np.asarray(posterior_sample(chain, jax.random.key(10), *arrays), np.float64)[:, 0]
        mean, variance = (np.asarray(x, np.float64)[:, 0] for x in chain.q_posterior(*arrays))
        # The kept chains are fewer than DRAWS: their ends were repeated.
        assert n < DRAWS
        found = [(x - mean[: len(x)]) / np.sqrt(variance[: len(x)]) for x in (x_s[kept], drawn)]
        for power, expected in ((1, 0.0), (2, 1.0)):
            for z in found:
                error = np.std(z**power) / np.sqrt(len(z))
                assert abs(np.mean(z**power) - expected) < 4.5 * error
        third = [z**3 for z in found]
        error = np.hypot(*(np.std(each) / np.sqrt(len(each)) for each in third))
        assert abs(third[0].mean() - third[1].mean()) < 4.5 * error


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("k_bar", "t", "s"),
    [(2.0, 7, 3), (40.0, 7, 6), (0.3, 9, 8), (9e3, 7, 3), (2e4, 11, 0), (1e6, 9, 4), (1e9, 9, 8)],
)
def test_what_was_drawn_at_t_is_split_as_the_chain_had_come_there(k_bar, t, s):
    # The tower property: x_t from its marginal and x_s from the posterior are as from the chain,
    # G_s ~ Gamma(k_bar_s) and G_t - G_s ~ Gamma(k_bar_t - k_bar_s), independent.
    theta_0 = theta_for(t, k_bar)
    chain, x0 = gamma(SCHEDULE, theta_0), jnp.zeros((DRAWS, 1))
    x_t = chain.q_sample(x0, at(t), draw_noise(chain, jax.random.key(11), at(t)))
    x_s = posterior_sample(chain, jax.random.key(12), x0, x_t, at(t), at(s))
    k_s, keep = shape_of(s, theta_0), float(TABLES.alpha_bar[t] / TABLES.alpha_bar[s])
    x_s, x_t = (np.asarray(x, np.float64) for x in (x_s, x_t))
    first = x_s / float(TABLES.signal_and_noise(s)[1])
    second = (x_t - np.sqrt(keep) * x_s) / np.sqrt(1.0 - keep)
    assert_law(first, k_s)
    assert_law(second, k_bar - k_s)
    ranks = law(first, k_s), law(second, k_bar - k_s)
    assert abs(np.corrcoef(*(rank.ravel() for rank in ranks))[0, 1]) < 4.5 / np.sqrt(DRAWS)


@pytest.mark.thorough
def test_at_the_data_the_posterior_is_the_data():
    x0 = jax.random.normal(jax.random.key(13), (DRAWS, 1))
    t, s, chain = jnp.arange(DRAWS, dtype=jnp.int32) % T, at(-1), gamma(SCHEDULE, 0.3)
    x_t = chain.q_sample(x0, t, draw_noise(chain, jax.random.key(14), t))
    mean, variance = chain.q_posterior(x0, x_t, t, s)
    np.testing.assert_allclose(mean, x0, rtol=1e-6)
    np.testing.assert_array_equal(variance, np.zeros((DRAWS, 1)))
    drawn = posterior_sample(chain, jax.random.key(0), x0, x_t, t, s)
    np.testing.assert_allclose(drawn, x0, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("theta_0", [1e-4, 0.1, 3.0, 30.0])
def test_what_the_chain_reaches_has_a_posterior_and_what_is_below_has_none(theta_0):
    # Of a shape far below 1 most draws are the lower end itself, but for rounding.
    chain = gamma(SCHEDULE, theta_0)
    x0, t, s = jax.random.normal(jax.random.key(15), (DRAWS, 1)), at(5), at(2)
    x_t = chain.q_sample(x0, t, draw_noise(chain, jax.random.key(16), t))
    for found in [
        *chain.q_posterior(x0, x_t, t, s),
        posterior_sample(chain, jax.random.key(0), x0, x_t, t, s),
    ]:
        assert np.isfinite(found).all()
    a, b = map(float, TABLES.signal_and_noise(5))
    below = a * x0 - 1.01 * b * float(np.sqrt(shape_of(5, theta_0)))
    for found in [
        *chain.q_posterior(x0, below, t, s),
        posterior_sample(chain, jax.random.key(0), x0, below, t, s),
    ]:
        assert np.isnan(found).all()


@pytest.mark.thorough
def test_without_signal_the_noise_is_gaussian():
    schedule = schedules.zero_terminal_snr(SCHEDULE)
    chain, last = gamma(schedule, 0.5), at(T - 1)
    eps = draw_noise(chain, jax.random.key(17), last)
    assert scipy.stats.kstest(np.asarray(eps).ravel(), "norm").pvalue > 1e-5
    x0 = jnp.zeros((DRAWS, 1))
    x_s = posterior_sample(chain, jax.random.key(18), x0, eps, last, at(4))
    # x_t says nothing of x_s: it is drawn as from q(x_s | x_0).
    k = float(schedule.noise_power[4] / schedule.alpha_bar[4]) / 0.25
    assert_law(x_s / np.sqrt(float(schedule.noise_power[4])), k)


CHAIN = gamma(SCHEDULE, 0.3)
key = jax.random.key(19)
t = jnp.arange(BATCH, dtype=jnp.int32) + 2
s = jnp.arange(BATCH, dtype=jnp.int32) - 1
X0 = 0.3 * jax.random.normal(jax.random.key(20), (BATCH, 3, 2))
K_BAR = np.array([shape_of(int(i), 0.3) for i in t]).reshape(-1, 1, 1)
EPS = np.random.default_rng(21).gamma(K_BAR, size=X0.shape) / np.sqrt(K_BAR) - np.sqrt(K_BAR)
EPS = jnp.asarray(EPS, jnp.float32)
X_T = CHAIN.q_sample(X0, t, EPS)
CASES = {
    "q_sample": {"x0": X0, "t": t, "eps": EPS},
    "q_step": {"x_prev": X0, "t": t, "eps": EPS},
    "q_transition": {"x_s": X0, "t": t, "s": s, "eps": EPS},
    "q_posterior": {"x0": X0, "x_t": X_T, "t": t, "s": s},
    "posterior_sample": {"key": key, "x0": X0, "x_t": X_T, "t": t, "s": s},
    "draw_noise": {"key": key, "t": t},
    "draw_step_noise": {"key": key, "t": t},
    "draw_transition_noise": {"key": key, "t": t, "s": s},
}
every_method = pytest.mark.parametrize("method", CASES)
transformed = pytest.mark.parametrize(
    "method", [name for name in CASES if name not in ("draw_noise", "draw_step_noise")]
)  # the third draw is all there is to these two


def call(method, chain, arrays):
    static = {"shape": X0.shape} if method.startswith("draw") else {}
    return getattr(chain, method)(**arrays, **static)


@functools.cache
def compiled(method):
    return jax.jit(functools.partial(call, method, CHAIN))


def assert_close(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.thorough
@transformed
def test_vmap_and_grad(method):
    arrays, function = CASES[method], compiled(method)
    if method == "posterior_sample" or method.startswith("draw"):
        shifted = jax.random.split(key, 2)
        mapped = jax.vmap(lambda key: function(arrays | {"key": key}))(shifted)
        assert_close(mapped[1], function(arrays | {"key": shifted[1]}))
    else:
        stacked = {name: jnp.stack([array, array]) for name, array in arrays.items()}
        mapped = jax.vmap(function)(stacked)
        assert_close(jax.tree.map(lambda leaf: leaf[1], mapped), function(arrays))

    floats = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def total(floats):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(arrays | floats)))

    for name, slope in jax.grad(total)(floats).items():
        direction = jnp.cos(jnp.arange(X0.size, dtype=X0.dtype)).reshape(X0.shape)
        ahead, behind = (
            total(floats | {name: floats[name] + h * direction}) for h in (1e-2, -1e-2)
        )
        np.testing.assert_allclose(
            jnp.vdot(slope, direction), (ahead - behind) / 2e-2, rtol=1e-2, atol=2e-3
        )


def on_a_mesh(method, axis_type):
    """A mesh of eight devices, a method to compile, and its arrays, split over them."""
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    placed = {
        name: array if name in ("eps", "key") else jax.device_put(array, split)
        for name, array in CASES[method].items()
    }
    return mesh, jax.jit(functools.partial(call, method), out_shardings=split), placed


@pytest.mark.thorough
@transformed
def test_sharded_over_eight_devices(method):
    mesh, function, placed = on_a_mesh(method, AxisType.Auto)
    with jax.set_mesh(mesh):
        result = function(CHAIN, placed)
    assert all(len(leaf.sharding.device_set) == BATCH for leaf in jax.tree.leaves(result))
    assert_close(result, compiled(method)(CASES[method]))


@pytest.mark.thorough
@transformed
def test_explicit_axes_are_understood(method):
    """What cannot be sharded so is refused while tracing; the program is that of other axes."""
    mesh, function, placed = on_a_mesh(method, AxisType.Explicit)
    with jax.set_mesh(mesh):
        function.trace(CHAIN, placed)


@pytest.mark.thorough
def test_a_learned_scale():
    @jax.jit
    def total(theta_0):
        return jnp.sum(gamma(SCHEDULE, theta_0).q_posterior(X0, X_T, t, s)[1])

    slope = jax.grad(total)(jnp.float32(0.3))
    step = 1e-2
    ends = [float(total(jnp.float32(0.3 + sign * step))) for sign in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-2)


@pytest.mark.thorough
@pytest.mark.parametrize(("t_out", "s_out"), [(T, 3), (5, 5), (4, 6), (5, -2)])
def test_times_outside_give_nan(t_out, s_out):
    t, s = at(4).at[0].set(t_out), at(2).at[0].set(s_out)
    x = jnp.full((DRAWS, 1), 0.1)
    found = [
        *CHAIN.q_posterior(x, x, t, s),
        posterior_sample(CHAIN, key, x, x, t, s),
        draw_transition_noise(CHAIN, key, t, s),
    ]
    if t_out == T or s_out == -2:
        found.append(CHAIN.q_transition(x, t, s, x))
    if t_out == T:
        found += [CHAIN.q_sample(x, t, x), CHAIN.q_step(x, t, x), draw_noise(CHAIN, key, t)]
    for result in found:
        assert np.isnan(result[0]).all()
        assert np.isfinite(result[1:]).all()


@pytest.mark.thorough
def test_the_result_keeps_the_dtype():
    x = X0.astype(jnp.bfloat16)
    assert CHAIN.q_sample(x, t, EPS).dtype == jnp.bfloat16
    assert CHAIN.q_step(x, t, EPS).dtype == jnp.bfloat16
    assert CHAIN.q_transition(x, t, s, EPS).dtype == jnp.bfloat16
    mean, variance = CHAIN.q_posterior(x, x, t, s)
    assert mean.dtype == variance.dtype == jnp.bfloat16
    assert jax.eval_shape(CHAIN.posterior_sample, key, x, x, t, s).dtype == jnp.bfloat16


@pytest.mark.parametrize("theta_0", [0.0, -1.0, float("nan"), float("inf"), 1e-30])
def test_scales_that_are_none_are_refused(theta_0):
    with pytest.raises(ValueError, match=r"theta_0 is .*; the scale of gamma noise has to be"):
        gamma(SCHEDULE, theta_0)
    with pytest.raises(ValueError, match=r"theta_0 has shape \(3,\)"):
        gamma(SCHEDULE, jnp.ones(3))


@every_method
def test_wrong_arguments_are_named(without_annotation_checks, method):
    arrays = CASES[method]
    for name, array in arrays.items():
        if name == "key":
            with pytest.raises(TypeError, match="key has dtype"):
                call(method, CHAIN, arrays | {"key": jax.random.PRNGKey(0)})
            continue
        wrong = jnp.zeros(array.shape, jnp.uint8)
        with pytest.raises(TypeError, match=rf"\b{name} has dtype"):
            call(method, CHAIN, arrays | {name: wrong})
        if name not in ("x0", "x_prev", "x_s"):
            with pytest.raises(ValueError, match=rf"\b{name} has shape"):
                call(method, CHAIN, arrays | {name: array[:-1]})
