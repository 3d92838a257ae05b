"""Images drawn from a network: over the mesh, in batches, each a matter of its own number.

Image i of a key has the key fold_in(key, i) for all that is random about it. Of a network with
classes it has class i mod their number, unless a label is given; classes without training images do
not count. So it is the same image in whatever batch and on whatever mesh it is drawn, but for
rounding: sums inside the network may be taken in another order.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import parallel, samplers
from ddpm_jax.data import to_levels
from ddpm_jax.evaluation import image_grid, save_png, strip_times
from ddpm_jax.experiment.experiment import Experiment

__all__ = [
    "Drawer",
    "Samples",
    "images_function",
    "labels_of",
    "make_drawer",
    "sampling_function",
    "save_pictures",
]

_STRIP_ROWS, _STRIP_COLUMNS = 8, 12
"""A denoising strip shows so many images at so many times."""


class Samples(NamedTuple):
    """Drawn images as grey levels, uint8."""

    images: np.ndarray
    """`[num, height, width, channel]`."""
    strip: np.ndarray
    """The way of the first few of them, `[few, times, height, width, channel]`, noise first."""


Drawer = Callable[..., Samples]
"""`(params, key, first=0) -> Samples`, of the images first, first + 1, ... of this key."""


def make_drawer(
    experiment: Experiment, *, num: int, sampler: configs.Sampler, label: int | None = None
) -> Drawer:
    """Draws `num` images at once as grey levels; compiled when it is first called.

    Args:
        experiment: whose process and network it is.
        num: how many.
        sampler: the member that makes the sampler.
        label: the class of all images; by default one after the other of those with training
            images.
    """
    levels = experiment.spec.levels
    sample = sampling_function(experiment, num=num, sampler=sampler, label=label)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(experiment.mesh))
    def draw(params: Any, key: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = sample(params, key, first)
        strip = drawn.trajectory[strip_times(len(drawn.trajectory), _STRIP_COLUMNS)]
        return to_levels(drawn.x0, levels), to_levels(strip, levels)

    def drawer(params: Any, key: jax.Array, first: int = 0) -> Samples:
        images, strip = draw(params, key, jnp.int32(first))
        return Samples(np.asarray(images)[:num], np.asarray(strip).swapaxes(0, 1))

    return drawer


def sampling_function(
    experiment: Experiment, *, num: int, sampler: configs.Sampler, label: int | None = None
) -> Callable[[Any, jax.Array, jax.Array], samplers.Samples]:
    """`(params, key, first) -> samples` in [-1, 1], with the way of the first few; pure.

    There are `num` of them, and as many more as make it a multiple of the devices.
    """
    mesh = experiment.mesh
    size = math.ceil(num / mesh.size) * mesh.size
    draw = images_function(experiment, sampler=sampler, few=min(num, _STRIP_ROWS))

    def sample(params: Any, key: jax.Array, first: jax.Array) -> samplers.Samples:
        index = first + jnp.arange(size, dtype=jnp.int32)
        index = jax.lax.with_sharding_constraint(index, parallel.split_by_batch(mesh))
        return draw(params, key, index, labels_of(experiment, index, label))

    return sample


def images_function(
    experiment: Experiment, *, sampler: configs.Sampler, few: int = 0
) -> Callable[[Any, jax.Array, jax.Array, jax.Array | None], samplers.Samples]:
    """`(params, key, index, labels) -> samples` in [-1, 1] of the images with these numbers; pure.

    Labels are None for a network without classes. The trajectory has the way of the first `few`.
    """
    shape, times = experiment.spec.shape, sampler.times(experiment.process)
    keep = (lambda info: info.x_s[:few]) if few else None

    def draw(
        params: Any, key: jax.Array, index: jax.Array, labels: jax.Array | None
    ) -> samplers.Samples:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        chain: Any = sampler.make(experiment.bind_for(sampler, params, labels))
        configs.check_made("sampler", sampler, chain, samplers.Sampler)
        return samplers.sample(chain, keys, (index.shape[0], *shape), times, keep=keep)

    return draw


def labels_of(
    experiment: Experiment, index: jax.Array, label: int | None = None
) -> jax.Array | None:
    """The classes of the images with these numbers: `label`, or one after the other.

    None for a network without classes.
    """
    if not experiment.config.network.classes:
        return None
    if label is not None:
        return jnp.full_like(index, label)
    classes = jnp.asarray(experiment.spec.trained_classes, jnp.int32)
    return classes[index % len(classes)]


def save_pictures(
    directory: Path, name: str, drawn: Samples, *, levels: int
) -> dict[str, np.ndarray]:
    """`samples_NAME.png` and `strip_NAME.png`; returns the two pictures."""
    few, columns = drawn.strip.shape[:2]
    frames = drawn.strip.reshape(few * columns, *drawn.strip.shape[2:])
    pictures = {
        "samples": image_grid(drawn.images, levels=levels),
        "strip": image_grid(frames, levels=levels, columns=columns),
    }
    for kind, picture in pictures.items():
        save_png(directory / f"{kind}_{name}.png", picture)
    return pictures
