"""Kinds of predictions against their definitions in 50 digits, on chains of any power."""

import functools
import typing

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64, ulps
from marks import thorough_but

from ddpm_jax import (
    analytic,
    bits_per_dim,
    convert,
    losses,
    predictions,
    processes,
    q_sample,
    reverse,
    samplers,
    schedules,
)
from ddpm_jax.predictions import Prediction, PredictionName, edm, error_ratio
from ddpm_jax.samplers import guidance

NAMES = typing.get_args(PredictionName)
KINDS = {name: name for name in NAMES} | {"edm(1.3)": edm(1.3)}
T = 20
TIMES = (0, 1, 9, 18)
CHAINS = ("cosine", "variance_exploding", "rectified_flow", "sub_variance_preserving")
U = 2.0**-24  # half of a last place of 1 in float32
KEY = jax.random.key(0)


def f_of_karras(sd, a, b, x0, eps):
    """F such that c_skip x + c_out F = x0, at x = x0 + sigma eps: table 1 of Karras et al. 2022."""
    sd, sigma = mp.mpf(sd), b / a
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / mp.sqrt(sd**2 + sigma**2)
    return (x0 - c_skip * (x0 + sigma * eps)) / c_out


DEFINITIONS = {
    "eps": lambda a, b, x0, eps: eps,
    "x0": lambda a, b, x0, eps: x0,
    "v": lambda a, b, x0, eps: a * eps - b * x0,
    "score": lambda a, b, x0, eps: -(a * x0 + b * eps - a * x0) / b**2,  # of N(a x0, b^2)
    "flow": lambda a, b, x0, eps: eps - x0,
    "edm": functools.partial(f_of_karras, 0.5),
    "edm(1.3)": functools.partial(f_of_karras, 1.3),
}


def factors(kind, a, b):
    """alpha, beta and D by the definition of a kind."""
    alpha, beta = (DEFINITIONS[kind](a, b, *unit) for unit in ((1, 0), (0, 1)))
    return alpha, beta, alpha * b - beta * a


@functools.cache
def all_conversions(name):
    """Every kind from every other one, by the library, and by the definitions in 50 digits."""
    levels = [chain(name, T).signal_and_noise(t) for t in TIMES]
    rng = np.random.default_rng(0)
    x0, eps = (rng.normal(size=(len(TIMES), 5)).astype(np.float32) for _ in range(2))

    def of_each(function):
        return [
            [function(a, b, *map(mp.mpf, map(float, pair))) for pair in zip(*rows, strict=True)]
            for (a, b), *rows in zip(levels, x0, eps, strict=True)
        ]

    exact = {kind: of_each(DEFINITIONS[kind]) for kind in KINDS}
    x_t = of_each(lambda a, b, x0, eps: a * x0 + b * eps)
    values, x = (jax.tree.map(float, tree) for tree in (exact, x_t))
    schedule, t = build(name, T), jnp.array(TIMES)

    @jax.jit
    def every(values, x):
        return {
            (source, target): convert(
                schedule, values[source], x, t, source=KINDS[source], target=KINDS[target]
            )
            for source in KINDS
            for target in KINDS
        }

    values = {kind: jnp.array(value, jnp.float32) for kind, value in values.items()}
    return levels, exact, x_t, every(values, jnp.array(x, jnp.float32))


def largest_difference(name):
    """In units of float32's rounding of the larger of the two terms that are added."""
    levels, exact, x_t, found = all_conversions(name)
    worst = {}
    for (source, target), converted in found.items():
        ratios = []
        for i, (a, b) in enumerate(levels):
            (alpha, beta, d), (alpha_, beta_, d_) = (factors(k, a, b) for k in (source, target))
            cross = abs(beta_ * alpha) + abs(alpha_ * beta)
            for j, value in enumerate(converted[i]):
                y, x, wanted = exact[source][i][j], x_t[i][j], exact[target][i][j]
                scale = (abs(d_ * y) + cross * abs(x)) / abs(d) + abs(wanted)
                ratios.append(abs(mp.mpf(float(value)) - wanted) / scale / U)
        worst[source, target] = np.max(np.array(ratios, np.float64))
    return worst


@pytest.mark.parametrize("name", thorough_but(["rectified_flow"], CHAINS))
def test_conversions_of_every_kind_to_every_other_one(name):
    worst = largest_difference(name)
    assert np.max([*worst.values()]) < 4, max(worst, key=worst.get)


@pytest.mark.parametrize("name", CHAINS)
def test_the_weight_of_a_kl_is_that_of_two_gaussians(name):
    """Of posteriors whose x0 differ by what an error of 1 in the prediction makes of it."""
    tables, schedule, steps = chain(name, T), build(name, T), TIMES[1:]
    for kind, predicts in KINDS.items():
        if schedule.zero_terminal_snr and kind in ("eps", "score"):
            continue  # refused
        expected = []
        for t in steps:
            a, b = tables.signal_and_noise(t)
            of_x0, _, variance = tables.posterior(t, t - 1)
            error = b / factors(kind, a, b)[2]
            expected.append((of_x0 * error) ** 2 / (2 * variance))
        weight = losses.kl_weight(schedule, jnp.array(steps), predicts=predicts)
        assert ulps(weight, expected).max() < 8, kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_weight_is_one_on_the_error_of_its_kind(kind):
    name, t, predicts = "sub_variance_preserving", jnp.array(TIMES), KINDS[kind]
    schedule = build(name, T)
    own = losses.constant(predicts)
    one = losses.error_weight(schedule, t, predicts=predicts, weighting=own)
    np.testing.assert_allclose(one, 1.0, rtol=1e-6)
    levels = [chain(name, T).signal_and_noise(t) for t in TIMES]
    expected = [(factors(kind, a, b)[2] / b) ** 2 for a, b in levels]
    assert ulps(own(schedule, t), expected).max() < 8


def test_the_weight_of_edm_is_that_of_its_paper():
    """lambda(sigma) of table 1, in sigma = b / a."""
    schedule, t = schedules.variance_exploding(T), jnp.arange(T)
    sigma = float64([chain("variance_exploding", T).signal_and_noise(i)[1] for i in range(T)])
    expected = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(error_ratio(schedule, t, "edm"), expected, rtol=1e-6)


def test_edm_of_unit_variance_is_minus_v_by_the_power():
    process = processes.spectral(np.array([[0.9], [0.5]]), np.array([[0.2], [3.0]]))
    x0, eps = jnp.array([[0.3], [-1.0]]), jnp.array([[1.5], [0.2]])
    f, v = (
        losses.target(process, x0, jnp.arange(2), eps, predicts=kind) for kind in (edm(1.0), "v")
    )
    np.testing.assert_allclose(f, -v / np.sqrt([[1.1], [3.5]]), rtol=1e-6)


def mine(determinant):
    """v as somebody else's kind."""
    return Prediction("mine", lambda a, b: (-b, a), determinant)


def test_a_kind_of_your_own_is_the_named_one_of_the_same_factors():
    schedule, t = schedules.rectified_flow(6), jnp.array([1, 3, 5])
    x = jax.random.normal(KEY, (3, 4))
    own = mine(lambda a, b, power: -power)
    for function in (
        lambda kind: losses.kl_weight(schedule, t, predicts=kind),
        lambda kind: losses.target(schedule, x, t, x[::-1], predicts=kind),
        lambda kind: convert(schedule, x, x[::-1], t, source=kind, target="x0"),
    ):
        np.testing.assert_array_equal(function(own), function("v"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
def test_a_kind_of_your_own_goes_wherever_a_name_does(name):
    """To the bit, through losses, the bound, a sampler and the likelihood."""
    schedule, t = build(name, 6), jnp.array([0, 3, 5])
    rng = np.random.default_rng(1)
    x0 = jnp.asarray(rng.integers(0, 17, (3, 4)) / 8.0 - 1.0, jnp.float32)
    eps, prediction = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)

    def predict(x_t, t):
        return 0.3 * jnp.sin(x_t)

    @functools.partial(jax.jit, static_argnames="predicts")
    def everything(x0, eps, prediction, *, predicts):
        x_t = q_sample(schedule, x0, t, eps)
        sampler = samplers.ddim(schedule, predict, predicts=predicts)
        bits = bits_per_dim(schedule, predict, KEY, x0, predicts=predicts, levels=17)
        return (
            losses.simple_loss(schedule, prediction, x0, t, eps, predicts=predicts),
            losses.vlb_terms(schedule, prediction, x0, x_t, t, predicts=predicts, levels=17),
            samplers.sample(sampler, KEY, (3, 4), jnp.arange(6)[::-1]).x0,
            bits.total,
        )

    named = everything(x0, eps, prediction, predicts="v")
    own = everything(x0, eps, prediction, predicts=mine(lambda a, b, power: -power))
    jax.tree.map(np.testing.assert_array_equal, own, named)
    rounded = everything(x0, eps, prediction, predicts=mine(None))  # D by alpha b - beta a
    for found, expected in zip(rounded, named, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", thorough_but(["flow"], KINDS))
def test_the_best_prediction_of_a_mixture_is_that_of_its_parts(kind):
    """alpha E[x0 | x_t] + beta E[eps | x_t], for one mode and for many."""
    data = analytic.mixture([0.4, 0.6], [[0.5, -1.0], [0.0, 1.0]], [np.eye(2), 0.2 * np.eye(2)])
    a2, b2 = np.linspace(1.0, 0.3, T), np.linspace(0.1, 4.0, T)
    for process in (
        schedules.from_signal_noise(np.sqrt(a2), np.sqrt(b2)),
        processes.spectral(a2[:, None], b2[:, None] * np.array([1.0, 0.5])),
    ):
        x_t, t = jax.random.normal(KEY, (4, 2)), jnp.array(TIMES)
        found, x0_hat = (
            analytic.denoise(data, process, x_t, t, target=target) for target in (KINDS[kind], "x0")
        )
        expected = convert(process, x0_hat, x_t, t, source="x0", target=KINDS[kind])
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_adds_its_slope_to_the_score(kind):
    process = schedules.variance_exploding(T)
    x_t, t = jax.random.normal(KEY, (4, 2)), jnp.array(TIMES)

    def predict(x_t, t):
        return jnp.sin(x_t)

    guided = guidance.classifier(
        process, predict, lambda x, t: jnp.sum(3.0 * x, axis=1), predicts=KINDS[kind], scale=0.5
    )
    before, after = (
        convert(process, output(x_t, t), x_t, t, source=KINDS[kind], target="score")
        for output in (predict, guided)
    )
    size = np.abs(before).max(axis=1, keepdims=True)
    np.testing.assert_allclose((after - before - 1.5) / (1.5 + size), 0.0, atol=1e-6)


def test_velocities_need_no_signal_and_the_noise_does():
    schedule = schedules.rectified_flow(T)
    needs = {
        kind for kind, predicts in KINDS.items() if predictions.resolve("", predicts).needs_signal
    }
    assert needs == {"eps", "score"}
    own = Prediction("faint", lambda a, b: (a, 1.0))
    for predicts, name in (("score", "score"), (own, "faint")):
        with pytest.raises(
            ValueError,
            match=f"predicts is '{name}', and the schedule leaves no signal .*{name} does",
        ):
            reverse.check_predicts(schedule, predicts)
    last, x = jnp.array([T - 1]), jnp.array([[0.5, -2.0]])
    for kind in KINDS.keys() - needs:
        there = convert(schedule, x, x, last, source=KINDS[kind], target="x0")
        back = convert(schedule, there, x, last, source="x0", target=KINDS[kind])
        np.testing.assert_allclose(back, x, rtol=1e-6)


def test_kinds_are_values():
    assert edm() == edm(0.5) == edm(sigma_data=0.5) == predictions.resolve("predicts", "edm")
    assert hash(edm(0.3)) == hash(edm(0.3))
    assert edm(0.3) != edm(0.4)


@pytest.mark.usefixtures("without_annotation_checks")
def test_refused():
    with pytest.raises(
        ValueError, match=r"predicts is 'noise'; .* 'edm', or a ddpm_jax.predictions"
    ):
        predictions.resolve("predicts", "noise")
    with pytest.raises(ValueError, match=r"is 1.2 x0 \+ 1.4 eps at .*does not determine the data"):
        Prediction("twice", lambda a, b: (2.0 * a, 2.0 * b))
    with pytest.raises(ValueError, match=r"determinant .* is 0.6 at .*; it has to be .* = 0.7"):
        Prediction("x0", lambda a, b: (1.0, 0.0), lambda a, b, power: a)
    for weights in (lambda a, b: a, lambda a, b: (a, b, b), lambda a: (a, a)):
        with pytest.raises(TypeError, match="weights of the prediction 'odd' has to return two"):
            Prediction("odd", weights)
    for sigma_data in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="sigma_data is"):
            edm(sigma_data)
