"""Statistics of a data set that samples are compared with, and what they were computed from."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from ddpm_jax.evaluation.guards import EvaluationError
from ddpm_jax.evaluation.moments import Moments, merge, moments_of
from ddpm_jax.evaluation.streaming import features_of

__all__ = ["Provenance", "Reference", "check_same", "check_same_features", "make_reference"]

_OF_FEATURES = ("network", "network_sha256", "preprocessing")


class Provenance(NamedTuple):
    """What statistics were computed from, in words and hashes."""

    dataset: str
    split: str
    images: int
    """How many."""
    pixels_sha256: str
    """Of the images in their order, before the preprocessing."""
    preprocessing: str
    """How grey levels became what the network sees, in words."""
    network: str
    """The feature network's name."""
    network_sha256: str
    """What identifies its weights."""


class Reference(NamedTuple):
    """Statistics of features of a data set's split."""

    provenance: Provenance
    moments: Moments
    halves: tuple[Moments, Moments]
    """Of every other image, the first among them, and of the others: how far the data set is from
    itself. Together they are `moments`."""
    features: Float[np.ndarray, "kept dim"] | None = None
    """float32, of the first images: for the kernel distance, precision and recall."""


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
    """Runs over the images once: their hash, and the statistics of `apply(images).pooled`.

    Args:
        apply, images, mesh, batch_size: see `features_of`. `images` are the data set's own, and
            `apply` does the preprocessing, too.
        dataset, split, preprocessing, network, network_sha256: see `Provenance`.
        keep_features: the reference holds the features themselves of at most so many images, of
            4 dim bytes each.

    Raises:
        EvaluationError, DataError: as `features_of` and `moments_of`; or less than two images.
    """
    digest = hashlib.sha256()
    count, kept = 0, []
    halves: list[Moments | None] = [None, None]

    def hashed() -> Iterator[np.ndarray]:
        nonlocal count
        for batch in images:
            yield batch  # where it is checked
            if not count:
                digest.update(f"{batch.dtype} {list(batch.shape[1:])}\n".encode())
            digest.update(np.ascontiguousarray(batch).data)
            count += len(batch)

    seen = 0
    for features in features_of(apply, hashed(), mesh, batch_size):
        for parity in (0, 1):
            rows, so_far = features.pooled[(parity - seen) % 2 :: 2], halves[parity]
            if len(rows):
                part = moments_of(rows)
                halves[parity] = part if so_far is None else merge(so_far, part)
        kept.append(features.pooled[: max(0, keep_features - seen)].astype(np.float32))
        seen += len(features.pooled)
    even, odd = halves
    if even is None or odd is None:
        raise EvaluationError(f"images has {count}; statistics are of at least two images")
    provenance = Provenance(
        dataset, split, count, digest.hexdigest(), preprocessing, network, network_sha256
    )
    rows = np.concatenate(kept) if keep_features else None
    return Reference(provenance, merge(even, odd), (even, odd), rows)


def check_same_features(a: Provenance, b: Provenance) -> None:
    """Raises EvaluationError unless features of `a` and `b` can be compared with one another.

    That is, unless one network saw both, prepared in one way.
    """
    _check_fields(a, b, _OF_FEATURES)


def check_same(a: Provenance, b: Provenance) -> None:
    """Raises EvaluationError, with the first field that differs, unless the two are the same."""
    _check_fields(a, b, Provenance._fields)


def _check_fields(a: Provenance, b: Provenance, fields: Iterable[str]) -> None:
    for field in fields:
        of_a, of_b = getattr(a, field), getattr(b, field)
        if of_a != of_b:
            raise EvaluationError(
                f"{field} is {of_a!r} of some statistics and {of_b!r} of others; they can only be"
                " compared or mixed if it is the same"
            )
