"""Dense chains against the recursion in float64, 50 digits, conditioning, and brute force."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact_affine import (
    PAIRS,
    SHAPE,
    STEPS,
    D,
    T,
    between,
    chain_of,
    conditioned,
    flat,
    images,
    random_steps,
    symmetric_root,
    times,
)

from ddpm_jax import forward, schedules
from ddpm_jax.processes import affine_chain

both_chains = pytest.mark.parametrize("name", STEPS)


@both_chains
def test_marginals_and_transitions_are_those_of_the_recursion(name):
    chain, steps = chain_of(name), STEPS[name]
    found = jax.jit(type(chain).transition)(chain, *times(PAIRS))
    for i, (t, s) in enumerate(PAIRS):
        for part, expected in zip(found, between(steps, t, s), strict=True):
            np.testing.assert_allclose(part[i], expected, rtol=1e-5, atol=3e-6)
    found = chain.marginal(jnp.arange(-1, T))
    for t in range(-1, T):
        for part, expected in zip(found, between(steps, t, -1), strict=True):
            np.testing.assert_allclose(part[t + 1], expected, rtol=1e-5, atol=3e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("num_steps", [1, 2, 8, 9])
def test_any_number_of_steps(num_steps):
    steps = random_steps(False, T=num_steps)
    pairs = [(t, s) for t, s in PAIRS if t < num_steps]
    found = affine_chain(*steps).transition(*times(pairs))
    for i, (t, s) in enumerate(pairs):
        for part, expected in zip(found, between(steps, t, s), strict=True):
            np.testing.assert_allclose(part[i], expected, rtol=1e-5, atol=3e-6)


@pytest.mark.thorough
def test_long_chains_keep_their_digits():
    # 500 steps, in 50 digits: float32 tables carry the rounding of their last step only.
    count, rng = 500, np.random.default_rng(1)
    A = np.float32(0.999 * np.linalg.qr(rng.normal(size=(count, 2, 2)))[0])
    b = np.float32(1e-3 * rng.normal(size=(count, 2)))
    W = rng.normal(size=(count, 2, 2))
    Q = np.float32(1e-3 * W @ W.mT)
    Q = 0.5 * (Q + Q.mT)
    M, m, C = mp.eye(2), mp.zeros(2, 1), mp.zeros(2)
    for step in range(count):
        a, q = mp.matrix(A[step].tolist()), mp.matrix(Q[step].tolist())
        M, m, C = a * M, a * m + mp.matrix(b[step].tolist()), a * C * a.T + q
    found = affine_chain(A, b, Q, transitions=False).marginal(jnp.array([count - 1]))
    for part, expected in zip(found, (M, m, C), strict=True):
        expected = np.array(expected.tolist(), dtype=float).reshape(part[0].shape)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(part[0], expected, rtol=0, atol=3e-7 * scale)


@pytest.mark.thorough
@both_chains
def test_samples_are_the_mean_and_the_symmetric_root_times_the_noise(name):
    chain, steps, rng = chain_of(name), STEPS[name], np.random.default_rng(2)
    x0, eps = images(rng, len(PAIRS)), images(rng, len(PAIRS))
    t, s = times(PAIRS)
    sampled = flat(jax.jit(type(chain).q_sample)(chain, x0, t, eps))
    moved = flat(jax.jit(type(chain).q_transition)(chain, x0, t, s, eps))
    stepped = flat(jax.jit(type(chain).q_step)(chain, x0, t, eps))
    for i, (t_i, s_i) in enumerate(PAIRS):
        for found, start in ((sampled, -1), (moved, s_i), (stepped, t_i - 1)):
            A, b, Q = between(steps, t_i, start)
            expected = A @ flat(x0)[i] + b + symmetric_root(Q) @ flat(eps)[i]
            np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)


@both_chains
def test_the_posterior_is_the_joint_conditioned(name):
    chain, steps, rng = chain_of(name), STEPS[name], np.random.default_rng(3)
    t, s = times(PAIRS)
    x0 = images(rng, len(PAIRS))
    x_t = chain.q_sample(x0, t, images(rng, len(PAIRS)))  # what the chain can reach
    mean, covariance = jax.jit(type(chain).q_posterior)(chain, x0, x_t, t, s)
    for i, (t_i, s_i) in enumerate(PAIRS):
        expected = conditioned(steps, flat(x0)[i], flat(x_t)[i], t_i, s_i)
        np.testing.assert_allclose(flat(mean)[i], expected[0], rtol=1e-4, atol=2e-4)
        np.testing.assert_allclose(covariance[i], expected[1], rtol=1e-4, atol=2e-5)


@pytest.mark.thorough
@both_chains
def test_at_the_data_the_posterior_is_the_data(name):
    rng, t = np.random.default_rng(4), jnp.arange(T)
    x0, s = images(rng, T), jnp.full(T, -1)
    mean, covariance = chain_of(name).q_posterior(x0, images(rng, T), t, s)
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(covariance, np.zeros((T, D, D)))
    np.testing.assert_array_equal(chain_of(name).q_sample(x0, s, x0), x0)


def badly_conditioned():
    """Variances from 1e-8 to 1 in directions that turn from step to step."""
    rng, count, d = np.random.default_rng(5), T, D
    turns = np.linalg.qr(rng.normal(size=(count, d, d)))[0]
    Q = turns @ (np.float64([1e-8, 1e-4, 1.0])[None, :, None] * turns.mT)
    A = np.linalg.qr(np.eye(d) + 1e-2 * rng.normal(size=(count, d, d)))[0]
    return affine_chain(0.99 * A, np.zeros((count, d)), Q)


@pytest.mark.thorough
def test_posteriors_stay_positive_semi_definite_in_float32():
    zeros = jnp.zeros((len(PAIRS), D))
    posterior = jax.jit(type(chain_of("singular")).q_posterior)
    for chain in (badly_conditioned(), chain_of("singular")):
        _, covariance = posterior(chain, zeros, zeros, *times(PAIRS))
        covariance = np.asarray(covariance, np.float64)
        np.testing.assert_array_equal(covariance, covariance.mT)
        eigenvalues = np.linalg.eigvalsh(covariance)
        assert (eigenvalues[:, 0] >= -4 * np.finfo(np.float32).eps * eigenvalues[:, -1]).all()


def test_the_kl_is_half_the_squared_distance_in_the_shared_covariance():
    chain, steps, rng = chain_of("regular"), STEPS["regular"], np.random.default_rng(6)
    pairs = [(t, s) for t, s in PAIRS if s >= 0]
    x0, x0_hat = images(rng, len(pairs)), images(rng, len(pairs))
    kl = jax.jit(type(chain).posterior_kl)(chain, x0, x0_hat, *times(pairs))
    assert kl.dtype == jnp.float32
    for i, (t, s) in enumerate(pairs):
        mean, covariance = conditioned(steps, flat(x0)[i], np.zeros(D), t, s)
        other, _ = conditioned(steps, flat(x0_hat)[i], np.zeros(D), t, s)
        expected = 0.5 * (mean - other) @ np.linalg.solve(covariance, mean - other)
        np.testing.assert_allclose(kl[i], expected, rtol=1e-5)


@pytest.mark.thorough
def test_the_kl_between_close_times_keeps_its_digits():
    # 1e-5 of the signal to noise is lost at each step; float32 alone would know it to 1%.
    betas = np.full(T, 1e-5)
    betas[0] = 0.5
    identity = np.broadcast_to(np.eye(D), (T, D, D))
    scaled = (np.sqrt(1.0 - betas)[:, None, None] * identity, betas[:, None, None] * identity)
    chain = affine_chain(scaled[0], np.zeros((T, D)), scaled[1])
    x0, t = jnp.ones((T - 1, D)), jnp.arange(1, T)
    kl = chain.posterior_kl(x0, 0 * x0, t, t - 1)
    alpha_bar = np.cumprod(1.0 - betas)
    snr = alpha_bar / (1.0 - alpha_bar)
    np.testing.assert_allclose(kl, 0.5 * D * (snr[:-1] - snr[1:]), rtol=2e-6)


@pytest.mark.thorough
def test_the_plain_square_is_another_number():
    # With noise of variances 1 and 0.01, the shortcut of an isotropic chain of the same mean
    # variance weighs the error in the quiet direction 50 times too low.
    Q = np.stack([np.diag([1.0, 0.01])] * 4)
    chain = affine_chain(np.stack([0.9 * np.eye(2)] * 4), np.zeros((4, 2)), Q)
    isotropic = affine_chain(
        np.stack([0.9 * np.eye(2)] * 4), np.zeros((4, 2)), [0.505 * np.eye(2)] * 4
    )
    error, t = jnp.array([[0.0, 0.3]]), jnp.array([3])
    right = chain.posterior_kl(error, 0 * error, t, t - 1)
    plain = isotropic.posterior_kl(error, 0 * error, t, t - 1)
    np.testing.assert_allclose(right / plain, 50.5, rtol=1e-4)


@pytest.mark.thorough
def test_the_kl_where_a_covariance_is_singular():
    chain, steps = chain_of("singular"), STEPS["singular"]
    pairs = [(t, s) for t, s in PAIRS if t in (2, 4, 8, 11, 20)]
    rng, kinds = np.random.default_rng(7), {"finite": 0, "inf": 0}
    for t, s in pairs:
        M, _, C = between(steps, s, -1)
        values, vectors = np.linalg.eigh(C)
        silent = vectors[:, values <= 1e-11 * max(values[-1], 1e-30)]
        lost = silent.T @ M
        # A difference that M_s takes into the plane of the noise, and one that it does not.
        _, sizes, modes = np.linalg.svd(np.vstack([lost, np.zeros((1, D))]))
        kept = modes[np.append(sizes, np.zeros(D))[:D] < 1e-9]
        inside = kept.T @ rng.normal(size=len(kept)) if len(kept) else np.zeros(D)
        for difference in (inside, rng.normal(size=D)):
            leaves = np.abs(lost @ difference).max(initial=0.0) > 1e-6
            x0, x0_hat = (jnp.asarray(x, jnp.float32)[None] for x in (difference, np.zeros(D)))
            kl = chain.posterior_kl(x0, x0_hat, *times([(t, s)]))[0]
            kinds["inf" if leaves else "finite"] += 1
            if leaves:
                assert np.isposinf(kl)
                continue
            mean, covariance = conditioned(steps, difference, np.zeros(D), t, s)
            other, _ = conditioned(steps, np.zeros(D), np.zeros(D), t, s)
            variances, axes = np.linalg.eigh(covariance)
            seen = variances > 1e-10  # in the rest the two means agree
            distances = axes.T @ (mean - other)
            assert np.abs(distances[~seen]).max(initial=0.0) < 1e-10
            expected = 0.5 * np.sum(distances[seen] ** 2 / variances[seen])
            np.testing.assert_allclose(kl, expected, rtol=2e-4, atol=1e-6)
    assert min(kinds.values()) > 10


@pytest.mark.thorough
def test_the_kl_at_the_data():
    x0, t, s = jnp.ones((2, D)), jnp.array([3, 3]), jnp.array([-1, -1])
    kl = chain_of("regular").posterior_kl(x0, x0.at[1, 2].add(1e-30), t, s)
    np.testing.assert_array_equal(kl, [0.0, 0.0])  # 1 + 1e-30 is 1
    kl = chain_of("regular").posterior_kl(0 * x0, (0 * x0).at[1, 2].add(1e-30), t, s)
    np.testing.assert_array_equal(kl, [0.0, np.inf])


@pytest.mark.thorough
def test_the_isotropic_chain_is_one_of_them():
    count, d, rng = T, D, np.random.default_rng(8)
    schedule = schedules.cosine(count)
    betas = np.asarray(schedule.betas, np.float64)
    identity = np.broadcast_to(np.eye(d), (count, d, d))
    chain = affine_chain(
        np.sqrt(1.0 - betas)[:, None, None] * identity,
        np.zeros((count, d)),
        betas[:, None, None] * identity,
    )
    pairs = [(t, s) for t in range(count) for s in {-1, 0, t // 2, t - 1} if s < t]
    t, s = times(pairs)
    x0, x, eps = (images(rng, len(pairs)) for _ in range(3))

    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    close(chain.q_sample(x0, t, eps), forward.q_sample(schedule, x0, t, eps))
    close(chain.q_step(x, t, eps), forward.q_step(schedule, x, t, eps))
    close(chain.q_transition(x, t, s, eps), forward.q_transition(schedule, x, t, s, eps))
    mean, covariance = chain.q_posterior(x0, x, t, s)
    expected_mean, variance = forward.q_posterior(schedule, x0, x, t, s)
    close(mean, expected_mean)
    close(covariance, variance[:, None, None] * jnp.eye(d)[None])
    inner = s >= 0
    snr_lost = 0.5 * (schedule.snr(s) - schedule.snr(t))
    kl = chain.posterior_kl(x0, x, t, s)
    expected = snr_lost * jnp.sum(jnp.square(x0 - x), axis=(1, 2))
    np.testing.assert_allclose(kl[inner], expected[inner], rtol=2e-5)


@pytest.mark.thorough
@both_chains
def test_the_chain_walked_has_the_moments_of_the_closed_form(name):
    # 200,000 chains of 13 steps, the shortcut, and a transition after a walk: each mean and
    # covariance within 4.5 standard errors of the recursion's, at a fixed seed; p < 1e-5 for each.
    chain, steps, count, last, middle = chain_of(name), STEPS[name], 200_000, 12, 7
    start = jnp.broadcast_to(jnp.array([0.5, -1.0, 2.0]).reshape(1, *SHAPE), (count, *SHAPE))

    walk = jax.jit(forward.q_chain, static_argnums=3)
    t, s = jnp.full(count, last), jnp.full(count, middle)
    noise = [chain.draw_noise(jax.random.key(i), start.shape, t) for i in range(2)]
    found = {
        "walked": walk(chain, jax.random.key(2), start, last + 1),
        "at once": forward.q_sample(chain, start, t, noise[0]),
        "both": forward.q_transition(
            chain, walk(chain, jax.random.key(3), start, middle + 1), t, s, noise[1]
        ),
    }
    M, m, C = between(steps, last, -1)
    mean = M @ flat(start[:1])[0] + m
    spread = np.sqrt(np.outer(np.diag(C), np.diag(C)) + C**2)  # n times the variance of an entry
    for x in map(flat, found.values()):
        assert (np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(np.diag(C) / count) + 1e-5).all()
        assert (np.abs(np.cov(x.T) - C) < 4.5 * spread / np.sqrt(count) + 1e-5).all()
