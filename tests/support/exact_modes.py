"""Processes of many modes as dense matrices in float64: only `build` calls the library.

x_t = A_t x_0 + N_t eps with A_t = B^T diag(a_t) B and N_t = B^T diag(b_t) B, for flattened data.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from exact import chain, float64

from ddpm_jax import bases, processes, schedules

SHAPE = (4, 3, 1)
SIZE = 12


class Dense(NamedTuple):
    """A process by its definition; index t, from 0, and s = -1 for the data."""

    log_signal: np.ndarray  # log a^2 [T, d]
    log_noise: np.ndarray
    matrix: np.ndarray  # B, a mode in each row
    log_prior: np.ndarray  # [d]

    def a(self, t):
        return np.exp(0.5 * self.log_signal[t]) if t >= 0 else np.ones(len(self.matrix))

    def b(self, t):
        return np.exp(0.5 * self.log_noise[t]) if t >= 0 else np.zeros(len(self.matrix))

    def snr(self, t):
        return np.exp(self.log_signal[t] - self.log_noise[t]) if t >= 0 else np.inf

    def of_modes(self, values):
        """B^T diag(values) B."""
        return self.matrix.T @ (np.asarray(values)[:, None] * self.matrix)

    def signal(self, t):
        return self.of_modes(self.a(t))

    def noise(self, t):
        return self.of_modes(self.b(t))

    def transition(self, t, s):
        """The matrix on x_s in x_t, and the covariance of what is added."""
        keep = self.a(t) / self.a(s)
        return self.of_modes(keep), self.of_modes(self.b(t) ** 2 - keep**2 * self.b(s) ** 2)

    def posterior(self, t, s):
        """Matrices on x_0 and x_t in the mean of q(x_s | x_t, x_0), and its covariance.

        By conditioning the joint Gaussian of (x_s, x_t) given x_0.
        """
        step, added = self.transition(t, s)
        covariance_s = self.noise(s) @ self.noise(s)
        covariance_t = step @ covariance_s @ step.T + added
        gain = np.linalg.solve(covariance_t, step @ covariance_s).T
        on_x0 = self.signal(s) - gain @ step @ self.signal(s)
        return on_x0, gain, covariance_s - gain @ step @ covariance_s


def cosines(n):
    """The DCT-II: row k is cos(pi k (x + 1/2) / n), scaled to length one."""
    rows = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hartley(*sides):
    """Row k is cos + sin of 2 pi sum_i k_i x_i / n_i, scaled to length one."""
    places = np.array(list(itertools.product(*map(range, sides))))
    angles = 2.0 * np.pi * (places / np.array(sides)) @ places.T
    return (np.cos(angles) + np.sin(angles)) / np.sqrt(len(places))


def alpha_bar(name, num_steps):
    """log alpha_bar and log (1 - alpha_bar), `[T]`."""
    tables = chain(name, num_steps)
    log_alpha_bar = float64(tables.log_alpha_bar)
    return log_alpha_bar, log_alpha_bar - float64(tables.log_snr)


COVARIANCE = np.exp(-np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE))) / 2.0)
# Of a stationary covariance: lambda(k) = lambda(-k) along both axes of a 4 x 3 image.
PERIODIC = np.array([1.0, 0.4, 0.1, 0.4])[:, None, None] * np.array([2.0, 0.5, 0.5])[None, :, None]
FALLING = 2.0 / (1.0 + np.add.outer(np.arange(4.0) ** 2, np.arange(3.0) ** 2))[..., None]
OFFSETS = np.linspace(-1.0, 2.0, SIZE).reshape(SHAPE)
SPREAD = np.linspace(0.2, 1.5, SIZE).reshape(SHAPE)
MAX_BLUR, MIN_SCALE = 1.5, 0.05

NAMES = ("isotropic", "blurring", "correlated", "periodic", "equal_snr", "per_pixel", "rotated")


def build(name, num_steps=50, schedule="cosine"):
    """The library's process that `dense` is the reference of."""
    made = getattr(schedules, schedule)(num_steps)
    match name:
        case "isotropic":
            return schedules.from_alpha_bar(np.exp(alpha_bar(schedule, num_steps)[0]))
        case "blurring":
            return processes.blurring(made, SHAPE, max_blur=MAX_BLUR, min_scale=MIN_SCALE)
        case "correlated":
            return processes.correlated(made, COVARIANCE, shape=SHAPE)
        case "periodic":
            return processes.correlated(made, spectrum=PERIODIC, basis=bases.fourier())
        case "equal_snr":
            return processes.equal_snr(made, FALLING, bases.dct())
        case "per_pixel":
            log_snr = np.linspace(5.0, -6.0, num_steps)[:, None, None, None] + OFFSETS
            return processes.per_pixel(log_snr, variance=SPREAD)
        case "rotated":
            tables = (np.exp(part) for part in _rotated(num_steps)[:2])
            basis = bases.orthonormal(_rotated(num_steps)[2], SHAPE)
            return processes.spectral(
                *(table.reshape(num_steps, *SHAPE) for table in tables), basis
            )
    raise ValueError(name)


@functools.cache
def dense(name, num_steps=50, schedule="cosine"):
    """The process `name` by the definitions in its constructor's paper."""
    log_signal, log_noise = (
        np.repeat(table[:, None], SIZE, axis=1) for table in alpha_bar(schedule, num_steps)
    )
    identity, even = np.eye(SIZE), np.zeros(SIZE)
    images = np.kron(np.kron(cosines(4), cosines(3)), np.eye(1))
    match name:
        case "isotropic":
            return Dense(log_signal, log_noise, identity, even)
        case "blurring":
            return Dense(log_signal + 2.0 * np.log(heat(num_steps)), log_noise, images, even)
        case "correlated":
            eigenvalues, vectors = np.linalg.eigh(COVARIANCE)
            log_eigenvalues = np.log(eigenvalues)
            return Dense(log_signal, log_noise + log_eigenvalues, vectors.T, log_eigenvalues)
        case "periodic":
            log_spectrum = np.log(PERIODIC).ravel()
            return Dense(log_signal, log_noise + log_spectrum, hartley(4, 3), log_spectrum)
        case "equal_snr":
            log_spectrum = np.log(FALLING).ravel()
            return Dense(log_signal, log_noise + log_spectrum, images, log_spectrum)
        case "per_pixel":
            log_snr = np.linspace(5.0, -6.0, num_steps)[:, None] + OFFSETS.ravel()
            a2, b2 = 1.0 / (1.0 + np.exp(-log_snr)), SPREAD.ravel() / (1.0 + np.exp(log_snr))
            return Dense(np.log(a2), np.log(b2), identity, np.log(SPREAD.ravel()))
        case "rotated":
            log_signal, log_noise, matrix = _rotated(num_steps)
            last = np.log(np.exp(log_signal[-1]) + np.exp(log_noise[-1]))
            return Dense(log_signal, log_noise, matrix, last)
    raise ValueError(name)


def heat(num_steps, shape=SHAPE, max_blur=MAX_BLUR, min_scale=MIN_SCALE):
    """What blur leaves of each mode, `[T, d]`: Hoogeboom & Salimans 2022, appendix A.

    Step by step as they write it: width of the kernel, dissipation time, frequencies, scale.
    """
    height, width, channels = shape
    scales = []
    for step in range(1, num_steps + 1):
        sigma_blur = max_blur * np.sin(step / num_steps * np.pi / 2) ** 2
        dissipation_time = sigma_blur**2 / 2
        of_step = np.empty(shape)
        for i, j in itertools.product(range(height), range(width)):
            squared = (np.pi * i / height) ** 2 + (np.pi * j / width) ** 2
            of_step[i, j] = np.exp(-squared * dissipation_time) * (1 - min_scale) + min_scale
        scales.append(of_step.reshape(height * width * channels))
    return np.array(scales)


def _rotated(num_steps):
    """A chain of falling SNR in every mode and nothing else, in a basis like no other."""
    rng = np.random.default_rng(4)
    matrix = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    falls = rng.uniform(0.1, 0.5, size=(num_steps, SIZE)) * 20.0 / num_steps
    log_snr = 6.0 - np.cumsum(falls, axis=0)
    log_noise = np.cumsum(rng.normal(size=(num_steps, SIZE)), axis=0) * 0.02 - 1.0
    return log_snr + log_noise, log_noise, matrix
