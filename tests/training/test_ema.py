"""Averages over training against their definition: sums over the whole history, in float64."""

import gc
import weakref

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate

from ddpm_jax.training import ema

STEPS = 4096


def profile(time, gamma, steps=STEPS):
    """What the average at `time` weighs each step with: equation (1) of the module, per step."""
    edges = np.minimum(np.arange(steps + 1) / time, 1.0) ** (gamma + 1.0)
    return np.diff(edges)


@pytest.fixture(scope="module")
def walk():
    """Parameters that wander about a value far from zero."""
    rng = np.random.default_rng(0)
    return 100.0 + np.cumsum(rng.normal(size=(STEPS, 64)), axis=0)


def snapshots_of(count, widths=(0.05, 0.10), steps=STEPS):
    times = np.repeat(np.arange(1, count + 1) * (steps // count), len(widths)).astype(np.float64)
    return times, np.tile([ema.gamma_of(width) for width in widths], count)


def at(times, gammas, walk):
    return [profile(time, gamma) @ walk for time, gamma in zip(times, gammas, strict=True)]


@pytest.mark.parametrize("sigma_rel", [0.002, 0.05, 0.10, 0.25, 12.0**-0.5])
def test_the_width_of_a_profile_is_its_standard_deviation(sigma_rel):
    gamma = ema.gamma_of(sigma_rel)

    def moment(power):
        # In u = tau^(gamma + 1), as steep profiles want it.
        return scipy.integrate.quad(lambda u: u ** (power / (gamma + 1.0)), 0.0, 1.0)[0]

    width = np.sqrt(moment(2) - moment(1) ** 2)
    # The variance is a difference; at a width of 0.002 it has 6 digits fewer.
    np.testing.assert_allclose(width, sigma_rel, rtol=1e-7)
    np.testing.assert_allclose(ema.sigma_rel_of(gamma), sigma_rel, rtol=1e-13)


def test_the_exponents_of_the_paper():
    # Section 3.1: sigma_rel 0.05 and 0.10 are gamma of about 16.97 and 6.94.
    np.testing.assert_allclose(ema.gamma_of(0.05), 16.97, atol=0.005)
    np.testing.assert_allclose(ema.gamma_of(0.10), 6.94, atol=0.005)


@pytest.mark.parametrize("step", [0, 1, 2, 999, 10**6, 2**24 - 1])
@pytest.mark.parametrize("sigma_rel", [0.01, 0.10, 0.25])
def test_the_decay_of_a_power_function(step, sigma_rel):
    gamma = ema.gamma_of(sigma_rel)
    with mpmath.workdps(50):
        exact = (1 - 1 / mpmath.mpf(step + 1)) ** (mpmath.mpf(gamma) + 1)
    decay = ema.power_decay_at(jnp.int32(step), gamma)
    assert decay.dtype == jnp.float32
    np.testing.assert_allclose(decay, float(exact), rtol=4e-7, atol=1e-15)


def test_averages_step_by_step_are_their_profile(walk):
    steps = 2000
    history = jnp.asarray(walk[:steps], jnp.float32)
    gammas = [ema.gamma_of(width) for width in (0.05, 0.10, 0.25)]

    @jax.jit
    def run(history):
        def one(averages, step_and_params):
            step, params = step_and_params
            decays = [ema.power_decay_at(step, gamma) for gamma in gammas]
            return [ema.update(a, params, d) for a, d in zip(averages, decays, strict=True)], None

        start = [jnp.full_like(history[0], 1e6) for _ in gammas]
        return jax.lax.scan(one, start, (jnp.arange(steps), history))[0]

    for average, gamma in zip(run(history), gammas, strict=True):
        exact = profile(steps, gamma, steps) @ walk[:steps]
        # 2,000 roundings of numbers of the order of 100.
        np.testing.assert_allclose(average, exact, atol=2e-3)


def test_a_constant_decay_step_by_step():
    params = np.random.default_rng(1).normal(size=50)
    average = expected = 5.0
    for step, value in enumerate(params):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        average = ema.update(
            jnp.float32(average), jnp.float32(value), ema.decay_at(jnp.int32(step), 0.9)
        )
    np.testing.assert_allclose(average, expected, rtol=1e-5)


def error_of(count, sigma_rel, time, walk):
    """RMS error of a reconstruction, in units of how far the average is from the parameters."""
    times, gammas = snapshots_of(count)
    gamma = ema.gamma_of(sigma_rel)
    weights = ema.post_hoc_weights(times, gammas, time=float(time), gamma=gamma)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    found = weights @ np.array(at(times, gammas, walk))
    exact = profile(time, gamma) @ walk
    spread = np.sqrt(np.mean((walk[time - 1] - exact) ** 2))
    return np.sqrt(np.mean((found - exact) ** 2)) / spread


@pytest.mark.parametrize(
    ("sigma_rel", "bounds"),
    [
        # Error with 4, 8, 16, 32 and 64 times of two snapshots each, sigma_rel 0.05 and 0.10.
        (0.03, (3e-1, 1.3e-1, 2e-2, 3e-3, 4e-4)),
        (0.08, (2.5e-2, 4e-3, 5e-4, 6e-5, 6e-6)),
        (0.15, (4e-2, 6e-3, 8e-4, 1e-4, 1e-5)),
        (0.25, (1.5e-1, 6e-2, 2.5e-2, 8e-3, 3e-3)),
    ],
)
def test_reconstruction_errs_less_with_more_snapshots(walk, sigma_rel, bounds):
    errors = [error_of(count, sigma_rel, STEPS, walk) for count in (4, 8, 16, 32, 64)]
    assert (np.diff(errors) < 0).all()
    assert (np.array(errors) < bounds).all(), errors


def test_reconstruction_of_an_earlier_time(walk):
    for time in (STEPS // 2, STEPS - 100, 1000):
        assert error_of(64, 0.10, time, walk) < 2e-2


@pytest.mark.parametrize("index", [0, 5, 31])
def test_what_is_stored_is_reconstructed_exactly(index):
    times, gammas = snapshots_of(16)
    weights = ema.post_hoc_weights(times, gammas, time=times[index], gamma=gammas[index])
    np.testing.assert_allclose(weights, np.arange(32) == index, atol=1e-9)
    # Stored twice, each has a half of it.
    twice = ema.post_hoc_weights(
        np.tile(times, 2), np.tile(gammas, 2), time=times[index], gamma=gammas[index]
    )
    np.testing.assert_allclose(twice, np.tile(np.arange(32) == index, 2) / 2, atol=1e-6)


def test_weights_are_the_least_squares_of_the_profiles():
    """By quadrature on a grid, the sum held at one by elimination: no inner product is used."""
    times, gammas = snapshots_of(4, steps=64)
    edges = np.linspace(0.0, 64.0, 2**14 + 1)
    tau = (edges[1:] + edges[:-1]) / 2

    def density(time, gamma):
        return np.where(tau <= time, (gamma + 1) / time * np.minimum(tau / time, 1.0) ** gamma, 0.0)

    stored = np.array([density(t, g) for t, g in zip(times, gammas, strict=True)])
    wanted = density(60.0, 9.0)
    rest, *_ = np.linalg.lstsq((stored[1:] - stored[0]).T, wanted - stored[0])
    expected = np.concatenate([[1.0 - rest.sum()], rest])
    weights = ema.post_hoc_weights(times, gammas, time=60.0, gamma=9.0)
    np.testing.assert_allclose(weights, expected, atol=1e-4)


@pytest.mark.parametrize("count", [64, 256])
def test_many_snapshots_are_not_too_many(count):
    """Neighbours differ little; weights that cancelled would multiply the snapshots' rounding."""
    times, gammas = snapshots_of(count)
    for sigma_rel in (0.03, 0.07, 0.20):
        gamma = ema.gamma_of(sigma_rel)
        weights = ema.post_hoc_weights(times, gammas, time=float(STEPS), gamma=gamma)
        assert np.isfinite(weights).all()
        assert np.abs(weights).sum() < 20.0


def test_reconstruction_holds_two_trees_and_no_more():
    alive = []

    def reading(count):
        for index in range(count):
            gc.collect()
            assert sum(reference() is not None for reference in alive) == 0
            leaf = np.full(3, index + 1.0, np.float32)
            alive.append(weakref.ref(leaf))
            tree = {"a": {"kernel": leaf}, "b": jnp.ones((), jnp.float32)}
            del leaf
            yield tree
            del tree

    weights = np.array([0.5, -1.0, 1.5])
    found = ema.reconstruct(reading(3), weights)
    np.testing.assert_allclose(found["a"]["kernel"], 0.5 - 2.0 + 4.5)
    np.testing.assert_allclose(found["b"], 1.0)
    assert found["b"].dtype == jnp.float32
    alive.clear()
    with pytest.raises(ValueError, match="there are 2 snapshots; there have to be 3"):
        ema.reconstruct(reading(2), weights)
    alive.clear()
    with pytest.raises(ValueError, match="more snapshots than the 3 weights"):
        ema.reconstruct(reading(4), weights)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ema.gamma_of(0.0), r"sigma_rel is 0.0; it has to be in \(0, 0.2887\]"),
        (lambda: ema.gamma_of(0.3), "sigma_rel is 0.3"),
        (lambda: ema.gamma_of(float("nan")), "sigma_rel is nan"),
        (lambda: ema.sigma_rel_of(-0.5), "gamma is -0.5"),
        (lambda: weights_of([], []), r"times has shape \(0,\)"),
        (lambda: weights_of([1.0, 2.0], [3.0]), r"gammas \(1,\)"),
        (lambda: weights_of([0.0, 2.0], [3.0, 3.0]), "times has 0.0"),
        (lambda: weights_of([1.0, 2.0], [3.0, -1.0]), "gamma is"),
        (lambda: weights_of([1.0, 2.0], [3.0, 3.0], time=3.0), r"time is 3.0; .* \[1, 2\]"),
        (lambda: weights_of([1.0, 2.0], [3.0, 3.0], gamma=np.inf), "gamma is"),
    ],
)
@pytest.mark.usefixtures("without_annotation_checks")
def test_what_cannot_be_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def weights_of(times, gammas, time=1.0, gamma=1.0):
    return ema.post_hoc_weights(np.array(times), np.array(gammas), time=time, gamma=gamma)
