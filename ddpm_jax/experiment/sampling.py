"""Draws images from a network, over the mesh and in batches.

All randomness of image i follows from fold_in(key, i). For a network with classes its class is i
mod the number of classes, unless a label is given; classes without training images are left out.
Therefore an image does not depend on its batch or mesh, except for rounding: sums inside the
network may be computed in another order.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import parallel, samplers
from ddpm_jax.data import to_levels
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_grid, save_png, strip_times
from ddpm_jax.experiment.experiment import Experiment

__all__ = [
    "Drawer",
    "Samples",
    "class_of",
    "images_function",
    "labels_of",
    "make_drawer",
    "sampling_function",
    "save_pictures",
]

_STRIP_ROWS, _STRIP_COLUMNS = 8, 12
"""Number of images and of times in a denoising strip."""
_MOST_NAMES = 12
"""Number of classes that a sentence names."""


class Samples(NamedTuple):
    """Drawn images as grey levels, uint8."""

    images: np.ndarray
    """`[num, height, width, channel]`."""
    strip: np.ndarray
    """The first few images at some times, `[few, times, height, width, channel]`, noise first."""


Drawer = Callable[..., Samples]
"""`(params, key, first=0) -> Samples`, the images first, first + 1, ... of this key."""


def make_drawer(
    experiment: Experiment, *, num: int, sampler: configs.Sampler, label: int | None = None
) -> Drawer:
    """A function that draws images as grey levels; it compiles at its first call.

    Args:
        experiment: with the process and the network.
        num: number of images of each call.
        sampler: the sampler.
        label: class of all images; by default the classes with training images follow each other.

    Returns:
        A function `(params, key, first=0) -> Samples`, the images first, first + 1, ... of a key.
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
    """`(params, key, first) -> samples` in [-1, 1], with the trajectory of the first few; pure.

    Their number is `num`, rounded up to a multiple of the devices.
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
    """`(params, key, index, labels) -> samples` in [-1, 1], the images with these numbers; pure.

    Labels are None for a network without classes. The trajectory is that of the first `few` images.
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
    """The classes of the images with these numbers: `label`, or all classes in turn.

    It is None for a network without classes.
    """
    if not experiment.config.network.classes:
        return None
    if label is not None:
        return jnp.full_like(index, label)
    classes = jnp.asarray(experiment.spec.trained_classes, jnp.int32)
    return classes[index % len(classes)]


def class_of(experiment: Experiment, label: str | int | None, name: str = "label") -> int | None:
    """The class with this name, or else with this number, if it has training images.

    Args:
        experiment: of a run.
        label: name or number of the class; None for no choice, which is None.
        name: of the argument, for the sentence.

    Raises:
        UserError: the run has no classes, or was not trained on this class.
    """
    if label is None:
        return None
    spec, text = experiment.spec, str(label)
    if not experiment.config.network.classes:
        raise UserError(f"{name} is for runs with classes; this one has none")
    names = spec.classes or ()
    if text in names:
        number = names.index(text)
    elif text.isdecimal() and int(text) < len(names):
        number = int(text)
    else:
        raise UserError(f"{name} is {label!r}; the run has the classes {_few(names)}")
    if number not in spec.trained_classes:
        trained = tuple(names[number] for number in spec.trained_classes)
        raise UserError(
            f"{name} is {label!r}, a class without training images, which the network never saw;"
            f" it was trained on {_few(trained)}"
        )
    return number


def _few(names: Sequence[str]) -> str:
    """All names of a few; of many names, the first ones and the last one."""
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], "...", names[-1]]
    return ", ".join(names)


def save_pictures(
    directory: Path, name: str, drawn: Samples, *, levels: int
) -> dict[str, np.ndarray]:
    """Writes `samples_NAME.png` and `strip_NAME.png`; returns the two pictures."""
    few, columns = drawn.strip.shape[:2]
    frames = drawn.strip.reshape(few * columns, *drawn.strip.shape[2:])
    pictures = {
        "samples": image_grid(drawn.images, levels=levels),
        "strip": image_grid(frames, levels=levels, columns=columns),
    }
    for kind, picture in pictures.items():
        save_png(directory / f"{kind}_{name}.png", picture)
    return pictures
