r"""Mixtures of Gaussians under a process of many modes, which are not the mixtures' axes.

In modes, where a process is a pair (a, b) for each of them, component k of the data is x_0 = m_k +
R_k u, with u ~ N(0, I) and a root R_k of its covariance, and x_t is

.. math::

    x_t - a m_k = H_k \begin{pmatrix} u & \epsilon \end{pmatrix}^T, \qquad
    H_k = \begin{pmatrix} \mathrm{diag}(a) R_k & \mathrm{diag}(b) \end{pmatrix} \tag{1}

a plane in the space of (u, eps), of which all directions are standard normal. So the mean of
(u, eps) given x_t is the point of the plane that is closest to 0. With H_k^T = Q L^T, Q of d
orthonormal columns and L lower triangular, and within the component, w = L^-1 (x_t - a m_k) gives

.. math::

    \mathrm{E}[(u, \epsilon) \mid x_t] = Q w, \qquad \mathrm{score} = -L^{-T} w, \qquad
    \mathrm{Cov}[x_t] = L L^T \tag{2}

and x_0 = m_k + R_k u: nothing is divided by a or b, so all holds without noise, without signal, and
for data without variance. L is a Cholesky factor, but that of H H^T, which
holds signal and noise of every mode at once, would have twice as many digits to lose: it is never
formed. There is no basis that all times and modes share, and each example has a factorization of
its own, of order d^3, for each component.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ddpm_jax.analytic.mixtures import Mixture
from ddpm_jax.arrays import einsum, flat, per_example
from ddpm_jax.processes import Modal

__all__ = ["ByComponent", "by_component", "roots_by_modes", "unknown_variance"]


class ByComponent(NamedTuple):
    """Moments given x_t within each component, by modes."""

    log_joint: Float[Array, "batch K"]
    """log P(component k) + log q(x_t | component k)."""
    eps: Float[Array, "batch K d"]
    x0: Float[Array, "batch K d"]
    score: Float[Array, "batch K d"]


def by_component(data: Mixture, process: Modal, x_t: jax.Array, t: jax.Array) -> ByComponent:
    """Eq. (2), for float32 `x_t` `[batch, ...]`."""

    def each_mode(values: jax.Array) -> jax.Array:
        return flat(jnp.broadcast_to(per_example(values, x_t), x_t.shape))[:, None, :]

    a, b = each_mode(process.signal(t)), each_mode(process.noise(t))
    means, roots = roots_by_modes(data, process, x_t.shape[1:])
    components, dimensions = means.shape
    y = flat(process.basis.to_modes(x_t))[:, None, :] - a * means[None]
    transposed = jnp.concatenate(
        [
            a[..., None, :] * jnp.swapaxes(roots, -1, -2)[None],
            jnp.repeat(b[..., None, :] * jnp.eye(dimensions)[None, None], components, axis=1),
        ],
        axis=-2,
    )
    q, upper = _qr(transposed)
    w = solve_triangular(upper, y[..., None], trans=1)
    u, eps = jnp.split(einsum("bkij,bkj->bki", q, w[..., 0]), 2, axis=-1)
    x0 = means[None] + einsum("bke,kde->bkd", u, roots)
    score = -solve_triangular(upper, w)[..., 0]
    variances = jnp.square(jnp.diagonal(upper, axis1=-2, axis2=-1))  # of w, each given those before
    exponents = jnp.square(w[..., 0]) + jnp.log(2.0 * math.pi * variances)
    log_joint = data.log_weights[None] - 0.5 * jnp.sum(exponents, axis=-1)
    return ByComponent(log_joint, eps, x0, score)


def unknown_variance(root: Float[Array, "d d"], ratio: Float[Array, "T d"]) -> Float[Array, "T d"]:
    """Variances of x_0 given x_t, at `ratio` = a / b of each mode, for one Gaussian of this root.

    The diagonal of R (I + R^T diag(SNR) R)^-1 R^T, whose middle is a Gram matrix: of (I, ratio R).
    """
    identity = jnp.eye(len(root))

    def at(ratio: jax.Array) -> jax.Array:
        upper = jnp.linalg.qr(jnp.concatenate([identity, ratio[:, None] * root]), mode="r")
        return jnp.sum(jnp.square(solve_triangular(upper, root.T, trans=1)), axis=0)

    return jax.lax.map(at, ratio)


def roots_by_modes(
    data: Mixture, process: Modal, shape: tuple[int, ...]
) -> tuple[Float[Array, "K d"], Float[Array, "K d d"]]:
    """m_k and R_k of eq. (1), for examples of `shape`."""

    def to_modes(vectors: jax.Array) -> jax.Array:
        images = vectors.reshape(-1, *shape)
        return process.basis.to_modes(images).reshape(vectors.shape)

    columns = jnp.swapaxes(data.axes, -1, -2) * jnp.sqrt(data.variances)[..., None]
    return to_modes(data.means), jnp.swapaxes(to_modes(columns), -1, -2)


def _qr(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each example; JAX's own cannot split a batch over an explicit mesh."""
    sharding = jax.typeof(matrices).sharding
    if sharding.mesh.empty:
        return jnp.linalg.qr(matrices)
    split = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec))
    return jax.sharding.auto_axes(
        lambda matrices: tuple(jnp.linalg.qr(matrices)), out_sharding=(split, split)
    )(matrices)
