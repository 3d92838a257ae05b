"""What a trained network is asked of held-out images: bits per dimension, and a loss."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import parallel, training
from ddpm_jax.data import Examples, ImageSet, Source, in_batches, to_model_range
from ddpm_jax.evaluation import histogram_bits_per_dim, uniform_bits_per_dim
from ddpm_jax.experiment.build import Experiment, make_objective
from ddpm_jax.likelihood import BitsAtTimes, bits_at_times, spread_times

__all__ = ["PerTime", "baselines", "evaluate", "held_out_loss", "likelihood"]

_HISTOGRAM_IMAGES = 100_000
"""The histogram is fitted on at most so many: some sets are decoded as they are read.

They are spread evenly, for some sets are sorted by class.
"""

_HELD_OUT_LOSS_IMAGES = 1024
"""The loss that ranks checkpoints is taken over at most so many images."""


class PerTime(NamedTuple):
    """The term of the ELBO at each t, over held-out images, in bits per dimension: `[T]` each."""

    mean: np.ndarray
    standard_error: np.ndarray
    """NaN where fewer than two images were asked."""
    images: np.ndarray
    """How many were asked at this t."""


def evaluate(experiment: Experiment, params: Any) -> dict[str, Any]:
    """Bits per dimension of all held-out images beside two baselines."""
    return likelihood(experiment, params)[0] | baselines(experiment.images)


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


def likelihood(experiment: Experiment, params: Any) -> tuple[dict[str, Any], PerTime]:
    """Bits per dimension of all held-out images, and term by term.

    With `evaluation.likelihood_times` it is an estimate from as many terms of each image, and its
    standard error has that chance in it.
    """
    images, num_steps = experiment.images, experiment.process.num_steps
    num_times = experiment.config.evaluation.likelihood_times or num_steps
    terms, times, lengths = _terms(experiment, params, num_times)
    weighted = lengths * terms.per_time
    decoder, kl = weighted[0], weighted[1:].sum(axis=0)
    total = terms.prior + kl + decoder
    summary = {
        "dataset": images.name,
        "images": len(images.held_out),
        "levels": images.levels,
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
    experiment: Experiment, params: Any, num_times: int
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Of every held-out image in float64, and its times and the lengths of their stretches.

    In batches of one size: one compiled call serves all. An image's noise follows from its number.
    """
    images, mesh, config = experiment.images, experiment.mesh, experiment.config
    count = len(images.held_out)
    size = _round_up(min(config.evaluation.batch_size, count), mesh.size)
    times, lengths = spread_times(experiment.process.num_steps, num_times, count, seed=config.seed)
    by_example = parallel.split_by_batch(mesh)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))  # for every process
    def terms_of(
        params: Any, key: jax.Array, first: jax.Array, batch: Examples, times: jax.Array
    ) -> BitsAtTimes:
        number = first + jnp.arange(size, dtype=jnp.int32)
        number = jax.lax.with_sharding_constraint(number, by_example)
        return bits_at_times(
            experiment.process,
            experiment.bind(params, labels=batch.labels, with_variance=True),
            jax.vmap(jax.random.fold_in, (None, 0))(key, number),
            to_model_range(batch.images, images.levels),
            times.swapaxes(0, 1),
            predicts=config.model.predicts,
            levels=images.levels,
            variance=config.model.variance,
        )

    parts, key = [], experiment.key("bits per dim")
    for first, batch in _placed_batches(experiment, images.held_out, size):
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


def _placed_batches(
    experiment: Experiment, source: Source, size: int, count: int | None = None
) -> Iterator[tuple[int, Examples]]:
    """Batches of one size on the mesh, and the number of the first image of each.

    The last is filled up with its own images.
    """
    labelled = experiment.config.model.classes > 0
    first = 0
    for images, labels in in_batches(source, size, count):
        batch = Examples(images, labels if labelled else None)
        filled = jax.tree.map(lambda values: values[np.arange(size) % len(values)], batch)
        yield first, jax.device_put(filled, parallel.split_by_batch(experiment.mesh))
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


def held_out_loss(experiment: Experiment) -> Callable[[Any], float]:
    """`params -> loss` on held-out images with the same noise each time, to compare checkpoints."""
    source, mesh = experiment.images.held_out, experiment.mesh
    count = min(len(source), _HELD_OUT_LOSS_IMAGES)
    size = _round_up(min(experiment.config.evaluation.batch_size, count), mesh.size)
    batches = [batch for _, batch in _placed_batches(experiment, source, size, count)]
    objective = make_objective(experiment, train=False)
    key = experiment.key("held out")

    @jax.jit
    def mean_loss(params: Any, key: jax.Array, batch: Examples) -> jax.Array:
        return jnp.mean(training.weighted_losses(objective, params, key, batch))

    def loss(params: Any) -> float:
        losses = [
            mean_loss(params, jax.random.fold_in(key, index), batch)
            for index, batch in enumerate(batches)
        ]
        return float(np.mean(jax.device_get(losses)))

    return loss


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None where one value tells nothing of the spread."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _round_up(value: int, factor: int) -> int:
    return math.ceil(value / factor) * factor
