r"""A linearized chain in a basis, and which of its matrices share one; float64 on the host.

The process of one orthonormal basis U, rows its modes, has U A_t U^T and U Q_t U^T, with Q_t = B_t
B_t^T, diagonal for every t. The bases of `ddpm_jax.bases` are tried, those a caller names, and
where the matrices are known exactly their joint eigenbasis, if there is one. How much of A is not
diagonal is the largest element off the diagonal, against the largest element on it; of Q

.. math::

    \frac{|Q_{ij}|}{b_i b_j + \tfrac{1}{20} (b_i + b_j) \max b}, \qquad b_i = \sqrt{Q_{ii}} \tag{1}

The second term is for what float32 leaves of modes whose noise is far below that of others.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import bases
from ddpm_jax.bases import Basis
from ddpm_jax.litmus.probes import Linearized, linearize
from ddpm_jax.processes.custom import Step

__all__ = [
    "ROUNDING",
    "TOLERANCE",
    "Modes",
    "Probe",
    "joint_eigenbasis",
    "modes_of_matrices",
    "probe",
]

TOLERANCE = 1e-5
"""Relative: larger departures of the noise's covariance, or between base points, count."""
ROUNDING = 3e-6
"""The same of a complete A; the transforms of large images round more, and have `TOLERANCE`."""
NOTHING = 1e-6
"""A factor on x, a deviation or, by probes, a variance below this share of the largest is 0."""


class Modes(NamedTuple):
    """A chain read in one basis."""

    name: str
    basis: Basis
    keep: np.ndarray
    """The factor on x, `[T, *shape]`."""
    added: np.ndarray
    """The variance of the noise, `[T, *shape]`."""
    error_of_x: float
    """What is off the diagonal of A, relative."""
    error_of_noise: float
    """What is off the diagonal of Q, relative."""
    rounding: float
    """What of `error_of_x` counts as rounding."""

    @property
    def fits(self) -> bool:
        """Whether the modes do not mix, within the tolerances."""
        return self.error_of_x <= self.rounding and self.error_of_noise <= TOLERANCE

    @property
    def anisotropy(self) -> tuple[float, float]:
        """How far the factors, and the variances, of one time lie apart, relative."""
        return _spread(self.keep), _spread(self.added)


class Probe(NamedTuple):
    """One chain, linearized at every t."""

    step: Step
    shape: tuple[int, ...]
    num_steps: int
    rng: np.random.Generator
    """For further draws."""
    bases: dict[str, Basis]
    """The bases that are tried, by name."""
    signs: np.ndarray
    """`[bases, 2, d]`: the modes of the random directions, two for each basis."""
    exact: bool
    """Whether the directions are all, and no random ones."""
    linear: Linearized

    @property
    def dimension(self) -> int:
        """d."""
        return math.prod(self.shape)

    @property
    def offset(self) -> float:
        """The largest element of any b_t."""
        return float(np.max(np.abs(self.linear.offset)))

    def modes(self) -> list[Modes]:
        """The chain in every basis that is tried."""
        if self.exact:
            A, B = self.matrices()
            return [modes_of_matrices(*named, self.shape, A, B) for named in self.bases.items()]
        shape = (self.num_steps, len(self.bases), 2, self.dimension)
        of_x, of_noise = (
            np.swapaxes(products.reshape(shape), 0, 1)
            for products in (self.linear.of_x, self.linear.of_eps)
        )
        return [
            modes_of_products(*named, self.shape, *products)
            for named, *products in zip(self.bases.items(), self.signs, of_x, of_noise, strict=True)
        ]

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A and B `[T, d, d]`, where they are known exactly."""
        return np.swapaxes(self.linear.of_x, -1, -2), np.swapaxes(self.linear.of_eps, -1, -2)

    def with_noise(self, mean: np.ndarray, variance: np.ndarray) -> "Probe":
        """The chain with independent Gaussian noise of this mean and variance, `[T, d]`."""
        if self.exact:
            of_eps = np.sqrt(variance)[:, :, None] * np.eye(self.dimension)
        else:
            of_eps = variance[:, None] * directions(self.bases, self.shape, self.signs)
        return self._replace(linear=self.linear._replace(of_eps=of_eps, offset=mean))


def probe(
    step: Step,
    shape: tuple[int, ...],
    num_steps: int,
    rng: np.random.Generator,
    more: Mapping[str, Basis],
    *,
    exact: bool,
) -> Probe:
    """`step` linearized along all axes, or along random vectors for each basis that is tried."""
    tried = {**candidates(shape), **more}
    signs = rng.choice([-1.0, 1.0], (len(tried), 2, math.prod(shape)))
    along = None if exact else directions(tried, shape, signs)
    linear = linearize(step, shape, num_steps, rng, along)
    return Probe(step, shape, num_steps, rng, tried, signs, exact, linear)


def directions(bases: Mapping[str, Basis], shape: tuple[int, ...], signs: np.ndarray) -> np.ndarray:
    """Vectors of the data `[2 bases, d]`, whose modes in each basis are its two rows of signs."""
    vectors = [
        in_data(basis, shape, pair) for basis, pair in zip(bases.values(), signs, strict=True)
    ]
    return np.concatenate(vectors)


def candidates(shape: tuple[int, ...]) -> dict[str, Basis]:
    """The bases that are tried on data of this shape, over all axes but that of the channels."""
    axes = tuple(range(min(len(shape), 2)))
    return {
        "identity": bases.identity(),
        "dct": bases.dct(axes),
        "fourier": bases.fourier(axes),
    }


def modes_of_matrices(
    name: str, basis: Basis, shape: tuple[int, ...], keep: np.ndarray, add: np.ndarray
) -> Modes:
    """The chain A `[T, d, d]`, B `[T, d, d]` in `basis`, and what of it is not diagonal there."""
    d = math.prod(shape)
    matrix = np.eye(d) if name == "identity" else in_modes(basis, shape, np.eye(d)).T
    if name == "identity":
        turned, spread = keep, add
    else:
        turned, spread = matrix @ keep @ matrix.T, matrix @ add
    covariance = spread @ np.swapaxes(spread, -1, -2)
    factors = np.diagonal(turned, axis1=-2, axis2=-1)
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    deviations = np.sqrt(variances)
    largest = 0.05 * deviations.max(axis=-1)[:, None, None]
    i, j = deviations[:, :, None], deviations[:, None, :]
    return Modes(
        name,
        basis,
        _without_rounding(factors, NOTHING).reshape(-1, *shape),
        _without_rounding(variances, NOTHING**2).reshape(-1, *shape),
        _worst(_off_diagonal(turned), np.abs(factors).max(axis=-1)[:, None, None]),
        _worst(_off_diagonal(covariance), i * j + largest * (i + j)),
        ROUNDING,
    )


def modes_of_products(
    name: str,
    basis: Basis,
    shape: tuple[int, ...],
    signs: np.ndarray,
    of_x: np.ndarray,
    of_noise: np.ndarray,
) -> Modes:
    """The same from products with two random vectors, whose modes are the `signs` `[2, d]`.

    A diagonal matrix times signs is its diagonal times signs: the first vector gives it, the second
    whether there is more.

    Args:
        name: of the basis.
        basis: in which the chain is read.
        shape: of the data.
        signs: modes of the two vectors, each -1 or 1.
        of_x: A times the vectors, `[T, 2, d]`.
        of_noise: Q times the vectors.
    """
    diagonals = [signs * in_modes(basis, shape, products) for products in (of_x, of_noise)]
    error_of_x, error_of_noise = (
        _worst(np.ptp(both, axis=1), np.abs(both).max(axis=(1, 2))[:, None]) for both in diagonals
    )
    keep, added = (
        _without_rounding(both.mean(axis=1), NOTHING).reshape(-1, *shape) for both in diagonals
    )
    return Modes(name, basis, keep, added, error_of_x, error_of_noise, TOLERANCE)


def in_modes(basis: Basis, shape: tuple[int, ...], vectors: np.ndarray) -> np.ndarray:
    """Vectors `[..., d]` of the data as those of the modes."""
    data = jnp.asarray(vectors.reshape(-1, *shape), jnp.float32)
    return np.asarray(_to_modes(basis, data), np.float64).reshape(vectors.shape)


def in_data(basis: Basis, shape: tuple[int, ...], vectors: np.ndarray) -> np.ndarray:
    """Vectors `[..., d]` of the modes as those of the data."""
    modes = jnp.asarray(vectors.reshape(-1, *shape), jnp.float32)
    return np.asarray(_to_data(basis, modes), np.float64).reshape(vectors.shape)


_to_modes = jax.jit(Basis.to_modes)  # one program, where there would be dozens
_to_data = jax.jit(Basis.to_data)


def joint_eigenbasis(matrices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An orthonormal matrix, rows its modes, that makes `matrices` `[m, d, d]` most diagonal.

    They commute if they are diagonal in it. A random combination of all has their eigenvectors;
    where two of its eigenvalues happen to lie close, rounding turns these, and a few Newton steps
    on all matrices at once turn them back.
    """
    symmetric = 0.5 * (matrices + np.swapaxes(matrices, -1, -2))
    size = np.abs(symmetric).max(axis=(-2, -1), keepdims=True)
    symmetric = symmetric / np.where(size > 0.0, size, 1.0)
    mixed = np.einsum("m,mij->ij", rng.normal(size=len(symmetric)), symmetric)
    basis = np.linalg.eigh(mixed)[1].T
    for _ in range(4):
        turned = basis @ symmetric @ basis.T
        diagonal = np.diagonal(turned, axis1=-2, axis2=-1)
        gap = diagonal[:, None, :] - diagonal[:, :, None]
        room = np.sum(gap**2, axis=0)
        angle = -np.sum(turned * gap, axis=0) / np.where(room > 1e-9, room, np.inf)
        # Orthonormal again: the nearest such matrix.
        left, _, right = np.linalg.svd((np.eye(len(basis)) + np.clip(angle, -0.1, 0.1)) @ basis)
        basis = left @ right
    return basis


def _without_rounding(diagonals: np.ndarray, share: float) -> np.ndarray:
    largest = np.max(np.abs(diagonals), axis=-1, keepdims=True)
    return np.where(np.abs(diagonals) <= share * largest, 0.0, diagonals)


def _off_diagonal(matrices: np.ndarray) -> np.ndarray:
    return np.abs(matrices) * (1.0 - np.eye(matrices.shape[-1]))


def _worst(values: np.ndarray, scale: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.max(values / np.where(values > 0.0, scale, 1.0), initial=0.0))


def _spread(values: np.ndarray) -> float:
    rows = values.reshape(len(values), -1)
    return _worst(np.ptp(rows, axis=-1), np.abs(rows).max(axis=-1))
