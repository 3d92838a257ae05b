"""EDM's preconditioning: its coefficients, and what they are for.

With 50 digits, by Karras et al.'s own equations in x_t / a and sigma; on data of which the best
denoiser is known; and beside the same function written by hand.
"""

import dataclasses
import functools
import math
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import chain
from flax.core import meta

from ddpm_jax import analytic, likelihood, predictions, schedules
from ddpm_jax.forward import q_sample
from ddpm_jax.models import DiT, Preconditioned, init_params, layer_table, network_function
from ddpm_jax.models.preconditioned import coefficients
from ddpm_jax.predictions import PredictionName

T, SD = 100, 0.6
SCHEDULE = schedules.cosine(T)
KINDS = ("x0", "eps", "v")
SHAPE = (4, 4, 1)
SMALL = {"width": 8, "depth": 1, "heads": 2}
KEY = jax.random.key(0)


def edm(predicts, t):
    """The factors of x_t and F, 1 / s and c_noise, by the paper's table 1."""
    sd, (a, b) = mp.mpf(SD), chain("cosine", T).signal_and_noise(t)
    sigma = b / a
    skip = sd**2 / (sigma**2 + sd**2)
    out = sigma * sd / mp.sqrt(sigma**2 + sd**2)
    of_x_t = 1 / mp.sqrt(sigma**2 + sd**2) / a
    skip = skip / a  # of x_t, where the paper has x_t / a
    if predicts == "eps":  # (x_t - a x0_hat) / b
        skip, out = (1 - a * skip) / b, -a * out / b
    if predicts == "v":  # a eps_hat - b x0_hat
        skip, out = (a * (1 - a * skip) / b - b * skip), -a * a * out / b - b * out
    return skip, out, of_x_t, mp.log(sigma) / 4


@pytest.mark.parametrize("predicts", KINDS)
def test_the_coefficients_are_those_of_the_paper(predicts):
    table = coefficients(SCHEDULE, predicts, SD)
    for t in range(T):
        expected = [float(value) for value in edm(predicts, t)]
        np.testing.assert_allclose(table[t], expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("predicts", KINDS)
def test_target_and_input_of_the_network_have_unit_variance(predicts):
    """Equations 113 to 117: of data of variance sd^2, at each t, in closed form."""
    skip, out, scale, _ = coefficients(SCHEDULE, predicts, SD).T
    alpha_bar = np.asarray([float(value) for value in chain("cosine", T).alpha_bar])
    a, b = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    of_x0, of_eps = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "v": (-b, a)}[predicts]
    # F's target is (wanted - skip x_t) / out, with x_t = a x_0 + b eps.
    target = (((of_x0 - skip * a) * SD) ** 2 + (of_eps - skip * b) ** 2) / out**2
    np.testing.assert_allclose(target, 1.0, rtol=1e-6)
    np.testing.assert_allclose(scale**2 * (alpha_bar * SD**2 + b**2), 1.0, rtol=1e-12)


OTHERS = {
    "variance_exploding": schedules.variance_exploding(T),
    "rectified_flow": schedules.rectified_flow(T),
}
ALL_KINDS = (*typing.get_args(PredictionName), predictions.edm(1.3))


@pytest.mark.parametrize("name", ["variance_exploding", "rectified_flow"])
@pytest.mark.parametrize("predicts", ALL_KINDS, ids=str)
def test_the_coefficients_on_chains_of_other_power(name, predicts):
    """What the kind makes of the paper's x0_hat and of the eps that belongs to it."""
    tables, table = chain(name, T), coefficients(OTHERS[name], predicts, SD)
    for t in range(0, T - 1, 7):
        a, b = tables.signal_and_noise(t)
        sigma, sd = b / a, mp.mpf(SD)
        total = mp.sqrt(sigma**2 + sd**2)
        expected = []
        for x, f in ((1, 0), (0, 1)):
            x0 = sd**2 / total**2 * (x / a) + sigma * sd / total * f
            expected.append(float(of_kind(predicts, a, b, x0, (x - a * x0) / b)))
        expected += [float(1 / (total * a)), float(mp.log(sigma) / 4)]
        np.testing.assert_allclose(table[t], expected, rtol=1e-10, atol=1e-12)


def of_kind(predicts, a, b, x0, eps):
    if predicts not in ("eps", "x0", "v", "score", "flow"):
        sd, s = (mp.mpf(0.5 if predicts == "edm" else 1.3)), b / a
        skip, out = sd**2 / (s**2 + sd**2), s * sd / mp.sqrt(s**2 + sd**2)
        return (x0 - skip * (x0 + s * eps)) / out
    kinds = {"eps": eps, "x0": x0, "v": a * eps - b * x0, "score": -eps / b, "flow": eps - x0}
    return kinds[predicts]


def test_f_itself_is_not_touched():
    """Skip is exactly 0 and out exactly 1 for the kind of the same sigma_data, at all times."""
    for schedule in (SCHEDULE, *OTHERS.values()):
        skip, out, _, _ = coefficients(schedule, predictions.edm(SD), SD).T
        np.testing.assert_array_equal(skip, 0.0)
        np.testing.assert_array_equal(out, 1.0)
    own = coefficients(SCHEDULE, "edm", 0.5)
    np.testing.assert_array_equal(own[:, :2], np.tile([0.0, 1.0], (T, 1)))


def test_with_unit_variance_it_is_minus_v_of_an_input_of_unit_variance():
    skip, out, scale, _ = coefficients(OTHERS["rectified_flow"], "v", 1.0).T
    u = np.arange(1, T + 1) / T
    r = np.sqrt((1.0 - u) ** 2 + u**2)
    np.testing.assert_allclose(skip, 0.0, atol=1e-15)
    np.testing.assert_allclose(out, -r, rtol=1e-12)
    np.testing.assert_allclose(scale, 1.0 / r, rtol=1e-12)


class Told(nn.Module):
    """Returns the time that it gets, in every pixel."""

    @nn.compact
    def __call__(self, x, t):
        return jnp.broadcast_to(jnp.asarray(t, x.dtype)[:, None, None, None], x.shape)


@pytest.mark.parametrize("predicts", ["x0", "v", "flow", "edm"])
def test_the_time_in_place_of_c_noise_goes_to_the_end_of_a_chain_without_signal(predicts):
    schedule, x_t, t = OTHERS["rectified_flow"], jnp.ones((3, *SHAPE)), jnp.array([0, 50, 99])
    model = Preconditioned(Told(), schedule, predicts, 0.5, noise_input="time")
    short = schedules.respaced(schedule, [0, 50, 99])
    of_short = Preconditioned(Told(), short, predicts, 0.5, noise_input="time")
    table = coefficients(schedule, predicts, 0.5)[np.array(t)]
    expected = table[:, 0] + table[:, 1] * np.array(t)
    for apply in (model.apply, of_short.apply):
        np.testing.assert_allclose(apply({}, x_t, t)[:, 0, 0, 0], expected, rtol=1e-6)


class Zero(nn.Module):
    """What is best for N(0, sd^2): the first term of equation 7 is all of the posterior mean."""

    @nn.compact
    def __call__(self, x, t):
        return jnp.zeros_like(x)


class Best(nn.Module):
    """What is best for N(0, deviation^2), by equation 7 from c_in x and c_noise alone."""

    deviation: float

    @nn.compact
    def __call__(self, x, t):
        sigma = jnp.exp(4.0 * t)[:, None, None, None]
        total = sigma**2 + SD**2
        share = self.deviation**2 / (self.deviation**2 + sigma**2) - SD**2 / total
        return share * total / (sigma * SD) * x


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize(("network", "deviation"), [(Zero(), SD), (Best(1.4), 1.4)])
def test_with_the_best_network_it_is_the_best_predictor_of_gaussian_data(
    predicts, network, deviation
):
    model, t = Preconditioned(network, SCHEDULE, predicts, SD), jnp.arange(T, dtype=jnp.int32)
    x_t, size = jax.random.normal(KEY, (T, *SHAPE)), math.prod(SHAPE)
    data = analytic.gaussian(np.zeros(size), deviation**2 * np.eye(size))
    expected = analytic.denoise(data, SCHEDULE, x_t, t, target=predicts)
    np.testing.assert_allclose(model.apply({}, x_t, t), expected, rtol=1e-4, atol=1e-5)


def test_in_float64_it_is_that_predictor_to_float64():
    """Posterior mean of N(0, deviation^2), with 50 digits of the chain."""
    deviation, times = 1.4, np.arange(0, T, 7)
    x_t = np.random.default_rng(0).normal(size=(len(times), *SHAPE))
    with jax.enable_x64(True):
        model = Preconditioned(Best(deviation), SCHEDULE, sigma_data=SD)
        found = model.apply({}, jnp.asarray(x_t), jnp.asarray(times, jnp.int32))
    assert found.dtype == np.float64
    for x, t, x0_hat in zip(x_t, times, found, strict=True):
        a, b = chain("cosine", T).signal_and_noise(t)
        share = float(a * deviation**2 / (a**2 * deviation**2 + b**2))
        np.testing.assert_allclose(x0_hat, share * x, rtol=1e-10, atol=1e-12)


@functools.cache
def random_params(model):
    boxed = jax.eval_shape(lambda key: init_params(model, key, SHAPE), KEY)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), meta.unbox(boxed)
    )


def test_its_bits_per_dim_are_those_of_the_function_written_by_hand():
    schedule = schedules.linear_log_snr(8)
    model = Preconditioned(DiT(**SMALL), schedule, sigma_data=SD)
    params = random_params(model)

    def by_hand(x_t, t):
        a, b = (values[:, None, None, None] for values in (schedule.signal(t), schedule.noise(t)))
        sigma = b / a
        x, total = x_t / a, jnp.sqrt(sigma**2 + SD**2)
        inner = {"params": params["params"]["network"]}
        f = DiT(**SMALL).apply(inner, x / total, jnp.log(sigma[:, 0, 0, 0]) / 4.0)
        return SD**2 / total**2 * x + sigma * SD / total * f

    x0 = jnp.asarray(np.random.default_rng(2).integers(0, 17, (3, *SHAPE)) / 8.0 - 1.0, jnp.float32)
    bits = [
        jax.jit(
            lambda x0, predict=predict: (
                likelihood.bits_per_dim(schedule, predict, KEY, x0, predicts="x0", levels=17).total
            )
        )(x0)
        for predict in (functools.partial(model.apply, params), by_hand)
    ]
    assert np.isfinite(bits[0]).all()
    np.testing.assert_allclose(*bits, rtol=1e-4)


def test_on_a_respaced_chain_it_is_the_same_network():
    """By the times that `network_time` returns; also if it is made of the respaced schedule."""
    short = schedules.respaced(SCHEDULE, [9, 49, 99])
    x_t, t = jax.random.normal(KEY, (3, *SHAPE)), jnp.arange(3)
    models = [Preconditioned(DiT(**SMALL), schedule) for schedule in (SCHEDULE, short)]
    params = random_params(models[0])
    of_whole, of_short = (
        jax.jit(model.apply)(params, x_t, short.network_time(t)) for model in models
    )
    np.testing.assert_allclose(of_short, of_whole, rtol=1e-5, atol=1e-6)
    own = jax.jit(models[0].apply)(params, x_t, jnp.array([9, 49, 99]))
    np.testing.assert_allclose(of_whole, own, rtol=1e-5, atol=1e-6)


def test_it_learns():
    """Data of two values for all pixels, at levels of noise that show which."""
    model = Preconditioned(DiT(**SMALL), SCHEDULE, sigma_data=SD)
    params = jax.jit(lambda: meta.unbox(init_params(model, KEY, SHAPE)))()
    signs = jnp.sign(jax.random.normal(KEY, (16, 1, 1, 1)))
    x0, t = jnp.broadcast_to(SD * signs, (16, *SHAPE)), jnp.arange(20, 84, 4, dtype=jnp.int32)
    x_t = q_sample(SCHEDULE, x0, t, jax.random.normal(KEY, x0.shape))

    @jax.jit
    def step(params):
        loss, slopes = jax.value_and_grad(
            lambda params: jnp.mean((model.apply(params, x_t, t) - x0) ** 2)
        )(params)
        return loss, jax.tree.map(lambda leaf, slope: leaf - 0.5 * slope, params, slopes)

    losses = []
    for _ in range(60):
        loss, params = step(params)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_a_second_output_and_classes_and_dropout_are_those_of_the_network_inside():
    inner = DiT(**SMALL, dropout=0.5, num_classes=3, learned_variance=True)
    model = Preconditioned(inner, SCHEDULE)
    params = random_params(model)
    x_t, t, labels = jax.random.normal(KEY, (2, *SHAPE)), jnp.array([3, 90]), jnp.array([0, 2])
    keys = jax.random.split(KEY, 2)
    apply = jax.jit(network_function(model), static_argnames="train")
    prediction, second = apply(params, x_t, t, train=True, keys=keys, labels=labels)
    table = jnp.asarray(coefficients(SCHEDULE, "x0", 0.5)[np.array(t)], jnp.float32)
    skip, out, scale = (table[:, column, None, None, None] for column in range(3))
    own = {"params": params["params"]["network"]}
    f, same = jax.jit(inner.apply)(own, scale * x_t, table[:, 3], labels=labels)
    quiet, quiet_second = apply(params, x_t, t, labels=labels)
    np.testing.assert_allclose(quiet, skip * x_t + out * f, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quiet_second, same, rtol=1e-5, atol=1e-6)
    assert np.abs(prediction - quiet).max() > 1e-3
    assert np.abs(second - quiet_second).max() > 1e-3


class Plain(nn.Module):
    """With dropout by Flax's own means, and no classes."""

    @nn.compact
    def __call__(self, x, t, *, train=False):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(1)(x))


def test_a_network_inside_gets_the_arguments_that_it_takes():
    model = Preconditioned(Plain(), SCHEDULE)
    params = random_params(model)
    x_t, t = jnp.ones((2, *SHAPE)), jnp.array([3, 90])
    apply = network_function(model)
    train = apply(params, x_t, t, train=True, keys=jax.random.split(KEY, 2))
    assert np.abs(train - apply(params, x_t, t)).max() > 0.0
    with pytest.raises(ValueError, match="no parameter 'labels'"):
        apply(params, x_t, t, labels=jnp.array([0, 1]))


def test_modules_are_equal_if_their_schedules_are():
    first, same = (Preconditioned(DiT(**SMALL), schedules.cosine(T)) for _ in range(2))
    other = dataclasses.replace(first, schedule=schedules.linear(T))
    assert first == same
    assert hash(first) == hash(same)
    assert first != other


@pytest.mark.usefixtures("without_annotation_checks")
def test_what_has_no_single_level_of_noise_is_refused():
    x_t, t = jnp.ones((2, *SHAPE)), jnp.array([0, 1])
    bent = schedules.zero_terminal_snr(SCHEDULE)
    with pytest.raises(ValueError, match="leaves no signal at t = T - 1"):
        Preconditioned(Zero(), bent).apply({}, x_t, t)
    with pytest.raises(ValueError, match="noise_input is 'sigma'; it is one of 'log_snr', 'time'"):
        Preconditioned(Zero(), SCHEDULE, noise_input="sigma").apply({}, x_t, t)
    between = schedules.from_log_snr(np.array([2.0, 0.0, -2.0]), network_times=[0.0, 0.5, 2.0])
    with pytest.raises(TypeError, match="network times of dtype float32; they have to be integers"):
        coefficients(between, "x0", 0.5)
    with pytest.raises(TypeError, match="schedule is a str; it has to be a Schedule"):
        coefficients("cosine", "x0", 0.5)


def test_its_table_has_the_rows_of_the_network_inside():
    model, inner = Preconditioned(DiT(**SMALL), SCHEDULE), DiT(**SMALL)
    rows, expected = layer_table(model, SHAPE), layer_table(inner, SHAPE)
    assert rows[:-1] == expected[:-1]
    assert (rows[-1].kind, rows[-1].parameters) == ("Preconditioned", expected[-1].parameters)
