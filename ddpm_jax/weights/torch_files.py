"""Reads the tensors of a PyTorch file (`.pt`, `.pth`, `.bin`) without PyTorch, one by one.

Such a file holds a pickle of a dict of tensors, which `pickles` reads without running it, and the
bytes of the tensors' storages. Both formats are read. That of before PyTorch 1.6 is five pickles
one after another (a magic number, the protocol, the machine, the object, the keys of its storages),
then each storage: its length as int64, its bytes. That of today is a zip archive with the object in
`data.pkl` and each storage in `data/KEY`. Tensors are windows on storages: an offset, a shape and
strides. All storages together have no more bytes than the file, and all tensors no more than twice
as many.

A file is opened by reading its pickle and the places of its storages, at most some megabytes. A
tensor is then read from its place, so that no more than one stands in memory. The checksums of a
zip archive are compared when a storage is first read.
"""

import dataclasses
import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import first_line
from ddpm_jax.files import check_size
from ddpm_jax.weights.pickles import Reader, Tensor
from ddpm_jax.weights.weights import LazyArray, WeightsError

__all__ = ["open_object", "open_state_dict", "read_state_dict"]

_MOST_BYTES = 2**36
"""Of a file: the largest public networks in pixels have some gigabytes."""
_MOST_AT_ONCE = 2**22
"""Bytes of all that is no tensor: a pickle has 200 for each tensor, a zip's directory 100."""
_MOST_OF_ARRAYS = 2**28
"""Of a pickle that also holds NumPy arrays: a covariance of 2048 features has 50 MB as text."""
_MOST_AXES = 32
_MOST_LISTED = 10
_CHUNK = 2**20

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER = 30
"""Bytes before the name of a zip archive's member."""


def open_state_dict(
    path: Path, *, key: str | None = None, most_bytes: int = _MOST_BYTES
) -> dict[str, LazyArray]:
    """The tensors of a PyTorch state dict, by name, in the order of the file.

    What was stored as bfloat16 is read as float32, and all else as it was stored.

    Args:
        path: the file. It is opened again for each tensor.
        key: of the state dict, where the file holds several dicts in one.
        most_bytes: that the file may have.

    Raises:
        WeightsError: the file is missing, truncated or of another kind; it holds anything but a
            dict of tensors; its pickle names what no state dict needs. Reading a tensor raises it,
            too, if the file was changed or is damaged there.
    """
    return _opened(path, most_bytes, _MOST_AT_ONCE, functools.partial(_state_dict, key=key))


def read_state_dict(path: Path, *, most_bytes: int = _MOST_BYTES) -> dict[str, np.ndarray]:
    """All tensors of a PyTorch state dict, by name; see `open_state_dict`."""
    arrays = open_state_dict(path, most_bytes=most_bytes)
    return {name: array.read() for name, array in arrays.items()}


def open_object(path: Path, *, most_bytes: int = _MOST_BYTES) -> Any:
    """The object of a PyTorch file: one tensor, or a dict of tensors and NumPy arrays.

    Args:
        path: the file. It is opened again for each tensor.
        most_bytes: that the file may have.

    Returns:
        A `LazyArray` for a tensor; a dict with a `LazyArray` for each tensor in it, and with
        arrays, numbers and strings as they are; another object of such parts.

    Raises:
        WeightsError: as `open_state_dict`.
    """
    return _opened(path, most_bytes, _MOST_OF_ARRAYS, _object)


class _BoundedFile(io.BufferedReader):
    """A file of which a library cannot read more at once than a reader of weights needs."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(io.FileIO(path))
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        unbounded = size is None or not 0 <= size <= self.most
        content = super().read(self.most + 1 if unbounded else size)
        if len(content) > self.most:
            raise ValueError(f"it has more than {self.most:,} bytes that are no tensors")
        return content


class _Place(NamedTuple):
    """Where a file has a storage."""

    start: int
    size: int
    """In bytes."""
    checksum: int | None
    """Their CRC-32."""


@dataclasses.dataclass
class _Bytes:
    """A storage in its file."""

    path: Path
    place: _Place
    intact: bool
    """Whether its checksum is known to be right, or there is none."""

    def read(self, offset: int, size: int) -> bytearray:
        """`size` bytes from `offset` on."""
        try:
            with self.path.open("rb") as file:
                if not self.intact and size < self.place.size:
                    self._check(self._checksum(file))
                file.seek(self.place.start + offset)
                content = bytearray(size)
                if file.readinto(content) < size:
                    raise WeightsError(f"{self.path} was truncated after it was opened")
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error.strerror}") from error
        if not self.intact:
            self._check(zlib.crc32(content))
        return content

    def _check(self, checksum: int) -> None:
        if checksum != self.place.checksum:
            raise WeightsError(
                f"{self.path} is damaged: the {self.place.size:,} bytes from byte"
                f" {self.place.start:,} on do not have the CRC-32 that the file states"
            )
        self.intact = True

    def _checksum(self, file: IO[bytes]) -> int:
        file.seek(self.place.start)
        checksum, left = 0, self.place.size
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
        return checksum


Opened = TypeVar("Opened")
_Lazy = Callable[[Mapping[str, Tensor]], dict[str, LazyArray]]
"""Makes arrays of a file's tensors, after the tensors are checked."""


def _opened(
    path: Path, most_bytes: int, most_at_once: int, select: Callable[[Any, Path, _Lazy], Opened]
) -> Opened:
    """`select(object, path, lazy)` of the file's object."""
    try:
        check_size(path, most_bytes)
        with _BoundedFile(path, most_at_once) as file:
            return _open(file, path, select)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except WeightsError:
        raise
    except Exception as error:  # there is none that a damaged pickle could not raise
        raise WeightsError(
            f"{path} is not a dict of tensors as PyTorch writes it, or it is damaged:"
            f" {first_line(error)}"
        ) from error


def _open(file: _BoundedFile, path: Path, select: Callable[[Any, Path, _Lazy], Opened]) -> Opened:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_zip = file.read(len(_ZIP)) == _ZIP
    file.seek(0)
    state, places = (_open_zip if is_zip else _open_legacy)(file, path)
    if any(place.start + place.size > size for place in places.values()):
        raise ValueError("it ends before its last storage does")
    if sum(place.size for place in places.values()) > size:  # members that lie over one another
        raise ValueError("its storages have more bytes than the file")
    storages = {
        name: _Bytes(path, place, intact=place.checksum is None) for name, place in places.items()
    }

    def lazy(tensors: Mapping[str, Tensor]) -> dict[str, LazyArray]:
        if sum(_check_window(name[:80], tensor) for name, tensor in tensors.items()) > 2 * size:
            raise ValueError("its tensors have more than twice the bytes of the file")
        return {
            name: LazyArray(
                tensor.shape, functools.partial(_read, tensor, storages[tensor.storage.key])
            )
            for name, tensor in tensors.items()
        }

    return select(state, path, lazy)


def _state_dict(state: Any, path: Path, lazy: _Lazy, *, key: str | None) -> dict[str, LazyArray]:
    return lazy(_tensors(state, path, key))


def _object(state: Any, path: Path, lazy: _Lazy) -> Any:
    if isinstance(state, Tensor):
        return lazy({"the tensor": state})["the tensor"]
    if not isinstance(state, dict):
        return state
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not all(type(name) is str for name in tensors):
        raise ValueError("the name of a tensor is not a string")
    return {**state, **lazy(tensors)}


def _tensors(state: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """The dict of tensors in what was pickled."""
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__} in place of a dict")
    dicts = [name for name, value in state.items() if isinstance(value, dict)]
    listed = ", ".join(repr(name)[:80] for name in dicts[:_MOST_LISTED])
    if key is not None and key not in dicts:
        inside = f"it holds the dicts {listed}" if dicts else "it holds one dict of tensors"
        raise WeightsError(f"key is {key!r}, and there is no such dict in {path}; {inside}")
    if key is None and dicts:
        raise WeightsError(
            f"{path} holds the dicts {listed}, not one dict of tensors; key has to name one of them"
        )
    tensors = state if key is None else state[key]
    for name, tensor in tensors.items():
        if type(name) is not str:
            raise ValueError(f"the name {name} is not a string")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name[:80]} is a {type(tensor).__name__}, not a tensor")
    return tensors


def _open_zip(file: _BoundedFile, path: Path) -> tuple[Any, dict[str, _Place]]:
    """The object, and the places of its storages by key."""
    archive = zipfile.ZipFile(file)
    # Storages first, of which the sentence says more.
    names = sorted(archive.namelist(), key=lambda name: "/data/" not in name)
    (pickled,) = (name for name in names if name.count("/") == 1 and name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    for name in names:  # a few bytes could be unpacked to gigabytes
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            key = name.removeprefix(f"{folder}data/")
            what = repr(name[:80]) if key == name else f"storage {key[:80]}"
            raise ValueError(f"{what} is compressed, which PyTorch never does")

    def content(name: str) -> bytes:
        size = archive.getinfo(name).file_size
        if size > file.most:
            raise ValueError(f"{name[:80]!r} has {size:,} bytes, more than {file.most:,}")
        return archive.read(name)

    if folder + "byteorder" in names:  # before PyTorch 2.1 it was not stated
        _check_little_endian(content(folder + "byteorder") == b"little")
    reader = Reader(io.BytesIO(content(pickled)), path, arrays=file.most > _MOST_AT_ONCE)
    state = reader.load()
    places = {}
    for key, storage in reader.storages.items():
        info = archive.getinfo(f"{folder}data/{key}")
        size = storage.length * storage.dtype.itemsize
        if info.file_size != size:
            raise ValueError(f"storage {key[:80]} has {info.file_size} bytes of {size}")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        if not header.startswith(_ZIP):
            raise ValueError(f"storage {key[:80]} is not where the archive's directory has it")
        after = sum(struct.unpack("<HH", header[-4:]))  # the name, and what was added to it
        places[key] = _Place(info.header_offset + _LOCAL_HEADER + after, size, info.CRC)
    return state, places


def _open_legacy(file: _BoundedFile, path: Path) -> tuple[Any, dict[str, _Place]]:
    """The object, and the places of its storages by key."""
    begin = io.BytesIO(file.read(file.most))
    head = Reader(begin, path)
    if head.load() != _MAGIC or head.load() != _PROTOCOL:
        raise ValueError("it does not begin with PyTorch's magic number and protocol")
    _check_little_endian(head.load()["little_endian"])
    reader = Reader(begin, path, arrays=file.most > _MOST_AT_ONCE)
    state, keys = reader.load(), reader.load()
    places, start = {}, begin.tell()
    for key in keys:
        storage = reader.storages[key]
        file.seek(start)
        (length,) = struct.unpack("<q", file.read(8))
        if length != storage.length:
            raise ValueError(
                f"storage {key[:80]} has the length {length}, and {storage.length} before"
            )
        places[key] = _Place(start + 8, length * storage.dtype.itemsize, None)
        start = sum(places[key][:2])
    if missing := reader.storages.keys() - places.keys():
        raise ValueError(f"storage {min(missing)[:80]} is not there")
    return state, places


def _check_little_endian(little: Any) -> None:
    if little is not True:
        raise ValueError("it was written by a big-endian machine")


def _check_window(name: str, tensor: Tensor) -> int:
    """The bytes of a tensor, if its storage holds all of it."""
    storage, offset, shape, strides = tensor
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise ValueError(f"{name} has an offset, a shape and strides that no tensor can have")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise ValueError(f"{name} has an offset, a shape and strides that no tensor can have")
    size = math.prod(shape)
    # One element read often, by a stride of 0, could fill any memory.
    if size > storage.length or (size > 0 and offset + _extent(tensor) > storage.length):
        raise ValueError(f"{name} reaches beyond its storage of {storage.length} elements")
    return size * storage.dtype.itemsize


def _extent(tensor: Tensor) -> int:
    """Elements of the storage from the first of a tensor, which is not empty, to its last."""
    return 1 + sum((n - 1) * by for n, by in zip(tensor.shape, tensor.strides, strict=True))


def _read(tensor: Tensor, storage: _Bytes) -> np.ndarray:
    dtype = tensor.storage.dtype
    if math.prod(tensor.shape) == 0:
        array = np.zeros(tensor.shape, dtype)
    else:
        size = dtype.itemsize
        content = storage.read(tensor.offset * size, _extent(tensor) * size)
        in_bytes = [stride * size for stride in tensor.strides]
        window = np.lib.stride_tricks.as_strided(
            np.frombuffer(content, dtype), tensor.shape, in_bytes
        )
        array = np.ascontiguousarray(window).reshape(tensor.shape)  # a number gets an axis else
    return array.astype(np.float32) if dtype == jnp.bfloat16 else array
