"""From a config to its train step, lowered for devices that need not exist here.

Nothing is allocated and no images are read: the state, the batch and the data are shapes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import experiment as experiments
from ddpm_jax.config import Config
from ddpm_jax.data import Examples, ImageSpec
from ddpm_jax.experiment import Experiment
from ddpm_jax.plan.flops import count_flops
from ddpm_jax.training import TrainState, make_gradient
from ddpm_jax.training.objective import draw

__all__ = ["abstract_experiment", "forward_flops", "lower_step", "step_flops"]


def abstract_experiment(config: Config, devices: Sequence[Any], spec: ImageSpec) -> Experiment:
    """The experiment on a mesh of `devices`, without images.

    Args:
        config: checked here.
        devices: of `ddpm_jax.plan.topologies`, or real ones.
        spec: of the images, see `experiment.image_spec_of`.

    Raises:
        UserError: a config that cannot work, or not on so many devices.
    """
    experiments.check_batch(config, devices)
    measured = config.process.placeholder(spec.shape)  # its values do not change the program
    return experiments.build(config, spec=spec, measured=measured, devices=devices)


def lower_step(config: Config, devices: Sequence[Any], spec: ImageSpec) -> jax.stages.Lowered:
    """The train step that `ddpm-jax train` would run; see `abstract_experiment`."""
    experiment = abstract_experiment(config, devices, spec)
    return experiments.lower_step(experiment, experiments.make_form(experiment))


def step_flops(experiment: Experiment) -> int:
    """FLOPs of the gradient of a step, over all devices, with what is computed again.

    The rest of a step multiplies no matrices.
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
    """FLOPs of the network, for one image."""
    params = experiment.abstract_state.params
    x_t = jax.ShapeDtypeStruct((1, *experiment.spec.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    labels = {"labels": jnp.zeros(1, jnp.int32)} if experiment.config.network.classes else {}
    return count_flops(functools.partial(experiment.apply, **labels), params, x_t, t)
