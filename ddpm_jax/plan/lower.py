"""From a config to its train step, lowered for devices that need not be there.

Nothing is allocated and no images are read: of the state, the batch and the data there are shapes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import experiment as experiments
from ddpm_jax.config import Config
from ddpm_jax.data import Examples, ImageSpec, image_levels
from ddpm_jax.experiment import Experiment
from ddpm_jax.plan.flops import count_flops
from ddpm_jax.training import TrainState, make_gradient
from ddpm_jax.training.objective import draw

__all__ = ["forward_flops", "images_of", "lower_step", "planned", "step_flops"]


def images_of(config: Config) -> tuple[tuple[int, int, int], int]:
    """(height, width, channel) and the number of grey levels; the images need not be there.

    Raises:
        UserError: an unknown name, or images that the network's levels do not divide.
    """
    shape = experiments.image_shape_of(config)
    experiments.check_image_size(config, shape)
    return shape, image_levels(config.data.name, config.data.dir)


def planned(
    config: Config, devices: Sequence[Any], shape: tuple[int, int, int], levels: int
) -> Experiment:
    """The experiment on a mesh of `devices`, without images.

    Args:
        config: checked here.
        devices: of `ddpm_jax.plan.topologies`, or real ones.
        shape: (height, width, channel) of the images.
        levels: of grey.

    Raises:
        UserError: a config that cannot work, or not on so many devices.
    """
    classes = tuple(map(str, range(config.model.classes))) or None
    spec = ImageSpec(config.data.name, shape, levels, classes)
    experiments.check_batch(config, devices)
    flat = np.ones(shape)  # any spectrum does: it changes numbers, and no program
    return experiments.build(config, spec=spec, spectrum=flat, devices=devices)


def lower_step(
    config: Config, devices: Sequence[Any], shape: tuple[int, int, int], levels: int
) -> jax.stages.Lowered:
    """The train step that `ddpm-jax train` would run; see `planned`."""
    experiment = planned(config, devices, shape, levels)
    return experiments.lower_step(experiment, experiments.make_form(experiment))


def step_flops(experiment: Experiment) -> int:
    """Of the whole step, over all devices, with what is computed again.

    It is the gradient that multiplies matrices; the rest of a step is little beside it.
    """
    train = experiment.config.train
    objective = experiments.make_objective(experiment, train=True)

    def gradient(state: TrainState, batch: Examples) -> Any:
        drawn = draw(objective, state.key, train.batch_size, state.memory)
        of_batch = make_gradient(objective.losses, accumulate=train.accumulate)
        return of_batch(state.params, batch, drawn)

    batch = experiments.abstract_batch(experiment)
    return count_flops(gradient, experiment.abstract_state, batch)


def forward_flops(experiment: Experiment) -> int:
    """Of the network, for one image."""
    params = experiment.abstract_state.params
    x_t = jax.ShapeDtypeStruct((1, *experiment.spec.shape), jnp.float32)
    return count_flops(experiment.model.apply, params, x_t, jax.ShapeDtypeStruct((1,), jnp.int32))
