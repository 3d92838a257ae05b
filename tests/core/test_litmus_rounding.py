"""The litmus test on steps that round to narrow types, jump, or have no finite slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.scipy.special import ndtr
from zoo import ADD, KEEP, noisy, vp

from ddpm_jax.litmus import litmus, moments, program

NARROW = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")


def verdict(step, shape=(8,), *, exact_up_to=64):
    return litmus(step, shape, 4, jax.random.key(0), num_chains=64, exact_up_to=exact_up_to)


def rounded(x, name):
    return x.astype(getattr(jnp, name)).astype(x.dtype)


def in_a_loop(x, name):
    return jax.lax.scan(lambda y, _: (rounded(y, name), None), x, None, length=2)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("exact_up_to", [0, 64])
def test_rounded_noise_is_not_gaussian(name, exact_up_to):
    found = verdict(noisy(lambda eps: rounded(eps, name)), exact_up_to=exact_up_to)
    assert found.row == "loop"
    assert f"rounded to {name}" in found.evidence.reason


@pytest.mark.thorough
@pytest.mark.parametrize("name", NARROW)
def test_a_rounded_state_is_not_linear(name):
    found = verdict(lambda x, eps, t: vp(rounded(x, name), eps, t))
    assert found.row == "loop"
    assert f"rounds to {name}" in found.evidence.reason


@pytest.mark.thorough
@pytest.mark.parametrize(
    "step",
    [
        noisy(lambda eps: in_a_loop(eps, "bfloat16")),
        noisy(lambda eps: jax.lax.reduce_precision(eps, 5, 10)),
        noisy(lambda eps: jax.lax.cond(eps[0] > 9.0, lambda: eps, lambda: rounded(eps, "float16"))),
        noisy(lambda eps: eps + 1e-3 * rounded(eps, "float8_e4m3fn")),
        lambda x, eps, t: x + 1e-4 * rounded(eps, "bfloat16"),
        lambda x, eps, t: rounded(vp(x, eps, t), "bfloat16"),
    ],
    ids=["scan", "reduce_precision", "cond", "a part", "beside a large x", "the result"],
)
def test_rounding_is_seen_wherever_it_is(step):
    assert verdict(step).row == "loop"


def test_rounding_below_the_resolution_is_noted():
    found = verdict(noisy(lambda eps: eps + 1e-5 * rounded(eps, "float8_e5m2")))
    assert found.row == "isotropic"
    assert "rounds to float8_e5m2, by less than" in found.evidence.note


def test_a_narrow_table_is_no_rounding():
    keep, add = KEEP.astype(jnp.bfloat16), ADD.astype(jnp.bfloat16)
    found = verdict(
        lambda x, eps, t: keep[t].astype(jnp.float32) * x + add[t].astype(jnp.float32) * eps
    )
    assert found.row == "isotropic"
    assert not found.evidence.note


def test_a_product_in_bfloat16_proves_nothing():
    def product(precision):
        step = lambda x, eps, t: x + jnp.dot(jnp.eye(8), eps, precision=precision)  # noqa: E731
        return jax.make_jaxpr(step)(jnp.zeros(8), jnp.zeros(8), jnp.int32(0))

    assert program.is_affine(product("highest"))
    assert not program.is_affine(product("bfloat16"))


def test_the_moments_of_rounded_noise():
    # In float8_e4m3fn by brute force: over a grid in probability, 2^20 normal quantiles.
    found = verdict(noisy(lambda eps: rounded(eps, "float8_e4m3fn")))
    eps = scipy.stats.norm.ppf((np.arange(2**20) + 0.5) / 2**20).astype(np.float32)
    expected = np.var(np.asarray(rounded(jnp.asarray(eps), "float8_e4m3fn"), np.float64))
    t = jnp.array([0])
    actual = found.evidence.same_moments.noise_variance(t).ravel() / ADD[0] ** 2
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (noisy(lambda eps: jnp.sign(eps) * jnp.sqrt(jnp.abs(eps))), "noise of an unknown law"),
        (
            lambda x, eps, t: vp(jnp.sign(x) * jnp.sqrt(jnp.square(x)), eps, t),
            "the slope of f(x, 0) in x is not finite at t = 0",
        ),
        (lambda x, eps, t: vp(x, 1.0 / eps, t), "f(0, 0) is not finite at t = 0"),
        (lambda x, eps, t: vp(rounded(x, "float8_e4m3fn"), eps, t), "f(x, 0) is not finite"),
        (
            lambda x, eps, t: 0.5 * jnp.roll(x, 1) + jnp.tan(jnp.pi * (ndtr(eps) - 0.5)),
            "Cauchy noise whose elements x_t mixes",
        ),
        (lambda x, eps, t: jnp.square(eps) - KEEP[t] * x, "a factor on x that is not above 0"),
        (
            lambda x, eps, t: KEEP[t] * x + jnp.where(t == 2, 0.0, ADD[t]) * jnp.sign(eps),
            "noise of an unknown law",
        ),
    ],
    ids=["slope in eps", "slope in x", "origin", "large x", "mixed", "negative", "no noise once"],
)
def test_reasons_are_true(step, reason):
    found = verdict(step)
    assert found.row == "loop"
    assert reason in found.evidence.reason


def test_a_slope_that_is_not_finite_hides_no_normal_noise():
    # |eps| sign(eps) is eps, and the slope of its root at 0 is none.
    found = verdict(noisy(lambda eps: jnp.sign(eps) * jnp.sqrt(jnp.square(eps))))
    assert found.row == "isotropic"


def window(low, width, height, other):
    """`height` in a window, `other` elsewhere; the probability of the window."""
    share = scipy.stats.norm.cdf(low + width) - scipy.stats.norm.cdf(low)
    return lambda eps: np.where((eps >= low) & (eps < low + width), height, other(eps)), share


def moments_of(h):
    others = np.concatenate([scipy.stats.norm.ppf((np.arange(16384) + 0.5) / 16384)])
    others = np.concatenate([others, moments.AROUND_0])
    column = lambda levels: h(levels.astype(np.float32))[:, None]  # noqa: E731
    return moments.moments(column, column(moments.cells()), others, column(others))


@pytest.mark.parametrize("at", [0.0, 0.5, 0.123, 1.0, -2.0])
def test_a_jump_anywhere(at):
    share = scipy.stats.norm.sf(at)
    found = moments_of(lambda eps: np.where(eps >= at, 1.0, -1.0))
    np.testing.assert_allclose(found.mean, 2.0 * share - 1.0, atol=1e-5)
    np.testing.assert_allclose(found.variance, 4.0 * share * (1.0 - share), rtol=2e-5)


@pytest.mark.parametrize("at", [0.0, 0.7])
@pytest.mark.parametrize("width", [1e-3, 1e-2])
def test_a_narrow_peak_anywhere(at, width):
    h, share = window(at, width, 30.0, np.zeros_like)
    found = moments_of(h)
    np.testing.assert_allclose(found.mean, 30.0 * share, rtol=2e-3)
    np.testing.assert_allclose(found.variance, 900.0 * share * (1.0 - share), rtol=2e-3)


def test_what_h_is_at_one_point_has_no_probability():
    found = moments_of(lambda eps: np.where(np.isin(eps, [-1.0, 0.0, 0.5, 1.0]), 1e6, eps))
    np.testing.assert_allclose([found.mean, found.variance - 1.0], 0.0, atol=1e-6)


@pytest.mark.thorough
def test_a_peak_too_narrow_to_measure_leaves_the_moments_unknown():
    assert np.isnan(moments_of(lambda eps: np.where(np.abs(eps) < 1e-7, 1e6, eps)).variance)
    found = verdict(noisy(lambda eps: jnp.where(jnp.abs(eps) < 1e-7, 1e6, eps)))
    assert found.row == "loop"
    assert found.evidence.same_moments is None
    assert "are not known" in found.evidence.note


@pytest.mark.thorough
def test_one_element_of_many_that_differs_leaves_the_moments_unknown():
    found = verdict(lambda x, eps, t: vp(x, jnp.sign(eps).at[0].mul(2.0), t), (100,))
    assert found.evidence.same_moments is None
