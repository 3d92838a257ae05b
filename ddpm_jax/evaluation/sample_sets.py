"""Sets of samples as streams of images: a folder of images, an .npz or an .npy, of any program.

Images are uint8 with 256 grey levels, numbered from 0, and never all in memory: ten million of them
are read batch by batch.

A folder may have subfolders. Its images are numbered folder by folder in the order of their names,
where 2 comes before 10: first the files of a folder, then its subfolders. Each image is decoded as
the training images of a folder are (`ddpm_jax.data.read_folder`): palettes become colours, what is
transparent is laid on white, of an animation the first frame counts, 16 bits are refused. Images
have one channel if 64 files, spread over the folder, are all grey, and else three.

An .npz has the array `arr_0`, as guided-diffusion and `numpy.savez` name it, or else `images`, with
the number of grey levels as `levels` if it is not 256; they are scaled to 256 levels. The array is
read from the file as it is needed, compressed or not.
"""

import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ddpm_jax.data.preparation import BadImageError, decode, is_grey
from ddpm_jax.data.source import spread
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.features import EvaluationError
from ddpm_jax.evaluation.sample_arrays import batch_length, check_range, open_array
from ddpm_jax.files import PARTIAL, read_json

__all__ = ["ABOUT", "SampleSet", "open_samples"]

ABOUT = "samples.json"
"""The file in a folder of `ddpm-jax sample` that says how many images it will have."""

_LOSSY = (".jpg", ".jpeg", ".webp")
_SUFFIXES = (".png", *_LOSSY, ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff")
"""Endings of the names of images; other files in a folder are not read."""
_PEEKED = 64
"""Files that decide whether images are grey, and whose contents count for a fingerprint."""
_MOST_BYTES = 2**29
_MOST_THREADS = 16
_DIGITS = re.compile(rb"[0-9]+")
_WIDTH = 20
"""Digits of a number in a name, of which some may be zeros in front, for the order of names."""


@runtime_checkable
class SampleSet(Protocol):
    """Images by number, read as they are needed."""

    @property
    def name(self) -> str:
        """The images in words: a path."""

    @property
    def num(self) -> int:
        """Number of images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of each image; 1 or 3 channels."""

    @property
    def fingerprint(self) -> str:
        """A hash that other images hardly have."""

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The images first, first + 1, ..., last - 1.

        Args:
            first: number of the first image.
            last: number after that of the last image; by default that of all images.

        Returns:
            An iterator over batches of any length, uint8 `[n, height, width, channel]` with 256
            grey levels.
        """


def open_samples(
    path: str | os.PathLike[str], *, report: Callable[[str], None] = lambda line: None
) -> SampleSet:
    """Opens a folder of images, an .npz or an .npy; the module describes what they may hold.

    Args:
        path: of the folder or the file.
        report: gets a line for each thing that a user should know, such as files in JPEG.

    Returns:
        The images, most of which are not read yet.

    Raises:
        EvaluationError: there are no images at `path`, or they have another dtype, shape or range.
        BadImageError: an image cannot be decoded. Later images raise it when they are read.

    Example:
        >>> import numpy as np, tempfile
        >>> from ddpm_jax.evaluation import open_samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/samples.npz"
        ...     np.savez(file, np.zeros((10, 8, 8, 3), np.uint8))
        ...     samples = open_samples(file)
        ...     print(samples.num, samples.shape, [len(batch) for batch in samples.batches(2, 9)])
        10 (8, 8, 3) [7]
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, report)
    return open_array(path)


class _Place(NamedTuple):
    """One folder with images."""

    path: str
    first: int
    """Number of its first image."""
    num: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Folder:
    """The images below a folder, of which only folders are listed in memory."""

    root: Path
    places: Sequence[_Place]
    num: int
    shape: tuple[int, int, int]
    _listed: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """The names in the folder that was read last."""

    @property
    def name(self) -> str:
        return str(self.root)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the names and sizes of all files, and of the contents of some."""
        digest = hashlib.sha256(f"{self.num} {self.shape};".encode())
        for path in self._paths(0, self.num):
            digest.update(os.fsencode(os.path.relpath(path, self.root)))
            with contextlib.suppress(OSError):  # reading it says so
                digest.update(f" {os.stat(path).st_size};".encode())
        for number in spread(self.num, _PEEKED):
            path = self._path(number)
            with _naming(path):
                digest.update(_content(path))
        return digest.hexdigest()

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        paths = self._paths(*check_range(self.name, self.num, first, last))
        size = batch_length(self.shape)
        threads = min(os.cpu_count() or 1, _MOST_THREADS)
        waiting: collections.deque[concurrent.futures.Future[np.ndarray]] = collections.deque()
        # Pillow decodes without Python's lock.
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            try:
                while batch := list(itertools.islice(paths, size)):
                    waiting.append(pool.submit(self._decoded, batch))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _decoded(self, paths: Sequence[str]) -> np.ndarray:
        images = np.empty((len(paths), *self.shape), np.uint8)
        for image, path in zip(images, paths, strict=True):
            image[:] = self._pixels(path)
        return images

    def _pixels(self, path: str) -> np.ndarray:
        pixels = _pixels(path, self.shape[2])
        if pixels.shape != self.shape:
            raise EvaluationError(
                f"{path!r} is {_size(pixels.shape)}, and other images of {self.name!r} are"
                f" {_size(self.shape)}; all have to have the same size"
            )
        return pixels

    def _path(self, number: int) -> str:
        (path,) = self._paths(number, number + 1)
        return path

    def _paths(self, first: int, last: int) -> Iterator[str]:
        start = bisect.bisect_right(self.places, first, key=lambda place: place.first) - 1
        for place in self.places[max(0, start) :]:
            if place.first >= last:
                return
            names = self._names(place)
            for name in names[max(0, first - place.first) : last - place.first]:
                yield os.path.join(place.path, os.fsdecode(bytes(name)))

    def _names(self, place: _Place) -> np.ndarray:
        """The names of images in a folder, in order, as bytes in one array."""
        names = self._listed.get(place.path)
        if names is None:
            with _listing(place.path):
                names = np.array(_entries(place.path).images, np.bytes_)
            if len(names) != place.num:
                raise EvaluationError(
                    f"{place.path!r} has {len(names):,} images, and had {place.num:,} when it was"
                    " opened; start again when no other process changes it"
                )
            self._listed.clear()
            self._listed[place.path] = names
        return names


class _Entries(NamedTuple):
    """What is in one folder: names in order, and counts."""

    images: list[bytes]
    folders: list[bytes]
    lossy: int
    others: int
    other: bytes | None
    """The first name of those that are no images."""


def _open_folder(root: Path, report: Callable[[str], None]) -> _Folder:
    places: list[_Place] = []
    num = lossy = others = 0
    other = None
    for path, entries in _walk(str(root)):
        if entries.images:
            places.append(_Place(path, num, len(entries.images)))
        num, lossy, others = (
            num + len(entries.images),
            lossy + entries.lossy,
            others + entries.others,
        )
        if other is None and entries.other is not None:
            other = os.path.join(path, os.fsdecode(entries.other))
    if not num:
        has = f"; it has other files, such as {other!r}" if other else ""
        raise EvaluationError(f"folder {str(root)!r} has no images ({', '.join(_SUFFIXES)}){has}")
    if others:
        report(
            f"{others:,} files in {str(root)!r} are not images and are not read, such as {other!r}"
        )
    if lossy:
        report(
            f"{lossy:,} of {num:,} images in {str(root)!r} are JPEG or WebP: FID and other metrics"
            " depend on their compression; PNG has none"
        )
    if (wanted := _num_of_draw(root)) > num:
        report(f"{str(root)!r} has {num:,} of the {wanted:,} images that are drawn into it")
    unknown = _Folder(root, places, num, (0, 0, 0))
    grey = all(_is_grey(unknown._path(number)) for number in spread(num, _PEEKED))
    height, width, channels = _pixels(unknown._path(0), 1 if grey else 3).shape
    return dataclasses.replace(unknown, shape=(height, width, channels))


def _num_of_draw(root: Path) -> int:
    """The number of images that a folder of `ddpm-jax sample` will have; 0 for other folders."""
    with contextlib.suppress(UserError, OSError):
        num = read_json(root / ABOUT).get("num")
        return num if isinstance(num, int) else 0
    return 0


def _walk(top: str) -> Iterator[tuple[str, _Entries]]:
    """The folder and those below it, each real folder once."""
    walked: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        path = waiting.pop()
        with _listing(path):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in walked:
                continue
            walked.add((status.st_dev, status.st_ino))
            entries = _entries(path)
        yield path, entries
        waiting += [os.path.join(path, os.fsdecode(name)) for name in reversed(entries.folders)]


@contextlib.contextmanager
def _listing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvaluationError(f"folder {path!r} cannot be read ({error.strerror})") from error


def _entries(path: str) -> _Entries:
    images, folders, others = [], [], []
    with os.scandir(os.fsencode(path)) as scan:
        for entry in scan:
            if entry.name.startswith(b".") or entry.name.endswith(PARTIAL.encode()):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif _suffix(entry.name) in _SUFFIXES and _is_file(entry):
                images.append(entry.name)
            elif entry.name != ABOUT.encode():
                others.append(entry.name)
    for names in (images, folders):
        names.sort()
        names.sort(key=_padded)
    lossy = sum(_suffix(name) in _LOSSY for name in images)
    return _Entries(images, folders, lossy, len(others), min(others, default=None))


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    """Whether it is a file, or a broken link, which stands for a missing image; no pipe."""
    return entry.is_file() or not os.path.exists(entry.path)


def _suffix(name: bytes) -> str:
    return os.path.splitext(os.fsdecode(name))[1].lower()


def _padded(name: bytes) -> bytes:
    """The name with zeros in front of its numbers, so that 2 is before 10."""
    return _DIGITS.sub(lambda digits: digits[0].rjust(_WIDTH, b"0"), name)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return file.read()
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})") from error


def _pixels(path: str, channels: int) -> np.ndarray:
    """The pixels of a file, which is grey if they have one channel."""
    if channels == 1 and not _is_grey(path):
        raise EvaluationError(
            f"{path!r} is in colour, and other images in its folder are grey; convert all to RGB"
        )
    with _naming(path):
        picture = decode(_content(path), channels)
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)


def _is_grey(path: str) -> bool:
    with _naming(path):
        return is_grey(_content(path))


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except BadImageError as error:
        raise BadImageError(f"{path!r} {error}; repair or remove it") from error


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
