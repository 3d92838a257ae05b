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
from ddpm_jax.evaluation.confidence import standard_error
from ddpm_jax.likelihood import bits_at_times, spread_times
from ddpm_jax.parallel import hosts, shares
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.samplers import Predict

__all__ = [
    "Memo",
    "PerTime",
    "TrainedModel",
    "baselines",
    "bits_per_dim",
    "histogram_bits_per_dim",
    "no_memo",
    "placed_batches",
    "round_up",
    "terms_program",
    "uniform_bits_per_dim",
]

_HISTOGRAM_IMAGES = 100_000
"""Largest number of images for the histogram, because some sets are decoded while they are read.

They are spread evenly, because some sets are sorted by class.
"""


Memo = Callable[[str, Callable[[], np.ndarray]], np.ndarray]
"""`(name, compute) -> array`: the array that was stored under this name, else `compute()`."""


def no_memo(name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """A `Memo` that stores nothing.

    Args:
        name: is not used.
        compute: computes the array.

    Returns:
        The array.
    """
    return compute()


class TrainedModel(NamedTuple):
    """A network as a function of its parameters, with the process and the images to measure on."""

    process: Modal
    """The forward process; while a learned schedule is trained, the one before the first step."""
    bind: Callable[..., Predict]
    """`(params, labels=None, with_variance=False) -> predict`."""
    predicts: Predicts
    """What the network predicts, see `ddpm_jax.predictions`."""
    variance: Variance
    """Variance of p(x_{t-1} | x_t), see `ddpm_jax.reverse`."""
    labelled: bool
    """Whether the network takes labels."""
    images: ImageSet
    """The data set, with those held-out images that are measured."""
    mesh: Mesh
    """The devices. If they are those of one of several processes, each process measures a share of
    the images; else all processes measure each image together."""
    key: Array
    """Root of the noise; an image's noise follows from its number."""
    seed: int
    """Seed of the times, if not all terms are computed."""
    held_out_loss: Callable[[Any], float]
    """`params -> loss`, by the objective of training."""
    memo: Memo = no_memo
    """Stores what was measured of each batch, so that an interrupted measurement continues. It is
    for one set of parameters."""
    process_of: Callable[[Any], Modal] | None = None
    """`params -> process`; None if the process does not depend on the parameters."""

    def at(self, params: Any) -> "TrainedModel":
        """The model with the process of these parameters, which may be traced.

        Args:
            params: of the network.

        Returns:
            A model whose `process` does not depend on parameters.
        """
        if self.process_of is None:
            return self
        return self._replace(process=self.process_of(params), process_of=None)


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
) -> tuple[dict[str, Any], PerTime, np.ndarray]:
    """Bits per dimension of all held-out images of the model, term by term, and image by image.

    Args:
        model: the network and the images.
        params: of the network.
        num_times: number of ELBO terms for each image; by default all T. With fewer terms the
            result is an estimate, and its standard error includes the choice of times.
        batch_size: images in one compiled call, over all devices.

    Returns:
        The summary by name, the terms, and the bits per dimension of each image, float64
        `[images]`.
    """
    images, num_steps = model.images, model.process.num_steps
    num_times = num_times or num_steps
    prior, terms, times, lengths = _terms(model, params, num_times, batch_size)
    weighted = lengths * terms
    decoder, kl = weighted[0], weighted[1:].sum(axis=0)
    total = prior + kl + decoder
    summary = {
        "dataset": images.name,
        "images": len(images.held_out),
        "levels": images.levels,
        "given_class": model.labelled,
        "num_steps": num_steps,
        "num_times": num_times,
        "bits_per_dim": float(np.mean(total)),
        "standard_error": standard_error(total),
        "prior": float(np.mean(prior)),
        "kl": float(np.mean(kl)),
        "decoder": float(np.mean(decoder)),
    }
    return summary, _per_time(terms, times, num_steps), total


def _terms(
    model: TrainedModel, params: Any, num_times: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every held-out image in float64: the prior term `[n]` and the others `[num_times, n]`.

    And its times and the lengths of their stretches, `[num_times, n]` each. In batches of one size:
    one compiled call serves all. An image's noise follows from its number.
    """
    images, mesh = model.images, model.mesh
    count = len(images.held_out)
    size = round_up(min(batch_size, count), mesh.size)
    times, lengths = spread_times(model.process.num_steps, num_times, count, seed=model.seed)
    rows_of = terms_program(model)

    def rows(first: int, items: int) -> np.ndarray:
        batch = _placed(images.held_out, first, items, size, mesh, labelled=model.labelled)
        numbers = first + np.arange(size, dtype=np.int32)
        own = np.resize(times[:, first : first + items].T, (size, num_times))
        numbers, own = jax.device_put((numbers, own), parallel.split_by_batch(mesh))
        return np.asarray(rows_of(params, model.key, numbers, batch, own))[:items]

    def stored_rows(blocks: Iterable[tuple[int, int]]) -> np.ndarray:
        parts = [np.zeros((0, 1 + num_times), np.float32)]
        for first, items in blocks:
            name = f"images_{first:07d}_{items}"
            parts.append(model.memo(name, functools.partial(rows, first, items)))
        return np.concatenate(parts)

    if shares.is_local(mesh):
        with hosts.together():
            own = stored_rows(shares.own_blocks(count, size))
        joined = shares.gathered_blocks(own, count, size)
    else:  # all processes take part in each batch
        joined = stored_rows(shares.blocks_of(0, 1, count, size))
    prior_and_terms = np.ascontiguousarray(joined.T, np.float64)
    return prior_and_terms[0], prior_and_terms[1:], times, lengths


def terms_program(model: TrainedModel) -> Callable[..., jax.Array]:
    """A compiled function of the prior term and the terms at given times, for images of one batch.

    Args:
        model: the network and the process.

    Returns:
        `(params, key, numbers, batch, times) -> terms`: the numbers of the images, `[batch]`, whose
        noise follows from key and number; their times, `[batch, times]`; and the terms, in bits per
        dimension, float32 `[batch, 1 + times]`, on every process.
    """

    @functools.partial(jax.jit, out_shardings=parallel.replicated(model.mesh))
    def terms_of(
        params: Any, key: jax.Array, numbers: jax.Array, batch: Examples, times: jax.Array
    ) -> jax.Array:
        bits = bits_at_times(
            model.at(params).process,
            model.bind(params, labels=batch.labels, with_variance=True),
            jax.vmap(jax.random.fold_in, (None, 0))(key, numbers),
            to_model_range(batch.images, model.images.levels),
            times.swapaxes(0, 1),
            predicts=model.predicts,
            levels=model.images.levels,
            variance=model.variance,
        )
        return jnp.concatenate([bits.prior[None], bits.per_time]).swapaxes(0, 1)

    return terms_of


def placed_batches(
    source: Source, size: int, mesh: Mesh, *, labelled: bool, count: int | None = None
) -> Iterator[tuple[int, Examples]]:
    """Batches of one size on the mesh, and the number of the first image of each.

    The last is filled up with its own images.
    """
    count = len(source) if count is None else min(count, len(source))
    for first, items in shares.blocks_of(0, 1, count, size):
        yield first, _placed(source, first, items, size, mesh, labelled=labelled)


def _placed(
    source: Source, first: int, items: int, size: int, mesh: Mesh, *, labelled: bool
) -> Examples:
    """A batch of `size` with these images, filled up with them."""
    images, labels = source[first + np.arange(items)]
    batch = Examples(images, labels if labelled else None)
    filled = jax.tree.map(lambda values: values[np.arange(size) % items], batch)
    placed: Examples = jax.device_put(filled, parallel.split_by_batch(mesh))
    return placed


def _per_time(terms: np.ndarray, times: np.ndarray, num_steps: int) -> PerTime:
    count = np.bincount(times.ravel(), minlength=num_steps)
    at_least = np.maximum(count, 1)
    mean = np.bincount(times.ravel(), terms.ravel(), num_steps) / at_least
    off = (terms - mean[times]) ** 2
    variance = np.bincount(times.ravel(), off.ravel(), num_steps) / np.maximum(count - 1, 1)
    mean[count == 0] = np.nan
    variance[count < 2] = np.nan
    return PerTime(mean, np.sqrt(variance / at_least), count)


def round_up(value: int, factor: int) -> int:
    """The least multiple of `factor` that is not below `value`."""
    return math.ceil(value / factor) * factor
