"""The interface of a source of images, and data sets of two sources.

A source has a number of images of one shape. It returns images by index, as uint8
`[n, height, width, channel]`, with their labels if it has labels. The images may be arrays in
memory, files in a folder or records of a data set.
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
    "Subset",
    "check_crop",
    "in_batches",
    "spread",
]

_NAMED = 10
"""Number of classes that a sentence names."""
_HASHED, _SAMPLE = 2**27, 64
"""For a fingerprint: bytes of arrays in memory, and number of images of other sources."""


class Examples(NamedTuple):
    """Images and their labels: a pytree of arrays of NumPy or JAX."""

    images: Any
    """uint8 `[n, height, width, channel]`."""
    labels: Any
    """int32 `[n]`, or None without labels."""


@runtime_checkable
class Source(Protocol):
    """Images by index: `source[indices]` returns `Examples`, and `len(source)` their number."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of each image."""

    @property
    def labelled(self) -> bool:
        """Whether the examples have labels."""

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """The reason for each image that was left out or replaced so far, by its place."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        """The images at these indices, in their order, as a copy that the caller may change."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A source of images in memory.

    Raises:
        DataError: images or labels do not fit, see `check_images` and `check_labels`.

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
    """uint8 `[n, height, width, channel]`."""
    labels: Integer[np.ndarray, " n"] | None = None
    """Class of each image, from 0; None without labels."""
    levels: int = 256
    """Number of grey levels: values are 0 to levels - 1."""
    name: str = "images"
    """Name in error sentences."""
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The reason for each image that was left out, by its place."""
    origin: Any = None
    """Source of the encoded images from which these were decoded, if there is one."""

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
        """Whether the images are decoded already: yes."""
        return True

    def __len__(self) -> int:
        return len(self.images)

    def update_digest(self, digest: Any) -> None:
        """Adds these images to a hash; see `ImageSet.fingerprint`.

        Args:
            digest: a hash object of hashlib.
        """
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
    """A source of the middle `side` x `side` pixels of another source's images."""

    source: Source
    """The source of the whole images."""
    side: int
    """Side of the square, in pixels."""

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
        """Whether the images are decoded already."""
        return self.source.in_memory

    @property
    def skipped(self) -> Mapping[str, str]:
        """The reason for each image that was left out or replaced so far, by its place."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        images, labels = self.source[indices]
        top, left = ((length - self.side) // 2 for length in images.shape[1:3])
        return Examples(images[:, top : top + self.side, left : left + self.side], labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """A source of some images of another source.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import Arrays, Subset
        >>> source = Arrays(np.zeros((9, 8, 8, 1), np.uint8), np.arange(9))
        >>> Subset(source, np.array([0, 4, 8]))[np.array([2, 1])].labels.tolist()
        [8, 4]
    """

    source: Source
    """The source of all images."""
    numbers: Integer[np.ndarray, " n"]
    """The numbers of these images in it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of every image."""
        return self.source.image_shape

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.source.labelled

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return self.source.in_memory

    @property
    def skipped(self) -> Mapping[str, str]:
        """The reason for each image that was left out or replaced so far, by its place."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, indices: Integer[np.ndarray, " n"]) -> Examples:
        return self.source[self.numbers[indices]]


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The facts about a data set that a network and a sampler need, without its images."""

    name: str
    """Name of the data set."""
    shape: tuple[int, int, int]
    """(height, width, channel) of the images that a network gets."""
    levels: int = 256
    """Number of grey levels: values are 0 to levels - 1."""
    classes: tuple[str, ...] | None = None
    """Name of each class; None without labels."""
    class_counts: tuple[int, ...] | None = None
    """Number of training images of each class; None without labels, or if it is unknown."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def trained_classes(self) -> tuple[int, ...]:
        """Labels of the classes that have training images."""
        counts = self.class_counts or (1,) * self.num_classes
        return tuple(label for label, count in enumerate(counts) if count)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set: training images and held-out images.

    Raises:
        DataError: the two parts differ in image shape, or a label is beyond `classes`.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import Arrays, ImageSet
        >>> black = np.zeros((3, 8, 8, 1), np.uint8)
        >>> images = ImageSet("black", train=Arrays(black[:2]), held_out=Arrays(black[2:]))
        >>> images.image_shape, images.levels
        ((8, 8, 1), 256)
    """

    name: str
    """Name of the data set."""
    train: Source
    """Training images, not cropped; training crops them at random if `crop` is set."""
    held_out: Source
    """Held-out images, cropped in the middle if `crop` is set."""
    levels: int = 256
    """Number of grey levels: values are 0 to levels - 1."""
    classes: tuple[str, ...] | None = None
    """Name of each class; None without labels."""
    splits: tuple[str, str] = ("train", "held out")
    """Names of the two parts in the data set itself."""
    unused: tuple[str, ...] = ()
    """Splits and folders of the data set that are in neither part."""
    preparation: str = "as stored"
    """What was done to the images, in words."""
    crop: int | None = None
    """Side of the squares that are cut from each image, in pixels; None without a crop."""

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
        """(height, width, channel) of the images that a network gets."""
        return self.train_centred.image_shape

    @property
    def train_centred(self) -> Source:
        """The training images, cropped in the middle if `crop` is set: without randomness."""
        return self.train if self.crop is None else CentreCropped(self.train, self.crop)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def spec(self) -> ImageSpec:
        """The facts about the data set, without its images."""
        counts = self.class_counts
        return ImageSpec(self.name, self.image_shape, self.levels, self.classes, counts)

    @functools.cached_property
    def class_counts(self) -> tuple[int, ...] | None:
        """Number of training images of each class; None without labels.

        It is also None if labels are only known after reading each image.
        """
        labels = getattr(_uncropped(self.train), "labels", None)
        if self.classes is None or labels is None:
            return None
        counts = np.bincount(np.asarray(labels, np.int64), minlength=len(self.classes))
        return tuple(map(int, counts))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the images, independent of their place and of names.

        It covers the number of images, their shape, grey levels, preparation and labels, and which
        are held out. For arrays it covers all pixels up to 128 MB; of larger arrays as many bytes,
        from images spread evenly. For files and records it covers the sizes of up to 20,000 files
        and the bytes of 64 files or records of each part, spread evenly, so that it does not depend
        on whether they were decoded into memory. It misses other changes. Names of classes and
        files do not matter, but their order does.

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

    def with_held_out(self, most: int | None) -> "ImageSet":
        """This data set with at most `most` of its held-out images, spread evenly.

        Args:
            most: number of images; None for all of them.

        Returns:
            The data set; its fingerprint is its own.

        Example:
            >>> from ddpm_jax.data import read_digits
            >>> len(read_digits().with_held_out(100).held_out)
            100
        """
        if most is None or most >= len(self.held_out):
            return self
        numbers = np.array(spread(len(self.held_out), most))
        return dataclasses.replace(self, held_out=Subset(self.held_out, numbers))

    def summary(self) -> str:
        """The splits and classes, with their numbers of images, in a sentence.

        Returns:
            One line.
        """
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
    """At most `most` of `count` indices, spread evenly, with the first and the last."""
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
    """Checks that a square of this side fits into the images.

    Args:
        side: in pixels.
        image_shape: (height, width, channel).

    Raises:
        DataError: it does not fit.
    """
    height, width, _ = image_shape
    if not 1 <= side <= min(height, width):
        raise DataError(
            f"preparation.crop is {side}; it has to be 1 to {min(height, width)} for images of"
            f" {height}x{width}"
        )


def in_batches(source: Source, size: int, count: int | None = None) -> Iterator[Examples]:
    """The examples of a source in batches, in their order.

    Args:
        source: of images.
        size: examples in a batch; the last batch may be smaller.
        count: number of examples, from the first; None for all.

    Returns:
        An iterator over batches.
    """
    count = len(source) if count is None else min(count, len(source))
    for first in range(0, count, size):
        yield source[np.arange(first, min(first + size, count))]
