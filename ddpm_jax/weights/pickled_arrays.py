"""NumPy arrays in a pickle, made from their bytes; nothing that the pickle names is called.

NumPy pickles an array in one of two ways. Until protocol 4 `_reconstruct` makes an empty array, and
the opcode BUILD sets its shape, dtype and bytes; in protocol 2, which PyTorch uses, the bytes are
text that `_codecs.encode` turns into bytes. From protocol 5 on `_frombuffer` has all at once.
NumPy 2 renamed `numpy.core` to `numpy._core`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ARRAY_NAMES", "EmptyArray", "Named", "check_dtype_state", "make"]

_DTYPE = re.compile(r"[biuf][1248]")
_MOST_AXES = 32


class Named(NamedTuple):
    """A name of a module, as a pickle has it. Nothing is imported."""

    module: str
    name: str


@dataclasses.dataclass(eq=False)
class EmptyArray:
    """An array before BUILD, and the numbers of the memo under which it stands."""

    memo: list[int]

    def built(self, state: Any) -> np.ndarray:
        """The array with `state`: (version, shape, dtype, Fortran order, bytes)."""
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("the state of an array is not that of NumPy's version 1")
        _, shape, dtype, in_columns, content = state
        return _array(content, dtype, shape, "F" if in_columns is True else "C")


def _reconstruct(*arguments: Any) -> EmptyArray:
    if arguments[:1] != (_NDARRAY,):
        raise ValueError("an array is of a class that is not NumPy's")
    return EmptyArray([])


def _dtype(text: Any, *_: Any) -> np.dtype:
    if type(text) is not str or not _DTYPE.fullmatch(text):
        kind = text[:80] if type(text) is str else type(text).__name__
        raise ValueError(f"an array has the dtype {kind}; it has to be numbers")
    return np.dtype(f"<{text}")


def _array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if not (isinstance(content, bytes | bytearray) and isinstance(dtype, np.dtype)):
        raise ValueError("an array has no bytes or no dtype")
    if type(shape) is not tuple or len(shape) > _MOST_AXES or order not in ("C", "F") or axes:
        raise ValueError("an array has no shape or no order")
    if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise ValueError("an array has a shape that no array can have")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} has {len(content):,} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise ValueError("it makes bytes of something that is not the bytes of an array")
    return b""


_NDARRAY = Named("numpy", "ndarray")
_ENCODE = Named("_codecs", "encode")
_CALLS: Mapping[Named, Callable[..., Any]] = {
    Named("numpy", "dtype"): _dtype,
    Named("__builtin__", "bytes"): _no_bytes,  # of an empty array, by protocol 2
    **{
        Named(f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("numeric", "_frombuffer", _array),
        )
    },
}
ARRAY_NAMES = frozenset({_NDARRAY, _ENCODE, *_CALLS})
"""All that a pickle of arrays names."""


def make(function: Named, arguments: tuple[Any, ...], most_bytes: int) -> Any:
    """The result of NumPy's function of this name; ValueError if it has other arguments.

    `most_bytes` limits the size of bytes that are made from text.
    """
    if function == _ENCODE:
        return _encode(*arguments, most_bytes=most_bytes)
    return _CALLS[function](*arguments)


def _encode(text: Any, encoding: Any, *, most_bytes: int) -> bytes:
    """Bytes that protocol 2 writes as text."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("it encodes something that is not the bytes of an array")
    if len(text) > most_bytes:
        raise ValueError("its arrays have more bytes than the file")
    return text.encode("latin1")


def check_dtype_state(state: Any) -> None:
    """Raises ValueError unless BUILD sets a little-endian dtype, which it was before."""
    if type(state) is not tuple or state[1:2] not in (("<",), ("|",)):
        raise ValueError("an array was not written as little-endian numbers")
