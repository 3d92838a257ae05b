r"""Bits per dimension while training goes on: few images, few times, and how far off that is.

The whole sum over t costs T calls of the network for each image. Here an image gets K of its terms,
one in each of K stretches of the chain, and each term stands for its stretch. The terms of most
chains differ by orders of magnitude, so the stretches are not equally long: each has an equal share
of what the terms would be for white Gaussian data of variance 1, in nats for each dimension

.. math::

    \mathrm{E}[L_t] \approx \tfrac12 \log\big(1 + \mathrm{SNR}_{t-1}\big)
    - \tfrac12 \log\big(1 + \mathrm{SNR}_t\big) \tag{1}

the information about x_0 that x_{t-1} has and x_t has not. Where data are of another kind the
estimate remains unbiased, with a larger error.

The images are a random choice in random order, and the times of successive images are neighbours or
lie evenly, so that the differences of successive images hold what the estimate's error consists of,
and not the trend over t. With y_i the estimate of image i,

.. math::

    \mathrm{error}^2 = \frac{1}{2\,n\,(n - 1)} \sum_{i=1}^{n-1} (y_i - y_{i-1})^2 \tag{2}

(Wolter 2007, section 8.2). All choices follow from the seed: the numbers of two steps differ by
less than their errors say, because images, times and noise are the same.

References:
    Wolter 2007, Introduction to Variance Estimation, 2nd edition, Springer
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import parallel
from ddpm_jax.data import Examples
from ddpm_jax.evaluation.likelihood import TrainedModel, round_up, terms_program
from ddpm_jax.likelihood import spread_times

__all__ = ["Monitor", "make_monitor", "term_sizes"]

Monitor = Callable[[Any], dict[str, int | float]]
"""A function `params -> numbers by name`."""


def make_monitor(
    model: TrainedModel, *, num_images: int, num_times: int, batch_size: int
) -> Monitor:
    """An estimate of the bits per dimension of the held-out images, for each of many parameters.

    With all images and all times it is `evaluation.likelihood.bits_per_dim`: the noise of an image
    at a time is the same.

    Args:
        model: the network and the images.
        num_images: number of held-out images; all of them if there are fewer.
        num_times: number of ELBO terms for each image, at least 2; all T if there are fewer.
        batch_size: images in one call of the network, over all devices.

    Returns:
        A function `params -> values`: "held_out_bits_per_dim", its standard error
        "held_out_bits_per_dim_error" (NaN for one image), and as whole numbers "held_out_images"
        and "held_out_times". Its first call reads the images and compiles.
    """
    images, mesh, num_steps = model.images, model.mesh, model.process.num_steps
    count, num_times = min(num_images, len(images.held_out)), min(num_times, num_steps)
    size = round_up(min(batch_size, count), mesh.size)
    by_example = parallel.split_by_batch(mesh)
    random = np.random.default_rng((model.seed, len(images.held_out)))
    numbers = random.choice(len(images.held_out), count, replace=False)
    times, lengths = spread_times(
        num_steps, num_times, count, seed=model.seed, sizes=term_sizes(model.process)
    )

    terms_of = terms_program(model)

    @functools.cache
    def batches() -> list[tuple[np.ndarray, Examples, np.ndarray]]:
        """On the host; the last is filled up with its own images."""
        parts = []
        for first in range(0, count, size):
            rows = np.resize(np.arange(first, min(first + size, count)), size)
            examples = images.held_out[numbers[rows]]
            examples = Examples(examples.images, examples.labels if model.labelled else None)
            parts.append((numbers[rows].astype(np.int32), examples, times[:, rows].T))
        return parts

    def monitor(params: Any) -> dict[str, int | float]:
        parts = [
            terms_of(params, model.key, *jax.device_put(batch, by_example)) for batch in batches()
        ]
        terms = np.concatenate(jax.device_get(parts))[:count].astype(np.float64)
        bits = terms[:, 0] + (lengths.T * terms[:, 1:]).sum(axis=1)
        return {
            "held_out_bits_per_dim": float(np.mean(bits)),
            "held_out_bits_per_dim_error": _error(bits),
            "held_out_images": count,
            "held_out_times": num_times,
        }

    return monitor


def term_sizes(process: Any) -> np.ndarray:
    """The terms of the ELBO for white Gaussian data and the ideal network, eq. (1).

    Args:
        process: a schedule, or another process of modes, whose mean log SNR is used.

    Returns:
        Nats for each dimension at each t, float64 `[T]`; 0 for the decoder at t = 0.
    """
    information = 0.5 * np.logaddexp(0.0, process.mean_log_snr())
    return np.maximum(-np.diff(information, prepend=information[:1]), 0.0)


def _error(bits: np.ndarray) -> float:
    """Of the mean, eq. (2)."""
    if len(bits) < 2:
        return math.nan
    return float(np.sqrt(np.mean(np.diff(bits) ** 2) / (2.0 * len(bits))))
