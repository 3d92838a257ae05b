"""Dense chains against the recursion in float64, 50 digits, conditioning of the joint, brute force.

The chain of most tests has what breaks shortcuts: matrices that do not commute, singular ones,
steps without noise and steps with noise in some directions only.
"""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax import forward, schedules
from ddpm_jax.processes import NoClosedForm, affine_chain
from ddpm_jax.processes.roots import root_of_product, roots

T, D, BATCH = 21, 3, 8
SHAPE = (D, 1)


def random_steps(singular, T=T, D=D, seed=0):
    """A, b and Q in float64, exact in float32; `singular`: projections, and noise that is absent.

    Half-integers keep a Q of low rank exactly of low rank.
    """
    rng = np.random.default_rng(seed)
    A = 0.8 * np.linalg.qr(rng.normal(size=(T, D, D)))[0] + 0.1 * rng.normal(size=(T, D, D))
    A, b = A.astype(np.float32), rng.normal(size=(T, D)).astype(np.float32)
    W = np.round(rng.normal(size=(T, D, D)), 1)
    Q = 0.25 * (W @ W.mT + 0.1 * np.eye(D))
    if singular:
        A[3] = np.diag([1.0, 0.0, 0.0])
        A[10] = np.outer([1.0, 2.0, -1.0], [0.5, 0.0, 0.25])
        W = np.round(2 * rng.normal(size=(T, D, 1)))
        Q[:12] = 0.25 * W[:12] @ W[:12].mT  # noise in one direction
        Q[0] = Q[5] = Q[6] = Q[20] = 0.0
    return A.astype(np.float64), b.astype(np.float64), Q.astype(np.float32).astype(np.float64)


def between(steps, t, s):
    """q(x_t | x_s) by the recursion."""
    M, m, C = np.eye(D), np.zeros(D), np.zeros((D, D))
    for A, b, Q in zip(*(part[s + 1 : t + 1] for part in steps), strict=True):
        M, m, C = A @ M, A @ m + b, A @ C @ A.T + Q
    return M, m, C


def conditioned(steps, x0, x_t, t, s):
    """q(x_s | x_t, x_0): the joint Gaussian of (x_s, x_t), conditioned."""
    M_s, m_s, C_s = between(steps, s, -1)
    A, b, Q = between(steps, t, s)
    mean_s = M_s @ x0 + m_s
    cross, C_t = C_s @ A.T, A @ C_s @ A.T + Q
    gain = cross @ np.linalg.pinv(C_t, rcond=1e-11, hermitian=True)
    return mean_s + gain @ (x_t - A @ mean_s - b), C_s - gain @ cross.T


def symmetric_root(C):
    values, vectors = np.linalg.eigh(C)
    values = np.where(values > 1e-12 * values[-1], values, 0.0)
    return (vectors * np.sqrt(values)) @ vectors.T


PAIRS = [(t, s) for t in range(T) for s in range(-1, t)]
STEPS = {name: random_steps(name == "singular") for name in ("regular", "singular")}


@functools.cache
def chain_of(name):
    return affine_chain(*STEPS[name])


both_chains = pytest.mark.parametrize("name", STEPS)


def times(pairs):
    return tuple(jnp.array(column, jnp.int32) for column in zip(*pairs, strict=True))


def images(rng, count, shape=SHAPE):
    return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


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


@pytest.mark.parametrize("num_steps", [1, 2, 8, 9])
def test_any_number_of_steps(num_steps):
    steps = random_steps(False, T=num_steps)
    pairs = [(t, s) for t, s in PAIRS if t < num_steps]
    found = affine_chain(*steps).transition(*times(pairs))
    for i, (t, s) in enumerate(pairs):
        for part, expected in zip(found, between(steps, t, s), strict=True):
            np.testing.assert_allclose(part[i], expected, rtol=1e-5, atol=3e-6)


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


def test_the_kl_at_the_data():
    x0, t, s = jnp.ones((2, D)), jnp.array([3, 3]), jnp.array([-1, -1])
    kl = chain_of("regular").posterior_kl(x0, x0.at[1, 2].add(1e-30), t, s)
    np.testing.assert_array_equal(kl, [0.0, 0.0])  # 1 + 1e-30 is 1
    kl = chain_of("regular").posterior_kl(0 * x0, (0 * x0).at[1, 2].add(1e-30), t, s)
    np.testing.assert_array_equal(kl, [0.0, np.inf])


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


def equations(jaxpr, times=1):
    """All of them, inner ones too, each with how often loops walk it."""
    for equation in jaxpr.eqns:
        yield equation, times
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, times * equation.params.get("length", 1))


@pytest.mark.parametrize("transitions", [False, True])
def test_the_scan_is_log_many_compositions_deep(transitions):
    # Products of matrices, each over many steps at once: twice as many for a chain squared in
    # length, plus what does not depend on it, and no loop over time.
    found = {}
    for count in (32, 1024):
        arguments = [jax.ShapeDtypeStruct((count, *rest), jnp.float32) for rest in [(2, 2), (2,)]]
        build = functools.partial(affine_chain, transitions=transitions)
        jaxpr = jax.make_jaxpr(build)(*arguments, arguments[0])
        every = list(equations(jaxpr.jaxpr))
        found[count] = sum(n for each, n in every if each.primitive.name == "dot_general")
        assert all(each.params.get("length", 0) <= math.log2(count) for each, _ in every)
        assert not any(each.primitive.name == "while" for each, _ in every)
    assert found[1024] <= 2 * found[32]
    assert found[1024] < 200


def test_a_learned_chain_is_composed_while_traced():
    A, b, Q = (jnp.asarray(part, jnp.float32) for part in STEPS["regular"])
    rng = np.random.default_rng(9)
    x0, x_t, t = images(rng, BATCH), images(rng, BATCH), jnp.arange(BATCH) + 5
    s = t - 1 - jnp.arange(BATCH) // 2

    @jax.jit
    def posterior(A, b, Q):
        return affine_chain(A, b, Q).q_posterior(x0, x_t, t, s)

    expected = chain_of("regular").q_posterior(x0, x_t, t, s)
    for one, other in zip(posterior(A, b, Q), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("variance", [0.3, 0.0], ids=["equal eigenvalues", "no noise at t = 1"])
def test_gradients_of_a_learned_chain(variance):
    # Equal eigenvalues, where the derivative of an eigenvector does not exist, and a singular Q.
    # The reference: central differences of the same expression in float64.
    rng, count, d = np.random.default_rng(10), 4, 3
    A = rng.normal(size=(count, d, d))
    b, scale = rng.normal(size=(count, d)), np.full((count,), 0.3)
    scale[1] = variance
    x0, eps, weights = rng.normal(size=(3, 2, d))
    t = [1, 3]

    def total(A, b, scale):
        result = 0.0
        for i in range(2):
            M, m, C = np.eye(d), np.zeros(d), np.zeros((d, d))
            for k in range(t[i] + 1):
                M, m = A[k] @ M, A[k] @ m + b[k]
                C = A[k] @ C @ A[k].T + scale[k] * np.eye(d)
            result += weights[i] @ (M @ x0[i] + m + symmetric_root(C) @ eps[i])
        return result

    def found(A, b, scale):
        Q = scale[:, None, None] * jnp.eye(d)[None]
        chain = affine_chain(A, b, Q, transitions=False)
        f32 = [jnp.asarray(x, jnp.float32) for x in (x0, eps, weights)]
        return jnp.sum(f32[2] * chain.q_sample(f32[0], jnp.array(t), f32[1]))

    arguments = [A, b, scale]
    slopes = jax.jit(jax.grad(found, argnums=(0, 1, 2)))(
        *(jnp.asarray(x, jnp.float32) for x in arguments)
    )
    step = 1e-5
    for i, slope in enumerate(slopes):
        assert np.isfinite(slope).all()
        for index in np.ndindex(slope.shape):
            if i == 2 and variance == 0.0 and index == (1,):
                continue  # a variance has no slope on both sides of 0
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in arguments]
                moved[i][index] += sign * step
                ends.append(total(*moved))
            np.testing.assert_allclose(
                slope[index], (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_slopes_of_roots(rank):
    # Along covariances F F^T of one rank, two eigenvalues of which agree at rank 2: central
    # differences in float64.
    rng, step = np.random.default_rng(12), 1e-6
    F = np.linalg.qr(rng.normal(size=(D, D)))[0][:, :rank] * [1.0, 1.0, 0.5][:rank]
    move = rng.normal(size=(D, rank))

    def exact(h):
        values, vectors = np.linalg.eigh((F + h * move) @ (F + h * move).T)
        seen = values > 1e-8
        inverse = np.where(seen, np.where(seen, values, 1.0) ** -0.5, 0.0)
        deviations = np.sqrt(np.where(seen, values, 0.0))
        return [(vectors * each) @ vectors.T for each in (deviations, inverse, 1.0 - seen)]

    C, slope = (jnp.asarray(x, jnp.float32) for x in (F @ F.T, F @ move.T + move @ F.T))
    found = jax.jvp(roots, (C,), (slope,))
    expected = [(b - a) / (2 * step) for a, b in zip(exact(-step), exact(step), strict=True)]
    for value, at, tangent, difference in zip(
        *found[:1], exact(0.0), found[1], expected, strict=True
    ):
        np.testing.assert_allclose(value, at, atol=1e-5)
        np.testing.assert_allclose(tangent, difference, rtol=1e-3, atol=1e-4)

    wide = np.concatenate([F, np.zeros((D, 2 * D - rank))], axis=1)
    moved = np.concatenate([move, np.zeros((D, 2 * D - rank))], axis=1)
    f32 = [jnp.asarray(x, jnp.float32) for x in (wide, moved)]
    value, tangent = jax.jvp(root_of_product, f32[:1], f32[1:])
    np.testing.assert_allclose(value, exact(0.0)[0], atol=1e-6)
    np.testing.assert_allclose(tangent, expected[0], rtol=1e-3, atol=1e-4)


rng = np.random.default_rng(11)
X, Y, EPS = (images(rng, BATCH) for _ in range(3))
t = jnp.arange(BATCH, dtype=jnp.int32) + 12
s = t - 1 - 2 * jnp.arange(BATCH, dtype=jnp.int32)
CASES = {
    "q_sample": {"x0": X, "t": t, "eps": EPS},
    "q_step": {"x_prev": X, "t": t, "eps": EPS},
    "q_transition": {"x_s": X, "t": t, "s": s, "eps": EPS},
    "q_posterior": {"x0": X, "x_t": Y, "t": t, "s": s},
    "posterior_kl": {"x0": X, "x0_hat": Y, "t": t, "s": s},
    "marginal": {"t": t},
    "transition": {"t": t, "s": s},
}
every_method = pytest.mark.parametrize("method", CASES)


@functools.cache
def compiled(method):
    chain = chain_of("regular")
    return jax.jit(lambda arrays: getattr(chain, method)(**arrays))


def assert_close(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@every_method
def test_no_product_is_left_to_the_precision_of_a_device(method):
    # By default a TPU multiplies in bfloat16 and a GPU in TF32; a CPU would not show it.
    jaxpr = jax.make_jaxpr(compiled(method))(CASES[method]).jaxpr
    products = [each for each, _ in equations(jaxpr) if each.primitive.name == "dot_general"]
    exact = (jax.lax.Precision.HIGHEST,) * 2
    assert products
    assert all(each.params["precision"] == exact for each in products)


@every_method
def test_vmap_and_grad(method):
    arrays, function = CASES[method], compiled(method)
    stacked = {name: jnp.stack([array, array[::-1]]) for name, array in arrays.items()}
    mapped = jax.vmap(function)(stacked)
    for i in range(2):
        alone = function({name: array[i] for name, array in stacked.items()})
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone)
    floats = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def total(floats):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(arrays | floats)))

    for name, slope in jax.grad(total)(floats).items():
        direction = jnp.cos(jnp.arange(X.size, dtype=X.dtype)).reshape(X.shape)
        ahead, behind = (
            total(floats | {name: floats[name] + h * direction}) for h in (0.05, -0.05)
        )
        # Linear in each array, the KL quadratic: central differences of any step are exact.
        np.testing.assert_allclose(
            jnp.vdot(slope, direction), (ahead - behind) / 0.1, rtol=1e-3, atol=2e-3
        )


@every_method
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_over_eight_devices(method, axis_type):
    arrays, expected = CASES[method], compiled(method)(CASES[method])
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    # Noise that was drawn on the mesh is whole on every device.
    placed = {
        name: array if name == "eps" else jax.device_put(array, split)
        for name, array in arrays.items()
    }
    chain = chain_of("regular")
    with jax.set_mesh(mesh):
        function = jax.jit(
            lambda chain, arrays: getattr(chain, method)(**arrays), out_shardings=split
        )
        result = function(chain, placed)
    assert all(len(leaf.sharding.device_set) == BATCH for leaf in jax.tree.leaves(result))
    assert_close(result, expected)


def test_made_on_a_mesh_and_inside_of_jit():
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        inside = jax.jit(lambda x: affine_chain(*STEPS["regular"]).q_sample(x, t, EPS))(X)
    assert_close(inside, compiled("q_sample")(CASES["q_sample"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(chain_of("regular")))


@pytest.mark.parametrize(("t", "s"), [(T, 3), (T + 40, 3), (5, 5), (4, 6), (5, -2), (-1, -2)])
def test_times_outside_give_nan(t, s):
    t, s, x = jnp.array([t, 4]), jnp.array([s, 2]), jnp.ones((2, D))
    chain = chain_of("regular")
    found = [*chain.q_posterior(x, x, t, s), chain.q_transition(x, t, s, x)]
    found.append(chain.posterior_kl(x, 2 * x, t, s))
    if not 0 <= int(t[0]) < T:
        found.append(chain.q_step(x, t, x))
        if t[0] != -1:
            found.append(chain.q_sample(x, t, x))
    for result in found:
        assert np.isnan(result[0]).all()
        assert np.isfinite(result[1]).all()


def test_the_result_keeps_the_dtype():
    x, t = jnp.ones((2, D), jnp.bfloat16), jnp.array([20, 20])
    chain = chain_of("regular")
    assert chain.q_sample(x, t, x).dtype == jnp.bfloat16
    wide = chain.q_sample(x.astype(jnp.float32), t, x.astype(jnp.float32))
    np.testing.assert_allclose(chain.q_sample(x, t, x).astype(jnp.float32), wide, rtol=4e-3)
    assert chain.q_posterior(x, x, t, t - 1)[0].dtype == jnp.bfloat16
    assert chain.posterior_kl(x, x, t, t - 1).dtype == jnp.float32


def test_without_transitions():
    chain = affine_chain(*STEPS["regular"], transitions=False)
    whole = chain_of("regular")
    np.testing.assert_array_equal(chain.q_sample(X, t, EPS), whole.q_sample(X, t, EPS))
    np.testing.assert_array_equal(chain.q_step(X, t, EPS), whole.q_step(X, t, EPS))
    np.testing.assert_array_equal(chain.posterior_kl(X, Y, t, s), whole.posterior_kl(X, Y, t, s))
    with pytest.raises(NoClosedForm, match=r"q_transition needs .*transitions=False; q_chain"):
        chain.q_transition(X, t, s, EPS)
    with pytest.raises(NoClosedForm, match="q_posterior needs"):
        chain.q_posterior(X, Y, t, s)


def wrong_q(entries):
    Q = np.stack([np.eye(2)] * 4)
    for index, value in entries.items():
        Q[index] = value
    return np.zeros((4, 2, 2)), np.zeros((4, 2)), Q


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (wrong_q({(2, 1, 1): -0.5}), r"Q\[2\], .* t = 2, has the eigenvalue -0.5;"),
        (wrong_q({(1, 0, 1): 2.0, (1, 1, 0): 2.0}), r"Q\[1\], .* has the eigenvalue -1;"),
        (wrong_q({(1, 0, 1): 0.25}), r"Q\[1\] is not symmetric: \[0, 1\] is 0.25, \[1, 0\] 0"),
        (wrong_q({(3, 0, 0): np.nan}), r"Q\[3, 0, 0\] is nan"),
        (wrong_q({(3, 0, 0): 1e39}), r"Q\[3, 0, 0\] is 1e\+39; float32 has to hold it"),
        ((np.zeros((4, 2, 3)), np.zeros((4, 2)), np.zeros((4, 2, 2))), r"A has shape \(4, 2, 3\)"),
        ((np.zeros((2, 2)), np.zeros((4, 2)), np.zeros((4, 2, 2))), r"A has shape \(2, 2\)"),
        ((np.zeros((0, 2, 2)), np.zeros((0, 2)), np.zeros((0, 2, 2))), r"A has shape \(0, 2, 2\)"),
        ((np.zeros((4, 2, 2)), np.zeros((4, 1)), np.zeros((4, 2, 2))), r"b has shape \(4, 1\)"),
        ((np.zeros((4, 2, 2)), np.zeros((4, 2)), np.zeros((1, 2, 2))), r"Q has shape \(1, 2, 2\)"),
        (
            (np.stack([1e9 * np.eye(2)] * 9), np.ones((9, 2)), np.zeros((9, 2, 2))),
            "M at t = 4 is beyond float32",
        ),
        (
            (np.stack([1e4 * np.eye(2)] * 4), np.zeros((4, 2)), 1e30 * wrong_q({})[2]),
            "C at t = 2 is beyond float32",
        ),
        (
            (np.zeros((4, 2, 2)), np.zeros((4, 2)), 1e-78 * wrong_q({})[2]),
            "Q is so small",
        ),
    ],
)
def test_what_is_no_chain_is_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        affine_chain(*steps)


def test_shapes_are_refused_while_traced_too():
    with pytest.raises(ValueError, match=r"b has shape \(3, 2\)"):
        jax.eval_shape(affine_chain, jnp.zeros((4, 2, 2)), jnp.zeros((3, 2)), jnp.zeros((4, 2, 2)))


@pytest.mark.parametrize(
    "method", [name for name in CASES if name not in ("marginal", "transition")]
)
def test_wrong_arguments_are_named(without_annotation_checks, method):
    chain, arrays = chain_of("regular"), CASES[method]
    first, *others = arrays
    wrong = {first: jnp.zeros((BATCH, 2, 2)), "t": jnp.zeros(BATCH + 1, jnp.int32)}
    for name in others:
        wrong.setdefault(name, jnp.zeros((BATCH, 1), arrays[name].dtype))
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"\b{name} has shape"):
            getattr(chain, method)(**(arrays | {name: value}))
        with pytest.raises(TypeError, match=rf"\b{name} (has|is)"):
            getattr(chain, method)(**(arrays | {name: jnp.zeros(BATCH, jnp.uint8)}))
    with pytest.raises(ValueError, match=r"shape is \(4, 5\); .* matrices are 3 by 3"):
        chain.draw_noise(jax.random.key(0), (4, 5), t[:4])
    with pytest.raises(ValueError, match=r"t has shape \(8,\)"):
        chain.draw_noise(jax.random.key(0), (4, 3), t)
