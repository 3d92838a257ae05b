"""What a trained network is asked: its bits per dimension and its samples, over the mesh."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import parallel, samplers, training
from ddpm_jax.config import SamplerName
from ddpm_jax.data import to_levels, to_model_range
from ddpm_jax.evaluation import histogram_bits_per_dim, strip_times, uniform_bits_per_dim
from ddpm_jax.experiment.build import Experiment, make_objective
from ddpm_jax.likelihood import BitsPerDim, bits_per_dim

__all__ = ["Drawn", "evaluate", "held_out_loss", "make_drawer"]

_HELD_OUT_LOSS_IMAGES = 1024
"""The loss that ranks checkpoints is taken over at most so many images."""
_STRIP_ROWS, _STRIP_COLUMNS = 8, 12
"""A denoising strip shows so many images at so many times."""


class Drawn(NamedTuple):
    """Samples as grey levels, uint8."""

    images: np.ndarray
    """`[num, height, width, channel]`."""
    strip: np.ndarray
    """The way of the first few of them, `[few, times, height, width, channel]`, noise first."""


def evaluate(experiment: Experiment, params: Any) -> dict[str, Any]:
    """Bits per dimension of the held-out images, every term of the ELBO, beside two baselines."""
    images = experiment.images
    terms = _bits_per_dim(experiment, params)
    return {
        "dataset": images.name,
        "images": len(images.held_out),
        "levels": images.levels,
        "num_steps": experiment.process.num_steps,
        "bits_per_dim": float(np.mean(terms.total)),
        "standard_error": _standard_error(np.asarray(terms.total)),
        "prior": float(np.mean(terms.prior)),
        "kl": float(np.mean(terms.kl)),
        "decoder": float(np.mean(terms.decoder)),
        "uniform": uniform_bits_per_dim(images.levels),
        "histogram": histogram_bits_per_dim(images.train, images.held_out, levels=images.levels),
    }


def _bits_per_dim(experiment: Experiment, params: Any) -> BitsPerDim:
    """Terms of every held-out image, in batches of one size: one compiled call serves all."""
    images, mesh = experiment.images, experiment.mesh
    size = _round_up(min(experiment.config.evaluation.batch_size, len(images.held_out)), mesh.size)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))  # for every process
    def terms_of(params: Any, key: jax.Array, batch: jax.Array) -> BitsPerDim:
        return bits_per_dim(
            experiment.process,
            experiment.bind(params, with_variance=True),
            key,
            to_model_range(batch, images.levels),
            predicts=experiment.config.model.predicts,
            levels=images.levels,
            variance=experiment.config.model.variance,
        )

    parts = []
    for index, start in enumerate(range(0, len(images.held_out), size)):
        batch = images.held_out[start : start + size]
        count = len(batch)
        filled = jax.device_put(batch[np.arange(size) % count], parallel.split_by_batch(mesh))
        key = jax.random.fold_in(experiment.key("bits per dim"), index)
        terms = jax.device_get(terms_of(params, key, filled))
        parts.append(BitsPerDim(*(term[..., :count] for term in terms)))
    joined: BitsPerDim = jax.tree.map(lambda *terms: np.concatenate(terms, axis=-1), *parts)
    return joined


def held_out_loss(experiment: Experiment) -> Callable[[Any], float]:
    """`params -> loss` on held-out images with the same noise each time, to compare checkpoints."""
    mesh = experiment.mesh
    count = min(len(experiment.images.held_out), _HELD_OUT_LOSS_IMAGES)
    size = _round_up(count, mesh.size)
    filled = experiment.images.held_out[np.arange(size) % count]
    images = jax.device_put(filled, parallel.split_by_batch(mesh))
    objective = make_objective(experiment, train=False)
    key = experiment.key("held out")

    @jax.jit
    def mean_loss(params: Any, images: jax.Array) -> jax.Array:
        return jnp.mean(training.weighted_losses(objective, params, key, images))

    return lambda params: float(mean_loss(params, images))


def make_drawer(
    experiment: Experiment,
    *,
    num: int,
    sampler: SamplerName,
    steps: int | None,
    spacing: samplers.Spacing,
) -> Callable[[Any, jax.Array], Drawn]:
    """`(params, key) -> Drawn`, compiled once.

    Args:
        experiment: the run.
        num: number of images.
        sampler: its name.
        steps: steps of the sampler; None takes all T.
        spacing: how they are spread over the chain.
    """
    process, images, mesh = experiment.process, experiment.images, experiment.mesh
    times = samplers.time_grid(process, steps or process.num_steps, spacing)
    # Threefry noise of a larger batch begins with that of a smaller one: the surplus is cut off
    # below, and the images do not depend on the mesh.
    shape = (_round_up(num, mesh.size), *images.image_shape)

    few = min(num, _STRIP_ROWS)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def draw(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chain = _make_sampler(experiment, sampler, params)
        drawn = samplers.sample(chain, key, shape, times, keep=lambda info: info.x_s[:few])
        shown = drawn.trajectory[strip_times(len(times), _STRIP_COLUMNS)]
        return to_levels(drawn.x0, images.levels), to_levels(shown, images.levels)

    def drawer(params: Any, key: jax.Array) -> Drawn:
        finished, shown = draw(params, key)
        return Drawn(np.asarray(finished)[:num], np.asarray(shown).swapaxes(0, 1))

    return drawer


def _make_sampler(experiment: Experiment, name: SamplerName, params: Any) -> samplers.Sampler:
    """The one of this name; ancestral sampling alone has a use for the network's variance."""
    model = experiment.config.model
    told: dict[str, Any] = {"predicts": model.predicts}
    if name == "ancestral":
        told["variance"] = model.variance
    predict = experiment.bind(params, with_variance=name == "ancestral")
    make: Callable[..., samplers.Sampler] = getattr(samplers, name)
    return make(experiment.process, predict, **told)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 where one value tells nothing of the spread."""
    return float(np.std(values, ddof=min(1, len(values) - 1)) / math.sqrt(len(values)))


def _round_up(value: int, factor: int) -> int:
    return math.ceil(value / factor) * factor
