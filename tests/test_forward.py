"""q against Bayes' rule in 50 digits and against the chain walked step by step."""

import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import chain, float64, ulps

from ddpm_jax import convert, q_chain, q_posterior, q_sample, q_step, schedules

KINDS = ("eps", "x0", "v")


def test_q_sample_is_the_isotropic_shortcut():
    t = [0, 1, 500, 999]
    x0, eps = jnp.full((4, 1), 0.5), jnp.full((4, 1), -2.0)
    x_t = q_sample(schedules.cosine(1000), x0, jnp.array(t), eps)[:, 0]
    a, b = zip(*[chain("cosine", 1000).signal_and_noise(i) for i in t], strict=True)
    expected = [i / 2 - 2 * j for i, j in zip(a, b, strict=True)]
    np.testing.assert_allclose(x_t, float64(expected), rtol=1e-6)


def test_the_chain_has_the_moments_of_the_shortcut():
    # 200,000 chains of 30 steps. Mean and variance within 4.5 standard errors, at a fixed seed:
    # p < 1e-5 for each.
    num_steps, walked, samples, x0 = 40, 30, 200_000, 0.7
    schedule, expected = schedules.cosine(num_steps), chain("cosine", num_steps)
    key_chain, key_eps = jax.random.split(jax.random.key(0))
    start, t = jnp.full((samples, 1), x0), jnp.full(samples, walked - 1)
    by_loop = jax.jit(q_chain, static_argnums=3)(schedule, key_chain, start, walked)
    at_once = q_sample(schedule, start, t, jax.random.normal(key_eps, start.shape))
    a, b = map(float, expected.signal_and_noise(walked - 1))
    for x in (by_loop, at_once):
        x = np.asarray(x, np.float64)
        assert abs(x.mean() - a * x0) < 4.5 * b / np.sqrt(samples)
        assert abs(x.var() - b**2) < 4.5 * b**2 * np.sqrt(2 / samples)


def test_steps_compose_to_the_shortcut_when_their_noises_are_combined():
    num_steps = 50
    schedule, betas = schedules.linear(num_steps), float64(chain("linear", num_steps).betas)
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(3, 4)), rng.normal(size=(num_steps, 3, 4))
    x, combined = jnp.asarray(x0, jnp.float32), np.zeros((3, 4))
    for t in range(num_steps):
        x = q_step(schedule, x, jnp.full(3, t), jnp.asarray(eps[t], jnp.float32))
        combined = np.sqrt(1 - betas[t]) * combined + np.sqrt(betas[t]) * eps[t]
    combined /= np.sqrt(1 - np.prod(1 - betas))
    f32 = [jnp.asarray(value, jnp.float32) for value in (x0, combined)]
    at_once = q_sample(schedule, f32[0], jnp.full(3, num_steps - 1), f32[1])
    np.testing.assert_allclose(x, at_once, atol=5e-6)


def test_no_steps_change_nothing():
    x0 = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(q_chain(schedules.linear(10), jax.random.key(0), x0, 0), x0)


@pytest.mark.parametrize("num_steps", [-1, 11])
def test_a_chain_has_no_more_steps_than_its_schedule(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; .* T = 10"):
        q_chain(schedules.linear(10), jax.random.key(0), jnp.zeros((1, 1)), num_steps)


def posterior_weights(name, num_steps, pairs):
    """The library's weights of x_0 and of x_t, and its variance, each `[pairs]`."""
    schedule = getattr(schedules, name)(num_steps)
    t, s = jnp.array(pairs).T
    one, zero = jnp.ones((len(pairs), 1)), jnp.zeros((len(pairs), 1))
    weight_x0, variance = q_posterior(schedule, one, zero, t, s)
    weight_x_t, _ = q_posterior(schedule, zero, one, t, s)
    return weight_x0[:, 0], weight_x_t[:, 0], variance


NEIGHBOURS = [(t, t - 1) for t in (1, 2, 10, 100, 1000, 2000, 3000, 3998, 3999)]
STRIDES = [(3999, 0), (3999, 2000), (2000, 1), (500, 480), (20, 3)]


@pytest.mark.parametrize("name", ["linear", "cosine", "linear_log_snr"])
def test_the_posterior_is_bayes_rule(name):
    pairs = NEIGHBOURS + STRIDES
    expected = zip(*[chain(name, 4000).posterior(t, s) for t, s in pairs], strict=True)
    for actual, exact in zip(posterior_weights(name, 4000, pairs), expected, strict=True):
        assert ulps(actual, exact).max() < 8


@pytest.mark.parametrize("name", ["linear", "cosine", "linear_log_snr"])
def test_averaged_over_x_t_the_posterior_is_q_of_x_s(name):
    pairs, tables = NEIGHBOURS + STRIDES, chain(name, 4000)
    weight_x0, weight_x_t, variance = (
        np.asarray(w, np.float64) for w in posterior_weights(name, 4000, pairs)
    )
    (a_t, b_t), (a_s, b_s) = (
        np.transpose([float64(tables.signal_and_noise(pair[i])) for pair in pairs]) for i in (0, 1)
    )
    np.testing.assert_allclose(weight_x0 + weight_x_t * a_t, a_s, rtol=1e-6)
    np.testing.assert_allclose(weight_x_t**2 * b_t**2 + variance, b_s**2, rtol=2e-6)


def test_the_posterior_of_the_data_is_the_data():
    x0, x_t = jnp.full((3, 2), 0.1), jnp.full((3, 2), 123.0)
    t, s = jnp.array([0, 5, 9]), jnp.full(3, -1)
    mean, variance = q_posterior(schedules.linear(10), x0, x_t, t, s)
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(variance, np.zeros(3))


def test_times_outside_the_chain_give_nan():
    x = jnp.ones((2, 1))
    assert np.isnan(q_sample(schedules.linear(10), x, jnp.array([-2, 10]), x)).all()
    mean, _ = q_posterior(schedules.linear(10), x, x, jnp.array([10, 3]), jnp.array([0, -2]))
    assert np.isnan(mean).all()


@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_conversions_follow_the_definitions(source, target):
    t = [0, 10, 500, 990]
    x0, eps = mp.mpf("0.25"), mp.mpf("-1.5")
    tables = chain("linear", 1000)
    values = {"x_t": [], "x0": [], "eps": [], "v": []}
    for a, b in map(tables.signal_and_noise, t):
        for name, value in (
            ("x_t", a * x0 + b * eps),
            ("x0", x0),
            ("eps", eps),
            ("v", a * eps - b * x0),
        ):
            values[name].append(value)
    f32 = {
        name: jnp.asarray(float64(value), jnp.float32)[:, None] for name, value in values.items()
    }
    schedule, times = schedules.linear(1000), jnp.array(t)
    converted = convert(schedule, f32[source], f32["x_t"], times, source=source, target=target)
    # x_t in float32 knows eps to 1 / b of its last places (100 at t = 0), x0 to 1 / a (130 at 990).
    np.testing.assert_allclose(converted, f32[target], rtol=0, atol=3e-5)
    back = convert(schedule, converted, f32["x_t"], times, source=target, target=source)
    np.testing.assert_allclose(back, f32[source], rtol=0, atol=3e-5)


@pytest.mark.parametrize(("source", "target"), [("noise", "x0"), ("x0", "mean")])
def test_unknown_kinds_are_named(without_annotation_checks, source, target):
    x, unknown = jnp.ones((1, 1)), "noise" if source == "noise" else "mean"
    with pytest.raises(ValueError, match=f"is '{unknown}'; it is one of 'eps', 'x0', 'v', 'score'"):
        convert(schedules.linear(10), x, x, jnp.array([0]), source=source, target=target)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ((), jnp.float32),
        ((2,), jnp.bfloat16),
        ((2, 3), jnp.float32),
        ((2, 3, 1), jnp.bfloat16),
        ((2, 3, 1, 2), jnp.float32),
    ],
)
def test_any_rank_and_dtype_go_through(data, dtype):
    schedule, t = schedules.linear(10), jnp.array([0, 4, 9])
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 3, *data)), jnp.float32).astype(dtype)

    @jax.jit
    def everything(x, y):
        mean, variance = q_posterior(schedule, x, y, t, t - 1)
        return variance, [
            q_sample(schedule, x, t, y),
            q_step(schedule, x, t, y),
            q_chain(schedule, jax.random.key(0), x, 2),
            mean,
            convert(schedule, x, y, t, source="eps", target="v"),
        ]

    variance, results = everything(x, y)
    assert {(result.shape, result.dtype) for result in results} == {(x.shape, jnp.dtype(dtype))}
    assert variance.shape == (3,)
