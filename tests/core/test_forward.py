"""q against Bayes' rule in 50 digits and against the chain walked step by step."""

import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64, ulps
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax import convert, q_chain, q_posterior, q_sample, q_step, q_transition, schedules
from ddpm_jax.forward import q_posterior_variance

KINDS = ("eps", "x0", "v", "score")
SCHEDULES = ("linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr")
TRANSFORMED = ("zero_terminal_snr", "shifted", "respaced")


def test_q_sample_is_the_isotropic_shortcut():
    t = [0, 1, 500, 999]
    x0, eps = jnp.full((4, 1), 0.5), jnp.full((4, 1), -2.0)
    x_t = q_sample(schedules.cosine(1000), x0, jnp.array(t), eps)[:, 0]
    a, b = zip(*[chain("cosine", 1000).signal_and_noise(i) for i in t], strict=True)
    expected = [i / 2 - 2 * j for i, j in zip(a, b, strict=True)]
    np.testing.assert_allclose(x_t, float64(expected), rtol=1e-6)


@pytest.mark.thorough
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
    schedule = build(name, num_steps)
    t, s = jnp.array(pairs).T
    one, zero = jnp.ones((len(pairs), 1)), jnp.zeros((len(pairs), 1))
    weight_x0, variance = q_posterior(schedule, one, zero, t, s)
    weight_x_t, _ = q_posterior(schedule, zero, one, t, s)
    return weight_x0[:, 0], weight_x_t[:, 0], variance


NEIGHBOURS = [(t, t - 1) for t in (1, 2, 10, 100, 1000, 2000, 3000, 3998, 3999)]
STRIDES = [(3999, 0), (3999, 2000), (2000, 1), (500, 480), (20, 3)]


@pytest.mark.parametrize("name", SCHEDULES + TRANSFORMED)
def test_the_posterior_is_bayes_rule(name):
    pairs = NEIGHBOURS + STRIDES
    expected = zip(*[chain(name, 4000).posterior(t, s) for t, s in pairs], strict=True)
    for actual, exact in zip(posterior_weights(name, 4000, pairs), expected, strict=True):
        # The exponential of a float32 logarithm of -50 is known to 16 last places, others to 8.
        assert ulps(actual, exact).max() < 16


@pytest.mark.thorough
@pytest.mark.parametrize("name", SCHEDULES + TRANSFORMED)
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


@pytest.mark.parametrize("name", SCHEDULES + TRANSFORMED)
def test_the_posterior_variance_alone(name):
    pairs = [*NEIGHBOURS, *STRIDES, (0, -1), (3999, -1)]
    t, s = jnp.array(pairs).T
    variance = q_posterior_variance(build(name, 4000), t, s)
    tables = chain(name, 4000)
    assert ulps(variance, [tables.posterior(*pair)[2] for pair in pairs]).max() < 8


@pytest.mark.parametrize("name", SCHEDULES + TRANSFORMED)
def test_transitions_over_any_number_of_steps(name):
    pairs = [*NEIGHBOURS, *STRIDES, (0, -1), (3999, -1)]
    t, s = jnp.array(pairs).T
    one, zero = jnp.ones((len(pairs), 1)), jnp.zeros((len(pairs), 1))
    schedule, tables = build(name, 4000), chain(name, 4000)
    ratio = [tables.alpha_bar[t] / (tables.alpha_bar[s] if s >= 0 else 1) for t, s in pairs]
    keep = q_transition(schedule, one, t, s, zero)[:, 0]
    add = q_transition(schedule, zero, t, s, one)[:, 0]
    # A logarithm of -50 in float32 is known to 2e-6, and so is its exponential; the rest is exact.
    np.testing.assert_allclose(keep, float64([mp.sqrt(r) for r in ratio]), rtol=5e-6)
    assert ulps(add, [mp.sqrt(1 - r) for r in ratio]).max() < 2


def test_transitions_are_the_steps_and_the_shortcut():
    schedule, rng = schedules.cosine(100), np.random.default_rng(0)
    x, eps = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    t = jnp.array([0, 50, 99])
    by_step, at_once = q_step(schedule, x, t, eps), q_sample(schedule, x, t, eps)
    np.testing.assert_allclose(q_transition(schedule, x, t, t - 1, eps), by_step, atol=1e-5)
    data = jnp.full(3, -1)
    np.testing.assert_allclose(q_transition(schedule, x, t, data, eps), at_once, atol=1e-5)


def test_the_posterior_of_the_data_is_the_data():
    x0, x_t = jnp.full((3, 2), 0.1), jnp.full((3, 2), 123.0)
    t, s = jnp.array([0, 5, 9]), jnp.full(3, -1)
    mean, variance = q_posterior(schedules.linear(10), x0, x_t, t, s)
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(variance, np.zeros(3))


def test_an_earlier_time_that_is_none_gives_nan():
    x = jnp.ones((2, 1))
    t, s = jnp.array([3, 4]), jnp.array([3, 8])
    mean, variance = q_posterior(schedules.linear(10), x, x, t, s)
    assert np.isnan(mean).all()
    assert np.isnan(variance).all()
    assert np.isnan(q_posterior_variance(schedules.linear(10), t, s)).all()
    assert np.isnan(q_transition(schedules.linear(10), x[:1], t[1:], s[1:], x[:1])).all()


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
    values = {"x_t": [], "x0": [], "eps": [], "v": [], "score": []}
    for a, b in map(tables.signal_and_noise, t):
        for name, value in (
            ("x_t", a * x0 + b * eps),
            ("x0", x0),
            ("eps", eps),
            ("v", a * eps - b * x0),
            ("score", -eps / b),
        ):
            values[name].append(value)
    f32 = {
        name: jnp.asarray(float64(value), jnp.float32)[:, None] for name, value in values.items()
    }
    schedule, times = schedules.linear(1000), jnp.array(t)
    converted = convert(schedule, f32[source], f32["x_t"], times, source=source, target=target)
    # x_t in float32 knows eps to 1 / b of its last places (100 at t = 0), x0 to 1 / a (130 at 990).
    # A score is known to that over b once more.
    b = np.sqrt(float64([tables.noise_power[i] for i in t]))[:, None]
    tolerance = {"eps": 3e-5, "x0": 3e-5, "v": 3e-5, "score": 3e-5 / b}
    assert (np.abs(converted - f32[target]) <= tolerance[target]).all()
    back = convert(schedule, converted, f32["x_t"], times, source=target, target=source)
    assert (np.abs(back - f32[source]) <= tolerance[source]).all()


@pytest.mark.thorough
@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.sampled_from(["linear", "cosine", "sigmoid", "linear_log_snr"]),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
    st.integers(0, 49),
    st.sampled_from([(), (3,), (2, 1, 2)]),
    st.integers(0, 2**31),
)
def test_conversions_there_and_back(source, target, name, dtype, t, data, seed):
    # Two conversions lose what the smaller of a and b leaves of x_t's last place, twice for scores.
    schedule, times = build(name, 50), jnp.full(2, t)
    rng = np.random.default_rng(seed)
    x_t, value = jnp.asarray(rng.normal(size=(2, 2, *data)), jnp.float32).astype(dtype)
    there = convert(schedule, value, x_t, times, source=source, target=target)
    back = convert(schedule, there, x_t, times, source=target, target=source)
    assert there.dtype == back.dtype == dtype
    assert there.shape == x_t.shape
    a, b = map(float, chain(name, 50).signal_and_noise(t))
    last_place = float(jnp.finfo(dtype).eps)
    scale = 1 + np.abs(np.asarray(x_t, np.float64)) + np.abs(np.asarray(value, np.float64))
    loss = 16 * last_place / min(a, b) ** 2 * scale
    assert (np.abs(np.asarray(back - value, np.float64)) <= loss).all()


def test_conversions_where_no_signal_is_left():
    schedule, t = schedules.zero_terminal_snr(schedules.linear(1000)), jnp.array([999])
    x0, eps = jnp.full((1, 2), 0.25), jnp.full((1, 2), -1.5)
    values = {"x0": x0, "eps": eps, "v": -x0, "score": -eps}
    for source in ("x0", "v"):
        for target in KINDS:
            found = convert(schedule, values[source], eps, t, source=source, target=target)
            np.testing.assert_array_equal(found, values[target])
    for target in ("eps", "score"):
        found = convert(schedule, eps, eps, t, source="eps", target=target)
        np.testing.assert_array_equal(found, values[target])
    for source in ("eps", "score"):
        lost = convert(schedule, values[source], eps, t, source=source, target="x0")
        assert not np.isfinite(lost).any()


@pytest.mark.parametrize(("source", "target"), [("noise", "x0"), ("x0", "mean")])
def test_unknown_kinds_are_named(without_annotation_checks, source, target):
    x, unknown = jnp.ones((1, 1)), "noise" if source == "noise" else "mean"
    with pytest.raises(ValueError, match=f"is '{unknown}'; it is one of 'eps', 'x0', 'v', 'score'"):
        convert(schedules.linear(10), x, x, jnp.array([0]), source=source, target=target)


@pytest.mark.thorough
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
    schedule, t = schedules.linear(10), jnp.array([1, 4, 9])
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
            q_transition(schedule, x, t, t - 2, y),
        ]

    variance, results = everything(x, y)
    assert {(result.shape, result.dtype) for result in results} == {(x.shape, jnp.dtype(dtype))}
    assert variance.shape == (3,)


@pytest.mark.thorough
@pytest.mark.parametrize("x0", [0.0, 1.0])
def test_the_chain_of_bfloat16_images_has_the_moments_too(x0):
    # sqrt(1 - 0.001) is 1 in bfloat16. 50,000 chains: within 4.5 standard errors, at a fixed seed,
    # and the rounding of the result, 2^-9 of it.
    schedule, samples = schedules.constant(1000, 1e-3), 50_000
    start = jnp.full((samples, 1), x0, jnp.bfloat16)
    x = jax.jit(q_chain, static_argnums=3)(schedule, jax.random.key(0), start, 1000)
    assert x.dtype == jnp.bfloat16
    x, alpha_bar = np.asarray(x, np.float64), 0.999**1000
    variance = 1 - alpha_bar
    assert abs(x.mean() - np.sqrt(alpha_bar) * x0) < 4.5 * np.sqrt(variance / samples) + 2**-9
    assert abs(x.var() - variance) < 4.5 * variance * np.sqrt(2 / samples) + 2**-8


def test_a_step_keeps_its_digits_where_nearly_all_signal_goes():
    schedule, t = schedules.linear_log_snr(10, 7.0, -80.0), jnp.array([9])
    step = 87 / mp.mpf(9)  # in log SNR, and in log alpha_bar where no signal is left
    kept = q_step(schedule, jnp.ones((1, 1)), t, jnp.zeros((1, 1)))
    assert ulps(kept[:, 0], [mp.exp(-step / 2)]).max() < 8


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32])
def test_unsigned_times_are_refused(dtype, without_annotation_checks):
    # t - 1 of an unsigned 0 is no -1: the decoder of a learned variance was that of another time.
    x, t = jnp.ones((1, 2)), jnp.zeros(1, dtype)
    with pytest.raises(TypeError, match=r"t has dtype uint.*signed integers"):
        q_sample(schedules.linear(10), x, t, x)
