"""From a config to its train step, lowered for devices that need not be there.

Nothing is allocated and no images are read: of the state, the batch and the data there are shapes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ddpm_jax import parallel, training
from ddpm_jax.config import Config, ConfigError, validate
from ddpm_jax.data import ImageSet, image_shape
from ddpm_jax.experiment import (
    Experiment,
    abstract_state,
    check_image_size,
    make_loss,
    make_model,
    make_process,
)

__all__ = ["images_of", "lower_step", "mesh_of", "whole_step"]

DIGITS_LEVELS = 17


class WholeStep(NamedTuple):
    """A train step as it is written, for the whole batch, and what stands for its arguments."""

    step: Callable[[Any, Any], Any]
    state: Any
    batch: jax.ShapeDtypeStruct


def images_of(config: Config) -> tuple[tuple[int, int, int], int]:
    """(height, width, channel) and the number of grey levels; the images need not be there.

    Raises:
        UserError: an unknown name, or images that the network's levels do not divide.
    """
    shape = image_shape(config.data.name, config.data.dir)
    check_image_size(config, shape)
    return shape, DIGITS_LEVELS if config.data.name == "digits" else 256


def mesh_of(config: Config, devices: Sequence[Any]) -> Mesh:
    """The mesh that `config` asks for.

    Raises:
        ConfigError: more devices than there are, or a batch that they do not divide.
    """
    size = len(devices) if config.mesh.data == -1 else config.mesh.data
    if not 1 <= size <= len(devices):
        raise ConfigError(
            f"mesh.data is {config.mesh.data}; of {len(devices)} devices it can take 1 to"
            f" {len(devices)}, or -1 for all"
        )
    if config.train.batch_size % size:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}; the {size} devices of the mesh have to"
            " divide it"
        )
    grid = np.asarray(devices[:size]).reshape(size)
    return Mesh(grid, ("data",), axis_types=(AxisType.Auto,))


def lower_step(
    config: Config, devices: Sequence[Any], shape: tuple[int, int, int], levels: int
) -> jax.stages.Lowered:
    """The train step that `ddpm-jax train` would run, on a mesh of `devices`.

    Args:
        config: checked here.
        devices: of `ddpm_jax.plan.topologies`, or real ones.
        shape: (height, width, channel) of the images.
        levels: of grey.

    Raises:
        UserError: a config that cannot work, or not on so many devices.
    """
    mesh = mesh_of(config, devices)
    step, state, batch = whole_step(config, mesh, shape, levels)
    compiled: Any = parallel.compile_step(step, mesh)
    return compiled.lower(state, batch)


def whole_step(config: Config, mesh: Mesh, shape: tuple[int, int, int], levels: int) -> WholeStep:
    """The step before it is compiled, in the view of the whole batch."""
    experiment = _experiment(config, mesh, shape, levels)
    step = training.make_train_step(
        make_loss(experiment, train=True),
        experiment.optimizer,
        ema_decay=config.train.ema_decay,
        window_steps=config.train.log_every,
    )
    batch = jax.ShapeDtypeStruct((config.train.batch_size, *shape), np.uint8)
    return WholeStep(step, abstract_state(experiment), batch)


def _experiment(config: Config, mesh: Mesh, shape: tuple[int, int, int], levels: int) -> Experiment:
    """What `experiment.build` makes, with black images in place of a dataset."""
    validate(config)
    black = np.zeros((1, *shape), np.uint8)
    optimizer = config.optimizer
    learning_rate = training.learning_rate_schedule(
        optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        decay=optimizer.decay,
        total_steps=config.train.steps,
    )
    return Experiment(
        config=config,
        images=ImageSet(config.data.name, train=black, held_out=black, levels=levels),
        process=make_process(config, shape, spectrum=np.ones(shape)),
        model=make_model(config),
        learning_rate=learning_rate,
        optimizer=training.make_optimizer(
            learning_rate, b1=optimizer.b1, b2=optimizer.b2, clip_norm=optimizer.clip_norm
        ),
        mesh=mesh,
    )
