"""Converts public files of images to the archive that `ddpm_jax.data.archive` reads.

Formats and their sources:

- `mnist`, `fashion_mnist`: a folder with the four IDX files of the set, gzipped or not;
- `cifar10`: the binary version, `cifar-10-binary.tar.gz`, or the folder in it;
- `folder`: a folder of images, see `ddpm_jax.data.folder`.

Images keep the order of the files. The size in a file's header is compared with the file's length
before memory is allocated, and no more is unpacked than such a data set can have.
"""

import dataclasses
import gzip
import math
import os
import pathlib
import struct
import sys
import tarfile
from typing import Literal, NamedTuple, get_args

import numpy as np

from ddpm_jax.data.encoded import Encoded, OnBadImage, read_all
from ddpm_jax.data.folder import read_folder
from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import Preparation
from ddpm_jax.data.source import Arrays, ImageSet
from ddpm_jax.errors import first_line
from ddpm_jax.files import check_size, whole_file
from ddpm_jax.npz import MOST_DEFLATED, read_bytes

__all__ = ["Format", "convert"]

Format = Literal["mnist", "fashion_mnist", "cifar10", "folder"]

_CLASSES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_BATCH = 10_000
"""Number of images in each of these files."""
_RECORD = 1 + 3 * 32 * 32
"""Bytes of each image: its label, then red, green and blue, each row by row."""


class _Part(NamedTuple):
    """Images of a split, uint8 `[n, height, width, channel]`, and their labels, uint8 `[n]`."""

    images: np.ndarray
    labels: np.ndarray


def convert(
    kind: Format,
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    preparation: Preparation | None = None,
    on_bad_image: OnBadImage = "stop",
    memory_gb: float = 4.0,
    overwrite: bool = False,
) -> str:
    """Writes the images of `source` to the archive `target`, either completely or not at all.

    Args:
        kind: format of the source.
        source: a folder, or the .tar.gz of CIFAR-10.
        target: the .npz to write.
        preparation: applied to each image; nothing by default.
        on_bad_image: what to do with a file of a folder that cannot be decoded.
        memory_gb: largest size of the pixels of a split, in gigabytes.
        overwrite: replace a target that exists.

    Returns:
        One sentence with the target, its splits and classes, and the number of images in each.

    Raises:
        DataError: files are missing, damaged or of another format; images cannot be used or need
            more than `memory_gb`; or the target exists or cannot be written.
    """
    if kind not in get_args(Format):
        raise DataError(
            f"the format is {kind!r}; it has to be one of {', '.join(get_args(Format))}"
        )
    if target.suffix != ".npz":
        raise DataError(f"the target is {str(target)!r}; its name has to end in .npz")
    if os.path.exists(target) and not overwrite:  # False if the folder cannot be searched
        raise DataError(f"the target {str(target)!r} exists; --overwrite replaces it")
    preparation = preparation or Preparation()
    if kind == "folder":
        images = _read_folder(source, preparation, on_bad_image, memory_gb)
    else:
        images = _read_public(kind, source, preparation, memory_gb)
    arrays: dict[str, np.ndarray] = {}
    for name, part in (("train", images.train), ("test", images.held_out)):
        examples = part[np.arange(len(part))]
        arrays[f"{name}_images"] = examples.images
        if images.classes is not None:
            arrays[f"{name}_labels"] = examples.labels
    if images.classes is not None:
        arrays["class_names"] = np.array(images.classes)
    try:
        with whole_file(target) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DataError(f"{str(target)!r} cannot be written ({error.strerror})") from error
    return f"{target}: {images.summary()}"


def _check_memory(name: str, needed: int, memory_gb: float) -> None:
    if needed > memory_gb * 1e9:
        raise DataError(
            f"{name} needs {needed / 1e9:.3g} GB of memory, and data.memory_gb is {memory_gb:g};"
            f" set --data.memory-gb {math.ceil(needed / 1e9)}"
        )


def _read_folder(
    source: pathlib.Path, preparation: Preparation, on_bad_image: OnBadImage, memory_gb: float
) -> ImageSet:
    """All images of a folder, decoded."""
    images = read_folder(source, preparation=preparation, on_bad_image=on_bad_image)
    parts = []
    for part, split in zip((images.train, images.held_out), images.splits, strict=True):
        name = f"{images.name}, {split}"
        _check_memory(name, len(part) * math.prod(part.image_shape), memory_gb)
        parts.append(read_all(part, name) if isinstance(part, Encoded) else part)
    return dataclasses.replace(images, train=parts[0], held_out=parts[1])


def _read_public(
    kind: str, source: pathlib.Path, preparation: Preparation, memory_gb: float
) -> ImageSet:
    if kind == "cifar10":
        train, test = _read_cifar10(source)
    else:
        train, test = (_read_idx(source, part, memory_gb) for part in ("train", "t10k"))
    most = max(int(np.max(part.labels, initial=0)) for part in (train, test))
    classes = _CLASSES.get(kind) or tuple(map(str, range(most + 1)))
    if most >= len(classes):
        raise DataError(
            f"{str(source)!r} has the label {most}; the labels of {kind} are 0 to"
            f" {len(classes) - 1}"
        )
    train_source, test_source = (
        Arrays(preparation.of_array(images), labels, name=f"{split} of {str(source)!r}")
        for split, (images, labels) in (("train", train), ("test", test))
    )
    return ImageSet(
        kind, train=train_source, held_out=test_source, classes=classes, splits=("train", "test")
    )


# ---- IDX


def _read_idx(folder: pathlib.Path, part: str, memory_gb: float) -> _Part:
    """Images and labels of the files `PART-images-idx3-ubyte` and `PART-labels-idx1-ubyte`."""
    images = _read_idx_file(folder, f"{part}-images-idx3-ubyte", 3, memory_gb)
    labels = _read_idx_file(folder, f"{part}-labels-idx1-ubyte", 1, memory_gb)
    if len(images) != len(labels):
        raise DataError(
            f"{part} in {str(folder)!r} has {len(images):,} images and {len(labels):,} labels; it"
            " needs one label for each image"
        )
    return _Part(images[..., None], labels)


def _read_idx_file(folder: pathlib.Path, name: str, axes: int, memory_gb: float) -> np.ndarray:
    """The values of an IDX file of bytes: [0, 0, 8, axes], each length as 4 bytes, the values."""
    paths = [folder / name, folder / f"{name}.gz"]
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        raise DataError(f"{str(folder)!r} has no file {name} or {name}.gz")
    zipped = path.suffix == ".gz"
    try:
        check_size(path, sys.maxsize)
        stored = path.stat().st_size
        with (gzip.GzipFile if zipped else open)(path, "rb") as file:
            start = file.read(4 + 4 * axes)
            if start[:4] != bytes([0, 0, 8, axes]) or len(start) < 4 + 4 * axes:
                raise ValueError(f"it does not begin like an IDX file of bytes with {axes} axes")
            lengths = struct.unpack(f">{axes}I", start[4:])
            count = math.prod(lengths)
            if count > stored * (MOST_DEFLATED if zipped else 1):
                raise ValueError(f"its {stored:,} bytes cannot hold the {count:,} of its header")
            _check_memory(repr(str(path)), count, memory_gb)
            return read_bytes(file, count).reshape(lengths)
    except DataError:
        raise
    except Exception as error:  # damage shows as whatever gzip and zlib raise
        raise DataError(f"{str(path)!r} cannot be read ({_reason(error)})") from error


# ---- CIFAR-10


def _read_cifar10(source: pathlib.Path) -> tuple[_Part, _Part]:
    try:
        files = _batches_in_folder(source) if source.is_dir() else _batches_in_tar(source)
    except DataError:
        raise
    except Exception as error:  # damage shows as whatever gzip, zlib and tarfile raise
        raise DataError(
            f"{str(source)!r} cannot be read ({_reason(error)}); it has to be"
            " cifar-10-binary.tar.gz, or the folder in it"
        ) from error
    if missing := [name for name in (*_TRAIN, _TEST) if name not in files]:
        raise DataError(
            f"{str(source)!r} has no file {' and no '.join(missing)}; they are in the binary"
            " version of CIFAR-10, cifar-10-binary.tar.gz"
        )
    train, test = (
        np.concatenate([files[name] for name in names]).reshape(-1, _RECORD)
        for names in (_TRAIN, (_TEST,))
    )
    return _records(train), _records(test)


def _records(rows: np.ndarray) -> _Part:
    planes = rows[:, 1:].reshape(-1, 3, 32, 32)
    return _Part(np.ascontiguousarray(np.moveaxis(planes, 1, -1)), rows[:, 0])


def _batches_in_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    inner = folder / "cifar-10-batches-bin"
    paths = [(inner if inner.is_dir() else folder) / name for name in (*_TRAIN, _TEST)]
    files = {}
    for path in filter(pathlib.Path.exists, paths):
        check_size(path, sys.maxsize)
        _check_batch(path, path.stat().st_size)
        with path.open("rb") as file:
            files[path.name] = read_bytes(file, _BATCH * _RECORD)
    return files


def _batches_in_tar(path: pathlib.Path) -> dict[str, np.ndarray]:
    check_size(path, sys.maxsize)
    files = {}
    with _LimitedGzip(path, _BATCH * _RECORD * (len(_TRAIN) + 1) + 2**20) as unpacked:
        with tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                content = archive.extractfile(member)
                if content is not None and name in (*_TRAIN, _TEST):
                    _check_batch(path / name, member.size)
                    files[name] = read_bytes(content, member.size)
        while unpacked.read(2**20):  # to the end, where gzip compares its checksum
            pass
    return files


def _check_batch(path: pathlib.Path, size: int) -> None:
    if size != _BATCH * _RECORD:
        raise DataError(
            f"{str(path)!r} has {size:,} bytes; {_BATCH:,} images of CIFAR-10 have"
            f" {_BATCH * _RECORD:,}"
        )


class _LimitedGzip(gzip.GzipFile):
    """A gzipped file of which at most `most_bytes` are unpacked."""

    def __init__(self, path: pathlib.Path, most_bytes: int) -> None:
        super().__init__(path, "rb")
        self._left = self._most = most_bytes

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._most:,} bytes")
        return content


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or first_line(error)
