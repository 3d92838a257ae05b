"""The contract of sources of images, and sets of images.

A source has a number of images of one shape, and returns any of them by index, as uint8
`[n, height, width, channel]`, with their labels if it has some. They may be arrays in memory, files
in a folder or records of a data set.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

from ddpm_jax.data.images import DataError, check_images, check_labels

__all__ = [
    "Arrays",
    "CentreCropped",
    "Examples",
    "ImageSet",
    "ImageSpec",
    "Source",
    "check_crop",
    "in_batches",
    "spread",
]

_NAMED = 10
"""So many classes are named in a sentence."""
_HASHED, _SAMPLE = 2**27, 64
"""Of a fingerprint: bytes of arrays in memory, and images of other sources."""


class Examples(NamedTuple):
    """Some images, and what they show. A pytree of NumPy's arrays, or of a device's.

    images: uint8 `[n, height, width, channel]`.
    labels: int32 `[n]`, or None, which is no leaf.
    """

    images: Any
    labels: Any


@runtime_checkable
class Source(Protocol):
    """Images by index."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of every image."""

    @property
    def labelled(self) -> bool:
        """Whether its examples have labels."""

    @property
    def in_memory(self) -> bool:
        """Whether images are there already, and cost no decoding."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that could not be used so far and were left out or replaced: where and why."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        """The images at these indices, in their order; a copy, which is the caller's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory.

    Raises:
        DataError: see `check_images` and `check_labels`.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import Arrays
        >>> source = Arrays(np.zeros((3, 8, 8, 1), np.uint8), np.array([4, 0, 4]))
        >>> len(source), source.image_shape
        (3, (8, 8, 1))
        >>> source[np.array([2, 1])].labels.tolist()
        [4, 0]
    """

    images: UInt8[np.ndarray, "n height width channel"]
    labels: Integer[np.ndarray, " n"] | None = None
    levels: int = 256
    name: str = "images"
    """What errors call it."""
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: Any = None
    """The source of encoded images that they were decoded from, if there is one."""

    def __post_init__(self) -> None:
        check_images(self.name, self.images, self.levels)
        if self.labels is not None:
            check_labels(f"{self.name}'s labels", self.labels, len(self.images))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of every image."""
        height, width, channel = self.images.shape[1:]
        return height, width, channel

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    @property
    def in_memory(self) -> bool:
        """Whether images cost no decoding."""
        return True

    def __len__(self) -> int:
        return len(self.images)

    def update_digest(self, digest: Any) -> None:
        """Adds what identifies these images to a hash: see `ImageSet.fingerprint`."""
        if self.origin is not None:
            self.origin.update_digest(digest)
            return
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, "<i8"))
        for index in spread(len(self), max(1, _HASHED * len(self) // self.images.nbytes)):
            digest.update(np.ascontiguousarray(self.images[index]))

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        labels = None if self.labels is None else self.labels[indices].astype(np.int32)
        return Examples(self.images[indices], labels)


@dataclasses.dataclass(frozen=True, eq=False)
class CentreCropped:
    """The middle `side` x `side` pixels of a source's images."""

    source: Source
    side: int

    def __post_init__(self) -> None:
        check_crop(self.side, self.source.image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of every image."""
        return self.side, self.side, self.source.image_shape[2]

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.source.labelled

    @property
    def in_memory(self) -> bool:
        """Whether images cost no decoding."""
        return self.source.in_memory

    @property
    def skipped(self) -> Mapping[str, str]:
        """As the source says."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        images, labels = self.source[indices]
        top, left = ((length - self.side) // 2 for length in images.shape[1:3])
        return Examples(images[:, top : top + self.side, left : left + self.side], labels)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The facts about a data set that a network and a sampler need, without its images."""

    name: str
    shape: tuple[int, int, int]
    """(height, width, channel) of every image that a network sees."""
    levels: int = 256
    """Number of grey levels: values are 0 to levels - 1."""
    classes: tuple[str, ...] | None = None
    """Name of each class; None without labels."""
    class_counts: tuple[int, ...] | None = None
    """Training images of each class; None without labels, or if they were not counted."""

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def trained_classes(self) -> tuple[int, ...]:
        """Labels of the classes that have a training image."""
        counts = self.class_counts or (1,) * self.num_classes
        return tuple(label for label, count in enumerate(counts) if count)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to train on and images held out.

    Raises:
        DataError: the two parts differ in image shape, or have labels beyond `classes`.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import Arrays, ImageSet
        >>> black = np.zeros((3, 8, 8, 1), np.uint8)
        >>> images = ImageSet("black", train=Arrays(black[:2]), held_out=Arrays(black[2:]))
        >>> images.image_shape, images.levels
        ((8, 8, 1), 256)
    """

    name: str
    train: Source
    """Before any crop; training crops them at random if `crop` is set."""
    held_out: Source
    levels: int = 256
    """Number of grey levels: values are 0 to levels - 1."""
    classes: tuple[str, ...] | None = None
    """What each label stands for; None without labels."""
    splits: tuple[str, str] = ("train", "held out")
    """What the data set itself calls the two parts."""
    unused: tuple[str, ...] = ()
    """Splits and folders of the data set that are neither trained on nor held out."""
    preparation: str = "as stored"
    """What was done to the images."""
    crop: int | None = None
    """Side of the squares that training sees of each image; held-out images are cropped."""

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("held_out", self.held_out)):
            if isinstance(part, Arrays) and part.labels is not None and self.classes is not None:
                most = int(part.labels.max())
                if most >= len(self.classes):
                    raise DataError(
                        f"{name} has the label {most}; with {len(self.classes)} classes labels are"
                        f" 0 to {len(self.classes) - 1}"
                    )
        if self.held_out.image_shape != self.image_shape:
            raise DataError(
                f"held_out has images of shape {self.held_out.image_shape} and train of"
                f" {self.image_shape}; both have to be the same"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of every image that a network sees."""
        return self.train_centred.image_shape

    @property
    def train_centred(self) -> Source:
        """The images to train on without chance: cropped in the middle if they are cropped."""
        return self.train if self.crop is None else CentreCropped(self.train, self.crop)

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def spec(self) -> ImageSpec:
        """The facts about the set that do not need its images."""
        counts = self.class_counts
        return ImageSpec(self.name, self.image_shape, self.levels, self.classes, counts)

    @functools.cached_property
    def class_counts(self) -> tuple[int, ...] | None:
        """The number of training images of each class; None without labels.

        Also None where labels are read with each image and were not counted.
        """
        labels = getattr(_uncropped(self.train), "labels", None)
        if self.classes is None or labels is None:
            return None
        counts = np.bincount(np.asarray(labels, np.int64), minlength=len(self.classes))
        return tuple(map(int, counts))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of what identifies the images, wherever they are and whatever they are called.

        It covers the number of images, their shape, grey levels, preparation and labels, and which
        are held out. Of arrays it covers all pixels up to 128 MB, and of larger ones as many bytes
        of images that are spread evenly. Of files and records it covers the sizes of up to 20,000
        files and the bytes of 64 files or records of each part, spread evenly, so that it does not
        depend on whether they were decoded into memory. It misses changes of anything else. Names
        of classes and files do not count, but their order does.

        Example:
            >>> from ddpm_jax.data import Preparation, read_digits
            >>> read_digits().fingerprint == read_digits(Preparation(pad=10)).fingerprint
            False
        """
        digest = hashlib.sha256()
        about = ["ddpm_jax images 1", self.levels, self.preparation, self.crop, *self.image_shape]
        digest.update(json.dumps(about).encode())
        for part in map(_uncropped, (self.train, self.held_out)):
            digest.update(json.dumps([len(part), *part.image_shape, part.labelled]).encode())
            if hasattr(part, "update_digest"):
                part.update_digest(digest)
                continue
            images, labels = part[np.array(spread(len(part), _SAMPLE))]  # a source of the user's
            digest.update(np.ascontiguousarray(images).data)
            if labels is not None:
                digest.update(np.ascontiguousarray(labels, "<i8").data)
        return digest.hexdigest()

    def summary(self) -> str:
        """One sentence with the splits, the classes, and how many images they have."""
        (train, held_out), parts = self.splits, []
        parts.append(f"{len(self.train):,} images to train on ({train!r})")
        parts.append(f"{len(self.held_out):,} held out ({held_out!r})")
        parts.append("no classes" if self.classes is None else self._summary_of_classes())
        if self.unused:
            parts.append(f"not used: {_some(self.unused)}")
        return f"images {self.name!r}: {'; '.join(parts)}"

    def _summary_of_classes(self) -> str:
        classes, counts = self.classes or (), self.class_counts
        number = f"{len(classes):,} class{'es' if len(classes) != 1 else ''}"
        if counts is None:
            return f"{number} ({_some(classes)})"
        if len(classes) <= _NAMED:
            each = ", ".join(f"{one!r} {n:,}" for one, n in zip(classes, counts, strict=True))
            return f"{number}, training images of each: {each}"
        text = f"{number}, {min(counts):,} to {max(counts):,} training images of each"
        empty = [one for one, count in zip(classes, counts, strict=True) if not count]
        return f"{text} (none of {_some(empty)})" if empty else text


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` indices, spread evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [index * (count - 1) // max(1, most - 1) for index in range(most)]


def _uncropped(source: Source) -> Source:
    return source.source if isinstance(source, CentreCropped) else source


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMED
    text = ", ".join(map(repr, names[:_NAMED]))
    return f"{text} and {more:,} more" if more > 0 else text


def check_crop(side: int, image_shape: tuple[int, int, int]) -> None:
    """Raises DataError unless a square of this side is inside such images."""
    height, width, _ = image_shape
    if not 1 <= side <= min(height, width):
        raise DataError(
            f"preparation.crop is {side}; of images of {height}x{width} it can leave 1 to"
            f" {min(height, width)} pixels"
        )


def in_batches(source: Source, size: int, count: int | None = None) -> Iterator[Examples]:
    """The first `count` examples of a source, or all, in their order; the last batch is smaller."""
    count = len(source) if count is None else min(count, len(source))
    for first in range(0, count, size):
        yield source[np.arange(first, min(first + size, count))]
