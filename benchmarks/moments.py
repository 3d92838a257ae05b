r"""How far samples of q(x_t | x_0) are from its first two moments, against float64 on the host.

Where x_t | x_0 is Gaussian with mean m and covariance L L^T, z = L^{-1} (x_t - m) is white. Of n
values of z, each of these is a standard normal, if n is not tiny:

    sum(z) / sqrt(n)                  a mean that is off by a constant
    <z, u> / |u|, u = L^{-1} m        a mean that is too large or too small
    (sum(z^2) - n) / sqrt(2 n)        a wrong variance
    sum(z_i z_{i+1}) / sqrt(n)        correlation of neighbours

so a figure above 5 in any of a thousand rows is no accident. The exact moments are the ones that
the equations of the papers give; nothing of them comes from the code that is measured.
"""

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "Affine",
    "Moments",
    "affine_marginal",
    "cosine_alpha_bar",
    "distance",
    "white_affine",
    "white_blurred",
    "white_isotropic",
]

FAR = 5.0
"""Standard errors; twice in a million draws of one of the four figures."""


class Moments(NamedTuple):
    """The larger of the two figures of the mean, and of those of the covariance."""

    values: int
    """n."""
    mean_errors: float
    """In standard errors."""
    variance_errors: float
    mean_distance: float
    """In deviations: the same, divided by sqrt(n)."""
    variance_distance: float
    """Relative to the variance."""

    @property
    def far(self) -> bool:
        """Whether the samples are not of this distribution."""
        return not max(self.mean_errors, self.variance_errors) < FAR


class Affine(NamedTuple):
    """x_t | x_0 = N(matrix x_0 + offset, covariance) of flattened data, float64."""

    matrix: np.ndarray
    offset: np.ndarray
    covariance: np.ndarray


def distance(z: np.ndarray, u: np.ndarray) -> Moments:
    """Of the whitened residual `z` and the whitened mean `u`, of one shape `[batch, modes]`."""
    n = z.size
    of_mean = (abs(z.sum()) / math.sqrt(n), abs(np.vdot(z, u)) / math.sqrt(np.vdot(u, u)))
    neighbours = z[:, :-1] * z[:, 1:]
    of_variance = (
        abs(np.square(z).sum() - n) / math.sqrt(2.0 * n),
        abs(neighbours.sum()) / math.sqrt(max(neighbours.size, 1)),
    )
    return Moments(
        values=n,
        mean_errors=float(max(of_mean)),
        variance_errors=float(max(of_variance)),
        mean_distance=float(max(of_mean) / math.sqrt(n)),
        variance_distance=float(
            max(of_variance[0] * math.sqrt(2.0 / n), of_variance[1] / math.sqrt(n))
        ),
    )


def white_isotropic(
    alpha_bar: float, x0: np.ndarray, x_t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z and u of N(sqrt(alpha_bar) x_0, (1 - alpha_bar) I)."""
    mean, deviation = math.sqrt(alpha_bar) * _flat(x0), math.sqrt(1.0 - alpha_bar)
    return (_flat(x_t) - mean) / deviation, mean / deviation


def white_blurred(
    alpha_bar: float, u: float, x0: np.ndarray, x_t: np.ndarray, *, max_blur: float = 20.0
) -> tuple[np.ndarray, np.ndarray]:
    """z and u, by frequencies, of images `[batch, height, width, channel]` after blur and noise.

    Hoogeboom & Salimans 2022, eq. 18 and section 4.1 (https://arxiv.org/abs/2209.05557), at the
    share `u` of the chain, with a least scale of 0.001.
    """
    rows, columns = (np.pi * np.arange(n) / n for n in x0.shape[1:3])
    squared = np.square(rows)[:, None] + np.square(columns)[None]
    dissipation = 0.5 * (max_blur * np.sin(0.5 * np.pi * u) ** 2) ** 2
    scale = (1.0 - 1e-3) * np.exp(-squared * dissipation) + 1e-3
    deviation = math.sqrt(1.0 - alpha_bar)
    mean = math.sqrt(alpha_bar) * scale[None, :, :, None] * _cosines(x0)
    return _flat((_cosines(x_t) - mean) / deviation), _flat(mean / deviation)


def white_affine(
    marginal: Affine, x0: np.ndarray, x_t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z and u of a Gaussian with any covariance."""
    factor = np.linalg.cholesky(marginal.covariance)
    mean = _flat(x0) @ marginal.matrix.T + marginal.offset
    stacked = np.concatenate([_flat(x_t) - mean, mean]).T
    z, u = np.split(np.linalg.solve(factor, stacked).T, 2)
    return z, u


def affine_marginal(A: np.ndarray, b: np.ndarray, Q: np.ndarray) -> Affine:
    """The marginal after all steps of x <- A_t x + b_t + N(0, Q_t), one after the other."""
    matrix, offset = np.eye(A.shape[1]), np.zeros(A.shape[1])
    covariance = np.zeros_like(matrix)
    for step, drift, noise in zip(A.astype(float), b.astype(float), Q.astype(float), strict=True):
        matrix, offset = step @ matrix, step @ offset + drift
        covariance = step @ covariance @ step.T + noise
    return Affine(matrix, offset, covariance)


def cosine_alpha_bar(num_steps: int) -> np.ndarray:
    """alpha_bar of Nichol & Dhariwal 2021, eq. 17, betas cut to 0.999, as products in float64.

    https://arxiv.org/abs/2102.09672
    """
    grid = np.arange(num_steps + 1) / num_steps
    f = np.cos(0.5 * np.pi * (grid + 0.008) / 1.008) ** 2
    return np.cumprod(1.0 - np.minimum(1.0 - f[1:] / f[:-1], 0.999))


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _cosines(images: np.ndarray) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of height and width, as two matrix products."""
    for axis in (1, 2):
        n = images.shape[axis]
        matrix = np.cos(np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5))
        matrix *= np.where(np.arange(n) == 0, 1.0, math.sqrt(2.0))[:, None] / math.sqrt(n)
        images = np.moveaxis(np.moveaxis(images.astype(np.float64), axis, -1) @ matrix.T, -1, axis)
    return images
