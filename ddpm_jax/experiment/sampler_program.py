"""A trained sampler as one program that runs without this library: network, chain and loop.

`jax.export` lowers it to StableHLO, for several platforms and any batch size. It takes plain
arrays::

    images = program(key_data, index)              for a network without classes, or with one label
    images = program(key_data, index, labels)      for a network with classes
    images = program(params, key_data, ...)        with the parameters beside the program

An image follows from key and number as in `ddpm_jax.experiment.sampling`, whose function it
contains: the images are those of `ddpm-jax sample`, up to the rounding of another compilation.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.checks import check_choice
from ddpm_jax.data import to_levels
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.experiment import Experiment, make_network
from ddpm_jax.experiment.sampling import images_function, labels_of

__all__ = ["PLATFORMS", "Placement", "check_platforms", "named_params", "sampler_program"]

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms for which a program is lowered by default."""
_KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
_LOCATIONS = "jax_traceback_in_locations_limit"

Placement = Literal["inside", "beside"]
"""Parameters as constants of the program, or as its first argument."""

_MOST_INSIDE = 1_900_000_000
"""Largest size of parameters inside, in bytes: FlatBuffers, which store programs, end at 2 GiB."""


def sampler_program(
    experiment: Experiment,
    params: Any,
    *,
    sampler: configs.Sampler,
    label: int | None = None,
    parameters: Placement = "inside",
    platforms: Sequence[str] = PLATFORMS,
) -> jax.export.Exported:
    """Lowers a sampler to a program, whose `call` draws images.

    The arguments of `call` are, in this order:

    - `params`: a dict of arrays by their paths, such as "down_0_1/conv_0/kernel"; only if
      `parameters` is "beside";
    - `key_data`: uint32 `[2]`, `jax.random.key_data` of a threefry key;
    - `index`: int32 `[b]`, the numbers of the images;
    - `labels`: int32 `[b]`, their classes; only for a network with classes and without `label`. An
      image is black if the network was not trained on its class.

    It returns uint8 `[b, height, width, channel]`.

    Args:
        experiment: with the process and the network.
        params: variables of the network.
        sampler: the sampler.
        label: class of all images.
        parameters: "inside" as constants, or "beside" as an argument.
        platforms: some of "cpu", "cuda", "rocm" and "tpu". None of them has to be here.

    Returns:
        The program.

    Raises:
        UserError: the sampler does not work with this process or network, a platform is unknown,
            more than 1.9 GB of parameters are inside, or a user's network cannot be lowered for a
            platform or for any batch size.
    """
    check_choice("parameters", parameters, typing.get_args(Placement))
    check_platforms(platforms)
    experiment = _portable(experiment.at(params), sampler)
    flat = named_params(params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in flat.values())
    if parameters == "inside" and size > _MOST_INSIDE:
        raise UserError(
            f"parameters is 'inside'; the network has {size:,} bytes of them, and a program can"
            f" contain {_MOST_INSIDE:,}, so take 'beside'"
        )
    structure, paths = jax.tree.structure(params), tuple(flat)
    draw = images_function(experiment, sampler=sampler)
    levels, trained = experiment.spec.levels, experiment.spec.trained_classes
    takes_labels = bool(experiment.config.network.classes) and label is None

    def of_all(flat: Any, key_data: jax.Array, index: jax.Array, *given: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        labels = given[0] if given else labels_of(experiment, index, label)
        # JAX sorts a dict by its names.
        tree = jax.tree.unflatten(structure, [flat[path] for path in paths])
        drawn = draw(tree, key, index, labels)
        images = to_levels(drawn.x0, levels)
        if not given:
            return images
        known = jnp.isin(given[0], jnp.asarray(trained, jnp.int32))
        return jnp.where(known[:, None, None, None], images, jnp.zeros_like(images))

    (batch,) = jax.export.symbolic_shape("b", constraints=("b >= 1",))
    numbers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments: list[Any] = [jax.ShapeDtypeStruct((2,), jnp.uint32), numbers]
    arguments += [numbers] if takes_labels else []
    if parameters == "inside":
        constants = {name: np.asarray(leaf) for name, leaf in flat.items()}  # from all devices

        def images(*arguments: Any) -> jax.Array:
            return of_all(jax.tree.map(jnp.asarray, constants), *arguments)

    else:
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()
        }
        arguments.insert(0, abstract)
        images = of_all
    network = type(experiment.config.network).__name__
    what = f"network {network} with sampler {type(sampler).__name__}"
    return _lower(images, arguments, platforms, what)


def check_platforms(platforms: Sequence[str], argument: str = "platforms") -> None:
    """Checks that a program can be lowered for these platforms.

    Args:
        platforms: their names.
        argument: name of the argument in the sentence.

    Raises:
        UserError: a platform is unknown or named twice, or there is none.
    """
    unknown = [name for name in platforms if name not in _KNOWN_PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise UserError(
            f"{argument} is {', '.join(platforms) or 'empty'}; it has to be one or several of"
            f" {', '.join(_KNOWN_PLATFORMS)}, each once"
        )


def named_params(params: Any) -> dict[str, Any]:
    """The parameters by their paths, such as "down_0_1/conv_0/kernel", in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if all(name.startswith("params/") for name in names):
        names = [name.removeprefix("params/") for name in names]
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _portable(experiment: Experiment, sampler: configs.Sampler) -> Experiment:
    """The experiment with this sampler, and with a network that runs on all platforms."""
    network = experiment.config.network.portable()
    config = dataclasses.replace(experiment.config, network=network, sampler=sampler)
    config = configs.validate(config)
    return dataclasses.replace(
        experiment, config=config, model=make_network(config, experiment.spec, experiment.process)
    )


def _lower(
    function: Callable[..., jax.Array], arguments: list[Any], platforms: Sequence[str], what: str
) -> jax.export.Exported:
    """The function lowered for these platforms; raises UserError if JAX cannot do it."""
    export = jax.export.export(jax.jit(function), platforms=tuple(platforms))
    try:
        with _without_source_locations():
            return export(*arguments)
    except UserError:
        raise
    except (
        TypeError,
        ValueError,
        NotImplementedError,
        jax.errors.InconclusiveDimensionOperation,
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{what} cannot be exported for {', '.join(platforms)} and a batch of any size:"
            f" {reason}"
        ) from error


@contextlib.contextmanager
def _without_source_locations() -> Iterator[None]:
    """Programs contain the paths of the traced files, unless this setting is 0."""
    before = getattr(jax.config, _LOCATIONS)
    jax.config.update(_LOCATIONS, 0)
    try:
        yield
    finally:
        jax.config.update(_LOCATIONS, before)
