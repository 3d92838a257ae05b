"""Counts that are none, data beyond the grid, and times in the wrong order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import likelihood, losses, processes, reverse, samplers, schedules, timesteps
from ddpm_jax.forward import q_chain
from ddpm_jax.gaussians import discretized_log_likelihood

KEY = jax.random.key(0)
COUNTED = {
    "linear": schedules.linear,
    "quadratic": schedules.quadratic,
    "constant": lambda n: schedules.constant(n, 0.1),
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "linear_log_snr": schedules.linear_log_snr,
    "shifted": lambda n: schedules.shifted(schedules.linear(10), resolution=n),
    "shifted, reference": lambda n: schedules.shifted(
        schedules.linear(10), resolution=64, reference=n
    ),
    "custom_chain": lambda n: processes.custom_chain(lambda x, eps, t: x + eps, n),
    "q_chain": lambda n: q_chain(schedules.linear(10), KEY, jnp.ones((1, 2)), n),
    "uniform": lambda n: timesteps.uniform(KEY, 4, n),
    "time_grid": lambda n: samplers.time_grid(schedules.linear(10), n),
    "spread_times": lambda n: likelihood.spread_times(10, n, 4, seed=0),
    "levels": lambda n: discretized_log_likelihood(
        jnp.zeros(1), jnp.zeros(1), jnp.ones(1), levels=n
    ),
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("count", [8.5, 8.0, True, np.float32(8), "8", None], ids=repr)
def test_a_count_is_a_whole_number(name, count, without_annotation_checks):
    with pytest.raises(TypeError, match="whole number"):
        COUNTED[name](count)


@pytest.mark.parametrize("name", COUNTED)
def test_numpys_integers_count(name, without_annotation_checks):
    COUNTED[name](np.int64(8))


@pytest.mark.parametrize("value", [1e9, 255.0, -3.0, 1.01])
def test_data_beyond_the_grid_are_refused(value):
    x = jnp.array([0.0, value])
    with pytest.raises(ValueError, match=r"grey levels lie in \[-1, 1\]"):
        discretized_log_likelihood(x, jnp.zeros(2), jnp.ones(2), levels=256)
    traced = jax.jit(lambda x: discretized_log_likelihood(x, x, jnp.ones(2), levels=256))(x)
    assert traced.shape == (2,)


CHAIN = schedules.linear(4)
EPS = {"predicts": "eps", "levels": 256}
BOUNDS = {
    "vlb_terms": lambda x: losses.vlb_terms(CHAIN, x, x, x, jnp.zeros(2, jnp.int32), **EPS),
    "elbo_loss": lambda x: losses.elbo_loss(CHAIN, x, x, x, jnp.zeros(2, jnp.int32), **EPS),
    "bits_per_dim": lambda x: likelihood.bits_per_dim(CHAIN, zero, KEY, x, **EPS),
    "estimate_bits_per_dim": lambda x: likelihood.estimate_bits_per_dim(
        CHAIN, zero, KEY, x, num_times=2, **EPS
    ),
    "bits_at_times": lambda x: likelihood.bits_at_times(
        CHAIN, zero, KEY, x, jnp.zeros((1, 2), jnp.int32), **EPS
    ),
    "flow_bits_per_dim": lambda x: likelihood.flow_bits_per_dim(
        CHAIN, zero, KEY, x, jnp.array([3, 0]), **EPS
    ),
}


def zero(x_t, t):
    return jnp.zeros_like(x_t)


@pytest.mark.parametrize("name", BOUNDS)
def test_no_bound_is_of_data_beyond_the_grid(name):
    """Grey levels that nobody scaled: some would give 1e9 bits."""
    with pytest.raises(ValueError, match=r"values of up to 255; grey levels lie in \[-1, 1\]"):
        BOUNDS[name](jnp.array([[0.0, 255.0], [0.0, 1.0]]))


def test_constants_of_a_traced_function_are_looked_at():
    x, high = jnp.zeros(2), jnp.full(2, 3.0)
    total = jax.grad(lambda m, x: discretized_log_likelihood(x, m, m + 1.0, levels=9).sum())
    assert jnp.isfinite(jax.jit(lambda m: total(m, x))(x)).all()
    with pytest.raises(ValueError, match="x has values of up to 3"):
        jax.jit(lambda m: total(m, high))(x)


def test_the_ends_of_the_grid_are_on_it():
    x = jnp.array([-1.0, 1.0, np.nextafter(np.float32(1), np.float32(2))], jnp.float32)
    assert jnp.isfinite(discretized_log_likelihood(x, x, jnp.ones(3), levels=256)).all()


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("modes", [False, True])
def test_a_variance_of_no_step_back_is_nan(variance, modes):
    fall = np.linspace(0.9, 0.1, 10)[:, None] ** np.array([1.0, 2.0])
    process = processes.spectral(fall, 1.0 - fall) if modes else schedules.linear(10)
    t, s = jnp.array([3, 3, 3, 3, 10]), jnp.array([2, -1, 3, 7, 4])
    values = reverse.fixed_variance(process, t, s, variance=variance)
    good = np.array([True, True, False, False, False])
    np.testing.assert_array_equal(np.isfinite(values).reshape(5, -1).all(axis=1), good)
    assert np.isnan(np.asarray(values)[~good]).all()
    assert np.isnan(process.transition_variance(jnp.array([3]), jnp.array([7]))).all()
