"""Files of safetensors: opened array by array, written array by array, whole or not at all.

Such a file is 8 bytes with the length of a header, the header (JSON: type, shape and place of each
array), and the bytes of the arrays one after the other; see
https://github.com/huggingface/safetensors. The library of that name checks the header. The arrays
are read and written here, because the library's reader for NumPy knows no bfloat16, its mapped
pages add up in memory, and its writer wants all arrays at once.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from ddpm_jax.files import JsonFileError, check_size, parse_json, read_json, whole_file
from ddpm_jax.weights.weights import LazyArray, WeightsError

__all__ = ["open_safetensors", "open_shards", "write_safetensors"]

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_ALIGNED = 8
"""Bytes that the header's length is a multiple of, so that the arrays are aligned."""


def open_safetensors(path: Path) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The arrays of a file by name, each of the file's own type, and its metadata.

    Raises:
        WeightsError: the file is missing, truncated or of another kind; arrays overlap, or reach
            beyond the file; an array is of a type that no network here has. Also when an array is
            read: the file has changed.
    """
    try:
        check_size(path, most_bytes=2**63)
        # The header's checks: its own size, types, shapes, and that the arrays fill the file.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length), f"the header of {path}")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error
    metadata = header.pop("__metadata__", None) or {}
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(
                f"{path}: {name!r} is of the type {entry['dtype']}; readable are"
                f" {', '.join(_DTYPES)}"
            )
        shape, dtype = tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
        begin = 8 + length + entry["data_offsets"][0]
        arrays[name] = LazyArray(shape, _reader(path, name, shape, dtype, begin))
    return arrays, metadata


def open_shards(
    index: Path, open_file: Callable[[Path], dict[str, LazyArray]] | None = None
) -> dict[str, LazyArray]:
    """The arrays of all files that an index, `*.safetensors.index.json`, names.

    Args:
        index: the file.
        open_file: of each of them; by default `open_safetensors`.

    Raises:
        WeightsError: the index is not one; it names a file outside of its folder, or one that is
            missing; the files hold other arrays than it says. See also `open_safetensors`.
    """
    try:
        weight_map = read_json(index).get("weight_map")
    except JsonFileError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise WeightsError(f"{index} has no weight_map from names of arrays to names of files")
    arrays: dict[str, LazyArray] = {}
    for shard in sorted(set(weight_map.values())):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard:
            raise WeightsError(
                f"{index} names the file {shard!r}; it has to be a file beside the index"
            )
        path = index.parent / shard
        opened = open_safetensors(path)[0] if open_file is None else open_file(path)
        named = {name for name, place in weight_map.items() if place == shard}
        if named != opened.keys():
            name = min(named ^ opened.keys())
            does, not_ = ("names", "does not hold") if name in named else ("does not name", "holds")
            raise WeightsError(f"{index} {does} {name!r} in {shard}, which {not_} it")
        arrays |= opened
    return arrays


def write_safetensors(
    path: Path, arrays: Mapping[str, LazyArray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays as float32, one after the other; what was at `path` stays if that fails.

    Raises:
        WeightsError: the disk refuses, as where it is full; or an array cannot be read.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + 4 * math.prod(array.shape)
        header[name] = {"dtype": "F32", "shape": [*array.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    try:
        with whole_file(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, array in arrays.items():
                values = np.asarray(array.read(), "<f4", order="C")
                if values.shape != array.shape:
                    raise WeightsError(f"{name} is {values.shape} in its file, not {array.shape}")
                file.write(values.data)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror}") from error


def _reader(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, begin: int
) -> Callable[[], np.ndarray]:
    size = math.prod(shape)

    def read() -> np.ndarray:
        try:
            values = np.fromfile(path, dtype.newbyteorder("<"), size, offset=begin)
        except OSError as error:
            raise _unreadable(path, error) from error
        if values.size != size:
            raise WeightsError(f"{path} has changed since it was opened: {name!r} is truncated")
        return values.reshape(shape)

    return read


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, OSError):
        return WeightsError(f"{path} cannot be read: {error.strerror}")
    reason = str(error).removeprefix("Error while deserializing header: ")
    return WeightsError(f"{path} is not a safetensors file, or it is damaged: {reason}")
