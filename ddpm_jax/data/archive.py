"""Images in an .npz archive, as NumPy writes it.

The archive has the arrays `train_images` and `test_images`, and `train_labels` and `test_labels` if
there are labels. Or it has only `images` (and `labels`), of which every tenth is held out, or the
same as `arr_0` (and `arr_1`), as guided-diffusion names them. Images
are uint8 `[n, height, width]` or `[n, height, width, 1 or 3]`. The number `levels` is the number of
grey levels, if it is not 256, and `class_names` is an array with the name of each label. Files that
`ddpm-jax sample --out x.npz` writes have this format.

Other arrays are not read. All images are read into memory.
"""

import contextlib
import dataclasses
import math
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.images import DataError, check_images, check_labels
from ddpm_jax.data.preparation import STORED, Preparation
from ddpm_jax.data.source import Arrays, ImageSet
from ddpm_jax.errors import first_line
from ddpm_jax.npz import Header, NpzReader, open_npz

__all__ = ["archive_levels", "archive_shape", "read_archive"]

_MOST_CLASSES = 100_000
_MOST_NAMES = 2**26
"""Largest size of the names of the classes, in bytes."""


def read_archive(
    path: pathlib.Path, *, preparation: Preparation = STORED, memory_gb: float = 4.0
) -> ImageSet:
    """Reads the images of an .npz archive; the module describes the format.

    Args:
        path: of the archive.
        preparation: applied to each image.
        memory_gb: largest size of the images of a split, in gigabytes.

    Returns:
        The training images and the held-out ones.

    Raises:
        DataError: the archive does not exist or is damaged, arrays are missing or are not images,
            or there are more images than `memory_gb` allows.
    """
    with _opened(path) as reader:
        pairs = _pairs(path, reader)
        levels = _levels(path, reader, preparation)
        arrays = {}
        for pair in pairs:
            _check_memory(path, pair, reader, preparation, memory_gb)
            for name in pair:
                if name in reader.names:
                    arrays[name] = reader.read(name)
        names = _class_names(path, reader)
    whole = [_part(path, arrays, pair, levels) for pair in pairs]
    if len(whole) == 1:
        splits = ("nine in ten", "one in ten")
        (images,) = whole
        if len(images) < 10:
            raise DataError(
                f"archive {str(path)!r} has {len(images)} images; it needs 10 so that one in ten"
                " can be held out, or the arrays 'train_images' and 'test_images'"
            )
        apart = np.arange(len(images)) % 10 == 9
        whole = [_some(images, which) for which in (~apart, apart)]
    else:
        splits = ("train", "test")
    train, held_out = (_prepared(part, preparation) for part in whole)
    return ImageSet(
        path.stem,
        train=train,
        held_out=held_out,
        levels=levels,
        classes=_classes(path, train, held_out, names),
        splits=splits,
        preparation=str(preparation),
    )


def archive_shape(path: pathlib.Path, *, preparation: Preparation = STORED) -> tuple[int, int, int]:
    """The shape of an archive's prepared images; only headers are read.

    Args:
        path: of the archive.
        preparation: applied to each image.

    Returns:
        (height, width, channel).

    Raises:
        DataError: as in `read_archive`, as far as the headers show it.
    """
    with _opened(path) as reader:
        _levels(path, reader, preparation)
        name = _pairs(path, reader)[0].images
        return preparation.shape_of(_stored_shape(path, name, reader.header(name)))


def archive_levels(path: pathlib.Path) -> int:
    """The number of grey levels of an archive's images; the images are not read.

    Args:
        path: of the archive.

    Returns:
        The number `levels` of the archive, 256 without it.

    Raises:
        DataError: as in `read_archive`.
    """
    with _opened(path) as reader:
        return _levels(path, reader, STORED)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[NpzReader]:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        folder = (
            f"; to read images in it, take --data folder --data.path {path}"
            if path.is_dir()
            else ""
        )
        raise DataError(f"archive {str(path)!r} {what}{folder}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip file, or it is truncated")
        # `_check_memory` compares the size with the limit.
        with open_npz(path, most_bytes=sys.maxsize) as reader:
            yield reader
    except DataError:
        raise
    except Exception as error:  # whatever damage makes of zipfile, zlib and NumPy's headers
        raise DataError(
            f"archive {str(path)!r} cannot be read ({first_line(error)}); it has to be a file as"
            " numpy.savez writes it"
        ) from error


class _Pair(NamedTuple):
    """Names of arrays."""

    images: str
    labels: str


def _pairs(path: pathlib.Path, reader: NpzReader) -> tuple[_Pair, ...]:
    """The names of the arrays of each split; one pair if there are no splits."""
    if {"train_images", "test_images"} <= reader.names:
        return _Pair("train_images", "train_labels"), _Pair("test_images", "test_labels")
    for pair in (_Pair("images", "labels"), _Pair("arr_0", "arr_1")):
        if pair.images in reader.names:
            return (pair,)
    raise DataError(
        f"archive {str(path)!r} has the arrays {_listed(reader.names)}; it has to have"
        " 'train_images' and 'test_images', or 'images'"
    )


def _listed(names: frozenset[str]) -> str:
    some = sorted(names)[:20]
    more = f" and {len(names) - len(some):,} more" if len(names) > len(some) else ""
    return f"{[name[:80] for name in some]}{more}"


def _stored_shape(path: pathlib.Path, name: str, header: Header) -> tuple[int, int, int]:
    """(height, width, channel) of one image, of an array that may have no axis of channels."""
    shape = (*header.shape, 1) if len(header.shape) == 3 else header.shape
    if len(shape) != 4:
        raise DataError(
            f"{name} of {str(path)!r} has shape {header.shape}; images are [n, height, width,"
            " channel], with 1 channel if they are grey"
        )
    return shape[1:]


def _check_memory(
    path: pathlib.Path, pair: _Pair, reader: NpzReader, preparation: Preparation, memory_gb: float
) -> None:
    """Checks the size of the stored images, the prepared images, and the labels."""
    images = reader.header(pair.images)
    height, width, channel = _stored_shape(path, pair.images, images)
    prepared = images.shape[0] * math.prod(preparation.shape_of((height, width, channel)))
    needed = max(images.nbytes, prepared)
    if pair.labels in reader.names:
        needed = max(needed, reader.header(pair.labels).nbytes)
    if needed > memory_gb * 1e9:
        raise DataError(
            f"{pair.images} of {str(path)!r} need {needed / 1e9:.3g} GB of memory, and"
            f" data.memory_gb is {memory_gb:g}; set --data.memory-gb {math.ceil(needed / 1e9)}, or"
            " put the images in a folder (--data folder), which is read during training"
        )


def _levels(path: pathlib.Path, reader: NpzReader, preparation: Preparation) -> int:
    if "levels" not in reader.names:
        return 256
    header = reader.header("levels")
    if header.shape != () or not np.issubdtype(header.dtype, np.integer):
        raise DataError(
            f"levels of {str(path)!r} has shape {header.shape} and dtype {header.dtype}; it has to"
            " be one integer"
        )
    levels = int(reader.read("levels"))
    if (preparation.size is not None or preparation.grey) and levels != 256:
        raise DataError(
            f"archive {str(path)!r} has {levels} grey levels; only images of 256 are resized or"
            " made grey"
        )
    return levels


def _class_names(path: pathlib.Path, reader: NpzReader) -> tuple[str, ...] | None:
    if "class_names" not in reader.names:
        return None
    header = reader.header("class_names")
    if header.dtype.kind != "U" or len(header.shape) != 1 or header.nbytes > _MOST_NAMES:
        raise DataError(
            f"class_names of {str(path)!r} has shape {header.shape} and dtype {header.dtype}; it"
            " has to be a list of strings, one for each label"
        )
    names = tuple(map(str, reader.read("class_names")))
    if len(set(names)) < len(names):
        raise DataError(
            f"class_names of {str(path)!r} contains a name twice; each label needs its own name"
        )
    return names


def _part(path: pathlib.Path, arrays: dict[str, np.ndarray], pair: _Pair, levels: int) -> Arrays:
    """The images and labels of one split."""
    images, labels = arrays[pair.images], arrays.get(pair.labels)
    name = f"{pair.images} of {str(path)!r}"
    if images.ndim == 3:
        images = images[..., None]
    check_images(name, images, levels)
    if labels is not None:
        check_labels(f"{pair.labels} of {str(path)!r}", labels, len(images))
    return Arrays(images, labels, levels, name)


def _some(source: Arrays, which: np.ndarray) -> Arrays:
    labels = None if source.labels is None else source.labels[which]
    return dataclasses.replace(source, images=source.images[which], labels=labels)


def _prepared(source: Arrays, preparation: Preparation) -> Arrays:
    preparation.shape_of(source.image_shape)
    return dataclasses.replace(source, images=preparation.of_array(source.images))


def _classes(
    path: pathlib.Path, train: Arrays, held_out: Arrays, names: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if train.labels is None or held_out.labels is None:
        return None
    most = max(int(train.labels.max()), int(held_out.labels.max()))
    if most >= _MOST_CLASSES:
        raise DataError(
            f"archive {str(path)!r} has the label {most}; labels are classes, numbered from 0, and"
            f" fewer than {_MOST_CLASSES:,}"
        )
    if names is None:
        return tuple(str(label) for label in range(most + 1))
    if most >= len(names):
        raise DataError(
            f"archive {str(path)!r} has the label {most} and {len(names)} class_names; each label"
            " needs a name"
        )
    return names
