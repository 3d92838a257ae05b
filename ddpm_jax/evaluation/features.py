"""Features of images by a network, and checks of arrays of features.

FID, KID, precision and recall compare sets of `pooled` features; the Inception score uses the
`logits`. Results can be compared only if the same network computed the features. Therefore
`FeatureNetwork.name` is printed with each number, and `identity` is stored with the statistics of a
reference set.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.errors import UserError

__all__ = [
    "EvaluationError",
    "FeatureNetwork",
    "Features",
    "as_rgb",
    "check_at_least",
    "check_features",
    "check_rows",
    "check_same_dim",
]


class Features(NamedTuple):
    """Output of a feature network for a batch of images, in float32."""

    pooled: Float[Array, "batch dim"]
    """Features, `[batch, dim]`."""
    logits: Float[Array, "batch classes"] | None = None
    """Logits of the classes, `[batch, classes]`; for Inception without the last layer's bias, see
    `ddpm_jax.evaluation.inception`. None for a network without classes."""
    spatial: Float[Array, "batch spatial"] | None = None
    """Features that keep positions, `[batch, spatial]`, for sFID; None for most networks."""


class FeatureNetwork(NamedTuple):
    """A feature network with its weights, as a function of images."""

    name: str
    """Name in results, which says how images are prepared where several ways are in use:
    "Inception-v3", "Inception-v3, clean-fid's resize", "digits classifier"."""
    identity: str
    """SHA-256, in hex, of the weights and of the preparation of images."""
    dim: int
    """Number of features."""
    classes: int
    """Number of classes; 0 for a network without logits."""
    apply: Callable[[UInt8[Array, "batch height width channel"]], Features]
    """Pure and compiled function of images with 256 levels and 1 or 3 channels. It is a
    `jax.tree_util.Partial` of the weights, so that under another `jit` they are arguments."""
    spatial_dim: int = 0
    """Number of features that keep positions; 0 for a network without them."""


class EvaluationError(UserError):
    """Statistics that cannot be computed or compared; the sentence says why, and what would do."""


def as_rgb(
    images: UInt8[Array, "batch height width channel"],
) -> UInt8[Array, "batch height width 3"]:
    """Images with 3 channels, grey repeated.

    Raises:
        TypeError: `images` are not uint8.
        ValueError: they are not `[batch, height, width, 1 or 3]`.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images have dtype {images.dtype}; they have to be uint8, of 256 levels")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images have shape {images.shape}; they have to be [batch, height, width, channel],"
            " with 1 channel or 3"
        )
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def check_features(name: str, features: np.ndarray, *, least: int = 1) -> None:
    """Raises EvaluationError unless `features` is finite floats ``[n, dim]`` with n >= `least`."""
    _check_matrix(name, features, least)
    if not np.issubdtype(features.dtype, np.floating):
        raise EvaluationError(
            f"{name} has dtype {features.dtype}; it has to be floating point, like the features of"
            " a network"
        )
    _check_finite(name, features)


def check_rows(name: str, rows: np.ndarray, *, least: int = 1) -> None:
    """The same for rows that may also be grey levels or other integers."""
    _check_matrix(name, rows, least)
    if np.issubdtype(rows.dtype, np.integer):
        return
    if not np.issubdtype(rows.dtype, np.floating):
        raise EvaluationError(f"{name} has dtype {rows.dtype}; it has to be floats or integers")
    _check_finite(name, rows)


def check_same_dim(name: str, rows: np.ndarray, like_name: str, like: np.ndarray) -> None:
    """Raises EvaluationError unless the rows of both have the same length."""
    if rows.shape[-1] != like.shape[-1]:
        raise EvaluationError(
            f"{name} has {rows.shape[-1]} dimensions and {like_name} {like.shape[-1]}; both have to"
            " be of the same network"
        )


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises EvaluationError if `value` is below `least`."""
    if value < least:
        raise EvaluationError(f"{name} is {value}; it has to be at least {least}")


def _check_matrix(name: str, rows: np.ndarray, least: int) -> None:
    if not isinstance(rows, np.ndarray):
        raise EvaluationError(
            f"{name} is a {type(rows).__name__}; it has to be an array on the host (np.asarray)"
        )
    if rows.ndim != 2 or rows.shape[0] < least or rows.shape[1] < 1:
        raise EvaluationError(
            f"{name} has shape {rows.shape}; it has to be [n, dim] with n at least {least}"
        )


def _check_finite(name: str, values: np.ndarray) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(i) for i in np.unravel_index(np.argmin(finite), values.shape))
        raise EvaluationError(
            f"{name}[{row}, {column}] is {values[row, column]}; every value has to be finite"
        )
