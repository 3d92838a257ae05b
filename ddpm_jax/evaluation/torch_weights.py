"""Reads the tensors of a PyTorch `.pth` file without PyTorch, and without running what is in it.

Such a file holds a pickle, and a pickle is a program: it may name any function of any module and
call it. Python's own reader runs it, and a few bytes can also make that fill the memory (the number
of a memo, a length) or compute without end (the hash of nested tuples). So the pickle is read here,
opcode by opcode: it may name what a state dict is made of, a dozen names, and the sentence about
any other tells which it was; keys are strings or integers; and the number of opcodes has a limit.

Both formats are read. That of before PyTorch 1.6 is five pickles one after another (a magic number,
the protocol, the machine, the object, the keys of its storages), then each storage: its length as
int64, its bytes. That of today is a zip archive with the object in `data.pkl` and each storage in
`data/KEY`. Tensors are windows on storages: an offset, a shape and strides. All storages together
have no more bytes than the file, and all tensors no more than twice as many.
"""

import io
import itertools
import math
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.preparation import first_line
from ddpm_jax.errors import UserError
from ddpm_jax.files import check_size

__all__ = ["MOST_BYTES", "WeightsError", "read_state_dict"]

MOST_BYTES = 2**28
"""Of a file: Inception-v3 in float64 has 0.7 of it."""
_MOST_OPCODES = 200_000
"""Of a pickle: that of Inception-v3 has 20,000."""
_MOST_AXES = 32

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
    """A file of weights that cannot be used."""


class _Global(NamedTuple):
    """A name of a module, as a pickle has it. Nothing is imported."""

    module: str
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
        check_size(path, MOST_BYTES)
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is no file of weights: {error}") from error
    read = _read_zip if content.startswith(_ZIP) else _read_legacy
    try:
        state, storages = read(io.BytesIO(content), path)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__} in place of a dict")
        return _arrays(state, storages, most_bytes=2 * len(content))
    except WeightsError:
        raise
    except Exception as error:  # there is none that a damaged pickle could not raise
        raise WeightsError(
            f"{path} is no dict of tensors as PyTorch writes them, or it is damaged:"
            f" {first_line(error)}"
        ) from error


class _Reader:
    """One pickle after another of a file: plain values, tensors, and nothing else."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        self._file, self._path = file, path
        self.storages: dict[str, _Storage] = {}
        """All that were named."""

    def load(self) -> Any:
        """What the next pickle holds."""
        stack: list[Any] = []
        below: list[list[Any]] = []
        """What was on the stack when each mark was set."""
        memo: dict[int, Any] = {}
        opcodes = itertools.islice(pickletools.genops(self._file), _MOST_OPCODES)
        argument: Any
        for opcode, argument, _ in opcodes:
            match opcode.name:
                case "STOP":
                    (value,) = stack
                    return value
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    below.append(stack)
                    stack = []
                case "TUPLE" | "LIST" | "DICT":
                    items, stack = stack, below.pop()
                    stack.append(_of_items(opcode.name, items))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [(*stack[-count:],)]
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "APPEND" | "SETITEM":
                    count = 1 if opcode.name == "APPEND" else 2
                    items = stack[-count:]
                    del stack[-count:]
                    _extend(stack[-1], items)
                case "APPENDS" | "SETITEMS":
                    items, stack = stack, below.pop()
                    _extend(stack[-1], items)
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "GLOBAL":
                    stack.append(self._global(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    module, name = stack.pop(-2), stack.pop()
                    stack.append(self._global(module, name))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(_call(stack.pop(), arguments))
                case "BUILD":  # attributes of a state dict: the versions of its layers
                    stack.pop()
                    if type(stack[-1]) is not dict:
                        raise ValueError(f"it sets attributes of a {type(stack[-1]).__name__}")
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case name if name in _PLAIN:
                    stack.append(argument)
                case name:
                    raise ValueError(f"its pickle has the opcode {name}, which no state dict needs")
        raise ValueError(f"its pickle has more than {_MOST_OPCODES:,} opcodes, or no end")

    def _global(self, module: Any, name: Any) -> _Global:
        if (module, name) in _KNOWN or (module == "torch" and name in _DTYPES):
            return _Global(module, name)
        raise WeightsError(
            f"{self._path} names {str(module)[:80]}.{str(name)[:80]}, which no dict of tensors"
            " needs; it was not called, and the file is refused"
        )

    def _storage(self, pid: Any) -> _Storage:
        """A storage, whose bytes are elsewhere: `("storage", type, key, device, length, view)`."""
        kind, of, key, _, length, *view = pid
        if kind != "storage" or not isinstance(of, _Global) or view not in ([], [None]):
            raise ValueError("a storage is no storage of its own")
        if type(key) is not str or type(length) is not int or not 0 <= length < 2**63:
            raise ValueError("a storage has a key or a length that is none")
        return self.storages.setdefault(key, _Storage(key, _DTYPES[of.name], length))


_ORDERED = _Global("collections", "OrderedDict")
_TENSOR = _Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = _Global("torch._utils", "_rebuild_parameter")
_KNOWN = (_ORDERED, _TENSOR, _PARAMETER)
_PLAIN = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "STRING", "SHORT_BINSTRING", "BINSTRING"),
}
"""Opcodes that push their argument, a number or a string."""


def _of_items(opcode: str, items: list[Any]) -> Any:
    if opcode == "TUPLE":
        return tuple(items)
    value: list[Any] | dict[Any, Any] = [] if opcode == "LIST" else {}
    _extend(value, items)
    return value


def _extend(value: Any, items: list[Any]) -> None:
    """With elements of a list, or keys and values of a dict."""
    if type(value) is list:
        value.extend(items)
        return
    if type(value) is not dict or not all(type(key) in (str, int) for key in items[::2]):
        raise ValueError("it has a dict with keys that are no strings or integers")
    value.update(zip(items[::2], items[1::2], strict=True))


def _call(function: Any, arguments: Any) -> Any:
    """What PyTorch's function of this name would make."""
    if type(arguments) is tuple and function == _TENSOR:
        return _Tensor(*arguments[:4])
    if type(arguments) is tuple and function == _PARAMETER:
        return arguments[0]
    if type(arguments) is tuple and function == _ORDERED:
        ordered: dict[Any, Any] = {}
        for pairs in arguments:
            for key, value in pairs:
                _extend(ordered, [key, value])
        return ordered
    raise ValueError("it calls what is no function of a state dict")


def _read_zip(file: io.BytesIO, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The object, and its storages by key."""
    archive = zipfile.ZipFile(file)
    # Storages first, of which the sentence says more.
    names = sorted(archive.namelist(), key=lambda name: "/data/" not in name)
    left = len(file.getbuffer())
    (pickled,) = (name for name in names if name.count("/") == 1 and name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")

    for name in names:  # a few bytes could be unpacked to gigabytes
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            key = name.removeprefix(f"{folder}data/")
            what = repr(name[:80]) if key == name else f"storage {key[:80]}"
            raise ValueError(f"{what} is compressed, which PyTorch never does")

    def content(name: str) -> bytes:
        nonlocal left
        left -= archive.getinfo(name).file_size
        if left < 0:  # members that lie over one another
            raise ValueError("its members have more bytes than the file")
        return archive.read(name)

    if folder + "byteorder" in names:  # before PyTorch 2.1 it was not told
        _check_little_endian(content(folder + "byteorder") == b"little")
    reader = _Reader(io.BytesIO(content(pickled)), path)
    state = reader.load()
    storages = {
        key: _storage(storage, content(f"{folder}data/{key}"))
        for key, storage in reader.storages.items()
    }
    return state, storages


def _read_legacy(file: io.BytesIO, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The object, and its storages by key."""
    head = _Reader(file, path)
    if head.load() != _MAGIC or head.load() != _PROTOCOL:
        raise ValueError("it does not begin with PyTorch's magic number and protocol")
    _check_little_endian(head.load()["little_endian"])
    reader = _Reader(file, path)
    state, keys = reader.load(), reader.load()
    storages = {}
    for key in keys:
        storage = reader.storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != storage.length:
            raise ValueError(
                f"storage {key[:80]} has the length {length}, and {storage.length} before"
            )
        storages[key] = _storage(storage, file.read(length * storage.dtype.itemsize))
    return state, storages


def _storage(storage: _Storage, content: bytes) -> np.ndarray:
    size = storage.length * storage.dtype.itemsize
    if len(content) != size:
        raise ValueError(f"storage {storage.key[:80]} has {len(content)} bytes of {size}")
    return np.frombuffer(content, storage.dtype)


def _check_little_endian(little: bool) -> None:
    if little is not True:
        raise ValueError("it was written by a big-endian machine")


def _arrays(
    state: dict[Any, Any], storages: dict[str, np.ndarray], *, most_bytes: int
) -> dict[str, np.ndarray]:
    """Copies of all windows. Many on one storage could fill any memory."""
    arrays = {}
    for name, tensor in state.items():
        if type(name) is not str:
            raise ValueError(f"the name {name} is no string")
        arrays[name] = _array(name[:80], tensor, storages)
        most_bytes -= arrays[name].nbytes
        if most_bytes < 0:
            raise ValueError("its tensors have more than twice the bytes of the file")
    return arrays


def _array(name: str, tensor: Any, storages: dict[str, np.ndarray]) -> np.ndarray:
    """A copy of the window, if the storage holds all of it."""
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, not a tensor")
    storage, (offset, shape, strides) = storages[tensor.storage.key], tensor[1:]
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise ValueError(f"{name} has the offset, shape and strides of no tensor")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise ValueError(f"{name} has the offset, shape and strides of no tensor")
    size = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # One element read often, by a stride of 0, could fill any memory.
    if size > len(storage) or (size > 0 and last >= len(storage)):
        raise ValueError(f"{name} reaches beyond its storage of {len(storage)} elements")
    if size == 0:
        return np.zeros(shape, storage.dtype)
    in_bytes = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes).copy()
