"""What the tests compare with, 50 digits and closed forms: only `build` calls the library."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import mpmath as mp
import numpy as np

from ddpm_jax import schedules

mp.mp.dps = 50


class Chain(NamedTuple):
    """The tables of one schedule, lists of mpmath numbers; index t, from 0. alpha_bar is a^2."""

    betas: list
    alpha_bar: list
    noise_power: list
    log_alpha_bar: list
    log_snr: list

    def posterior(self, t, s):
        """Weights of x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance.

        Bayes' rule by completing the square: q(x_s | x_0) is the prior, q(x_t | x_s) the evidence.
        """
        if s == -1:
            return mp.mpf(1), mp.mpf(0), mp.mpf(0)
        keep = self.alpha_bar[t] / self.alpha_bar[s]
        added = self.noise_power[t] - keep * self.noise_power[s]
        precision = 1 / self.noise_power[s] + keep / added
        weight_x0 = mp.sqrt(self.alpha_bar[s]) / self.noise_power[s] / precision
        weight_x_t = mp.sqrt(keep) / added / precision
        return weight_x0, weight_x_t, 1 / precision

    def signal_and_noise(self, t):
        return mp.sqrt(self.alpha_bar[t]), mp.sqrt(self.noise_power[t])


@functools.cache
def chain(name: str, num_steps: int) -> Chain:
    """The schedule `name` of the library with its default arguments; "constant" has beta 0.01.

    "zero_terminal_snr" and "shifted" are made of the cosine, "respaced" of the linear one of
    twice as many steps.
    """
    last = num_steps - 1
    match name:
        case "linear":
            low, high = mp.mpf(1e-4), mp.mpf(0.02)
            return _from_betas([low + (high - low) * t / last for t in range(num_steps)])
        case "quadratic":
            low, high = mp.sqrt(mp.mpf(1e-4)), mp.sqrt(mp.mpf(0.02))
            return _from_betas([(low + (high - low) * t / last) ** 2 for t in range(num_steps)])
        case "constant":
            return _from_betas([mp.mpf(0.01)] * num_steps)
        case "sigmoid_betas":  # GeoDiff's: a sigmoid in beta, where "sigmoid" is one in alpha_bar
            low, high = mp.mpf(1e-4), mp.mpf(0.02)
            x = [mp.mpf(12) * t / last - 6 for t in range(num_steps)]
            return _from_betas([low + (high - low) / (1 + mp.exp(-x)) for x in x])
        case "sigmoid":
            ends = [1 / (1 + mp.exp(-x)) for x in (-3, 3)]
            x = [mp.mpf(6) * (t + 1) / num_steps - 3 for t in range(num_steps)]
            curve = [(ends[1] - 1 / (1 + mp.exp(-x))) / (ends[1] - ends[0]) for x in x]
            return _cut([mp.mpf(1), *curve])
        case "zero_terminal_snr":
            signal = [mp.sqrt(a) for a in chain("cosine", num_steps).alpha_bar]
            scale = signal[0] / (signal[0] - signal[-1])
            return _from_alpha_bar([((value - signal[-1]) * scale) ** 2 for value in signal])
        case "shifted":
            snr = [mp.exp(value) / 4 for value in chain("cosine", num_steps).log_snr]
            return _from_alpha_bar([value / (1 + value) for value in snr])
        case "respaced":
            return _from_alpha_bar(chain("linear", 2 * num_steps).alpha_bar[1::2])
        case "cosine":
            offset = mp.mpf(0.008)
            curve = [
                mp.cos(mp.pi / 2 * (mp.mpf(i) / num_steps + offset) / (1 + offset)) ** 2
                for i in range(num_steps + 1)
            ]
            return _cut(curve)
        case "linear_log_snr":
            log_snr = [7 - mp.mpf(15) * t / last for t in range(num_steps)]
            alpha_bar = [1 / (1 + mp.exp(-value)) for value in log_snr]
            noise = [1 / (1 + mp.exp(value)) for value in log_snr]
            betas = [1 - b / a for a, b in itertools.pairwise([mp.mpf(1), *alpha_bar])]
            return Chain(betas, alpha_bar, noise, [mp.log(a) for a in alpha_bar], log_snr)
        case "variance_preserving":
            return _from_alpha_bar([mp.exp(-rate) for rate in _rates(num_steps)])
        case "sub_variance_preserving":
            alpha_bar = [mp.exp(-rate) for rate in _rates(num_steps)]
            return _from_powers(alpha_bar, [(1 - a) ** 2 for a in alpha_bar])
        case "variance_exploding":
            low, high = (mp.mpf(sigma) ** (1 / mp.mpf(7)) for sigma in (0.002, 80))
            sigma = [(low + (high - low) * t / last) ** 7 for t in range(num_steps)]
            return _from_powers([mp.mpf(1)] * num_steps, [level**2 for level in sigma])
        case "rectified_flow":
            u = [mp.mpf(t + 1) / num_steps for t in range(num_steps)]
            return _from_powers([(1 - value) ** 2 for value in u], [value**2 for value in u])
        case "shifted_flow":  # noise levels times 3
            sigma = [3 * mp.mpf(t + 1) / (last - t) for t in range(last)]
            a, b = [1 / (1 + s) for s in sigma], [s / (1 + s) for s in sigma]
            return _from_powers([*(v**2 for v in a), mp.mpf(0)], [*(v**2 for v in b), mp.mpf(1)])
    raise ValueError(name)


def _rates(num_steps: int) -> list:
    u = [mp.mpf(t + 1) / num_steps for t in range(num_steps)]
    return [mp.mpf(0.1) * value + (20 - mp.mpf(0.1)) / 2 * value**2 for value in u]


def _from_powers(signal: list, noise: list) -> Chain:
    betas = [noise[0]]
    for t in range(1, len(signal)):
        betas.append(noise[t] - signal[t] / signal[t - 1] * noise[t - 1])
    log_signal = [_log(a) for a in signal]
    log_snr = [a - mp.log(b) for a, b in zip(log_signal, noise, strict=True)]
    return Chain(betas, signal, noise, log_signal, log_snr)


def _from_betas(betas: list) -> Chain:
    alpha_bar, product = [], mp.mpf(1)
    for beta in betas:
        product *= 1 - beta
        alpha_bar.append(product)
    noise = [1 - a for a in alpha_bar]
    log_snr = [_log(a) - mp.log(b) for a, b in zip(alpha_bar, noise, strict=True)]
    return Chain(betas, alpha_bar, noise, [_log(a) for a in alpha_bar], log_snr)


def _log(value):
    return mp.log(value) if value else -mp.inf


def _cut(curve: list) -> Chain:
    return _from_betas([min(1 - b / a, mp.mpf(0.999)) for a, b in itertools.pairwise(curve)])


def _from_alpha_bar(alpha_bar: list) -> Chain:
    return _from_betas([1 - b / a for a, b in itertools.pairwise([mp.mpf(1), *alpha_bar])])


def build(name: str, num_steps: int) -> schedules.Schedule:
    """The library's schedule that `chain(name, num_steps)` is the reference of."""
    match name:
        case "constant":
            return schedules.constant(num_steps, 0.01)
        case "shifted_flow":
            return schedules.rectified_flow(num_steps, shift=3.0)
        case "sigmoid_betas":
            return schedules.from_betas(float64(chain(name, num_steps).betas))
        case "zero_terminal_snr":
            return schedules.zero_terminal_snr(schedules.cosine(num_steps))
        case "shifted":
            return schedules.shifted(schedules.cosine(num_steps), resolution=128, reference=64)
        case "respaced":
            return schedules.respaced(schedules.linear(2 * num_steps), range(1, 2 * num_steps, 2))
    return getattr(schedules, name)(num_steps)


def float64(values: Sequence) -> np.ndarray:
    return np.array([float(value) for value in values])


def ulps(actual, expected: Sequence, floor: float = 0.0) -> np.ndarray:
    """Errors of a float32 array in units of its last place, against mpmath numbers.

    Values below `floor` count as that large: a logarithm that crosses zero has no last place.
    """
    actual = np.asarray(actual)
    if actual.dtype != np.float32:
        raise TypeError(actual.dtype)
    errors = [
        mp.mpf(0) if float(a) == e else abs(mp.mpf(float(a)) - e)  # where both are -inf, too
        for a, e in zip(actual, expected, strict=True)
    ]
    size = np.maximum(np.abs(float64(expected)), floor).astype(np.float32)
    return float64(errors) / np.spacing(np.where(np.isfinite(size), size, np.float32(1.0)))


def log_probability_and_slope(x, mean, deviation, levels):
    """log p of the grey level `x` under a Gaussian cut into bins, and its derivative in `mean`."""
    return log_probability_and_slopes(x, mean, deviation, levels)[:2]


def log_probability_and_slopes(x, mean, deviation, levels):
    """The same, and the derivative in `deviation` too."""
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
    levers = [z * mp.npdf(z) if mp.isfinite(z) else mp.mpf(0) for z in (low, high)]
    return mp.log(probability), slope, (levers[0] - levers[1]) / deviation / probability


def gaussian_denoiser(alpha_bar: np.ndarray, mean: float, deviation: float, predicts: str):
    """The best possible `predict` for data N(mean, deviation^2), from tables in float64."""
    return affine_of_x(*gaussian_slopes(alpha_bar, mean, deviation, predicts))


def gaussian_slopes(alpha_bar: np.ndarray, mean: float, deviation: float, predicts: str):
    """What that predictor multiplies x_t by at each time, and what it adds.

    E[x_0 | x_t] = mean + k (x_t - a mean) with k = a deviation^2 / (a^2 deviation^2 + b^2).
    """
    a, b = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    gain = a * deviation**2 / (alpha_bar * deviation**2 + b**2)
    slope, shift = gain, mean * (1.0 - a * gain)  # of x0_hat
    if predicts == "eps":
        slope, shift = (1.0 - a * slope) / b, -a * shift / b
    elif predicts == "v":
        slope, shift = (a - slope) / b, -shift / b
    return jnp.asarray(slope, jnp.float32), jnp.asarray(shift, jnp.float32)


def affine_of_x(slope, shift):
    """`predict` of tables over time."""

    def predict(x_t, t):
        column = (-1, *[1] * (x_t.ndim - 1))
        return slope[t].reshape(column) * x_t + shift[t].reshape(column)

    return predict
