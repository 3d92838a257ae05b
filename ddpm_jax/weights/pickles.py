"""Reads the pickle of tensors or arrays, opcode by opcode; runs and imports nothing that it names.

A pickle is a program: it may name any function of any module and call it. Python's own reader runs
it, and a few bytes can also make that fill the memory (the number of a memo, a length) or compute
without end (the hash of nested tuples). Here a pickle may name what a state dict is made of, a
dozen names, and the sentence about any other says which it was; keys are strings or integers; and
the number of opcodes has a limit. NumPy's arrays are read where a file may hold them.
"""

import io
import itertools
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import first_line
from ddpm_jax.files import check_size
from ddpm_jax.weights.pickled_arrays import (
    ARRAY_NAMES,
    EmptyArray,
    Named,
    check_dtype_state,
    make,
)
from ddpm_jax.weights.weights import WeightsError

__all__ = ["Reader", "Storage", "Tensor", "read_pickle"]

_MOST_OPCODES = 200_000
"""Of a pickle: that of Inception-v3 has 20,000, 35 for each tensor."""

_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Storage(NamedTuple):
    """Elements in a row, whose bytes are elsewhere in the file."""

    key: str
    dtype: np.dtype
    length: int


class Tensor(NamedTuple):
    """A window on a storage, unchecked: offset, shape and strides may be anything."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(path: Path, *, most_bytes: int) -> Any:
    """The object of a pickle of plain values and NumPy arrays; the whole file is read.

    Args:
        path: the file.
        most_bytes: that the file may have.

    Returns:
        Dicts, lists, tuples, numbers, strings and arrays. The arrays are read-only.

    Raises:
        WeightsError: the file is missing, truncated or too large, or the pickle names or holds
            anything else.
    """
    try:
        check_size(path, most_bytes)
        return Reader(io.BytesIO(path.read_bytes()), path, arrays=True).load()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except WeightsError:
        raise
    except Exception as error:  # damage shows as whatever pickletools raises
        raise WeightsError(
            f"{path} is not a pickle of arrays, or it is damaged: {first_line(error)}"
        ) from error


class Reader:
    """One pickle after another of a file: plain values, tensors, and nothing else.

    With `arrays` also NumPy's arrays.
    """

    def __init__(self, file: io.BytesIO, path: Path, *, arrays: bool = False) -> None:
        self._file, self._path = file, path
        self._names = _KNOWN | ARRAY_NAMES if arrays else _KNOWN
        self._plain = _PLAIN | _BYTES if arrays else _PLAIN
        self._left = file.getbuffer().nbytes
        """Bytes that may still be made from text."""
        self.storages: dict[str, Storage] = {}
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
                case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    place = len(memo) if opcode.name == "MEMOIZE" else argument
                    memo[place] = stack[-1]
                    if isinstance(stack[-1], EmptyArray):
                        stack[-1].memo.append(place)
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
                    stack.append(self._call(stack.pop(), arguments))
                case "BUILD":
                    state = stack.pop()
                    stack[-1] = _build(stack[-1], state, memo)
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case name if name in self._plain:
                    stack.append(argument)
                case name:
                    raise ValueError(f"its pickle has the opcode {name}, which no state dict needs")
        raise ValueError(f"its pickle has more than {_MOST_OPCODES:,} opcodes, or does not end")

    def _global(self, module: Any, name: Any) -> Named:
        if not type(module) is type(name) is str:
            raise ValueError("it names a function by something that is not a string")
        if (module, name) in self._names or (module == "torch" and name in _DTYPES):
            return Named(module, name)
        what = "dict of tensors" if self._names is _KNOWN else "file of arrays"
        raise WeightsError(
            f"{self._path} names {module[:80]}.{name[:80]}, which no {what}"
            " needs; it was not called, and the file is refused"
        )

    def _call(self, function: Any, arguments: Any) -> Any:
        if not (isinstance(function, Named) and function in ARRAY_NAMES):
            return _call(function, arguments)
        if type(arguments) is not tuple:
            raise ValueError("it calls a function of NumPy without arguments")
        made = make(function, arguments, self._left)
        self._left -= len(made) if isinstance(made, bytes) else 0
        return made

    def _storage(self, pid: Any) -> Storage:
        """A storage, whose bytes are elsewhere: `("storage", type, key, device, length, view)`."""
        kind, of, key, _, length, *view = pid
        if kind != "storage" or not isinstance(of, Named) or view not in ([], [None]):
            raise ValueError("a storage is no storage of its own")
        if type(key) is not str or type(length) is not int or not 0 <= length < 2**63:
            raise ValueError("a storage has a key or a length that is none")
        return self.storages.setdefault(key, Storage(key, _DTYPES[of.name], length))


_ORDERED = Named("collections", "OrderedDict")
_TENSOR = Named("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Named("torch._utils", "_rebuild_parameter")
_KNOWN = frozenset({_ORDERED, _TENSOR, _PARAMETER})
_PLAIN = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "STRING", "SHORT_BINSTRING", "BINSTRING"),
}
"""Opcodes that push their argument, a number or a string."""
_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE8"}
"""The same of large arrays."""


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
        raise ValueError("it has a dict with keys that are neither strings nor integers")
    value.update(zip(items[::2], items[1::2], strict=True))


def _build(value: Any, state: Any, memo: dict[int, Any]) -> Any:
    """The value after its state was set."""
    if type(value) is dict:  # attributes of a state dict: the versions of its layers
        return value
    if isinstance(value, EmptyArray):
        array = value.built(state)
        memo.update(dict.fromkeys(value.memo, array))
        return array
    if isinstance(value, np.dtype):
        check_dtype_state(state)
        return value
    raise ValueError(f"it sets attributes of a {type(value).__name__}")


def _call(function: Any, arguments: Any) -> Any:
    """What PyTorch's function of this name would make."""
    if type(arguments) is tuple and function == _TENSOR:
        return Tensor(*arguments[:4])
    if type(arguments) is tuple and function == _PARAMETER:
        return arguments[0]
    if type(arguments) is tuple and function == _ORDERED:
        ordered: dict[Any, Any] = {}
        for pairs in arguments:
            for key, value in pairs:
                _extend(ordered, [key, value])
        return ordered
    raise ValueError("it calls something that is not a function of a state dict")
