"""The ELBO's terms against KLs worked out in 50 digits from the chain itself."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64, log_probability_and_slope, ulps
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax import (
    bits_per_dim,
    convert,
    elbo_loss,
    kl_weight,
    losses,
    q_sample,
    schedules,
    simple_loss,
    vlb_terms,
)

KINDS = ("eps", "x0", "v")
NAMES = ("linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr")
LEVELS = 17


def float32(values):
    return jnp.asarray(float64(values), jnp.float32)


def kl_in_50_digits(tables, x0, x0_hat, t):
    """KL of the true posterior of x_{t-1} to that with x0_hat in the place of x_0."""
    weight_x0, _, variance = tables.posterior(t, t - 1)
    return (weight_x0 * (x0 - x0_hat)) ** 2 / (2 * variance)


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("name", ["linear", "cosine", "linear_log_snr", "respaced"])
def test_terms_are_kls_between_posteriors_and_the_decoder(name, predicts):
    num_steps, times = 1000, [0, 1, 2, 50, 500, 900]
    tables, schedule = chain(name, num_steps), build(name, num_steps)
    x0, eps = mp.mpf("0.25"), mp.mpf("0.75")  # a grey level of 17, and not at the border
    x_t, prediction, expected = [], [], []
    for t in times:
        a, b = tables.signal_and_noise(t)
        values = {"eps": eps, "x0": x0, "v": a * eps - b * x0}
        x_t.append(a * x0 + b * eps)
        hat = values[predicts] + mp.mpf("0.25")  # the prediction, off by a quarter
        x0_hat = {"eps": (x_t[-1] - b * hat) / a, "x0": hat, "v": a * x_t[-1] - b * hat}[predicts]
        prediction.append(hat)
        expected.append(
            -log_probability_and_slope(x0, x0_hat, mp.sqrt(tables.betas[0]), LEVELS)[0]
            if t == 0
            else kl_in_50_digits(tables, x0, x0_hat, t)
        )
    pixels = (len(times), 3)  # three alike: the term is the sum over them
    terms = vlb_terms(
        schedule,
        jnp.broadcast_to(float32(prediction)[:, None], pixels),
        jnp.full(pixels, float(x0)),
        jnp.broadcast_to(float32(x_t)[:, None], pixels),
        jnp.array(times),
        predicts=predicts,
        levels=LEVELS,
    )
    # At t = 1, x_t in float32 knows eps only to 1e-5 or so.
    np.testing.assert_allclose(terms, 3 * float64(expected), rtol=3e-4, atol=3e-7)


@pytest.mark.parametrize("name", [*NAMES, "zero_terminal_snr", "shifted", "respaced"])
def test_the_weights_keep_all_digits(name):
    times = [1, 2, 3, 10, 100, 1000, 2000, 3000, 3998, 3999]
    tables, schedule = chain(name, 4000), build(name, 4000)
    if name == "zero_terminal_snr":
        times = times[:-1]  # the last has a test of its own
    snr = [a / b for a, b in zip(tables.alpha_bar, tables.noise_power, strict=True)]
    expected = {
        "eps": [(snr[t - 1] / snr[t] - 1) / 2 for t in times],
        "x0": [(snr[t - 1] - snr[t]) / 2 for t in times],
        "v": [(snr[t - 1] - snr[t]) / 2 * tables.noise_power[t] for t in times],
    }
    for predicts in KINDS[schedule.zero_terminal_snr :]:  # without eps
        weights = kl_weight(schedule, jnp.array(times), predicts=predicts)
        assert ulps(weights, expected[predicts]).max() < 6


def test_the_weights_where_no_signal_is_left():
    tables, schedule = chain("zero_terminal_snr", 1000), build("zero_terminal_snr", 1000)
    expected = tables.alpha_bar[998] / tables.noise_power[998] / 2  # v is -x0 here
    for predicts in ("x0", "v"):
        weight = kl_weight(schedule, jnp.array([999]), predicts=predicts)
        assert ulps(weight, [expected]).max() < 4


def test_the_decoder_has_no_weight():
    weights = [kl_weight(schedules.linear(10), jnp.array([0]), predicts=kind) for kind in KINDS]
    assert np.isposinf(weights).all()


def test_a_linear_log_snr_weighs_every_error_of_eps_the_same():
    weights = kl_weight(schedules.linear_log_snr(31, 7.0, -8.0), jnp.arange(1, 31), predicts="eps")
    np.testing.assert_allclose(weights, np.expm1(0.5) / 2, rtol=1e-6)


@pytest.fixture(scope="module")
def term_of_each_kind():
    """One x0_hat told as eps, x0 and v: the terms, `[3, batch]`."""
    schedule = schedules.linear(100)

    @jax.jit
    def compute(t, x0, eps, x0_hat):
        x_t = q_sample(schedule, x0, t, eps)
        return [
            vlb_terms(
                schedule,
                convert(schedule, x0_hat, x_t, t, source="x0", target=kind),
                *(x0, x_t, t),
                predicts=kind,
                levels=LEVELS,
            )
            for kind in KINDS
        ]

    return compute


@pytest.mark.thorough
@given(
    st.integers(0, 99),
    st.integers(0, LEVELS - 1),
    st.floats(-4, 4, width=32),
    st.floats(-2, 2, width=32),
)
def test_a_term_does_not_depend_on_how_the_prediction_is_told(
    term_of_each_kind, t, level, eps, x0_hat
):
    x0 = 2 * level / (LEVELS - 1) - 1
    args = (jnp.full((1, 1), value, jnp.float32) for value in (x0, eps, x0_hat))
    terms = term_of_each_kind(jnp.array([t]), *args)
    # Relative to an error of 1e-2 in x0_hat, below which differences of float32 say little.
    weight = kl_weight(schedules.linear(100), jnp.array([max(t, 1)]), predicts="x0")[0]
    np.testing.assert_allclose(terms[1:], terms[:-1], rtol=2e-3, atol=2e-3 * 1e-4 * weight)


@pytest.mark.parametrize("predicts", KINDS)
def test_simple_loss_is_the_mean_squared_error_of_what_is_predicted(predicts):
    t, rng = [0, 300, 999], np.random.default_rng(0)
    x0, eps, prediction = rng.normal(size=(3, 3, 2, 2)).astype(np.float32)
    a, b = zip(*map(chain("linear", 1000).signal_and_noise, t), strict=True)
    a, b = float64(a)[:, None, None], float64(b)[:, None, None]
    target = {"eps": eps, "x0": x0, "v": a * eps - b * x0}[predicts]
    expected = np.mean((target - prediction.astype(np.float64)) ** 2, axis=(1, 2))
    args = map(jnp.asarray, (prediction, x0, np.array(t), eps))
    loss = simple_loss(schedules.linear(1000), *args, predicts=predicts)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_prior_term_counts_what_the_chain_leaves():
    for name, num_steps in (("linear", 10), ("linear", 1000), ("cosine", 1000)):
        left = chain(name, num_steps).alpha_bar[-1]
        for x0 in (0.0, 0.5, 1.0):
            per_pixel = (left * mp.mpf(x0) ** 2 - left - mp.log1p(-left)) / 2
            schedule = getattr(schedules, name)(num_steps)
            prior = losses.prior_term(schedule, jnp.full((1, 2, 3), x0))
            np.testing.assert_allclose(prior, float64([6 * per_pixel]), rtol=2e-6)


def test_elbo_loss_over_all_times_is_bits_per_dim():
    schedule, key, num_steps = schedules.linear(20), jax.random.key(3), 20
    x0 = jnp.linspace(-1, 1, LEVELS)[jnp.arange(8) * 2].reshape(2, 4)

    def predict(x_t, t):
        return 0.5 * x_t

    total = bits_per_dim(schedule, predict, key, x0, predicts="eps", levels=LEVELS).total
    # One batch of all times, each with the noise that bits_per_dim says it draws.
    keys = [jax.random.fold_in(key, t) for t in range(num_steps)]
    eps = jnp.concatenate([jax.random.normal(k, x0.shape) for k in keys])
    every_x0, times = jnp.tile(x0, (num_steps, 1)), jnp.repeat(jnp.arange(num_steps), 2)
    x_t = q_sample(schedule, every_x0, times, eps)
    compiled = jax.jit(elbo_loss, static_argnames=("predicts", "levels"))
    loss = compiled(
        schedule, predict(x_t, times), every_x0, x_t, times, predicts="eps", levels=LEVELS
    )
    by_time = loss.reshape(num_steps, 2)
    np.testing.assert_allclose(np.mean(by_time, axis=0), total, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear(1000),
        schedules.cosine(4000),
        schedules.linear_log_snr(100, 7.0, -100.0),  # alpha_bar is subnormal at last
        schedules.linear_log_snr(100, 7.0, -120.0),  # and here 0, though some signal is left
    ],
    ids=["linear", "cosine", "subnormal", "underflow"],
)
def test_values_and_gradients_are_finite_at_every_time(schedule, predicts):
    last = schedule.num_steps - 1
    t = jnp.array([0, 1, last // 2, last - 1, last])
    x0, eps = jnp.full((5, 2), -1.0), jnp.full((5, 2), 3.0)
    x_t = q_sample(schedule, x0, t, eps)

    def total(prediction):
        return vlb_terms(schedule, prediction, x0, x_t, t, predicts=predicts, levels=256).sum()

    value_and_slope = jax.jit(jax.value_and_grad(total))
    for size in (0.0, 1.0, 1e4):
        value, slope = value_and_slope(jnp.full((5, 2), size))
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_an_unknown_kind_is_named(without_annotation_checks):
    x, t = jnp.zeros((1, 1)), jnp.array([1])
    with pytest.raises(ValueError, match="'noise'"):
        kl_weight(schedules.linear(10), t, predicts="noise")
    with pytest.raises(ValueError, match="'noise'"):
        simple_loss(schedules.linear(10), x, x, t, x, predicts="noise")
