"""Statistics of the data set with which samples are compared, and their files.

The file of a reference is an `.npz` that contains the SHA-256 of its arrays (see `ddpm_jax.npz`).
Nothing is pickled. Equal references give equal bytes. Files of other programs are read by
`ddpm_jax.evaluation.foreign_references`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork
from ddpm_jax.evaluation.moments import Gaussian, Moments
from ddpm_jax.npz import load_npz, save_npz

__all__ = [
    "Provenance",
    "Reference",
    "check_network",
    "check_same",
    "load_reference",
    "option_of",
    "save_reference",
]

_FORMAT = 3
_HALVES = ("even", "odd")
_GAUSSIANS = ("pooled", "spatial")
_NAMES = {
    *("format", "provenance", "features"),
    *(f"{half}_{part}" for half in _HALVES for part in ("rows", "mean", "scatter")),
    *(f"{space}_{part}" for space in _GAUSSIANS for part in ("mean", "covariance")),
}
_MOST_BYTES = 2**30
"""Largest size of all arrays together, in bytes; 10,000 features of 2048 numbers, three pairs of
moments and the spatial ones need 0.2 of it."""


class Provenance(NamedTuple):
    """The origin of statistics, in words and hashes.

    A statistics file of another program states little of this: an empty string is unknown.
    """

    dataset: str
    """Name of the data set, or of the file."""
    split: str
    """Name of its split."""
    images: int | None
    """Number of images; None if it is unknown."""
    pixels_sha256: str
    """SHA-256 over the SHA-256 of each 1,000 images, in their order, before the preprocessing."""
    preprocessing: str
    """The preprocessing of grey levels for the network, in words."""
    network: str
    """Name of the feature network, which includes how it resizes images."""
    network_sha256: str
    """Identity of the feature network, see `FeatureNetwork.identity`."""


class Reference(NamedTuple):
    """Statistics of the features of a set of images."""

    provenance: Provenance
    """Origin of the statistics."""
    pooled: Gaussian
    """Mean and covariance of the pooled features."""
    spatial: Gaussian | None = None
    """The same of the spatial features, for sFID; None if they are unknown."""
    features: Float[np.ndarray, "some dim"] | None = None
    """float32 features of a random choice of images, in the order of the images, for the kernel
    distance, precision and recall; None if they are unknown."""
    halves: tuple[Moments, Moments] | None = None
    """Moments of one half of the images, and of the other half. Their distance shows how far the
    set is from itself. None if they are unknown."""


_OPTIONS = {
    "Inception-v3": "--inception PATH --inception-resize tensorflow",
    "Inception-v3, pytorch-fid's resize": "--inception PATH --inception-resize pytorch-fid",
    "Inception-v3, clean-fid's resize": "--inception PATH --inception-resize clean-fid",
    "DINOv2 ViT-L/14": "--dinov2 PATH",
    "DINOv2 ViT-L/14, EDM2's resize": "--dinov2 PATH --dinov2-resize edm2",
    "CLIP ViT-L/14-336": "--clip PATH",
}
"""Options of `ddpm-jax evaluate` that make the network of a reference, by the network's name."""


def check_network(reference: Reference, network: FeatureNetwork) -> None:
    """Checks that a feature network is the one of a reference.

    Statistics of another program state the name of the network only: its weights are assumed to be
    the public ones. Statistics of `make_reference` also state its identity.

    Args:
        reference: statistics of a set of images.
        network: the network that is to compute the features of samples.

    Raises:
        EvaluationError: the networks differ, by name, identity or number of features.
    """
    about = reference.provenance
    if about.network != network.name:
        remedy = f"{option_of(about.network) or 'the same network'} computes"
        raise EvaluationError(
            f"{about.dataset} has statistics of the network {about.network!r}, and samples would be"
            f" compared by the network {network.name!r}; numbers of two networks, or of two ways to"
            f" resize images, cannot be compared. {remedy} the features that fit"
        )
    if about.network_sha256 and about.network_sha256 != network.identity:
        raise EvaluationError(
            f"{about.dataset} has statistics of {about.network!r} with the identity"
            f" {about.network_sha256[:16]}, and the network here has the identity"
            f" {network.identity[:16]}: weights or preparation of images differ; compute the"
            " statistics again with this network"
        )
    dims = {"pooled": (reference.pooled, network.dim)}
    if reference.spatial is not None and network.spatial_dim:
        dims["spatial"] = (reference.spatial, network.spatial_dim)
    for space, (gaussian, dim) in dims.items():
        if gaussian.mean.size != dim:
            raise EvaluationError(
                f"{about.dataset} has statistics of {gaussian.mean.size} {space} features, and"
                f" {network.name!r} has {dim}; both have to be of the same layer of one network"
            )


def option_of(network: str) -> str:
    """The option of `ddpm-jax evaluate` that makes a network; empty if there is none."""
    return _OPTIONS.get(network, "")


def check_same(a: Provenance, b: Provenance) -> None:
    """Checks that two statistics have the same origin.

    Args:
        a: origin of the first statistics.
        b: origin of the second statistics.

    Raises:
        EvaluationError: they differ; the sentence names the first field that does.
    """
    for field, of_a, of_b in zip(Provenance._fields, a, b, strict=True):
        if of_a != of_b:
            raise EvaluationError(
                f"{field} is {of_a!r} in one of the statistics and {of_b!r} in the other; they can"
                " be compared or mixed only if it is the same"
            )


def save_reference(path: Path, reference: Reference) -> None:
    """Writes a reference to a file, either completely or not at all.

    Args:
        path: of the file; its name ends in .npz.
        reference: the statistics.

    Raises:
        EvaluationError: `path` does not end in .npz.
        OSError: the disk refuses; an existing file is unchanged.
    """
    if path.suffix != ".npz":
        raise EvaluationError(f"path is {path}; it has to end in .npz")
    save_npz(path, _arrays(reference))


def load_reference(path: Path) -> Reference:
    """Reads a file that `save_reference` wrote.

    Args:
        path: of the file.

    Returns:
        The statistics.

    Raises:
        EvaluationError: the file is missing, damaged or altered, or of another version.
    """
    try:
        arrays, intact = load_npz(path, most_bytes=_MOST_BYTES)
    except FileNotFoundError:
        raise EvaluationError(f"{path} is missing; it has to be a file of statistics") from None
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # damage shows as whatever zipfile or numpy raises
        raise EvaluationError(
            f"{path} is damaged or not a file of statistics ({first_line(error)}); make it again"
        ) from error
    version = arrays.get("format", np.array("absent"))
    if version.shape != () or version.item() != _FORMAT:
        raise EvaluationError(
            f"{path} is of another version of ddpm_jax: its format is {str(version)[:80]}, and"
            f" this version reads {_FORMAT}"
        )
    if not intact:
        raise EvaluationError(f"{path} has been altered: its SHA-256 differs")
    try:
        return _reference(arrays)
    except Exception as error:  # anyone can compute the SHA-256
        raise EvaluationError(
            f"{path} is not a file of statistics ({first_line(error)}); make it again"
        ) from error


def _reference(arrays: Mapping[str, np.ndarray]) -> Reference:
    """From the arrays of a file; ValueError, KeyError or TypeError if they are no reference."""
    if unknown := arrays.keys() - _NAMES:
        raise ValueError(f"{min(unknown)[:80]!r} is not one of its arrays")
    pooled, spatial = _gaussian(arrays, "pooled"), _gaussian(arrays, "spatial")
    if pooled is None:
        raise ValueError("it has no mean and covariance of the pooled features")
    halves = None
    if any(name.startswith(_HALVES) for name in arrays):
        even, odd = (_moments(arrays, half, pooled.mean.size) for half in _HALVES)
        halves = even, odd
    features = arrays.get("features")
    if features is not None and (features.dtype, features.shape[1:]) != (
        np.float32,
        pooled.mean.shape,
    ):
        raise ValueError(f"features have dtype {features.dtype} and shape {features.shape}")
    provenance = Provenance(**json.loads(str(arrays["provenance"])))
    for field, kind in Provenance.__annotations__.items():
        if not isinstance(value := getattr(provenance, field), kind) or isinstance(value, bool):
            raise ValueError(f"{field} of its provenance is {str(value)[:80]!r}")
    return Reference(provenance, pooled, spatial, features, halves)


def _gaussian(arrays: Mapping[str, np.ndarray], space: str) -> Gaussian | None:
    if f"{space}_mean" not in arrays:
        return None
    mean, covariance = arrays[f"{space}_mean"], arrays[f"{space}_covariance"]
    _check_square(f"the {space} mean and covariance", mean, covariance, mean.size)
    return Gaussian(mean, covariance)


def _moments(arrays: Mapping[str, np.ndarray], half: str, dim: int) -> Moments:
    rows, mean, scatter = (arrays[f"{half}_{part}"] for part in ("rows", "mean", "scatter"))
    if rows.dtype.kind != "i" or rows.shape != ():
        raise ValueError(f"the number of rows of {half!r} is not an integer")
    _check_square(f"the moments {half!r}", mean, scatter, dim)
    return Moments(int(rows), mean, scatter)


def _check_square(name: str, mean: np.ndarray, matrix: np.ndarray, dim: int) -> None:
    if (mean.shape, matrix.shape) != ((dim,), (dim, dim)):
        raise ValueError(f"{name} have other shapes than moments have")
    if {mean.dtype, matrix.dtype} != {np.dtype(np.float64)}:
        raise ValueError(f"{name} are not float64")


def _arrays(reference: Reference) -> dict[str, np.ndarray]:
    """The content of the file, by name."""
    arrays = {
        "format": np.array(_FORMAT, np.int64),
        "provenance": np.array(json.dumps(reference.provenance._asdict())),
    }
    for space, gaussian in zip(_GAUSSIANS, (reference.pooled, reference.spatial), strict=True):
        if gaussian is not None:
            arrays[f"{space}_mean"] = gaussian.mean
            arrays[f"{space}_covariance"] = gaussian.covariance
    if reference.halves is not None:
        for half, moments in zip(_HALVES, reference.halves, strict=True):
            arrays |= {
                f"{half}_rows": np.array(moments.rows, np.int64),
                f"{half}_mean": moments.mean,
                f"{half}_scatter": moments.scatter,
            }
    if reference.features is not None:
        arrays["features"] = reference.features
    return arrays
