"""The parameters of a run in one .safetensors file, with all that is needed to use them.

The arrays are float32 and have the flat names of this library, as "down_0_1/conv_0/kernel". The
file's metadata is text:

    format   "ddpm_jax"
    config   the run's config, JSON as in RUN/config.json
    images   shape, levels and classes of its images, JSON as in RUN/images.json
    step     steps of training, a number
    sha256   of names, shapes and values of the arrays
    source   where an imported network is from, JSON; {} of one that was trained here

Everything is done array by array: a large network never stands in memory twice.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.config import Config, to_json
from ddpm_jax.files import JsonFileError, parse_json
from ddpm_jax.weights import LazyArray, WeightsError
from ddpm_jax.weights.safetensors_files import open_safetensors, write_safetensors
from ddpm_jax.weights.weights import match_arrays

__all__ = [
    "WeightFile",
    "arrays_of",
    "check_weight_file",
    "open_weight_file",
    "read_params",
    "write_weight_file",
]

_FORMAT = "ddpm_jax"


class WeightFile(NamedTuple):
    """An open file; its arrays are not read yet."""

    path: Path
    arrays: dict[str, LazyArray]
    config: dict[str, Any]
    """As `config.to_json` returns it."""
    images: dict[str, Any]
    """As `plain_record` returns it."""
    step: int
    sha256: str
    source: dict[str, Any]

    @property
    def num_parameters(self) -> int:
        """Of the network."""
        return sum(math.prod(array.shape) for array in self.arrays.values())


def write_weight_file(
    path: Path,
    arrays: Mapping[str, LazyArray],
    config: Config,
    images: dict[str, Any],
    step: int,
    source: dict[str, Any],
) -> str:
    """Writes a file, all of it or nothing; returns the sha256 of its arrays.

    Each array is read twice: the digest stands before the arrays. The config's workdir is left
    out, so that equal parameters make equal files wherever they are.

    Raises:
        WeightsError: the disk refuses, or an array cannot be read.
    """
    sha256 = _digest(arrays)
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(to_json(dataclasses.replace(config, workdir=Config().workdir))),
        "images": json.dumps(images),
        "step": str(step),
        "sha256": sha256,
        "source": json.dumps(source),
    }
    write_safetensors(path, arrays, metadata)
    return sha256


def open_weight_file(path: Path) -> WeightFile:
    """The file that `write_weight_file` wrote.

    Raises:
        WeightsError: there is none, it is damaged, or another program wrote it.
    """
    arrays, metadata = open_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} was not written by `ddpm-jax weights export`: its metadata has no"
            f" format {_FORMAT!r}; give the folder of a file that diffusers wrote"
        )
    try:
        values = {
            name: parse_json(metadata[name].encode(), f"{name} in the metadata of {path}")
            for name in ("config", "images", "source", "step")
        }
        sha256 = metadata["sha256"]
    except KeyError as error:
        raise WeightsError(f"the metadata of {path} has no {error}; it is damaged") from None
    except JsonFileError as error:
        raise WeightsError(str(error)) from None
    kinds = {"config": dict, "images": dict, "source": dict, "step": int}
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise WeightsError(f"the metadata of {path} has no {name}; it is damaged")
    return WeightFile(path, arrays, sha256=sha256, **values)


def check_weight_file(file: WeightFile) -> None:
    """Reads all arrays once, and raises WeightsError if they have not their digest."""
    _compare(file, _digest(file.arrays))


def read_params(file: WeightFile, like: Any, *, verify: bool) -> Any:
    """The parameters, each put on its devices before the next is read.

    Args:
        file: to read.
        like: the tree of parameters, its leaves shapes, dtypes and shardings.
        verify: compare the arrays with their digest.

    Raises:
        WeightsError: the arrays are not those of this tree, or not as they were written.
    """
    leaves = _named(like)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    arrays, digest, params = match_arrays(shapes, file.arrays, ()), hashlib.sha256(), {}
    for name in sorted(leaves):
        values = arrays[name].read()
        if verify:
            _update(digest, name, values)
        params[name] = _placed(values, leaves[name])
    if verify:
        _compare(file, digest.hexdigest())
    return jax.tree.unflatten(jax.tree.structure(like), [params[name] for name in leaves])


def arrays_of(params: Any) -> dict[str, LazyArray]:
    """Parameters by their flat names, in the order of the tree.

    Raises:
        WeightsError: one is not float32.
    """
    for name, leaf in _named(params).items():
        if leaf.dtype != np.float32:
            raise WeightsError(
                f"the parameter {name} is {leaf.dtype}; a file of weights holds float32"
            )
    return {
        name: LazyArray(tuple(leaf.shape), functools.partial(np.asarray, leaf))
        for name, leaf in _named(params).items()
    }


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by the names on their way, joined by "/"; without "params" if all begin with it."""
    inner = tree["params"] if isinstance(tree, Mapping) and {*tree} == {"params"} else tree
    leaves = jax.tree_util.tree_leaves_with_path(inner)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _placed(values: np.ndarray, leaf: Any) -> jax.Array:
    """On the devices of this process, when it returns: the host's copy is not needed any more."""
    values = values.astype(leaf.dtype, copy=False)
    placed = jax.make_array_from_callback(
        values.shape, leaf.sharding, lambda index: values[index], dtype=values.dtype
    )
    return jax.block_until_ready(placed)


def _digest(arrays: Mapping[str, LazyArray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        _update(digest, name, arrays[name].read())
    return digest.hexdigest()


def _update(digest: Any, name: str, values: np.ndarray) -> None:
    """As `npz.arrays_digest`, of the float32 values that the file holds."""
    values = np.asarray(values, "<f4", order="C")
    digest.update(json.dumps([name, values.dtype.str, values.shape]).encode() + b"\n")
    digest.update(values.reshape(-1).view(np.uint8).data)


def _compare(file: WeightFile, sha256: str) -> None:
    if file.sha256 != sha256:
        raise WeightsError(f"{file.path} is damaged: the SHA-256 of its arrays differs")
