"""Reads the tensors of a PyTorch `.pth` file without PyTorch, and without running what is in it.

Such a file holds a pickle, and a pickle is a program: it may name any function of any module and
call it. Here it may name what a state dict is made of, a dozen names, and the sentence about any
other tells which it was.

Both formats are read. That of before PyTorch 1.6 is five pickles one after another (a magic number,
the protocol, the machine, the object, the keys of its storages), then each storage: its length as
int64, its bytes. That of today is a zip archive with the object in `data.pkl` and each storage in
`data/KEY`. Tensors are windows on storages: an offset, a shape and strides.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UserError

__all__ = ["WeightsError", "read_state_dict"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class WeightsError(UserError):
    """A file of weights that cannot be used, told in one sentence."""


class _Type(NamedTuple):
    """A type of storage. Not its dtype: NumPy's have a state, which a pickle could set."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch state dict, by name.

    Raises:
        WeightsError: the file is missing, truncated or of another kind; it holds anything but a
            dict of tensors; its pickle names what no state dict needs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    read = _read_zip if content.startswith(_ZIP) else _read_legacy
    try:
        state, storages = read(io.BytesIO(content), path)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__} in place of a dict")
        return {_checked(name): _array(name, state[name], storages) for name in state}
    except WeightsError:
        raise
    except Exception as error:  # there is none that a damaged pickle could not raise
        raise WeightsError(
            f"{path} is no dict of tensors as PyTorch writes them, or it is damaged: {error}"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict names, and nothing else."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self._path = path
        # Made for this file alone: a pickle may set attributes of what it is given.
        self._known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Tensor(*given[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        self.storages: dict[str, _Storage] = {}
        """All that were named."""

    def find_class(self, module: str, name: str) -> Any:
        """What the file's pickle calls `module.name`."""
        if module == "torch" and name in _DTYPES:
            return _Type(name)
        if (module, name) in self._known:
            return self._known[module, name]
        raise WeightsError(
            f"{self._path} names {module}.{name}, which no dict of tensors needs; it was not"
            " called, and the file is refused"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, whose bytes are elsewhere: `("storage", type, key, device, length, view)`."""
        kind, of, key, _, length, *view = pid
        if kind != "storage" or not isinstance(of, _Type) or view not in ([], [None]):
            raise ValueError(f"{pid!r} is no storage of its own")
        if not isinstance(key, str) or not isinstance(length, int) or length < 0:
            raise ValueError(f"a storage has the key {key!r} and the length {length!r}")
        return self.storages.setdefault(key, _Storage(key, _DTYPES[of.name], length))


def _read_zip(file: io.BytesIO, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The object, and its storages by key."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    (pickled,) = (name for name in names if name.count("/") == 1 and name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    if folder + "byteorder" in names:  # before PyTorch 2.1 it was not told
        _check_little_endian(archive.read(folder + "byteorder") == b"little")
    unpickler = _Unpickler(io.BytesIO(archive.read(pickled)), path)
    state = unpickler.load()
    storages = {}
    for key, storage in unpickler.storages.items():
        entry = archive.getinfo(f"{folder}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:  # a few bytes could be unpacked to gigabytes
            raise ValueError(f"storage {key} is compressed, which PyTorch never does")
        storages[key] = _storage(storage, archive.read(entry))
    return state, storages


def _read_legacy(file: io.BytesIO, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The object, and its storages by key."""

    def load() -> Any:
        return _Unpickler(file, path).load()

    if load() != _MAGIC or load() != _PROTOCOL:
        raise ValueError("it does not begin with PyTorch's magic number and protocol")
    _check_little_endian(load()["little_endian"])
    unpickler = _Unpickler(file, path)
    state, keys = unpickler.load(), load()
    storages = {}
    for key in keys:
        storage = unpickler.storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != storage.length:
            raise ValueError(f"storage {key} has the length {length}, and {storage.length} before")
        storages[key] = _storage(storage, file.read(length * storage.dtype.itemsize))
    return state, storages


def _storage(storage: _Storage, content: bytes) -> np.ndarray:
    size = storage.length * storage.dtype.itemsize
    if len(content) != size:
        raise ValueError(f"storage {storage.key} has {len(content)} bytes of {size}")
    return np.frombuffer(content, storage.dtype)


def _check_little_endian(little: bool) -> None:
    if little is not True:
        raise ValueError("it was written by a big-endian machine")


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"the name {name!r} is no string")
    return name


def _array(name: str, tensor: Any, storages: dict[str, np.ndarray]) -> np.ndarray:
    """A copy of the window, if the storage holds all of it."""
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, not a tensor")
    storage, (offset, shape, strides) = storages[tensor.storage.key], tensor[1:]
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{name} has the offset, shape and strides {tensor[1:]}")
    size = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # One element read often, by a stride of 0, could fill any memory.
    if size > len(storage) or (size > 0 and last >= len(storage)):
        raise ValueError(f"{name} reaches beyond its storage of {len(storage)} elements")
    if size == 0:
        return np.zeros(shape, storage.dtype)
    in_bytes = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes).copy()
