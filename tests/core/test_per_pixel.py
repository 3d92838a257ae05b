"""Processes with a schedule for each pixel, fixed or a function of each example's condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused import kl_weight, q_posterior, q_sample, q_step, vlb_terms

from ddpm_jax import bits_per_dim, processes


def gamma(c):
    """A log SNR that falls however c is, for pixels `[6]` and 8 times."""
    u = jnp.linspace(0.0, 1.0, 8)[None, :, None]
    return 5.0 - 11.0 * (jax.nn.softplus(c)[:, None] * u + u**2) / 2.0


CONDITIONS = jnp.asarray(np.random.default_rng(6).normal(size=(3, 6)), jnp.float32)
X0 = jax.random.normal(jax.random.key(1), (3, 6))


def conditioned(c):
    return processes.per_pixel(gamma, variance=lambda c: 0.5 + jax.nn.sigmoid(c), condition=c)


def linear_network(x_t, t):
    return 0.4 * x_t


def bits(c, x0, **options):
    return bits_per_dim(
        conditioned(c),
        linear_network,
        jax.random.key(0),
        x0,
        predicts="v",
        levels=None,
        **options,
    ).total


@pytest.mark.thorough
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_in_chunks_each_example_keeps_its_own_tables(chunk):
    together = jax.jit(lambda c, x0: bits(c, x0, chunk=chunk))(CONDITIONS, X0)
    np.testing.assert_allclose(together, jax.jit(bits)(CONDITIONS, X0), rtol=1e-5)
    t = jnp.full(3, 5)
    loss = vlb_terms(
        conditioned(CONDITIONS), linear_network(X0, t), X0, X0, t, predicts="v", levels=None
    )
    for i in range(3):
        alone = vlb_terms(
            conditioned(CONDITIONS[i : i + 1]),
            linear_network(X0[i : i + 1], t[:1]),
            *(X0[i : i + 1], X0[i : i + 1], t[:1]),
            predicts="v",
            levels=None,
        )
        np.testing.assert_allclose(loss[i : i + 1], alone, rtol=1e-6)


def test_rows_of_one_example_are_neighbours():
    process, t = conditioned(CONDITIONS), jnp.array([0, 5, 3, 7, 1, 2])
    rows = process.noise_variance(t)
    for i, row in enumerate(rows):
        alone = conditioned(CONDITIONS[i // 2 : i // 2 + 1]).noise_variance(t[i : i + 1])
        np.testing.assert_allclose(row, alone[0], rtol=1e-6)
    for count in (1, 2, 4):
        said = rf"batch has {count} rows, .* 3 examples"
        with pytest.raises(ValueError, match=said):
            process.signal(t[:count])
        with pytest.raises(ValueError, match=said):
            process.prior(count)


@pytest.mark.thorough
def test_gradients_reach_what_made_the_tables():
    # Central differences along one direction, through jit: q, the posterior, the ELBO.
    key, t = jax.random.key(2), jnp.array([0, 3, 7])
    eps = jax.random.normal(key, X0.shape)

    def losses_of(c):
        process = conditioned(c)
        x_t = q_sample(process, X0, t, eps)
        mean, variance = q_posterior(process, X0, x_t, t, t - 1)
        return jnp.mean(bits(c, X0)) + jnp.mean(x_t**2) + jnp.mean(mean**2) + jnp.mean(variance)

    value_and_grad = jax.jit(jax.value_and_grad(losses_of))
    slope = value_and_grad(CONDITIONS)[1]
    direction, step = jnp.cos(jnp.arange(18.0)).reshape(3, 6), 5e-3
    ahead, behind = (value_and_grad(CONDITIONS + sign * step * direction)[0] for sign in (1, -1))
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(jnp.vdot(slope, direction), (ahead - behind) / (2 * step), rtol=2e-2)


@pytest.mark.thorough
def test_conditions_may_be_mapped_over():
    stacked = jnp.stack([CONDITIONS, CONDITIONS + 0.3])
    mapped = jax.jit(jax.vmap(bits, in_axes=(0, None)))(stacked, X0)
    for found, c in zip(mapped, stacked, strict=True):
        np.testing.assert_allclose(found, bits(c, X0), rtol=1e-5)


def test_a_log_snr_that_rises_where_it_is_traced_gives_nan():
    def rising(c):
        return gamma(c).at[:, 5].add(9.0)

    def sampled(c):
        process = processes.per_pixel(rising, condition=c)
        return q_step(process, X0, jnp.array([3, 5, 7]), X0)

    assert np.isnan(jax.jit(sampled)(CONDITIONS)).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="rises from t = 4 to 5 in mode"):
        sampled(CONDITIONS)


@pytest.mark.thorough
def test_a_network_that_speaks_in_bfloat16_has_float32_tables():
    process = processes.per_pixel(lambda c: gamma(c).astype(jnp.bfloat16), condition=CONDITIONS)
    assert process.log_signal_variance.dtype == process.log_noise_variance.dtype == jnp.float32
    assert np.isfinite(kl_weight(process, jnp.array([1, 2, 7]), predicts="v")).all()


# What cannot be.

LOG_SNR = np.linspace(5.0, -5.0, 9)[:, None] * np.ones(3)


@pytest.mark.parametrize(
    ("log_snr", "options", "message"),
    [
        (lambda c: c, {}, "condition is missing; log_snr is a function of it"),
        (LOG_SNR, {"variance": lambda c: c}, "condition is missing; variance is a function of it"),
        (LOG_SNR, {"condition": X0}, "condition is given, and neither log_snr nor variance"),
        (LOG_SNR[:, 0], {}, r"log_snr has shape \(9,\); it has to be \[T, \*data\]"),
        (LOG_SNR * np.nan, {}, "log_snr is NaN"),
        (LOG_SNR[::-1], {}, r"rises from t = 0 to 1 in mode \(0,\)"),
        (LOG_SNR, {"variance": np.ones((1, 3))}, r"variance has shape \(1, 3\); .* \[\*data\]"),
        (LOG_SNR, {"variance": np.ones(2)}, r"variance has the shape \(2,\), and .* \(3,\)"),
        (LOG_SNR, {"variance": -1.0}, "variance is not above 0"),
        (lambda c: c, {"condition": X0}, r"log_snr returned the shape \(3, 6\)"),
        (
            lambda c: gamma(c)[:2],
            {"condition": X0},
            r"log_snr returned the shape \(2, 8, 6\); it has to return \(3, T, \*data\)",
        ),
        (
            gamma,
            {"condition": X0, "variance": lambda c: c[0]},
            r"variance returned the shape \(6,\)",
        ),
        (gamma, {"condition": X0, "variance": np.ones(4)}, r"variance has the shape \(4,\)"),
        (
            LOG_SNR,
            {"condition": X0, "variance": lambda c: c[:, :2] ** 2},
            r"shape \(2,\), and .*\(3,\)",
        ),
    ],
)
def test_conditions_that_cannot_be(log_snr, options, message):
    with pytest.raises(ValueError, match=message):
        processes.per_pixel(log_snr, **options)


@pytest.mark.thorough
def test_a_fixed_part_beside_a_conditioned_one():
    spread = np.linspace(0.5, 1.5, 6)
    process = processes.per_pixel(gamma, variance=spread, condition=CONDITIONS)
    np.testing.assert_allclose(process.prior(3)[0], np.tile(spread, (3, 1)), rtol=1e-6)


def test_data_that_have_other_modes_are_refused():
    process = processes.per_pixel(LOG_SNR)
    for shape in ((2, 3, 4), (2, 1), (2, 4)):
        x0 = jnp.ones(shape)
        with pytest.raises(ValueError, match=r"the data have shape .* the modes \(3,\)"):
            q_sample(process, x0, jnp.array([0, 1]), x0)
