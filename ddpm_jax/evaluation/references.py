"""Statistics of the data set with which samples are compared, and their files.

The file of a reference is an `.npz` that contains the SHA-256 of its arrays (see `ddpm_jax.npz`).
Nothing is pickled. Equal references give equal bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.features import EvaluationError
from ddpm_jax.evaluation.moments import Moments, merge, moments_of
from ddpm_jax.evaluation.streaming import features_of
from ddpm_jax.npz import load_npz, save_npz

__all__ = [
    "Provenance",
    "Reference",
    "check_same",
    "load_reference",
    "make_reference",
    "save_reference",
]

_FORMAT = 2
_HALVES = ("even", "odd")
_NAMES = {
    *("format", "provenance", "features"),
    *(f"{half}_{part}" for half in _HALVES for part in ("rows", "mean", "scatter")),
}
_MOST_BYTES = 2**30
"""Largest size of all arrays together, in bytes; 10,000 features of 2048 numbers and their two
moments need 0.15 of it."""


class Provenance(NamedTuple):
    """The origin of statistics, in words and hashes."""

    dataset: str
    """Name of the data set."""
    split: str
    """Name of its split."""
    images: int
    """Number of images."""
    pixels_sha256: str
    """SHA-256 of the images in their order, before the preprocessing."""
    preprocessing: str
    """The preprocessing of grey levels for the network, in words."""
    network: str
    """Name of the feature network."""
    network_sha256: str
    """Identity of the feature network, see `FeatureNetwork.identity`."""


class Reference(NamedTuple):
    """Statistics of the features of a data set's split."""

    provenance: Provenance
    """Origin of the statistics."""
    moments: Moments
    """Moments of all features."""
    halves: tuple[Moments, Moments]
    """Moments of every other image from the first on, and of the other images. Their distance shows
    how far the data set is from itself."""
    features: Float[np.ndarray, "some dim"] | None = None
    """float32 features of the first images, for the kernel distance, precision and recall."""


def make_reference(
    apply: Callable[[jax.Array], Any],
    images: Iterable[np.ndarray],
    mesh: Mesh,
    batch_size: int,
    *,
    dataset: str,
    split: str,
    preprocessing: str,
    network: str,
    network_sha256: str,
    keep_features: int,
) -> Reference:
    """Computes the statistics of `apply(images).pooled` and the hash of the images, in one pass.

    Args:
        apply: the feature network with the preprocessing, see `features_of`.
        images: batches of the data set's images, uint8 `[any number, height, width, channel]`.
        mesh: mesh over which the batches are split.
        batch_size: images in one call, at least 1.
        dataset: name of the data set.
        split: name of its split.
        preprocessing: what `apply` does to grey levels before the network, in words.
        network: name of the feature network.
        network_sha256: identity of the feature network.
        keep_features: number of images whose features the reference keeps, 4 dim bytes each.

    Returns:
        The statistics.

    Raises:
        EvaluationError: as in `features_of` and `moments_of`; or there are fewer than two images.
        DataError: a batch is not images.
    """
    digest = hashlib.sha256()
    count = 0
    pooled: list[np.ndarray] = []
    halves: list[Moments | None] = [None, None]

    def hashed() -> Iterator[np.ndarray]:
        nonlocal count
        for batch in images:
            yield batch  # the consumer checks it
            if not count:
                digest.update(f"{batch.dtype} {list(batch.shape[1:])}\n".encode())
            digest.update(np.ascontiguousarray(batch).data)
            count += len(batch)

    start = 0
    for features in features_of(apply, hashed(), mesh, batch_size):
        for parity in (0, 1):
            rows, so_far = features.pooled[(parity - start) % 2 :: 2], halves[parity]
            if len(rows):
                part = moments_of(rows)
                halves[parity] = part if so_far is None else merge(so_far, part)
        pooled.append(features.pooled[: max(0, keep_features - start)].astype(np.float32))
        start += len(features.pooled)
    even, odd = halves
    if even is None or odd is None:
        raise EvaluationError(f"there are {count} images; statistics need at least two")
    provenance = Provenance(
        dataset, split, count, digest.hexdigest(), preprocessing, network, network_sha256
    )
    rows = np.concatenate(pooled) if keep_features else None
    return Reference(provenance, merge(even, odd), (even, odd), rows)


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
    halves = []
    for half in _HALVES:
        rows, mean, scatter = (arrays[f"{half}_{part}"] for part in ("rows", "mean", "scatter"))
        dim = mean.size
        shapes = rows.shape, mean.shape, scatter.shape
        if rows.dtype.kind != "i" or shapes != ((), (dim,), (dim, dim)):
            raise ValueError(f"the moments {half!r} have other shapes than moments have")
        if {mean.dtype, scatter.dtype} != {np.dtype(np.float64)}:
            raise ValueError(f"the moments {half!r} are not float64")
        halves.append(Moments(int(rows), mean, scatter))
    even, odd = halves
    features = arrays.get("features")
    if features is not None and (features.dtype.kind, features.shape[1:]) != ("f", even.mean.shape):
        raise ValueError(f"features have dtype {features.dtype} and shape {features.shape}")
    provenance = Provenance(**json.loads(str(arrays["provenance"])))
    for field, kind in Provenance.__annotations__.items():
        if type(getattr(provenance, field)) is not kind:
            raise ValueError(f"{field} of its provenance is not of type {kind.__name__}")
    return Reference(provenance, merge(even, odd), (even, odd), features)


def _arrays(reference: Reference) -> dict[str, np.ndarray]:
    """What the file holds, by name."""
    arrays = {
        "format": np.array(_FORMAT, np.int64),
        "provenance": np.array(json.dumps(reference.provenance._asdict())),
    }
    for half, moments in zip(_HALVES, reference.halves, strict=True):
        arrays |= {
            f"{half}_rows": np.array(moments.rows, np.int64),
            f"{half}_mean": moments.mean,
            f"{half}_scatter": moments.scatter,
        }
    if reference.features is not None:
        arrays["features"] = reference.features
    return arrays
