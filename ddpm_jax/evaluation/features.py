"""Features of images by a network, and the checks of all that is computed from features.

FID, KID, precision and recall compare clouds of `pooled` features; the Inception score reads the
classes off `logits`. Results can be compared only if one network computed the features: hence
`FeatureNetwork.name`, which is printed with every number, and `identity`, which statistics of a
reference set are stored with.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.errors import UserError

__all__ = [
    "EvaluationError",
    "FeatureNetwork",
    "Features",
    "check_at_least",
    "check_features",
    "check_rows",
    "check_same_dim",
]


class Features(NamedTuple):
    """Output of a feature network for a batch of images, in float32."""

    pooled: Float[Array, "batch dim"]
    logits: Float[Array, "batch classes"]
    """Without the last layer's bias where the network is Inception: see `inception`."""


class FeatureNetwork(NamedTuple):
    """A network with its weights, behind one function of images."""

    name: str
    """As it is printed: "Inception-v3", "digits classifier"."""
    identity: str
    """SHA-256, in hex, of the weights and of how images are prepared for them."""
    dim: int
    classes: int
    apply: Callable[[UInt8[Array, "batch height width channel"]], Features]
    """Pure, and compiled already: a `jax.tree_util.Partial` of the weights, so that under another
    `jit` they are arguments, too. Images have 256 levels and 1 or 3 channels."""


class EvaluationError(UserError):
    """Statistics that cannot be computed or compared: what, its value, and what would do."""


def check_features(name: str, features: np.ndarray, *, least: int = 1) -> None:
    """Raises EvaluationError unless `features` is finite floats [at least `least`, dim]."""
    _check_matrix(name, features, least)
    if not np.issubdtype(features.dtype, np.floating):
        raise EvaluationError(
            f"{name} has dtype {features.dtype}; it has to be floating point, as a network's"
            " features are"
        )
    _check_finite(name, features)


def check_rows(name: str, rows: np.ndarray, *, least: int = 1) -> None:
    """The same, where grey levels and other integers will do as well."""
    _check_matrix(name, rows, least)
    if np.issubdtype(rows.dtype, np.integer):
        return
    if not np.issubdtype(rows.dtype, np.floating):
        raise EvaluationError(f"{name} has dtype {rows.dtype}; it has to be floats or integers")
    _check_finite(name, rows)


def check_same_dim(name: str, rows: np.ndarray, like_name: str, like: np.ndarray) -> None:
    """Raises EvaluationError unless rows of the two are of one length."""
    if rows.shape[-1] != like.shape[-1]:
        raise EvaluationError(
            f"{name} has {rows.shape[-1]} dimensions and {like_name} {like.shape[-1]}; both have to"
            " be of one network"
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
