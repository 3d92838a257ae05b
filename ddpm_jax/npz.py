"""Archives of NumPy's arrays, read within bounds of memory, and a sha256 of named arrays.

An `.npz` from outside may state any size: a few megabytes unpack to gigabytes, and a header names
any shape. Here an array is read after the sizes that the archive's directory and the array's own
header state were compared with each other and with a limit.

`save_npz` stores the sha256 of the arrays beside them, and `load_npz` compares it. That detects
damage and accidental edits, not tampering.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from ddpm_jax.files import check_size, whole_file

__all__ = [
    "MOST_DEFLATED",
    "Header",
    "NpzReader",
    "StreamedArray",
    "arrays_digest",
    "load_npz",
    "open_npz",
    "read_bytes",
    "read_header",
    "save_npz",
    "write_npz",
]

_NPY = ".npy"
_MOST_HEADER = 2**16
"""Bytes of the header of an array; NumPy's own has some 128."""
MOST_DEFLATED = 1032
"""Bytes that DEFLATE makes of one byte at most (the zlib manual, "Maximum Compression Factor")."""
_AT_ONCE = 2**20
_DIGEST = "sha256"
"""The array that holds the digest of the others."""
_KINDS = "biufUS"
"""Numbers, truth values and strings; no objects, which would be pickles."""
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """What an array in an archive says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    in_columns: bool
    """The first index runs fastest, as in Fortran."""
    start: int
    """Where its values begin in the file."""

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class StreamedArray(NamedTuple):
    """An array that is not in memory as a whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Iterable[np.ndarray]
    """Its rows, in any number of arrays; one array if it has no axes."""


class NpzReader:
    """Arrays of an open `.npz` by name, none of which is read before it is asked for.

    Its methods raise ValueError with a sentence that names the array, or what zipfile and zlib
    make of damage.
    """

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        self._archive = zipfile.ZipFile(file)
        self._size = os.fstat(file.fileno()).st_size
        self._left = self._most = most_bytes
        members = self._archive.namelist()
        if len(set(members)) < len(members):
            raise ValueError("it has two members with the same name")
        arrays = (member for member in members if member.endswith(_NPY))
        self.names = frozenset(member.removesuffix(_NPY) for member in arrays)
        """Of its arrays. Members without the ending are none."""

    def header(self, name: str) -> Header:
        """Shape and dtype of an array, which is not read."""
        member = self._archive.getinfo(name + _NPY)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} is compressed in a way that NumPy does not write")
        with self._archive.open(member) as file:
            header = read_header(file, repr(name))
        stated, most = member.file_size, MOST_DEFLATED * (member.compress_size + 1)
        if header.start + header.nbytes != stated or member.compress_size > self._size:
            raise ValueError(
                f"{name!r} of shape {header.shape} and dtype {header.dtype} does not have the"
                f" {stated:,} bytes that the archive's directory states"
            )
        if stated > most:
            raise ValueError(
                f"{name!r} cannot have {stated:,} bytes, of {member.compress_size:,} compressed"
            )
        return header

    def read(self, name: str) -> np.ndarray:
        """The array, unless all that were read have more bytes together than the limit."""
        header = self.header(name)
        if header.nbytes > self._left:
            raise ValueError(
                f"{name!r} has {header.nbytes:,} bytes, and with it more than {self._most:,} would"
                " be read"
            )
        self._left -= header.nbytes
        with self._archive.open(name + _NPY) as file:
            file.read(header.start)
            values = read_bytes(file, header.nbytes, repr(name))
        order: Literal["F", "C"] = "F" if header.in_columns else "C"
        return values.view(header.dtype).reshape(header.shape, order=order)


@contextlib.contextmanager
def open_npz(path: Path, *, most_bytes: int) -> Iterator[NpzReader]:
    """The arrays of an archive, of which at most `most_bytes` are read together.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: no such file, or no archive.
    """
    check_size(path, sys.maxsize)
    with path.open("rb") as file:
        yield NpzReader(file, most_bytes)


def read_header(file: Any, name: str = "it") -> Header:
    """What an open .npy, a file or a member of an archive, says of its array.

    Raises:
        ValueError: a sentence that begins with `name`; it is no .npy, or it has pickles.
    """
    start = io.BytesIO(file.read(_MOST_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in _READERS:
        raise ValueError(f"{name} is of the version {version} of .npy, not 1.0 or 2.0")
    shape, in_columns, dtype = _READERS[version](start)
    if dtype.kind not in _KINDS or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{name} has the shape {shape} and the dtype {dtype}")
    return Header(shape, dtype, in_columns, start.tell())


def read_bytes(file: Any, count: int, name: str = "it") -> np.ndarray:
    """The last `count` bytes of an open file as an array, read in parts.

    Raises:
        ValueError: a sentence that begins with `name`; the file is shorter or longer.
    """
    values = np.empty(count, np.uint8)
    for first in range(0, count, _AT_ONCE):
        part = values[first : first + _AT_ONCE]
        content = file.read(len(part))
        if len(content) < len(part):
            raise ValueError(f"{name} ends before its last value")
        part[:] = np.frombuffer(content, np.uint8)
    if file.read(1):  # where zip and gzip compare their checksums, too
        raise ValueError(f"{name} is longer than its header states")
    return values


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of names, dtypes, shapes and values, whatever the order and the memory layout."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode() + b"\n")
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and their `arrays_digest` as an `.npz`, all of it or nothing.

    Equal arrays make equal files.

    Raises:
        OSError: the disk refuses; what was at `path` is still there.
    """
    plain = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **plain, **{_DIGEST: np.array(arrays_digest(plain))})


def write_npz(file: IO[bytes], arrays: Mapping[str, StreamedArray]) -> None:
    """Writes an `.npz` of arrays that come in parts, as numpy.savez writes it.

    Equal arrays make equal files.

    Raises:
        ValueError: the parts of an array do not have its shape and dtype.
        OSError: the disk refuses.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, (shape, dtype, parts) in arrays.items():
            head = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            # With a fixed date, and the fields for sizes that are not known yet.
            with archive.open(zipfile.ZipInfo(name + _NPY), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, head)
                count = 0
                for part in parts:
                    if part.dtype != dtype or part.shape[1:] != shape[1:]:
                        raise ValueError(f"a part of {name!r} is {part.dtype} {part.shape}")
                    member.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
                    count += part.size
                if count != math.prod(shape):
                    raise ValueError(f"{name!r} has {count:,} values, and its shape is {shape}")


def load_npz(path: Path, *, most_bytes: int) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of an archive that `save_npz` wrote, and whether they have their digest.

    Raises:
        Exception: no such file, or damage: OSError, ValueError, or what zipfile and zlib raise.
    """
    with open_npz(path, most_bytes=most_bytes) as archive:
        arrays = {name: archive.read(name) for name in sorted(archive.names)}
    stored = arrays.pop(_DIGEST, np.array("absent")).item()
    return arrays, stored == arrays_digest(arrays)
