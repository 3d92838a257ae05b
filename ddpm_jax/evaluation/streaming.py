"""Computes a network's features of images over the mesh, in batches of one size."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data import check_images
from ddpm_jax.evaluation.features import EvaluationError, check_at_least
from ddpm_jax.parallel import replicated, split_by_batch

__all__ = ["features_of"]

Features = TypeVar("Features")
"""The output of a network for a batch: arrays whose leading axis is the batch."""


def features_of(
    apply: Callable[[jax.Array], Features],
    images: Iterable[np.ndarray],
    mesh: Mesh,
    batch_size: int,
) -> Iterator[Features]:
    """Computes `apply(images)` of all images, batch by batch.

    Images are grouped into batches of `batch_size`, rounded up to a multiple of the devices. The
    last batch is filled up with copies of its own images, whose features are removed. Therefore one
    compiled call serves all batches, also later ones of the same shape. Each batch is split over
    the whole mesh; only its results are gathered, by each process.

    Args:
        apply: function of uint8 `[batch, height, width, channel]` that returns arrays with the
            leading axis batch, such as `Features`. It may not mix images. Pass the parameters of a
            network by `jax.tree_util.Partial(function, params)`: then they are arguments of the
            compiled program, and not constants in it.
        images: batches, uint8 `[any number, height, width, channel]`, the same in all processes.
        mesh: mesh over which the batches are split.
        batch_size: images in one call, at least 1.

    Returns:
        An iterator over the results of `apply` on the host, one for each batch.

    Raises:
        EvaluationError: `batch_size` is below 1, or `apply` does not return one row for each image.
        DataError: a batch is not images.
    """
    check_at_least("batch_size", batch_size, 1)
    return _features(apply, images, mesh, math.ceil(batch_size / mesh.size) * mesh.size)


def _features(
    apply: Callable[[jax.Array], Features], images: Iterable[np.ndarray], mesh: Mesh, size: int
) -> Iterator[Features]:
    partial = jax.tree_util.Partial
    network = apply if isinstance(apply, partial) else partial(apply)
    call = _compiled_call(mesh)
    for batch in _regrouped(images, size):
        count = len(batch)
        filled = jax.device_put(batch[np.arange(size) % count], split_by_batch(mesh))
        features: Any = jax.device_get(call(network, filled))
        _check_rows(features, size)
        yield jax.tree.map(functools.partial(_first, count), features)


@functools.cache
def _compiled_call(mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
    """One program for all calls, so that the same program computes samples and reference."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))  # for every process
    def call(network: Callable[[jax.Array], Any], batch: jax.Array) -> Any:
        return network(batch)

    return call


def _first(count: int, rows: np.ndarray) -> np.ndarray:
    return rows[:count]


def _regrouped(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images, `size` at a time; at the end, the rest."""
    waiting: list[np.ndarray] = []
    for batch in images:
        check_images("images", batch)
        if waiting and batch.shape[1:] != waiting[0].shape[1:]:
            raise EvaluationError(
                f"images of shape {batch.shape[1:]} follow images of shape {waiting[0].shape[1:]};"
                " all have to have the same shape"
            )
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)
            whole = len(joined) // size * size
            yield from np.split(joined[:whole], whole // size)
            waiting = [joined[whole:]]
    if waiting and sum(map(len, waiting)):
        yield np.concatenate(waiting)


def _check_rows(features: Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(features):
        if leaf.shape[:1] != (size,):
            raise EvaluationError(
                f"apply(images){jax.tree_util.keystr(path)} has shape {leaf.shape}; it has to have"
                f" one row for each of the {size} images"
            )
