"""Bits per dimension of held-out images, by a trained network and by codes without a network."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ddpm_jax import parallel
from ddpm_jax.data import Examples, ImageSet, Source, in_batches, to_model_range
from ddpm_jax.forward import Predicts
from ddpm_jax.likelihood import BitsAtTimes, bits_at_times, spread_times
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.samplers import Predict

__all__ = [
    "PerTime",
    "TrainedModel",
    "baselines",
    "bits_per_dim",
    "histogram_bits_per_dim",
    "placed_batches",
    "round_up",
    "uniform_bits_per_dim",
]

_HISTOGRAM_IMAGES = 100_000
"""Largest number of images for the histogram, because some sets are decoded while they are read.

They are spread evenly, because some sets are sorted by class.
"""


class TrainedModel(NamedTuple):
    """A network as a function of its parameters, with the process and the images to measure on."""

    process: Modal
    """The forward process."""
    bind: Callable[..., Predict]
    """`(params, labels=None, with_variance=False) -> predict`."""
    predicts: Predicts
    """What the network predicts: "eps", "x0" or "v"."""
    variance: Variance
    """Variance of p(x_{t-1} | x_t), see `ddpm_jax.reverse`."""
    labelled: bool
    """Whether the network takes labels."""
    images: ImageSet
    """The data set."""
    mesh: Mesh
    """The devices."""
    key: Array
    """Root of the noise; an image's noise follows from its number."""
    seed: int
    """Seed of the times, if not all terms are computed."""
    held_out_loss: Callable[[Any], float]
    """`params -> loss`, by the objective of training."""


class PerTime(NamedTuple):
    """The term of the ELBO at each t, over held-out images, in bits per dimension: `[T]` each."""

    mean: np.ndarray
    """Mean over the images; NaN without images at this t."""
    standard_error: np.ndarray
    """Standard error of the mean; NaN for fewer than two images."""
    images: np.ndarray
    """Number of images at this t."""


def baselines(images: ImageSet) -> dict[str, Any]:
    """Bits per dimension of the held-out images by codes without a network."""
    source = images.train_centred
    fitted = min(len(source), _HISTOGRAM_IMAGES)
    spread = np.arange(fitted) * len(source) // fitted
    return {
        "uniform": uniform_bits_per_dim(images.levels),
        "histogram": histogram_bits_per_dim(
            (source[spread[i : i + 1000]].images for i in range(0, fitted, 1000)),
            (batch.images for batch in in_batches(images.held_out, 1000)),
            levels=images.levels,
        ),
        "histogram_images": fitted,
    }


def uniform_bits_per_dim(levels: int) -> float:
    """Bits per dimension if all grey levels are equally likely, log2(levels).

    Args:
        levels: number of grey levels.

    Returns:
        Bits per dimension.
    """
    return math.log2(levels)


def histogram_bits_per_dim(
    train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], *, levels: int
) -> float:
    """Bits per dimension by independent histograms of the pixels.

    One count is added to each level (Laplace's rule), so that the cost of a level that does not
    occur in training is finite.

    Args:
        train: batches of uint8 `[n, height, width, channel]`, on which the histograms are fitted.
        held_out: batches of the same shape, which are measured.
        levels: number of grey levels; values are below it.

    Returns:
        Mean of -log2 p over all held-out images and dimensions.
    """
    train_counts, num_train = _counts(train, levels)
    counts, _ = _counts(held_out, levels)
    bits = -np.log2((train_counts + 1.0) / (num_train + levels))
    return float(np.sum(counts * bits) / np.sum(counts))


def _counts(batches: Iterable[np.ndarray], levels: int) -> tuple[np.ndarray, int]:
    """How often each pixel has each level, `[pixels, levels]`, and the number of images."""
    total, count = np.zeros(1, np.int64), 0
    for images in batches:
        pixels = images.reshape(len(images), -1).astype(np.int64)
        pixels += levels * np.arange(pixels.shape[1])
        total = total + np.bincount(pixels.ravel(), minlength=levels * pixels.shape[1])
        count += len(images)
    return total.reshape(-1, levels), count


def bits_per_dim(
    model: TrainedModel, params: Any, *, num_times: int | None, batch_size: int
) -> tuple[dict[str, Any], PerTime]:
    """Bits per dimension of all held-out images, and term by term.

    Args:
        model: the network and the images.
        params: of the network.
        num_times: number of ELBO terms for each image; by default all T. With fewer terms the
            result is an estimate, and its standard error includes the choice of times.
        batch_size: images in one compiled call, over all devices.
    """
    images, num_steps = model.images, model.process.num_steps
    num_times = num_times or num_steps
    terms, times, lengths = _terms(model, params, num_times, batch_size)
    weighted = lengths * terms.per_time
    decoder, kl = weighted[0], weighted[1:].sum(axis=0)
    total = terms.prior + kl + decoder
    summary = {
        "dataset": images.name,
        "images": len(images.held_out),
        "levels": images.levels,
        "given_class": model.labelled,
        "num_steps": num_steps,
        "num_times": num_times,
        "bits_per_dim": float(np.mean(total)),
        "standard_error": _standard_error(total),
        "prior": float(np.mean(terms.prior)),
        "kl": float(np.mean(kl)),
        "decoder": float(np.mean(decoder)),
    }
    return summary, _per_time(terms.per_time, times, num_steps)


def _terms(
    model: TrainedModel, params: Any, num_times: int, batch_size: int
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Of every held-out image in float64, and its times and the lengths of their stretches.

    In batches of one size: one compiled call serves all. An image's noise follows from its number.
    """
    images, mesh = model.images, model.mesh
    count = len(images.held_out)
    size = round_up(min(batch_size, count), mesh.size)
    times, lengths = spread_times(model.process.num_steps, num_times, count, seed=model.seed)
    by_example = parallel.split_by_batch(mesh)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))  # for every process
    def terms_of(
        params: Any, key: jax.Array, first: jax.Array, batch: Examples, times: jax.Array
    ) -> BitsAtTimes:
        number = first + jnp.arange(size, dtype=jnp.int32)
        number = jax.lax.with_sharding_constraint(number, by_example)
        return bits_at_times(
            model.process,
            model.bind(params, labels=batch.labels, with_variance=True),
            jax.vmap(jax.random.fold_in, (None, 0))(key, number),
            to_model_range(batch.images, images.levels),
            times.swapaxes(0, 1),
            predicts=model.predicts,
            levels=images.levels,
            variance=model.variance,
        )

    parts, key = [], model.key
    for first, batch in placed_batches(images.held_out, size, mesh, labelled=model.labelled):
        last = min(first + size, count)
        own = np.resize(times[:, first:last].T, (size, num_times))
        terms = jax.device_get(
            terms_of(params, key, np.int32(first), batch, jax.device_put(own, by_example))
        )
        parts.append(BitsAtTimes(*(term[..., : last - first] for term in terms)))
    joined: Any = jax.tree.map(
        lambda *terms: np.concatenate(terms, axis=-1).astype(np.float64), *parts
    )
    return joined, times, lengths


def placed_batches(
    source: Source, size: int, mesh: Mesh, *, labelled: bool, count: int | None = None
) -> Iterator[tuple[int, Examples]]:
    """Batches of one size on the mesh, and the number of the first image of each.

    The last is filled up with its own images.
    """
    first = 0
    for images, labels in in_batches(source, size, count):
        batch = Examples(images, labels if labelled else None)
        filled = jax.tree.map(lambda values: values[np.arange(size) % len(values)], batch)
        yield first, jax.device_put(filled, parallel.split_by_batch(mesh))
        first += size


def _per_time(terms: np.ndarray, times: np.ndarray, num_steps: int) -> PerTime:
    count = np.bincount(times.ravel(), minlength=num_steps)
    at_least = np.maximum(count, 1)
    mean = np.bincount(times.ravel(), terms.ravel(), num_steps) / at_least
    off = (terms - mean[times]) ** 2
    variance = np.bincount(times.ravel(), off.ravel(), num_steps) / np.maximum(count - 1, 1)
    mean[count == 0] = np.nan
    variance[count < 2] = np.nan
    return PerTime(mean, np.sqrt(variance / at_least), count)


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None where one value tells nothing of the spread."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def round_up(value: int, factor: int) -> int:
    """The least multiple of `factor` that is not below `value`."""
    return math.ceil(value / factor) * factor
