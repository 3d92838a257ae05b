"""Statistics of images in the space of a feature network, computed in one pass."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.evaluation.choices import ChosenRows, chosen_rows
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork, Features
from ddpm_jax.evaluation.moments import Moments, gaussian_of, merge, moments_of
from ddpm_jax.evaluation.references import Provenance, Reference
from ddpm_jax.evaluation.streaming import features_of
from ddpm_jax.evaluation.sums import Sums
from ddpm_jax.parallel import shares

__all__ = [
    "make_reference",
    "pixels_digest",
    "pixels_hash",
    "reference_from_images",
    "reference_from_sums",
]


def make_reference(
    apply: Callable[[jax.Array], Features],
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
    """Computes the statistics of `apply(images)` and the hash of the images, in one pass.

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
        keep_features: number of images whose features the reference stores, 4 dim bytes each. They
            are a random choice, always the same one of as many images.

    Returns:
        The statistics; the spatial ones if the network has spatial features.

    Raises:
        EvaluationError: as in `features_of` and `moments_of`; or there are fewer than two images.
        DataError: a batch is not images.
    """
    pixels = _Pixels()

    def hashed() -> Iterator[np.ndarray]:
        for batch in images:
            yield batch  # the consumer checks it
            pixels.add(batch)

    chosen = _Chosen(keep_features)
    halves: list[Moments | None] = [None, None]
    spatial: Moments | None = None
    start = 0
    for features in features_of(apply, hashed(), mesh, batch_size):
        pooled = np.asarray(features.pooled)
        for parity in (0, 1):
            halves[parity] = _added(halves[parity], pooled[(parity - start) % 2 :: 2])
        if features.spatial is not None:
            spatial = _added(spatial, np.asarray(features.spatial))
        chosen.add(start, pooled)
        start += len(pooled)
    even, odd = halves
    if even is None or odd is None:
        raise EvaluationError(f"there are {start} images; statistics need at least two")
    return Reference(
        Provenance(dataset, split, start, pixels.digest(), preprocessing, network, network_sha256),
        gaussian_of(merge(even, odd)),
        None if spatial is None else gaussian_of(spatial),
        chosen.rows() if keep_features else None,
        (even, odd),
    )


def reference_from_images(
    network: FeatureNetwork,
    images: Iterable[np.ndarray],
    mesh: Mesh,
    batch_size: int,
    *,
    dataset: str,
    split: str = "",
    keep_features: int = 10_000,
) -> Reference:
    """Computes the statistics of images with 256 grey levels by a feature network.

    Args:
        network: the feature network.
        images: batches of images, uint8 `[any number, height, width, channel]`, such as
            `SampleSet.batches()`.
        mesh: mesh over which the batches are split.
        batch_size: images in one call, at least 1.
        dataset: name of the images.
        split: name of their split.
        keep_features: see `make_reference`.

    Returns:
        The statistics.

    Raises:
        EvaluationError: as in `make_reference`.
        DataError: a batch is not images.
    """
    return make_reference(
        network.apply,
        images,
        mesh,
        batch_size,
        dataset=dataset,
        split=split,
        preprocessing="256 grey levels",
        network=network.name,
        network_sha256=network.identity,
        keep_features=keep_features,
    )


def reference_from_sums(sums: Sums, provenance: Provenance) -> Reference:
    """The statistics of images from the sums over their features.

    The halves are those of the groups of `sums`, every other of which is in each half.

    Args:
        sums: of all images.
        provenance: their origin.

    Returns:
        The statistics; the spatial ones if the sums have them.

    Raises:
        EvaluationError: there are fewer than two images.
    """
    pooled = sums.moments
    if pooled is None or pooled.rows < 2:
        raise EvaluationError(f"there are {sums.num} images; statistics need at least two")
    halves = [
        functools.reduce(merge, [group for group in sums.groups[half::2] if group is not None])
        if any(group is not None for group in sums.groups[half::2])
        else None
        for half in (0, 1)
    ]
    one, other = halves
    return Reference(
        provenance,
        gaussian_of(pooled),
        None if sums.spatial is None else gaussian_of(sums.spatial),
        sums.chosen.rows,
        None if one is None or other is None else (one, other),
    )


def pixels_hash(batches: Iterable[np.ndarray]) -> str:
    """The SHA-256 of the shape and the pixels of images.

    Args:
        batches: of images, uint8 `[n, height, width, channel]`, at least one batch.

    Returns:
        The SHA-256, hexadecimal.
    """
    digest = hashlib.sha256()
    for index, images in enumerate(batches):
        if index == 0:
            digest.update(f"{images.dtype} {list(images.shape[1:])}\n".encode())
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def pixels_digest(digests: Iterable[str]) -> str:
    """`Provenance.pixels_sha256` from the `pixels_hash` of each 1,000 images.

    Args:
        digests: in the order of the images.

    Returns:
        The SHA-256, hexadecimal.
    """
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class _Pixels:
    """The hash of images that come in batches of any size."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._parts: list[np.ndarray] = []

    def add(self, images: np.ndarray) -> None:
        self._parts.append(images)
        if sum(map(len, self._parts)) >= shares.BLOCK:
            joined = np.concatenate(self._parts)
            whole = len(joined) // shares.BLOCK * shares.BLOCK
            parts = np.split(joined[:whole], whole // shares.BLOCK)
            self._digests += [pixels_hash([part]) for part in parts]
            self._parts = [joined[whole:]]

    def digest(self) -> str:
        rest = [pixels_hash(self._parts)] if sum(map(len, self._parts)) else []
        return pixels_digest([*self._digests, *rest])


class _Chosen:
    """The random choice of rows of a stream, in float32."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[ChosenRows] = []

    def add(self, first: int, rows: np.ndarray) -> None:
        """Rows of the image numbers from `first` on."""
        numbers = np.arange(first, first + len(rows))
        part = ChosenRows(numbers, rows.astype(np.float32))
        self._parts.append(chosen_rows(part, most=self._most))
        if sum(len(part.numbers) for part in self._parts) > 2 * self._most:
            self._parts = [chosen_rows(*self._parts, most=self._most)]

    def rows(self) -> np.ndarray:
        return chosen_rows(*self._parts, most=self._most).rows


def _added(so_far: Moments | None, rows: np.ndarray) -> Moments | None:
    if not len(rows):
        return so_far
    part = moments_of(rows)
    return part if so_far is None else merge(so_far, part)
