"""A network of another program as a value: its options, its chain, its arrays.

Each reader (`from_diffusers`, `from_openai`) returns a `Weights`. It holds no array: each array is
read from its file when it is needed, one after the other, so that a large network is never in
memory twice.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax import schedules
from ddpm_jax.errors import UserError
from ddpm_jax.models import init_params
from ddpm_jax.predictions import PredictionName
from ddpm_jax.reverse import Variance

__all__ = [
    "LazyArray",
    "Recipe",
    "Weights",
    "WeightsError",
    "expected_shapes",
    "match_arrays",
    "multiplier",
]

_MOST_LISTED = 10
"""Number of names that a sentence lists."""


class WeightsError(UserError):
    """A file of weights that cannot be used."""


class Recipe(NamedTuple):
    """A function of this library by its name, and its arguments.

    `Recipe("linear", {"num_steps": 1000})` is `schedules.linear(num_steps=1000)`, and the member
    `config.Linear(num_steps=1000)` of a config.
    """

    name: str
    """Name of the function."""
    arguments: dict[str, Any]
    """Its keyword arguments."""


class LazyArray(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    """Shape of the array."""
    read: Callable[[], np.ndarray]
    """Reads the array; each call reads it again."""


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A network of another program, with the settings that it was trained with."""

    network: nn.Module
    """The network, a Flax module of `ddpm_jax.models`."""
    image_shape: tuple[int, int, int]
    """(height, width, channel) of the images that it was trained on."""
    chain: Recipe
    """The schedule as a function of `ddpm_jax.schedules` and its arguments."""
    predicts: PredictionName
    """What the network predicts, see `ddpm_jax.predictions`."""
    variance: Variance
    """Variance of the reverse process, see `ddpm_jax.reverse`."""
    sampler: Recipe
    """The sampler that its authors' program uses by default."""
    classes: tuple[str, ...] | None
    """Names of its classes; None without classes."""
    arrays: Mapping[str, Mapping[str, LazyArray]]
    """Arrays by the flat names of this library, such as "down_0_1/conv_0/kernel". Under "ema" are
    those for sampling; under "raw", if the files have both, those of the last training step."""
    source: dict[str, Any]
    """Origin of the files, as plain values: kind, path or name, revision, SHA-256."""

    @property
    def schedule(self) -> schedules.Schedule:
        """The chain as a schedule."""
        schedule: schedules.Schedule = getattr(schedules, self.chain.name)(**self.chain.arguments)
        return schedule

    def params(self, name: str = "ema", shardings: Any = None) -> Any:
        """The parameters as `network.apply` takes them; arrays are read one after the other.

        Args:
            name: "ema", or "raw" if the files have both.
            shardings: a tree of the same structure with the sharding of each array; by default all
                arrays go to the first device.

        Returns:
            The variables of `network`.
        """
        places = {} if shardings is None else flatten_dict(shardings["params"], sep="/")
        flat = {
            path: jax.device_put(array.read(), places.get(path))
            for path, array in self.arrays[name].items()
        }
        return {"params": unflatten_dict(flat, sep="/")}


def expected_shapes(
    network: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of a network; computes nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key: init_params(network, key, image_shape), key)
    flat = flatten_dict(meta.unbox(boxed)["params"], sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def match_arrays(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, LazyArray], unused: Iterable[str]
) -> dict[str, LazyArray]:
    """`arrays` in the order of `expected`, after a check that the names and shapes are the same.

    Args:
        expected: see `expected_shapes`.
        arrays: arrays of a file, in this library's names and layouts.
        unused: keys of the file that have no place in the network.

    Raises:
        WeightsError: they differ; the sentence lists missing, unused and misshapen arrays.
    """
    missing = [path for path in expected if path not in arrays]
    unused = [*unused, *(path for path in arrays if path not in expected)]
    other = [
        f"{path} is {[*arrays[path].shape]} in the file and {[*shape]} in the network"
        for path, shape in expected.items()
        if path in arrays and arrays[path].shape != shape
    ]
    faults = [
        f"{what}: {_few(names)}"
        for what, names in (
            ("parameters of the network that the file does not have", missing),
            ("keys of the file that the network does not use", unused),
            ("of another shape", other),
        )
        if names
    ]
    if faults:
        raise WeightsError(f"the weights do not fit the network; {'; '.join(faults)}")
    return {path: arrays[path] for path in expected}


def multiplier(channels: int, width: int) -> int | float:
    """m of `models.UNet.multipliers` with int(channels * m) == width; an int if possible."""
    if width % channels == 0:
        return width // channels
    ratio = width / channels
    return ratio if int(channels * ratio) == width else math.nextafter(ratio, math.inf)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
