"""A network of somebody else as a value: what it is, what it was trained for, its arrays.

Every reader of this room (`from_diffusers`, `from_openai`) returns a `Weights`. It holds no array:
each is read from its file when it is needed, one after the other, so that a large network never
stands in memory twice.
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
from ddpm_jax.forward import Predicts
from ddpm_jax.models import init_params
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
"""A sentence lists at most so many names."""


class WeightsError(UserError):
    """A file of weights that cannot be used."""


class Recipe(NamedTuple):
    """A function of this library by its name, and its arguments.

    `Recipe("linear", {"num_steps": 1000})` is `schedules.linear(num_steps=1000)`, and the member
    `config.Linear(num_steps=1000)` of a config.
    """

    name: str
    arguments: dict[str, Any]


class LazyArray(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Reads it; each call reads again."""


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A network and what its authors trained it for."""

    network: nn.Module
    """With `init` and `apply`, as all networks of `ddpm_jax.models`."""
    image_shape: tuple[int, int, int]
    """(height, width, channel) of the images that it was trained on."""
    chain: Recipe
    """The schedule."""
    predicts: Predicts
    """What the network's output stands for."""
    variance: Variance
    """Of the reverse process."""
    sampler: Recipe
    """How its authors' program draws images by default."""
    classes: tuple[str, ...] | None
    """Names of its classes; None without classes."""
    arrays: Mapping[str, Mapping[str, LazyArray]]
    """By the flat names of this library, as "down_0_1/conv_0/kernel": under "ema" those that images
    are drawn with; under "raw", where there are two, those of the last step."""
    source: dict[str, Any]
    """Where it is from, plain values: kind, path or name, revision, SHA-256 of the files."""

    @property
    def schedule(self) -> schedules.Schedule:
        """The chain as a schedule."""
        schedule: schedules.Schedule = getattr(schedules, self.chain.name)(**self.chain.arguments)
        return schedule

    def params(self, name: str = "ema", shardings: Any = None) -> Any:
        """The parameters as `network.apply` takes them, read one after the other.

        Args:
            name: "ema", or "raw" where there are two.
            shardings: a tree of the same form, that says where each is put; by default the first
                device.
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
    """`arrays`, in the order of `expected`, if each parameter is filled and each key is used.

    Args:
        expected: see `expected_shapes`.
        arrays: arrays of a file, in this library's names and layouts.
        unused: keys of the file that have no place in the network.

    Raises:
        WeightsError: with both lists, and the parameters of another shape.
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
            ("parameters of the network that the file does not fill", missing),
            ("keys of the file that the network does not use", unused),
            ("of another shape", other),
        )
        if names
    ]
    if faults:
        raise WeightsError(f"the weights do not fit the network; {'; '.join(faults)}")
    return {path: arrays[path] for path in expected}


def multiplier(channels: int, width: int) -> int | float:
    """m of `models.UNet.multipliers`, with int(channels * m) == width; whole where it can be."""
    if width % channels == 0:
        return width // channels
    ratio = width / channels
    return ratio if int(channels * ratio) == width else math.nextafter(ratio, math.inf)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
