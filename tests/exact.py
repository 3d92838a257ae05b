"""What the tests compare with, written without the library: 50 digits and closed forms."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import mpmath as mp
import numpy as np

mp.mp.dps = 50


class Chain(NamedTuple):
    """The tables of one schedule, lists of mpmath numbers; index t, from 0."""

    betas: list
    alpha_bar: list
    one_minus_alpha_bar: list
    log_alpha_bar: list
    log_snr: list

    def posterior(self, t, s):
        """Weights of x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance.

        Bayes' rule by completing the square: q(x_s | x_0) is the prior, q(x_t | x_s) the evidence.
        """
        if s == -1:
            return mp.mpf(1), mp.mpf(0), mp.mpf(0)
        keep = self.alpha_bar[t] / self.alpha_bar[s]
        precision = 1 / self.one_minus_alpha_bar[s] + keep / (1 - keep)
        weight_x0 = mp.sqrt(self.alpha_bar[s]) / self.one_minus_alpha_bar[s] / precision
        weight_x_t = mp.sqrt(keep) / (1 - keep) / precision
        return weight_x0, weight_x_t, 1 / precision

    def signal_and_noise(self, t):
        return mp.sqrt(self.alpha_bar[t]), mp.sqrt(self.one_minus_alpha_bar[t])


@functools.cache
def chain(name: str, num_steps: int) -> Chain:
    """The schedule `name` of the library with its default arguments."""
    last = num_steps - 1
    match name:
        case "linear":
            low, high = mp.mpf(1e-4), mp.mpf(0.02)
            return _from_betas([low + (high - low) * t / last for t in range(num_steps)])
        case "cosine":
            offset = mp.mpf(0.008)
            curve = [
                mp.cos(mp.pi / 2 * (mp.mpf(i) / num_steps + offset) / (1 + offset)) ** 2
                for i in range(num_steps + 1)
            ]
            cut = mp.mpf(0.999)
            return _from_betas([min(1 - b / a, cut) for a, b in itertools.pairwise(curve)])
        case "linear_log_snr":
            log_snr = [7 - mp.mpf(15) * t / last for t in range(num_steps)]
            alpha_bar = [1 / (1 + mp.exp(-value)) for value in log_snr]
            noise = [1 / (1 + mp.exp(value)) for value in log_snr]
            betas = [1 - b / a for a, b in itertools.pairwise([mp.mpf(1), *alpha_bar])]
            return Chain(betas, alpha_bar, noise, [mp.log(a) for a in alpha_bar], log_snr)
    raise ValueError(name)


def _from_betas(betas: list) -> Chain:
    alpha_bar, product = [], mp.mpf(1)
    for beta in betas:
        product *= 1 - beta
        alpha_bar.append(product)
    noise = [1 - a for a in alpha_bar]
    log_snr = [mp.log(a / b) for a, b in zip(alpha_bar, noise, strict=True)]
    return Chain(betas, alpha_bar, noise, [mp.log(a) for a in alpha_bar], log_snr)


def float64(values: Sequence) -> np.ndarray:
    return np.array([float(value) for value in values])


def ulps(actual, expected: Sequence) -> np.ndarray:
    """Errors of a float32 array in units of its last place, against mpmath numbers."""
    actual = np.asarray(actual)
    if actual.dtype != np.float32:
        raise TypeError(actual.dtype)
    errors = [abs(mp.mpf(float(a)) - e) for a, e in zip(actual, expected, strict=True)]
    return float64(errors) / np.spacing(np.abs(float64(expected)).astype(np.float32))


def log_probability_and_slope(x, mean, deviation, levels):
    """log p of the grey level `x` under a Gaussian cut into bins, and its derivative in `mean`."""
    x, mean, deviation = (mp.mpf(float(value)) for value in (x, mean, deviation))
    half_bin = mp.mpf(1) / (levels - 1)
    low, high = (x - half_bin - mean) / deviation, (x + half_bin - mean) / deviation
    if x > 1 - half_bin:
        high = mp.inf
    elif x < -1 + half_bin:
        low = -mp.inf
    if low + high > 0:  # in the lower tail the two probabilities are small and do not cancel
        low, high, sign = -high, -low, -1
    else:
        sign = 1
    probability = mp.erfc(-high / mp.sqrt(2)) / 2 - mp.erfc(-low / mp.sqrt(2)) / 2
    slope = sign * (mp.npdf(low) - mp.npdf(high)) / deviation / probability
    return mp.log(probability), slope


def gaussian_denoiser(alpha_bar: np.ndarray, mean: float, deviation: float, predicts: str):
    """The best possible `predict` for data N(mean, deviation^2), from tables in float64.

    E[x_0 | x_t] = mean + k (x_t - a mean) with k = a deviation^2 / (a^2 deviation^2 + b^2).
    """
    a, b = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    gain = a * deviation**2 / (alpha_bar * deviation**2 + b**2)
    slope, shift = gain, mean * (1.0 - a * gain)  # of x0_hat
    if predicts == "eps":
        slope, shift = (1.0 - a * slope) / b, -a * shift / b
    elif predicts == "v":
        slope, shift = (a - slope) / b, -shift / b
    slope, shift = jnp.asarray(slope, jnp.float32), jnp.asarray(shift, jnp.float32)

    def predict(x_t, t):
        column = (-1, *[1] * (x_t.ndim - 1))
        return slope[t].reshape(column) * x_t + shift[t].reshape(column)

    return predict
