"""The variance of p, and which networks a schedule can have."""

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import build, chain, float64, ulps

from ddpm_jax import reverse, schedules

PAIRS = [(1, 0), (2, 1), (500, 499), (999, 998), (999, 500), (20, 3), (999, 0)]
NAMES = ("linear", "cosine", "linear_log_snr", "zero_terminal_snr", "respaced")


@pytest.mark.parametrize("name", NAMES)
def test_fixed_variances(name):
    schedule, tables = build(name, 1000), chain(name, 1000)
    t, s = jnp.array(PAIRS).T
    small = reverse.fixed_variance(schedule, t, s, variance="small")
    assert ulps(small, [tables.posterior(*pair)[2] for pair in PAIRS]).max() < 8
    large = reverse.fixed_variance(schedule, t, s, variance="large")
    assert ulps(large, [1 - tables.alpha_bar[t] / tables.alpha_bar[s] for t, s in PAIRS]).max() < 4
    neighbours = [i for i, (t, s) in enumerate(PAIRS) if s == t - 1]
    betas = [tables.betas[PAIRS[i][0]] for i in neighbours]
    assert ulps(np.asarray(large)[neighbours], betas).max() < 4


def test_fixed_variances_of_the_step_onto_the_data():
    schedule, t, s = schedules.linear(10), jnp.array([0, 9]), jnp.array([-1, -1])
    np.testing.assert_array_equal(reverse.fixed_variance(schedule, t, s, variance="small"), 0.0)
    large = reverse.fixed_variance(schedule, t, s, variance="large")
    assert ulps(large, [chain("linear", 10).noise_power[i] for i in (0, 9)]).max() < 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("u", [-0.5, 0.0, 0.25, 1.0, 2.0])
def test_the_learned_range_lies_between_in_the_logarithm(name, u):
    schedule, tables = build(name, 1000), chain(name, 1000)
    pairs = [*PAIRS, (0, -1)]
    t, s = jnp.array(pairs).T
    log_variance = reverse.learned_log_variance(schedule, jnp.full((len(pairs), 2), u), t, s)
    expected = []
    for late, early in pairs:
        large = 1 - tables.alpha_bar[late] / (tables.alpha_bar[early] if early >= 0 else 1)
        small = tables.posterior(late, early)[2] if early >= 0 else tables.posterior(1, 0)[2]
        expected.append(u * mp.log(large) + (1 - u) * mp.log(small))
    np.testing.assert_allclose(log_variance[:, 0], float64(expected), rtol=1e-6, atol=5e-7)
    np.testing.assert_array_equal(log_variance[:, 0], log_variance[:, 1])


def test_the_learned_range_of_bfloat16_is_float32():
    log_variance = reverse.learned_log_variance(
        schedules.linear(10), jnp.zeros((1, 2), jnp.bfloat16), jnp.array([3]), jnp.array([2])
    )
    assert log_variance.dtype == jnp.float32


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_eps_is_refused_where_no_signal_is_left(predicts):
    reverse.check_predicts(schedules.linear(10), predicts)
    schedule = schedules.zero_terminal_snr(schedules.linear(10))
    if predicts == "eps":
        with pytest.raises(
            ValueError, match="predicts is 'eps', and the schedule leaves no signal"
        ):
            reverse.check_predicts(schedule, predicts)
    else:
        reverse.check_predicts(schedule, predicts)


def test_unknown_names(without_annotation_checks):
    with pytest.raises(ValueError, match="variance is 'medium'; it is one of 'small', 'large'"):
        reverse.fixed_variance(
            schedules.linear(10), jnp.array([1]), jnp.array([0]), variance="medium"
        )
    with pytest.raises(ValueError, match="predicts is 'noise'; it is one of 'eps', 'x0', 'v'"):
        reverse.check_predicts(schedules.linear(10), "noise")
