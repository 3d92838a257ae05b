r"""Symmetric square roots of covariances, singular ones too, and their derivatives.

The symmetric root is the one that is unique, depends continuously on the covariance, and is a
multiple of the identity where the covariance is: a Cholesky factor of a singular covariance is
neither unique nor continuous. In a basis where the covariance is diagonal so is its root, and
white noise means the same for a dense chain as for a diagonal one.

The derivative of an eigenvector divides by differences of eigenvalues, 0 / 0 where two agree. That
of f(C) = V f(lambda) V^T does not (Daleckii & Krein 1965; Higham 2008, Functions of Matrices,
theorem 3.11):

    df = V [ f[lambda_i, lambda_j] * (V^T dC V) ] V^T
    f[a, b] = (f(a) - f(b)) / (a - b)

and for roots the quotients have forms without a difference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import einsum

__all__ = ["Roots", "factor", "root_of_product", "roots"]


class Roots(NamedTuple):
    """Functions of a covariance C, symmetric, `[..., d, d]`."""

    root: Float[Array, "*batch d d"]
    """C^{1/2}."""
    inverse: Float[Array, "*batch d d"]
    """Its pseudo-inverse."""
    null: Float[Array, "*batch d d"]
    """The orthogonal projection on the directions in which C has no variance; often 0."""


@jax.custom_jvp
def roots(covariance: Float[Array, "*batch d d"]) -> Roots:
    """Root, pseudo-inverse root and null space of positive semi-definite matrices.

    An eigenvalue below 4 d times the dtype's rounding of the largest one counts as 0.
    """
    deviations, vectors = _eigen(covariance)
    return _assemble(vectors, deviations)


@roots.defjvp
def _roots_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Roots, Roots]:
    deviations, vectors = _eigen(primals[0])
    inverse = _reciprocal(deviations)
    i, j = inverse[..., :, None], inverse[..., None, :]
    per_sum = _reciprocal(deviations[..., :, None] + deviations[..., None, :])
    # Where one of the two eigenvalues is 0: of 1 / sqrt, (1 / sqrt(a) - 0) / (a - 0).
    one_is_zero = (i == 0.0) != (j == 0.0)
    quotients = Roots(
        root=per_sum,
        inverse=jnp.where(one_is_zero, jnp.maximum(i, j) ** 3, -i * j * per_sum),
        null=jnp.where(one_is_zero, -(jnp.maximum(i, j) ** 2), 0.0),
    )
    inside = einsum("...ki,...kl,...lj->...ij", vectors, tangents[0], vectors)
    inside = 0.5 * (inside + inside.mT)
    moved = [einsum("...ik,...kl,...jl->...ij", vectors, q * inside, vectors) for q in quotients]
    return _assemble(vectors, deviations), Roots(*moved)


def factor(covariance: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """Some F with F F^T = C, lower triangular and many times cheaper than `roots`.

    C is Cholesky's after 4 d roundings of its largest variance are added to the diagonal: in
    float64, what is added to the root of a singular C is below float32's rounding. 0 stays 0.
    """
    d = covariance.shape[-1]
    largest = jnp.max(jnp.diagonal(covariance, axis1=-2, axis2=-1), axis=-1)[..., None, None]
    rounding = 4.0 * d * float(jnp.finfo(covariance.dtype).eps) * largest
    identity = jnp.broadcast_to(jnp.eye(d, dtype=covariance.dtype), covariance.shape)
    added = jnp.where(largest > 0.0, rounding, 1.0) * identity
    return jnp.where(largest > 0.0, jnp.linalg.cholesky(covariance + added), 0.0)


@jax.custom_jvp
def root_of_product(factor: Float[Array, "*batch d k"]) -> Float[Array, "*batch d d"]:
    """The symmetric root of factor factor^T, k >= d, good to rounding of the largest deviation.

    From singular values, not from the product, whose own rounding would leave the root with the
    square root of it in directions without variance: 3e-4 in float32.
    """
    return _product_root(factor)[0]


@root_of_product.defjvp
def _root_of_product_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    root, deviations, vectors = _product_root(primals[0])
    half = einsum("...ik,...jk->...ij", tangents[0], primals[0])
    inside = einsum("...ki,...kl,...lj->...ij", vectors, half + half.mT, vectors)
    per_sum = _reciprocal(deviations[..., :, None] + deviations[..., None, :])
    return root, einsum("...ik,...kl,...jl->...ij", vectors, per_sum * inside, vectors)


def _eigen(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Standard deviations along the eigenvectors, 0 where only rounding is left; the vectors."""
    values, vectors = jnp.linalg.eigh(covariance)
    rounding = 4.0 * values.shape[-1] * float(jnp.finfo(values.dtype).eps) * values[..., -1:]
    return jnp.sqrt(jnp.where(values > rounding, values, 0.0)), vectors


def _assemble(vectors: jax.Array, deviations: jax.Array) -> Roots:
    inverse = _reciprocal(deviations)
    null = (deviations == 0.0).astype(deviations.dtype)
    functions = (deviations, inverse, null)
    return Roots(*(einsum("...ik,...k,...jk->...ij", vectors, f, vectors) for f in functions))


def _product_root(factor: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    vectors, deviations, _ = jnp.linalg.svd(factor, full_matrices=False)
    root = einsum("...ik,...k,...jk->...ij", vectors, deviations, vectors)
    return root, deviations, vectors


def _reciprocal(values: jax.Array) -> jax.Array:
    """1 / values, and 0 where they are 0."""
    return jnp.where(values > 0.0, 1.0 / jnp.where(values > 0.0, values, 1.0), 0.0)
