"""Images that are stored as PNG, JPEG and the like, and decoded when they are used.

An image that cannot be decoded ends the run with a sentence that names it. With
`on_bad_image="skip"` it is left out, counted and reported: a data set that is read into memory then
has fewer images; in a data set that is decoded during training, the next good image takes its
place.
"""

import concurrent.futures
import dataclasses
import math
import os
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import BadImageError, Preparation, decode
from ddpm_jax.data.source import Arrays, CentreCropped, Examples, ImageSet, Source, spread

__all__ = ["Encoded", "OnBadImage", "Record", "Records", "read_all"]

OnBadImage = Literal["stop", "skip"]
"""What to do with an image that cannot be decoded: end the run, or leave it out and report it."""

_AT_ONCE = 1000
"""Records in one read when all are read."""
_SIZES, _SAMPLE, _AT_MOST = 20_000, 64, 2**20
"""For a fingerprint: number of file sizes, number of records, and largest bytes of each record."""


class Record(NamedTuple):
    """One stored image."""

    encoded: bytes | OSError
    """Content of the file, or the error of reading it."""
    label: int | None


@runtime_checkable
class Records(Protocol):
    """Encoded images by index."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at these indices."""

    def where(self, index: int) -> str:
        """The place of a record in words: its path, or its number in the data set."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Records as a source of images."""

    records: Records
    preparation: Preparation
    channels: int
    """Channels of the decoded images, 1 or 3."""
    image_shape: tuple[int, int, int]
    labelled: bool
    on_bad_image: OnBadImage = "stop"
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def in_memory(self) -> bool:
        """Whether images cost no decoding."""
        return False

    @property
    def labels(self) -> Sequence[int] | None:
        """The labels of all images, if they are known before an image is read."""
        return getattr(self.records, "labels", None) if self.labelled else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        decoded = self.decoded([int(index) for index in indices])
        examples = [
            self._next_good(int(index)) if isinstance(one, BadImageError) else one
            for index, one in zip(indices, decoded, strict=True)
        ]
        return _stacked(examples, self)

    def update_digest(self, digest: Any) -> None:
        """Adds what identifies these images to a hash: see `ImageSet.fingerprint`.

        It is the encoded bytes, which do not depend on the decoder.
        """
        count = len(self)
        if self.labels is not None:
            digest.update(np.asarray(self.labels, "<i8"))
        if (size := getattr(self.records, "size", None)) is not None:
            sizes = [size(index) for index in spread(count, _SIZES)]
            digest.update(np.asarray(sizes, "<i8"))
        indices = spread(count, _SAMPLE)
        for record in self.records.read(indices):
            content = record.encoded if isinstance(record.encoded, bytes) else b""
            digest.update(f"{len(content)} {record.label};".encode())
            digest.update(content[:_AT_MOST])

    def decoded(
        self, indices: Sequence[int]
    ) -> list[tuple[np.ndarray, int | None] | BadImageError]:
        """Image and label of each index; for an image that is skipped, the error.

        Raises:
            BadImageError: an image cannot be used, and `on_bad_image` is "stop".
        """
        results: list[tuple[np.ndarray, int | None] | BadImageError] = []
        for index, record in zip(indices, self.records.read(indices), strict=True):
            try:
                results.append((self._pixels(record), record.label))
            except BadImageError as error:
                sentence = f"{self.records.where(index)} {error}"
                if self.on_bad_image == "stop":
                    raise BadImageError(
                        f"{sentence}; repair or remove it, or skip such images with"
                        " --data.on-bad-image skip"
                    ) from error
                with self._lock:
                    self.skipped[self.records.where(index)] = str(error)
                results.append(BadImageError(sentence))
        return results

    def _pixels(self, record: Record) -> np.ndarray:
        if isinstance(record.encoded, OSError):
            raise BadImageError(f"cannot be read ({record.encoded.strerror})")
        pixels = self.preparation.of_picture(decode(record.encoded, self.channels))
        if pixels.shape != self.image_shape:
            height, width = pixels.shape[:2]
            raise BadImageError(
                f"is {height}x{width}, and others are {self.image_shape[0]}x{self.image_shape[1]};"
                " --preparation.size resizes all to one size"
            )
        return pixels

    def _next_good(self, index: int) -> tuple[np.ndarray, int | None]:
        for step in range(1, len(self)):
            (one,) = self.decoded([(index + step) % len(self)])
            if not isinstance(one, BadImageError):
                return one
        raise _none_left(self, "the data set")


def read_all(source: Encoded, name: str) -> Arrays:
    """All images of a source in memory, without those that are skipped.

    Raises:
        DataError: an image cannot be used, or all are skipped.
    """
    starts = range(0, len(source), _AT_ONCE)
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.zeros(len(source), np.int64)

    def read(start: int) -> list[bool]:
        places = range(start, min(start + _AT_ONCE, len(source)))
        good = []
        for place, one in zip(places, source.decoded(places), strict=True):
            good.append(not isinstance(one, BadImageError))
            if not isinstance(one, BadImageError):
                images[place], labels[place] = one[0], one[1] or 0
        return good

    # Pillow decodes without Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(read, start) for start in starts]
        try:
            good = np.concatenate([future.result() for future in futures])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if not good.all():
        images, labels = images[good], labels[good]
    if not len(images):
        raise _none_left(source, name)
    return Arrays(
        images,
        labels if source.labelled else None,
        name=name,
        skipped=source.skipped,
        origin=source,
    )


def _none_left(source: Encoded, name: str) -> DataError:
    where, why = next(iter(dict(source.skipped).items()))  # others may add to it
    return DataError(
        f"{name} has {len(source)} images, and none can be used; the first: {where} {why}"
    )


def _stacked(examples: list[tuple[np.ndarray, int | None]], source: Encoded) -> Examples:
    images = np.empty((len(examples), *source.image_shape), np.uint8)
    for place, (pixels, _) in enumerate(examples):
        images[place] = pixels
    labels = np.array([label for _, label in examples], np.int32) if source.labelled else None
    return Examples(images, labels)


def with_crop_and_memory(
    images: ImageSet, *, crop: int | None = None, memory_gb: float = 4.0
) -> ImageSet:
    """Images with a crop, decoded into memory if they are small enough.

    Args:
        images: a data set as a reader returns it.
        crop: side of the squares in pixels: cut at random for training, in the middle for held-out
            images. None: no crop.
        memory_gb: size up to which a split is decoded now into memory, in gigabytes of pixels.
            Larger ones are decoded while they are read.

    Returns:
        The data set; the training images are not cropped yet.

    Raises:
        DataError: an image cannot be decoded.
    """
    train, held_out = (
        _read_if_small(source, memory_gb, f"{images.name}, {split}")
        for source, split in zip((images.train, images.held_out), images.splits, strict=True)
    )
    preparation = images.preparation
    if crop is not None:
        preparation = f"{preparation}, centre crop to {crop}x{crop}"
    return dataclasses.replace(
        images,
        train=train,
        held_out=held_out if crop is None else CentreCropped(held_out, crop),
        classes=images.classes if train.labelled and held_out.labelled else None,
        preparation=preparation,
        crop=crop,
    )


def _read_if_small(source: Source, memory_gb: float, name: str) -> Source:
    size = len(source) * math.prod(source.image_shape)
    if isinstance(source, Encoded) and size <= memory_gb * 1e9:
        return read_all(source, name)
    return source
