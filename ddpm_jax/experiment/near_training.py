"""The training images that are nearest to samples, pixel by pixel.

Samples that are much nearer to a training image than held-out images are were memorized.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.data import ImageSet, in_batches
from ddpm_jax.data.source import spread
from ddpm_jax.evaluation import nearest

__all__ = ["COMPARED", "Neighbours", "near_training_images"]

COMPARED = 1000
"""Samples, and held-out images, whose distance to the training images is measured at most."""
_READ = 10_000
"""Training images among which neighbours are looked for at a time."""


class Neighbours(NamedTuple):
    """Samples and the training images nearest to them, pixel by pixel."""

    images: np.ndarray
    """`[samples, 1 + k, height, width, channel]`: the sample first."""
    samples: np.ndarray
    """Distance of each sample to its nearest training image, root mean square in grey levels."""
    held_out: np.ndarray
    """The same of held-out images."""


def near_training_images(
    images: ImageSet, samples: np.ndarray, *, shown: int, neighbours: int
) -> Neighbours:
    """The nearest training images of samples, in the distance of their pixels.

    There are `neighbours` of each, or all training images if they are fewer.

    Args:
        images: the data set.
        samples: grey levels like those of `images`, uint8 `[n, height, width, channel]`.
        shown: number of samples whose neighbours are returned as images.
        neighbours: number of neighbours of each.
    """
    neighbours = min(neighbours, len(images.train_centred))
    held_out = images.held_out[np.array(spread(len(images.held_out), COMPARED))].images
    queries = np.concatenate([samples, held_out])
    distances = np.full((len(queries), neighbours), np.inf)
    numbers = np.zeros((len(queries), neighbours), np.int64)
    first = 0
    for batch in in_batches(images.train_centred, _READ):
        count = min(neighbours, len(batch.images))
        near = nearest(_flat(queries), _flat(batch.images), count)
        joined = np.concatenate([distances, near.distances], axis=1)
        both = np.concatenate([numbers, near.indices + first], axis=1)
        order = np.argsort(joined, axis=1, kind="stable")[:, :neighbours]
        distances = np.take_along_axis(joined, order, axis=1)
        numbers = np.take_along_axis(both, order, axis=1)
        first += len(batch.images)
    shown = min(shown, len(samples))
    theirs = images.train_centred[numbers[:shown].ravel()].images
    rows = theirs.reshape(shown, neighbours, *images.image_shape)
    per_pixel = distances[:, 0] / np.sqrt(np.prod(images.image_shape))
    return Neighbours(
        np.concatenate([samples[:shown, None], rows], axis=1),
        per_pixel[: len(samples)],
        per_pixel[len(samples) :],
    )


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
