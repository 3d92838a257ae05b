"""How the tables of an affine chain are made of its steps: see `affine` for what they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import einsum
from ddpm_jax.processes.roots import factor, roots

__all__ = ["ROUNDING", "Affine", "Tables", "act", "build"]

ROUNDING = 4.0 * float(jnp.finfo(jnp.float32).eps)
"""What float32 rounding may leave of 0, relative to the largest number around."""


class Affine(NamedTuple):
    """x -> matrix x + shift + root eps with white eps, one or many: the covariance is root root^T.

    `root` need not be square; d rows.
    """

    matrix: Float[Array, "*batch d d"]
    shift: Float[Array, "*batch d"]
    root: Float[Array, "*batch d k"]


class Tables(NamedTuple):
    """The tables of a chain, looked up by row."""

    marginals: Affine
    """q(x_t | x_0) for t = -1, which is the identity, to T - 1: `[T + 1, ...]`."""
    whitening: Float[Array, "rows d d"]
    """Pseudo-inverses of the marginals' roots, `[T + 1, d, d]`."""
    snr: Float[Array, "... rows d d"]
    """S = M^T C^+ M, `[T + 1, d, d]`; 0 for t = -1. A chain keeps it in two parts."""
    noiseless: Float[Array, "rows d d"]
    """M_t, in the directions where C_t has no variance."""
    windows: Affine
    """Steps composed, `[levels T + 1, ...]`: level 0 the steps themselves; last, the identity."""


class _Steps(NamedTuple):
    """Steps by their covariance, which eq. (1) composes."""

    matrix: jax.Array
    shift: jax.Array
    covariance: jax.Array


def _then(first: _Steps, second: _Steps) -> _Steps:
    """Eq. (1)."""
    moved = einsum("...ij,...jk->...ik", second.matrix, first.covariance)
    return _Steps(
        einsum("...ij,...jk->...ik", second.matrix, first.matrix),
        act(second.matrix, first.shift) + second.shift,
        einsum("...ik,...jk->...ij", moved, second.matrix) + second.covariance,
    )


def build(A: jax.Array, b: jax.Array, Q: jax.Array, *, transitions: bool) -> Tables:
    """All tables in the arguments' dtype."""
    identity = _Steps(*jax.tree.map(lambda x: jnp.zeros_like(x[:1]), (A, b, Q)))
    identity = identity._replace(matrix=jnp.eye(A.shape[-1], dtype=A.dtype)[None])
    step_roots = roots(Q).root
    # The covariance of what is drawn: without the eigenvalues that counted as 0.
    steps = _Steps(A, b, einsum("...ik,...jk->...ij", step_roots, step_roots))

    scanned = jax.lax.associative_scan(_then, steps)
    marginals = _joined([identity, scanned])
    root, inverse, null = roots(marginals.covariance)
    M = marginals.matrix
    whitened = einsum("...ij,...jk->...ik", inverse, M)

    parts, factors = [steps, identity], [step_roots, identity.covariance]
    if transitions:
        windows = _windows(steps, identity)
        parts.insert(1, windows)
        factors.insert(1, factor(windows.covariance))
    windows = _joined(parts)
    return Tables(
        marginals=Affine(M, marginals.shift, root),
        whitening=inverse,
        snr=einsum("...ki,...kj->...ij", whitened, whitened),
        noiseless=_above_rounding(einsum("...ij,...jk->...ik", null, M), M),
        windows=Affine(windows.matrix, windows.shift, jnp.concatenate(factors)),
    )


def _windows(steps: _Steps, identity: _Steps) -> _Steps:
    """Levels 1, 2, ... of the disjoint sparse table, each T long, one after the other.

    Level j has blocks of 2^j steps with a border in their middle. Left of it an entry composes the
    steps from its own to the border, right of it those from the border to its own. One more
    composition extends an entry over its whole block, a half of the next level's.
    """
    T = len(steps.shift)
    num_levels = (T - 1).bit_length()
    padded = _joined([steps, *[identity] * (2**num_levels - T)])
    index = jnp.arange(2**num_levels, dtype=jnp.int32)

    def extend(blocks: tuple[_Steps, _Steps], level: jax.Array) -> tuple[tuple, _Steps]:
        from_start, to_end = blocks
        is_right = (index >> level) & 1 == 1
        border = ((index >> level) | 1) << level  # the first step of the right half
        own = _where(is_right, from_start, to_end)
        other = _where(is_right, _at(from_start, border - 1), _at(to_end, border))
        whole = _then(_where(is_right, other, own), _where(is_right, own, other))
        return (_where(is_right, whole, from_start), _where(is_right, to_end, whole)), own

    _, levels = jax.lax.scan(extend, (padded, padded), jnp.arange(num_levels, dtype=jnp.int32))
    return jax.tree.map(lambda x: x[:, :T].reshape(-1, *x.shape[2:]), levels)


def _above_rounding(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part` of the matrices `whole`; 0 where it is less than float32 would show."""
    largest = [jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True) for x in (part, whole)]
    return jnp.where(largest[0] > ROUNDING * largest[1], part, 0.0)


def _where(condition: jax.Array, one: _Steps, other: _Steps) -> _Steps:
    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, one, other)


def _at(steps: _Steps, index: jax.Array) -> _Steps:
    return jax.tree.map(lambda x: x[index], steps)


def _joined(parts: list[_Steps]) -> _Steps:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def act(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """matrix x, in the dtype of `x`."""
    return einsum("...ij,...j->...i", matrix.astype(x.dtype), x)
