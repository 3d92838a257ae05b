"""What is no process is refused by name and place; what only looks so is one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_modes import SHAPE, build

from ddpm_jax import bases, kl_weight, losses, processes, q_sample, reverse, samplers, schedules
from ddpm_jax.forward import q_posterior_variance

X0 = jnp.ones((3, 6))
FALL = np.linspace(0.9, 0.1, 9)
UNEVEN = np.array([1.0, 0.5, 0.4, 0.3])
RISING = np.tile(FALL[:, None], (1, 3))
RISING[5, 1] = RISING[4, 1] * 1.01


@pytest.mark.parametrize(
    ("signal", "noise", "options", "message"),
    [
        (RISING, 1 - RISING, {}, r"rises from t = 4 to 5 in mode \(1,\), by a factor of 1.0"),
        (
            FALL[:, None] * [1, 0],
            FALL,
            {},
            r"signal_variance has shape \(9, 2\) and noise_variance",
        ),
        (
            FALL[:, None] * [1, 0],
            np.ones((9, 2)),
            {},
            r"mode\) = \(0, 1\) is 0; it has to be above",
        ),
        (
            FALL[:, None],
            0 * FALL[:, None],
            {},
            r"noise_variance at .* = \(0, 0\) is 0; .* no density",
        ),
        (-FALL[:, None], FALL[:, None], {}, "signal_variance is empty, negative or NaN"),
        (FALL[:, None], FALL[:, None] * np.nan, {}, "noise_variance is empty, negative or NaN"),
        (FALL[:, None], FALL[::-1, None] * np.inf, {}, "noise_variance at .* is inf"),
        (FALL[:, None], np.full((9, 1), 1e-39), {}, "noise_variance at .* is 1e-39; .* float32"),
        (FALL[:, None], np.full((9, 1), 1e39), {}, r"noise_variance at .* is 1e\+39; .* float32"),
        (1e39 * FALL[:, None], np.ones((9, 1)), {}, "signal_variance at .* float32"),
        (np.array(0.5), np.array(0.5), {}, r"signal_variance has shape \(\)"),
        (
            FALL[:, None],
            1 - FALL,
            {},
            r"signal_variance has shape \(9, 1\) and noise_variance \(9,\)",
        ),
        (FALL[:, None], 1 - FALL[1:, None], {}, r"\(9, 1\) and noise_variance \(8, 1\); both are"),
        (np.ones((9, 3)), np.ones((9, 2)), {}, r"\(9, 3\) and noise_variance \(9, 2\); both are"),
        (FALL[:1, None], 1 - FALL[:1, None], {}, "num_steps is 1"),
        (FALL[:, None], 1 - FALL[:, None], {"basis": bases.dct()}, "modes .* the dct basis needs"),
        (
            FALL[:, None],
            np.ones((9, 1)) * UNEVEN,
            {"basis": bases.fourier((0,))},
            "noise_variance is not even",
        ),
        (FALL[:, None], 1 - FALL[:, None], {"prior_variance": np.zeros(1)}, "prior_variance is 0"),
        (FALL[:, None], 1 - FALL[:, None], {"prior_variance": [1, 1]}, r"prior_variance has shape"),
    ],
)
def test_tables_that_are_no_chain(signal, noise, options, message):
    with pytest.raises(ValueError, match=message):
        processes.spectral(signal, noise, **options)


def test_flat_tables_are_a_chain():
    # SNR that stays, as a mode that has been blurred away does, adds nothing and loses nothing.
    flat_tables = np.stack([FALL, np.full(9, 0.5)], axis=1)
    process = processes.spectral(flat_tables, 1 - flat_tables)
    t = jnp.arange(1, 9, dtype=jnp.int32)
    assert np.all(process.beta(t)[:, 1] == 0.0)
    assert np.all(kl_weight(process, t, predicts="x0")[:, 1] == 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
def test_a_step_on_which_snr_stays_costs_nothing(variance):
    # The second mode stays on every step: its terms are 0, and so are their gradients.
    t = jnp.arange(1, 9, dtype=jnp.int32)
    x0, x_t, wrong = (jax.random.normal(jax.random.key(i), (8, 2)) for i in range(3))

    def nats(log_snr, prediction, u):
        process = processes.per_pixel(
            lambda _: jnp.repeat(log_snr[None], 8, axis=0), condition=jnp.zeros((8, 1))
        )
        learned = {"interpolation": u} if variance == "learned_range" else {}
        return losses.vlb_terms(
            process,
            *(prediction, x0[:, : u.shape[1]], x_t[:, : u.shape[1]], t),
            **learned,
            predicts="x0",
            levels=None,
            variance=variance,
        ).sum()

    log_snr = jnp.stack([jnp.linspace(3.0, -3.0, 9), jnp.full(9, 0.5)], axis=1)
    u = jnp.zeros((8, 2))
    both, of_both = jax.value_and_grad(nats, argnums=(0, 1, 2))(log_snr, wrong, u)
    one, of_one = jax.value_and_grad(nats, argnums=(0, 1, 2))(
        log_snr[:, :1], wrong[:, :1], u[:, :1]
    )
    np.testing.assert_allclose(both, one, rtol=1e-6)
    for found, expected in zip(of_both, of_one, strict=True):
        np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
        assert np.isfinite(found).all()


SINGULAR = np.diag([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"covariance": SINGULAR},
            "covariance is singular: its least eigenvalue is 0 beside .* 1,",
        ),
        ({"covariance": np.diag([1.0, -0.1])}, "eigenvalue -0.1; a covariance has none"),
        ({"covariance": [[1.0, 0.5], [0.4, 1.0]]}, r"not symmetric: \[0, 1\] is 0.5, \[1, 0\] 0.4"),
        ({"covariance": np.ones((2, 3))}, r"covariance has shape \(2, 3\); it has to be \(d, d\)"),
        ({"covariance": np.full((2, 2), np.nan)}, "covariance is not finite"),
        ({"covariance": np.eye(6), "shape": (2, 2)}, r"shape is \(2, 2\); .* the 6 modes"),
        ({"covariance": np.eye(2), "basis": bases.identity()}, "basis is given; it goes with spec"),
        ({}, "covariance and spectrum: one of the two has to be given"),
        ({"covariance": np.eye(2), "spectrum": np.ones(2)}, "one of the two has to be given"),
        ({"spectrum": np.ones(2)}, "basis is missing"),
        ({"spectrum": UNEVEN, "basis": bases.fourier((0,))}, "spectrum is not even"),
        ({"spectrum": [], "basis": bases.identity()}, "spectrum is empty"),
        ({"spectrum": [1.0, -1.0], "basis": bases.identity()}, "spectrum is empty, negative"),
        ({"spectrum": [1.0, 0.0], "basis": bases.identity()}, "floor=1e-4 gives such"),
        ({"spectrum": [0.0, 0.0], "basis": bases.identity(), "floor": 0.1}, "covariance is 0"),
        ({"spectrum": [1.0, 1.0], "basis": bases.dct()}, r"modes \(2,\); the dct basis needs"),
        ({"spectrum": [1.0], "basis": bases.identity(), "shape": (1,)}, "it goes with covariance"),
        ({"covariance": np.eye(2), "floor": 0.0}, r"floor is 0.0; it has to be in \(0, 1\]"),
    ],
)
def test_covariances_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        processes.correlated(schedules.cosine(9), **options)


def test_a_floor_gives_noise_to_modes_that_have_none():
    process = processes.correlated(schedules.cosine(9), SINGULAR, floor=0.01)
    prior = np.sort(process.prior(1)[0][0])
    np.testing.assert_allclose(prior, [0.01, 0.5, 1.0], rtol=1e-6)
    assert np.isfinite(kl_weight(process, jnp.array([1]), predicts="x0")).all()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4,), {}, r"shape is \(4,\); it has to be that of an image"),
        ((4, 0, 1), {}, r"shape is \(4, 0, 1\)"),
        (SHAPE, {"max_blur": -1.0}, "max_blur is -1.0"),
        (SHAPE, {"max_blur": math.inf}, "max_blur is inf"),
        (SHAPE, {"min_scale": 0.0}, r"min_scale is 0.0; it has to be in \(0, 1\]"),
    ],
)
def test_blurs_that_cannot_be(shape, options, message):
    with pytest.raises(ValueError, match=message):
        processes.blurring(schedules.cosine(9), shape, **options)


def test_what_is_no_schedule(without_annotation_checks):
    for make in (
        lambda wrong: processes.blurring(wrong, SHAPE),
        lambda wrong: processes.correlated(wrong, np.eye(2)),
        processes.isotropic,
        lambda wrong: processes.gamma(wrong, 0.1),
    ):
        with pytest.raises(TypeError, match=r"schedule is a .*; it has to be a Schedule"):
            make(build("blurring"))
    with pytest.raises(TypeError, match="process is a int; it has to be a schedule or another"):
        q_sample(3, X0, jnp.zeros(3, jnp.int32), X0)


def test_a_chain_without_modes_has_no_variances_and_no_samplers(without_annotation_checks):
    def network(x_t, t):
        return x_t

    chain = processes.custom_chain(lambda x_prev, eps, t: x_prev + eps, 8)
    t, s = jnp.array([3, 4]), jnp.array([1, 1])
    sampler = samplers.ddim(build("blurring"), network, predicts="v")
    for ask in (
        lambda: q_posterior_variance(chain, t, s),
        lambda: reverse.fixed_variance(chain, t, s, variance="large"),
        lambda: reverse.learned_log_variance(chain, X0[:2], t, s),
        lambda: samplers.time_grid(chain, 4, "log_snr"),
        lambda: samplers.inpaint(sampler, chain, X0, X0 > 0.0),
    ):
        with pytest.raises(processes.NoClosedForm, match="process is a CustomChain, which has no"):
            ask()
