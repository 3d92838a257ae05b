"""Samples in one array of an .npz or an .npy, read from the file as they are needed."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data import check_images, to_bytes
from ddpm_jax.data.images import DataError
from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.features import EvaluationError
from ddpm_jax.npz import Header, NpzReader, open_npz, read_header

__all__ = ["batch_length", "check_range", "open_array"]

_NAMES = ("arr_0", "images")
"""Arrays of images in an .npz; the first that is there is read."""
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"
"""Beginnings of an .npz and of an .npy."""
_LOCAL_HEADER = struct.Struct("<26xHH")
"""Lengths of two fields that follow it, in front of a member of a zip file."""
_MOST_IMAGES, _MOST_BYTES = 1000, 2**22
"""Of a batch; a larger image is a batch of its own."""


def batch_length(shape: tuple[int, int, int]) -> int:
    """Images of this shape in a batch: some megabytes."""
    return max(1, min(_MOST_IMAGES, _MOST_BYTES // math.prod(shape)))


def check_range(name: str, num: int, first: int, last: int | None) -> tuple[int, int]:
    """The range of images, if it is within all of them.

    Raises:
        EvaluationError: it is not.
    """
    last = num if last is None else last
    if not 0 <= first <= last <= num:
        raise EvaluationError(
            f"first is {first} and last is {last}; {name!r} has the images 0 to {num - 1}"
        )
    return first, last


class _State(NamedTuple):
    """What changes if a file is replaced or written to."""

    inode: int
    size: int
    time: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Array:
    """Images in a file."""

    path: Path
    array: str | None
    """Its name in an .npz; None for an .npy."""
    num: int
    shape: tuple[int, int, int]
    levels: int
    start: int
    """Bytes in front of the first value, in the file or in the member of the archive."""
    offset: int | None
    """The same in the file; None if the array is compressed."""
    state: _State
    _waiting: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
    """The last stream of a compressed array and the number of its next image: processes that read
    every other block go through the file once."""

    @property
    def name(self) -> str:
        return str(self.path)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the checksum in the archive, or of the whole file."""
        digest = hashlib.sha256(f"{self.num} {self.shape} {self.levels};".encode())
        with _reading(self.path):
            if self.array is None:
                with self.path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            else:
                with zipfile.ZipFile(self.path) as archive:
                    member = archive.getinfo(f"{self.array}.npy")
                    digest.update(f"{member.CRC} {member.file_size}".encode())
        return digest.hexdigest()

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        first, last = check_range(self.name, self.num, first, last)
        if _state(self.path) != self.state:
            raise EvaluationError(
                f"{self.name!r} has changed since it was opened; start again when no other process"
                " writes it"
            )
        if first == last:
            return
        with _reading(self.path):
            # All of an archive's array is compared with its checksum.
            whole = self.array is not None and (first, last) == (0, self.num)
            if self.offset is not None and not whole:
                with self.path.open("rb") as file:
                    file.seek(self.offset + first * math.prod(self.shape))
                    yield from self._read(file, first, last)
                return
            stream = self._stream(first)
            try:
                yield from self._read(stream, first, last)
            except BaseException:
                stream.close()
                raise
            if last < self.num:
                self._waiting.append((last, stream))
            else:
                stream.close()

    def _read(self, stream: Any, first: int, last: int) -> Iterator[np.ndarray]:
        size = batch_length(self.shape)
        for number in range(first, last, size):
            count = min(size, last - number)
            content = stream.read(count * math.prod(self.shape))
            if len(content) < count * math.prod(self.shape):
                raise ValueError("it ends before its last image")
            images = np.frombuffer(content, np.uint8).reshape(count, *self.shape)
            if number + count == self.num:
                stream.read(1)  # where zip compares its checksum
            if self.levels != 256:
                check_images(
                    f"{self.array} of {self.name!r}, from image {number},", images, self.levels
                )
                images = to_bytes(images, self.levels)
            yield images

    def _stream(self, first: int) -> Any:
        """The member of the archive from this image on."""
        position, stream = self._waiting.pop() if self._waiting else (self.num, None)
        if stream is not None and position > first:
            stream.close()
        if stream is None or position > first:
            with zipfile.ZipFile(self.path) as archive:  # the stream keeps the file open
                stream = archive.open(f"{self.array}.npy")
            stream.read(self.start)
            position = 0
        size = batch_length(self.shape)
        for number in range(position, first, size):
            stream.read(min(size, first - number) * math.prod(self.shape))
        return stream


def open_array(path: Path) -> _Array:
    """The images of an .npz or an .npy, of which only headers are read.

    Raises:
        EvaluationError: there is no such file, it is damaged, or it has no images.
    """
    if not path.exists():
        raise EvaluationError(
            f"samples {str(path)!r} do not exist; they are a folder of images, an .npz or an .npy"
        )
    if not path.is_file():
        raise EvaluationError(f"samples {str(path)!r} are neither a folder nor a file")
    with _reading(path):
        state = _state(path)
        with path.open("rb") as file:
            magic = file.read(6)
        if magic.startswith(_ZIP):
            return _open_npz(path, state)
        if magic == _NPY:
            return _open_npy(path, state)
    raise EvaluationError(
        f"samples {str(path)!r} are neither an .npz nor an .npy, nor a folder of images"
    )


def _open_npz(path: Path, state: _State) -> _Array:
    with open_npz(path, most_bytes=sys.maxsize) as reader:
        array = next((name for name in _NAMES if name in reader.names), None)
        if array is None:
            names = ", ".join(map(repr, sorted(reader.names)[:20])) or "no arrays"
            raise EvaluationError(
                f"samples {str(path)!r} have {names}; the images have to be the array 'arr_0' or"
                " 'images'"
            )
        header = reader.header(array)
        levels = _levels(path, reader) if array == "images" else 256
    shape = _shape(f"{array} of {str(path)!r}", header, levels)
    return _Array(
        path,
        array,
        header.shape[0],
        shape,
        levels,
        header.start,
        _offset(path, f"{array}.npy", header.start),
        state,
    )


def _open_npy(path: Path, state: _State) -> _Array:
    with path.open("rb") as file:
        header = read_header(file)
    shape = _shape(f"the array in {str(path)!r}", header, 256)
    if header.start + header.nbytes != state.size:
        raise ValueError(
            f"its array of shape {header.shape} does not have the {state.size - header.start:,}"
            " bytes that follow its header"
        )
    return _Array(path, None, header.shape[0], shape, 256, header.start, header.start, state)


def _levels(path: Path, reader: NpzReader) -> int:
    if "levels" not in reader.names:
        return 256
    header = reader.header("levels")
    if header.shape != () or not np.issubdtype(header.dtype, np.integer):
        raise EvaluationError(
            f"levels of {str(path)!r} has shape {header.shape} and dtype {header.dtype}; it has to"
            " be one integer"
        )
    levels = int(reader.read("levels"))
    if not 2 <= levels <= 256:
        raise EvaluationError(f"levels of {str(path)!r} is {levels}; it has to be 2 to 256")
    return levels


def _shape(name: str, header: Header, levels: int) -> tuple[int, int, int]:
    """(height, width, channel) of the images of an array."""
    shape = (*header.shape, 1) if len(header.shape) == 3 else header.shape
    if header.dtype != np.uint8:
        raise EvaluationError(
            f"{name} has dtype {header.dtype}; samples are uint8, grey levels 0 to {levels - 1}:"
            " scale floats to them first"
        )
    if len(shape) != 4 or shape[3] not in (1, 3):
        hint = ""
        if len(shape) == 4 and shape[1] in (1, 3):
            hint = "; numpy.moveaxis(images, 1, -1) puts the channels last"
        raise EvaluationError(
            f"{name} has shape {header.shape}; samples are [n, height, width, channel] with 1 or 3"
            f" channels{hint}"
        )
    if 0 in shape:
        raise EvaluationError(f"{name} has shape {header.shape}, which is no image")
    if header.in_columns and sum(length > 1 for length in shape) > 1:
        raise EvaluationError(
            f"{name} is stored in Fortran's order, image by image it cannot be read; save"
            " numpy.ascontiguousarray(images)"
        )
    return shape[1], shape[2], shape[3]


def _offset(path: Path, member: str, start: int) -> int | None:
    """Where the values of a member of an archive begin in the file, if it is not compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + name + extra + start


def _state(path: Path) -> _State:
    status = os.stat(path)
    return _State(status.st_ino, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Damage, as whatever zipfile, zlib and NumPy make of it, is one sentence."""
    try:
        yield
    except (DataError, EvaluationError):
        raise
    except OSError as error:
        raise EvaluationError(f"samples {str(path)!r} cannot be read ({error.strerror})") from error
    except Exception as error:
        raise EvaluationError(
            f"samples {str(path)!r} cannot be read ({first_line(error)})"
        ) from error
