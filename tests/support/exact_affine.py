"""Dense chains of a few dimensions, and their recursion and posterior in float64.

They have what breaks shortcuts: matrices that do not commute, singular ones, steps without noise
and steps with noise in some directions only.
"""

import functools

import jax.numpy as jnp
import numpy as np

from ddpm_jax.processes import affine_chain

T, D = 21, 3
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


def times(pairs):
    return tuple(jnp.array(column, jnp.int32) for column in zip(*pairs, strict=True))


def images(rng, count, shape=SHAPE):
    return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)
