"""Compares the samples of a run with its data set, in the space of a feature network.

Each number comes with two numbers that need no model: the same statistic of the held-out images in
place of the samples, and of one half of the training images compared with the other. The samples of
a perfect model are as far from the training images as the held-out images are, not at zero.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data import ImageSet, Source, in_batches, to_bytes
from ddpm_jax.evaluation import (
    FeatureNetwork,
    Metric,
    Moments,
    Reference,
    features_of,
    frechet_distance,
    inception_score,
    kernel_distance_of_subsets,
    make_reference,
    metric_name,
    moments_of,
    nearest,
    precision_recall,
)

__all__ = [
    "COMPARED",
    "Neighbours",
    "Score",
    "Space",
    "make_space",
    "near_training_images",
    "scores",
]

_NEIGHBOURHOOD = 10_000
"""Features of so many training images are stored, and precision and recall are of so many samples
at most: every pair of them meets."""
_SUBSET, _SUBSETS = 1000, 100
_SPLITS = 10
"""Of the samples for the classifier score, which takes as many samples at least. The score of one
image is 1, whatever the image: where a split has one only, all images are one split instead."""
_NEAREST = 3
_OF_ALL, _OF_PAIRS = ("FID", "IS"), ("precision", "recall")
"""What is of all training images, or of none; and what is of so many samples at most."""
_READ, _READ_NEAR = 500, 10_000
"""Images read at a time: for a network, and to look for neighbours among."""
COMPARED = 500
"""Images whose distance to the training images is measured."""


class Score(NamedTuple):
    """One number, and what it has to be compared with."""

    name: str
    value: float
    spread: float | None
    """Standard error over subsets of the kernel distance; standard deviation over splits of the
    classifier score, as papers print it. None where there is one subset or split only."""
    held_out: float | None
    """The same of the held-out images; None where it cannot be."""
    halves: float | None
    """The same of two halves of the training images."""


class _Rows(NamedTuple):
    """What a network says of images, on the host."""

    pooled: np.ndarray
    logits: np.ndarray


Statistics = dict[Metric, tuple[float, float | None]]
"""Values and their spreads."""


class Space(NamedTuple):
    """A feature network and the data set in its space."""

    network: FeatureNetwork
    train: Reference
    held_out: Statistics
    """Of the held-out images in place of samples."""
    halves: Statistics
    """Of one half of the training images, against the other."""


class Neighbours(NamedTuple):
    """Samples and the training images nearest to them, pixel by pixel."""

    images: np.ndarray
    """`[samples, 1 + k, height, width, channel]`: the sample first."""
    samples: float
    """Median distance of a sample to its nearest training image, root mean square in grey
    levels."""
    held_out: float
    """The same of held-out images."""


def make_space(
    images: ImageSet,
    network: FeatureNetwork,
    mesh: Mesh,
    batch_size: int,
    train: Reference | None = None,
) -> Space:
    """The training and the held-out images in the space of `network`.

    Args:
        images: the data set.
        network: whose features are compared.
        mesh: over which images are shared out.
        batch_size: of images that the network sees at once.
        train: statistics of the training images that were made before, if there are.
    """
    if train is None:
        train = make_reference(
            network.apply,
            (to_bytes(batch, images.levels) for batch in _images(images.train_centred)),
            mesh,
            batch_size,
            dataset=images.name,
            split=images.splits[0],
            preprocessing=images.preparation,
            network=network.name,
            network_sha256=network.identity,
            keep_features=_NEIGHBOURHOOD,
        )
    rows = _features(images, network, mesh, batch_size, _images(images.held_out))
    some = _train_rows(train)
    halves = _statistics(train.halves[0], some[0::2], None, train.halves[1], some[1::2])
    return Space(network, train, _beside(train, rows), halves)


def scores(
    space: Space, images: ImageSet, samples: Iterable[np.ndarray], mesh: Mesh, batch_size: int
) -> list[Score]:
    """All statistics of samples, which come as uint8 `[any number, height, width, channel]`."""
    rows = _features(images, space.network, mesh, batch_size, samples)
    num = len(rows.pooled)
    whole = len(_train_rows(space.train)) == space.train.provenance.images
    return [
        Score(
            metric_name(
                metric,
                samples=min(num, _NEIGHBOURHOOD) if metric in _OF_PAIRS else num,
                network=space.network.name,
                full_reference=whole or metric in _OF_ALL,
            ),
            value,
            spread,
            space.held_out.get(metric, (None, None))[0],
            space.halves.get(metric, (None, None))[0],
        )
        for metric, (value, spread) in _beside(space.train, rows).items()
    ]


def _beside(train: Reference, rows: _Rows) -> Statistics:
    """The statistics of images beside the training images."""
    moments = moments_of(rows.pooled)
    return _statistics(moments, rows.pooled, rows.logits, train.moments, _train_rows(train))


def _statistics(
    moments: Moments,
    rows: np.ndarray,
    logits: np.ndarray | None,
    train_moments: Moments,
    train_rows: np.ndarray,
) -> Statistics:
    """Those that so many images have."""
    statistics: Statistics = {}
    if min(moments.rows, train_moments.rows) >= 2:
        statistics["FID"] = frechet_distance(moments, train_moments), None
    size = min(_SUBSET, len(rows), len(train_rows))
    if size >= 2:
        kernel = kernel_distance_of_subsets(
            rows, train_rows, seed=0, subsets=_SUBSETS, subset_size=size
        )
        varies = size < max(len(rows), len(train_rows))
        statistics["KID"] = kernel.mean, kernel.standard_error if varies else None
    if size > _NEAREST:
        precision, recall = precision_recall(rows[:_NEIGHBOURHOOD], train_rows, _NEAREST)
        statistics["precision"], statistics["recall"] = (precision, None), (recall, None)
    if logits is not None and len(logits) >= _SPLITS:
        score = inception_score(logits, _SPLITS if len(logits) >= 2 * _SPLITS else 1)
        statistics["IS"] = score.mean, score.standard_deviation
    return statistics


def _train_rows(train: Reference) -> np.ndarray:
    """Features of the first training images."""
    return np.zeros((0, len(train.moments.mean))) if train.features is None else train.features


def near_training_images(
    images: ImageSet, samples: np.ndarray, *, shown: int, neighbours: int
) -> Neighbours:
    """The nearest training images of samples, in the distance of their pixels.

    Samples that are much nearer to a training image than held-out images are were learned by heart.
    There are `neighbours` of each, or all training images if they are fewer.
    """
    neighbours = min(neighbours, len(images.train_centred))
    held_out = images.held_out[np.arange(min(COMPARED, len(images.held_out)))].images
    queries = np.concatenate([samples, held_out])
    distances = np.full((len(queries), neighbours), np.inf)
    numbers = np.zeros((len(queries), neighbours), np.int64)
    first = 0
    for batch in in_batches(images.train_centred, _READ_NEAR):
        count = min(neighbours, len(batch.images))
        statistics = nearest(_flat(queries), _flat(batch.images), count)
        joined = np.concatenate([distances, statistics.distances], axis=1)
        both = np.concatenate([numbers, statistics.indices + first], axis=1)
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
        float(np.median(per_pixel[: len(samples)])),
        float(np.median(per_pixel[len(samples) :])),
    )


def _features(
    images: ImageSet,
    network: FeatureNetwork,
    mesh: Mesh,
    batch_size: int,
    batches: Iterable[np.ndarray],
) -> _Rows:
    stretched = (to_bytes(batch, images.levels) for batch in batches)
    rows = list(features_of(network.apply, stretched, mesh, batch_size))
    return _Rows(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def _images(source: Source) -> Iterator[np.ndarray]:
    return (batch.images for batch in in_batches(source, _READ))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
