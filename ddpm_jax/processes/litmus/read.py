"""A step as the probes saw it, and how that reads in each basis."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ddpm_jax.bases import Basis
from ddpm_jax.processes.litmus import classify, probes
from ddpm_jax.processes.litmus.classify import Modes
from ddpm_jax.processes.litmus.probes import Linearized, Step

__all__ = ["Probed", "probe"]


class Probed(NamedTuple):
    """One chain, linearized at every t."""

    step: Step
    shape: tuple[int, ...]
    num_steps: int
    rng: np.random.Generator
    """Of all that is still to be drawn."""
    bases: dict[str, Basis]
    """Those that are tried, by name."""
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
            return [
                classify.modes(name, basis, self.shape, A, B) for name, basis in self.bases.items()
            ]
        pairs = [slice(2 * i, 2 * i + 2) for i in range(len(self.bases))]
        of_x, of_noise = self.linear.of_x, self.linear.of_eps
        return [
            classify.modes_by_probes(
                name, basis, self.shape, signs, of_x[:, pair], of_noise[:, pair]
            )
            for (name, basis), signs, pair in zip(
                self.bases.items(), self.signs, pairs, strict=True
            )
        ]

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A and B `[T, d, d]`, where they are known exactly."""
        return np.swapaxes(self.linear.of_x, -1, -2), np.swapaxes(self.linear.of_eps, -1, -2)

    def with_noise(self, mean: np.ndarray, variance: np.ndarray) -> "Probed":
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
) -> Probed:
    """`step` linearized along all axes, or along random vectors for each basis that is tried."""
    tried = {**classify.candidates(shape), **more}
    signs = rng.choice([-1.0, 1.0], (len(tried), 2, math.prod(shape)))
    along = None if exact else directions(tried, shape, signs)
    linear = probes.linearize(step, shape, num_steps, rng, along)
    return Probed(step, shape, num_steps, rng, tried, signs, exact, linear)


def directions(bases: Mapping[str, Basis], shape: tuple[int, ...], signs: np.ndarray) -> np.ndarray:
    """Vectors of the data `[2 bases, d]`, whose modes in each basis are its two rows of signs."""
    vectors = [
        classify.in_data(basis, shape, pair)
        for basis, pair in zip(bases.values(), signs, strict=True)
    ]
    return np.concatenate(vectors)
