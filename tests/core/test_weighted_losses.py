"""Weights that mean the same whatever the network predicts, and their published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import build, chain, float64
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax import convert, losses, q_sample, schedules, simple_loss, weighted_loss

KINDS = ("eps", "x0", "v")
T = 100

WEIGHTINGS = {
    "constant eps": losses.constant("eps"),
    "constant x0": losses.constant("x0"),
    "constant v": losses.constant("v"),
    "min_snr": losses.min_snr(),
    "min_snr 1": losses.min_snr(1.0),
    "p2": losses.p2(),
    "p2 half": losses.p2(k=2.0, gamma=0.5),
    "truncated_snr": losses.truncated_snr(),
}

# As the papers write them, for the quantity that each is written for.
PUBLISHED = {
    "constant eps": ("eps", lambda snr: np.ones_like(snr)),
    "constant x0": ("x0", lambda snr: np.ones_like(snr)),
    "constant v": ("v", lambda snr: np.ones_like(snr)),
    "min_snr": ("eps", lambda snr: np.minimum(snr, 5.0) / snr),
    "min_snr 1": ("v", lambda snr: np.minimum(snr, 1.0) / (snr + 1.0)),
    "p2": ("eps", lambda snr: 1.0 / (1.0 + snr)),
    "p2 half": ("eps", lambda snr: (2.0 + snr) ** -0.5),
    "truncated_snr": ("x0", lambda snr: np.maximum(snr, 1.0)),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ["linear", "cosine", "linear_log_snr"])
def test_published_weights(weighting, name):
    tables, t = chain(name, T), jnp.arange(T)
    snr = float64([a / b for a, b in zip(tables.alpha_bar, tables.noise_power, strict=True)])
    kind, formula = PUBLISHED[weighting]
    found = losses.error_weight(build(name, T), t, predicts=kind, weighting=WEIGHTINGS[weighting])
    np.testing.assert_allclose(found, formula(snr), rtol=2e-6)


@pytest.fixture(scope="module")
def loss_of_each_kind():
    """One x0_hat told as eps, x0 and v: the weighted losses, `[3, batch]`, for each weighting."""
    schedule = schedules.cosine(T)

    @jax.jit
    def compute(t, x0, eps, x0_hat):
        x_t = q_sample(schedule, x0, t, eps)
        told = {kind: convert(schedule, x0_hat, x_t, t, source="x0", target=kind) for kind in KINDS}
        return {
            name: jnp.stack(
                [
                    weighted_loss(
                        schedule, told[kind], x0, t, eps, predicts=kind, weighting=weighting
                    )
                    for kind in KINDS
                ]
            )
            for name, weighting in WEIGHTINGS.items()
        }

    return compute


@pytest.mark.thorough
@given(st.integers(0, T - 1), st.integers(0, 2**31))
def test_a_weighted_loss_does_not_depend_on_how_the_prediction_is_told(loss_of_each_kind, t, seed):
    rng = np.random.default_rng(seed)
    x0, eps, x0_hat = jnp.asarray(rng.normal(size=(3, 2, 16)), jnp.float32)
    loss = loss_of_each_kind(jnp.full(2, t), x0, eps, x0_hat)
    # What is told of x0_hat is rounded where eps and v are computed from it: 1 / b^2 of a last
    # place at t = 0, with b = 0.006.
    for name in WEIGHTINGS:
        np.testing.assert_allclose(loss[name][1:], loss[name][:-1], rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("predicts", KINDS)
def test_the_constant_weight_of_what_is_predicted_is_the_simple_loss(predicts):
    rng = np.random.default_rng(0)
    prediction, x0, eps = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    t, schedule = jnp.array([0, 1, 50, 98, 99]), schedules.linear(T)
    weighted = weighted_loss(
        schedule, prediction, x0, t, eps, predicts=predicts, weighting=losses.constant(predicts)
    )
    simple = simple_loss(schedule, prediction, x0, t, eps, predicts=predicts)
    np.testing.assert_allclose(weighted, simple, rtol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_where_no_signal_is_left(weighting):
    schedule, t = schedules.zero_terminal_snr(schedules.linear(T)), jnp.array([T - 1])
    for predicts in ("x0", "v"):
        weight = losses.error_weight(
            schedule, t, predicts=predicts, weighting=WEIGHTINGS[weighting]
        )
        zero = weighting.startswith(("constant eps", "min_snr", "p2"))
        np.testing.assert_array_equal(weight, 0.0 if zero else 1.0)
    for loss in (simple_loss, lambda *a, **kw: weighted_loss(*a, weighting=losses.p2(), **kw)):
        x = jnp.zeros((1, 1))
        with pytest.raises(ValueError, match="predicts is 'eps', and the schedule leaves no"):
            loss(schedule, x, x, t, x, predicts="eps")


@pytest.mark.thorough
def test_bfloat16_errors_are_summed_in_float32():
    rng = np.random.default_rng(0)
    arrays = jnp.asarray(rng.normal(size=(3, 2, 512)), jnp.float32).astype(jnp.bfloat16)
    t, schedule = jnp.array([3, 70]), schedules.linear(T)
    for predicts in KINDS:
        narrow, wide = (
            simple_loss(schedule, *x[:2], t, x[2], predicts=predicts)
            for x in (arrays, arrays.astype(jnp.float32))
        )
        assert narrow.dtype == jnp.float32
        np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.min_snr(0.0), "gamma is 0.0"),
        (lambda: losses.min_snr(float("nan")), "gamma is nan"),
        (lambda: losses.p2(k=-1.0), "k is -1.0"),
        (lambda: losses.p2(gamma=-1.0), "gamma is -1.0"),
        (lambda: losses.truncated_snr(0.0), "minimum is 0.0"),
        (lambda: losses.constant("noise"), "of is 'noise'"),
    ],
)
def test_arguments_that_cannot_be(make, message, without_annotation_checks):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weighting_that_would_broadcast_is_refused():
    x, t = jnp.ones((3, 2)), jnp.arange(3)
    with pytest.raises(ValueError, match=r"weighting returned the shape \(3, 1\)"):
        losses.weighted_loss(
            schedules.linear(5),
            *(x, x, t, x),
            predicts="eps",
            weighting=lambda schedule, t: jnp.ones((3, 1)),
        )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "weighting", [losses.constant("eps"), losses.min_snr(), losses.p2()], ids=["eps", "min", "p2"]
)
def test_weights_of_eps_where_alpha_bar_underflows(weighting):
    schedule = schedules.constant(1000, 0.1)  # alpha_bar ends at e^-105
    weight = losses.error_weight(schedule, jnp.array([999]), predicts="eps", weighting=weighting)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-6)


def test_the_minimum_of_a_truncated_snr():
    schedule, t = schedules.linear_log_snr(3, 2.0, -2.0), jnp.array([0, 1, 2])
    weight = losses.truncated_snr(0.5)(schedule, t)
    np.testing.assert_allclose(weight, [np.exp(2.0), 1.0, 0.5], rtol=1e-6)
