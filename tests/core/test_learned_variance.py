"""p with a variance that is not the posterior's: the generic KL, its decoder, the hybrid loss."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64, log_probability_and_slope
from fused import convert, kl_weight, q_posterior, q_sample, simple_loss
from marks import thorough_but

from ddpm_jax import hybrid_loss, schedules
from ddpm_jax import vlb_terms as eager_vlb_terms
from ddpm_jax.gaussians import kl_diagonal

KINDS = ("eps", "x0", "v")
LEVELS = 17
T = 1000

vlb_terms = jax.jit(eager_vlb_terms, static_argnames=("predicts", "levels", "variance"))


def float32(values):
    return jnp.asarray(float64(values), jnp.float32)


def log_variance_of_p(tables, t, u):
    """log variance of p(x_{t-1} | x_t) that u stands for; the decoder's at t = 0."""
    small = tables.posterior(max(t, 1), max(t, 1) - 1)[2]
    return u * mp.log(tables.betas[t]) + (1 - u) * mp.log(small)


def case(name, predicts, times, u):
    """A pixel whose prediction is off by a quarter: library arguments, and terms in 50 digits."""
    tables = chain(name, T)
    x0, eps = mp.mpf("0.25"), mp.mpf("0.75")
    x_t, prediction, kls, x0_hats = [], [], [], []
    for t in times:
        a, b = tables.signal_and_noise(t)
        values = {"eps": eps, "x0": x0, "v": a * eps - b * x0}
        x_t.append(a * x0 + b * eps)
        hat = values[predicts] + mp.mpf("0.25")
        prediction.append(hat)
        x0_hat = {
            "eps": lambda hat=hat, a=a, b=b: (x_t[-1] - b * hat) / a,
            "x0": lambda hat=hat: hat,
            "v": lambda hat=hat, a=a, b=b: a * x_t[-1] - b * hat,
        }[predicts]()
        x0_hats.append(x0_hat)
        variance_p = mp.exp(log_variance_of_p(tables, t, u))
        weight_x0, _, variance_q = tables.posterior(max(t, 1), max(t, 1) - 1)
        ratio = variance_q / variance_p
        kls.append((ratio - 1 - mp.log(ratio) + (weight_x0 * (x0 - x0_hat)) ** 2 / variance_p) / 2)
    column = (float32(values)[:, None] for values in (prediction, [x0] * len(times), x_t))
    return tables, (*column, jnp.array(times)), kls, x0_hats


@pytest.mark.parametrize("u", thorough_but([0.3], [0.0, 0.3, 1.0, 1.5]))
@pytest.mark.parametrize(
    ("name", "predicts"),
    [
        *itertools.product(("linear", "cosine"), KINDS),
        *itertools.product(["zero_terminal_snr"], ("x0", "v")),
    ],
)
def test_terms_are_the_generic_kl(name, u, predicts):
    times = [1, 2, 10, 500, 900, 999]
    _, arguments, kls, _ = case(name, predicts, times, mp.mpf(u))
    terms = vlb_terms(
        build(name, T),
        *arguments,
        predicts=predicts,
        levels=LEVELS,
        variance="learned_range",
        interpolation=jnp.full((len(times), 1), u),
    )
    # At t = 1, x_t in float32 knows eps only to 1e-5 or so.
    np.testing.assert_allclose(terms, float64(kls), rtol=3e-4)


@pytest.mark.parametrize("u", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("levels", [LEVELS, None])
def test_the_decoder_has_the_learned_variance(u, levels):
    tables, arguments, _, (x0_hat,) = case("linear", "x0", [0], mp.mpf(u))
    log_variance = log_variance_of_p(tables, 0, mp.mpf(u))
    if levels is None:
        error = (mp.mpf("0.25") - x0_hat) ** 2
        expected = (error / mp.exp(log_variance) + mp.log(2 * mp.pi) + log_variance) / 2
    else:
        deviation = mp.exp(log_variance / 2)
        expected = -log_probability_and_slope(0.25, x0_hat, deviation, levels)[0]
    term = vlb_terms(
        build("linear", T),
        *arguments,
        predicts="x0",
        levels=levels,
        variance="learned_range",
        interpolation=jnp.full((1, 1), u),
    )
    np.testing.assert_allclose(term, float64([expected]), rtol=5e-6)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_continuous_data_have_a_density_for_a_decoder(variance):
    tables, arguments, _, (x0_hat,) = case("linear", "x0", [0], mp.mpf(1))
    term = vlb_terms(build("linear", T), *arguments, predicts="x0", levels=None, variance=variance)
    error, beta = (mp.mpf("0.25") - x0_hat) ** 2, tables.betas[0]
    np.testing.assert_allclose(
        term, float64([(error / beta + mp.log(2 * mp.pi * beta)) / 2]), rtol=2e-6
    )


@pytest.fixture(scope="module")
def batch():
    """Schedule, prediction, x0, x_t, t, eps of 6 images of 4 pixels."""
    schedule, rng = schedules.cosine(20), np.random.default_rng(0)
    prediction, eps = jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.float32)
    x0 = jnp.linspace(-1.0, 1.0, LEVELS)[jnp.asarray(rng.integers(0, LEVELS, (6, 4)))]
    t = jnp.array([0, 1, 2, 10, 18, 19])
    return schedule, prediction, x0, q_sample(schedule, x0, t, eps), t, eps


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", KINDS)
def test_the_ends_of_the_range_are_the_fixed_variances(batch, predicts):
    schedule, prediction, x0, x_t, t, _ = batch
    terms = functools.partial(
        vlb_terms, schedule, prediction, x0, x_t, t, predicts=predicts, levels=LEVELS
    )
    small, large = terms(variance="small"), terms(variance="large")
    for u, fixed, first in ((0.0, small, 1), (1.0, large, 0)):
        learned = terms(variance="learned_range", interpolation=jnp.full(x0.shape, u))
        # At t = 0 the small variance is beta_0, the lower end of the range that of t = 1.
        np.testing.assert_allclose(learned[first:], fixed[first:], rtol=2e-5)
    assert (np.abs(small - large) > 1e-3)[1:4].all()


@pytest.mark.parametrize("predicts", thorough_but(["v"], KINDS))
def test_the_collapse_of_the_kl(batch, predicts):
    # The generic KL between the posteriors of x0 and of x0_hat, and the weighted squared error.
    schedule = batch[0]
    prediction, x0, x_t, t, _ = (array[1:] for array in batch[1:])
    x0_hat = convert(schedule, prediction, x_t, t, source=predicts, target="x0")
    mean_q, variance = q_posterior(schedule, x0, x_t, t, t - 1)
    mean_p, _ = q_posterior(schedule, x0_hat, x_t, t, t - 1)
    variance = jnp.broadcast_to(variance[:, None], x0.shape)
    generic = jnp.sum(kl_diagonal(mean_q, variance, mean_p, variance), axis=1)
    target = convert(schedule, x0, x_t, t, source="x0", target=predicts)
    error = jnp.sum(jnp.square(target - prediction), axis=1)
    collapsed = kl_weight(schedule, t, predicts=predicts) * error
    np.testing.assert_allclose(collapsed, generic, rtol=1e-4)


@pytest.mark.parametrize("predicts", thorough_but(["v"], KINDS))
def test_the_hybrid_loss_and_where_its_gradients_stop(batch, predicts):
    schedule, prediction, x0, x_t, t, eps = batch
    u = jnp.linspace(-0.5, 1.5, x0.size).reshape(x0.shape)

    def hybrid(prediction, u):
        return hybrid_loss(
            schedule,
            prediction,
            u,
            x0,
            x_t,
            t,
            eps,
            predicts=predicts,
            levels=LEVELS,
            vlb_weight=0.01,
        )

    def simple(prediction):
        return simple_loss(schedule, prediction, x0, t, eps, predicts=predicts)

    def bound(u):
        terms = vlb_terms(
            *batch[:5],
            predicts=predicts,
            levels=LEVELS,
            variance="learned_range",
            interpolation=u,
        )
        return 0.01 * 20 * terms / (4 * math.log(2.0))

    @jax.jit
    def found(prediction, u):
        slopes = jax.grad(lambda *args: jnp.sum(hybrid(*args)), argnums=(0, 1))(prediction, u)
        return hybrid(prediction, u), *slopes

    @jax.jit
    def expected(prediction, u):
        of_prediction = jax.grad(lambda prediction: jnp.sum(simple(prediction)))(prediction)
        of_u = jax.grad(lambda u: jnp.sum(bound(u)))(u)
        return simple(prediction) + bound(u), of_prediction, of_u

    (loss, *slopes), (exact_loss, *exact_slopes) = found(prediction, u), expected(prediction, u)
    np.testing.assert_allclose(loss, exact_loss, rtol=1e-6)
    for slope, exact in zip(slopes, exact_slopes, strict=True):
        assert (np.abs(np.asarray(exact)) > 0).all()
        np.testing.assert_allclose(slope, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.thorough
def test_the_best_interpolation_is_found_by_its_gradient():
    # Of Gaussian data N(0, d^2) the reverse step has the variance v_q + w^2 Var[x0 | x_t]; the
    # expected KL is least there, so u moves to it and neither end is right.
    name, t, deviation = "cosine", 500, 0.5
    tables = chain(name, T)
    weight_x0, _, variance_q = tables.posterior(t, t - 1)
    left = 1 / (1 / mp.mpf(deviation) ** 2 + tables.alpha_bar[t] / tables.noise_power[t])
    best = mp.log(variance_q + weight_x0**2 * left)
    ends = [log_variance_of_p(tables, t, u) for u in (0, 1)]
    best_u = float((best - ends[0]) / (ends[1] - ends[0]))
    assert 0.05 < best_u < 0.95

    error = jnp.sqrt(jnp.asarray([float(left)], jnp.float32))[:, None]  # a typical one of x0_hat

    def term(u):
        return vlb_terms(
            build(name, T),
            error,
            jnp.zeros((1, 1)),
            jnp.zeros((1, 1)),
            jnp.array([t]),
            predicts="x0",
            levels=None,
            variance="learned_range",
            interpolation=jnp.full((1, 1), u),
        )[0]

    slopes = [float(jax.grad(term)(best_u + shift)) for shift in (-0.2, 0.0, 0.2)]
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.01 * min(-slopes[0], slopes[2])


@pytest.mark.thorough
def test_bfloat16_images_and_predictions_are_summed_in_float32(batch):
    schedule, *arrays, t, eps = batch
    prediction, x0, x_t, eps = (array.astype(jnp.bfloat16) for array in (*arrays, eps))
    wide = [array.astype(jnp.float32) for array in (prediction, x0, x_t)]
    u = jnp.full(x0.shape, 0.5, jnp.bfloat16)
    for variance, interpolation in (("small", None), ("large", None), ("learned_range", u)):
        static = {"predicts": "v", "levels": LEVELS, "variance": variance}
        narrow_terms = vlb_terms(
            schedule, prediction, x0, x_t, t, interpolation=interpolation, **static
        )
        assert narrow_terms.dtype == jnp.float32
        wide_u = None if interpolation is None else interpolation.astype(jnp.float32)
        np.testing.assert_allclose(
            narrow_terms, vlb_terms(schedule, *wide, t, interpolation=wide_u, **static), rtol=1e-6
        )
    loss = hybrid_loss(schedule, prediction, u, x0, x_t, t, eps, predicts="v", levels=LEVELS)
    assert loss.dtype == jnp.float32


def test_an_interpolation_is_given_where_it_is_used(batch):
    schedule, prediction, x0, x_t, t, _ = batch
    terms = functools.partial(
        eager_vlb_terms, schedule, prediction, x0, x_t, t, predicts="v", levels=LEVELS
    )
    with pytest.raises(ValueError, match="interpolation is missing"):
        terms(variance="learned_range")
    with pytest.raises(ValueError, match="interpolation is given, and variance is 'large'"):
        terms(variance="large", interpolation=x0)


@pytest.mark.thorough
@pytest.mark.parametrize("levels", [LEVELS, None])
@pytest.mark.parametrize("u", [-60.0, 140.0])
@pytest.mark.parametrize("name", ["linear", "zero_terminal_snr"])
def test_far_outside_the_range_a_finite_term_has_finite_gradients(name, u, levels):
    # The branch that is not chosen overflows there: the decoder at t >= 1, the KL at t = 0.
    _, (prediction, x0, x_t, t), _, _ = case(name, "v", [0, 1, 2, 500, T - 1], 1.0)

    def terms(prediction, interpolation):
        return vlb_terms(
            build(name, T),
            prediction,
            x0,
            x_t,
            t,
            predicts="v",
            levels=levels,
            variance="learned_range",
            interpolation=interpolation,
        )

    values, pull_back = jax.vjp(terms, prediction, jnp.full(x0.shape, u))
    assert np.isfinite(values).all()
    for gradient in pull_back(jnp.ones_like(values)):
        assert np.isfinite(gradient).all()


@pytest.mark.thorough
def test_the_kl_that_is_not_meant_at_the_decoder_does_not_overflow_into_its_gradient():
    _, (prediction, x0, x_t, t), _, _ = case("linear", "v", [0], 1.0)

    def term(u):
        told = {"predicts": "v", "levels": LEVELS, "variance": "learned_range"}
        interpolation = jnp.full(x0.shape, u)
        return vlb_terms(
            build("linear", T), prediction, x0, x_t, t, interpolation=interpolation, **told
        )[0]

    assert np.isfinite(jax.grad(term)(-170.0))
