"""The compiled functions of an experiment: objective, train step, loss on held-out images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax import config as configs
from ddpm_jax import training
from ddpm_jax.config import ConfigError
from ddpm_jax.data import BatchIterator, Examples, make_iterator, to_model_range
from ddpm_jax.evaluation.likelihood import TrainedModel, placed_batches, round_up
from ddpm_jax.experiment.experiment import Experiment, make_times
from ddpm_jax.parallel import Form
from ddpm_jax.training.learned_schedule import COLLECTION
from ddpm_jax.training.objective import Labelled, Objective

__all__ = [
    "abstract_batch",
    "held_out_loss",
    "lower_step",
    "make_batches",
    "make_form",
    "make_objective",
    "make_step",
    "trained_model",
]

_HELD_OUT_LOSS_IMAGES = 1024
"""Largest number of images for the loss that ranks checkpoints."""


def make_objective(experiment: Experiment, *, train: bool) -> Objective:
    """The objective of an experiment, for uint8 images, which are scaled on the device.

    Args:
        experiment: the experiment.
        train: whether it is for training: with dropout, and with the times of `config.times`. For
            held-out images the times are those of `Times.held_out`, without a memory.

    Returns:
        The losses and the law of times. A batch is `data.Examples`.
    """
    config, levels = experiment.config, experiment.spec.levels
    losses_of = functools.partial(
        training.make_losses,
        experiment.apply,
        loss=_checked_loss(config.objective),
        predicts=config.network.predicts,
        levels=levels,
        variance=config.network.variance,
        label_dropout=config.train.label_dropout,
        train=train,
    )
    learned = experiment.learned

    def of_process(params: Any, batch: Any, drawn: training.Drawn) -> Array:
        return losses_of(experiment.process_of(params))(params, batch, drawn)

    if learned is None:
        of_images = losses_of(experiment.process)  # checked here, before anything is traced
    elif train:
        of_images = training.learned_schedule_losses(
            lambda schedule: losses_of(experiment.process_with(schedule)), learned
        )
    else:
        of_images = of_process

    def losses(params: Any, batch: Examples, drawn: training.Drawn) -> Array:
        x0 = to_model_range(batch.images, levels)
        return of_images(params, x0 if batch.labels is None else Labelled(x0, batch.labels), drawn)

    times = config.times if train else config.times.held_out()
    return Objective(make_times(times, experiment.process), losses)


def _checked_loss(objective: configs.Objective) -> Callable[[training.LossTerms], Array]:
    """The loss of a member; when it is traced, its shape is checked."""
    name, loss = type(objective).__name__, objective.make()
    if not callable(loss):
        raise ConfigError(
            f"objective: {name}.make returned a {type(loss).__name__}; it has to return a function"
            " of LossTerms"
        )

    def checked(terms: training.LossTerms) -> Array:
        losses, batch = loss(terms), terms.t.shape[0]
        if jnp.shape(losses) != (batch,):
            raise ConfigError(
                f"objective: the loss of {name} has the shape {[*jnp.shape(losses)]} for a batch of"
                f" {batch}; it has to be [{batch}], one loss for each example"
            )
        return losses

    return checked


def make_form(experiment: Experiment) -> Form:
    """The form of the train step: how it runs on the mesh.

    Args:
        experiment: the experiment.

    Returns:
        The form.

    Raises:
        ConfigError: the `make` of `config.mesh` returned something else.
    """
    config = experiment.config
    form: Any = config.mesh.make(
        experiment.mesh, experiment.state_shardings, config.network.compute_dtype
    )
    configs.check_made("mesh", config.mesh, form, Form)
    return form


def make_step(experiment: Experiment, form: Form) -> training.TrainStep:
    """The train step, not compiled yet.

    Args:
        experiment: the experiment.
        form: the result of `make_form`.

    Returns:
        A function `(state, batch) -> (state, metrics)`.
    """
    train = experiment.config.train
    return training.make_train_step(
        make_objective(experiment, train=True),
        experiment.optimizer,
        averages=experiment.config.averages.make(),
        window_steps=train.log_every,
        accumulate=train.accumulate,
        skips=train.skip_bad_steps,
        watch=_watch(experiment),
        form=form,
    )


def _watch(experiment: Experiment) -> Callable[[Any], dict[str, Array]]:
    """The metrics of a learned schedule, of the parameters."""
    learned = experiment.learned
    if learned is None:
        return lambda params: {}
    return lambda params: learned.metrics(params[COLLECTION])


def lower_step(experiment: Experiment, form: Form) -> jax.stages.Lowered:
    """The train step, lowered for the mesh; call `compile()` of the result. Nothing is computed.

    Args:
        experiment: the experiment.
        form: the result of `make_form`.

    Returns:
        The lowered step.
    """
    batch = form.abstract_batch(abstract_batch(experiment))
    return form.lower(make_step(experiment, form), experiment.abstract_state, batch)


def abstract_batch(experiment: Experiment) -> Examples:
    """Shapes and dtypes of a whole training batch.

    Args:
        experiment: the experiment.

    Returns:
        `jax.ShapeDtypeStruct` in place of images and labels.
    """
    size = experiment.config.train.batch_size
    images = jax.ShapeDtypeStruct((size, *experiment.spec.shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    return Examples(images, labels if experiment.config.network.classes else None)


def make_batches(
    experiment: Experiment, *, process_index: int = 0, process_count: int = 1
) -> BatchIterator:
    """The training batches: the share of this process.

    Args:
        experiment: with its images.
        process_index: number of this process.
        process_count: number of processes; it divides the batch size.

    Returns:
        The iterator.
    """
    config = experiment.config
    return make_iterator(
        experiment.images.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.preparation.flip,
        crop=config.preparation.crop,
        with_labels=config.network.classes > 0,
        process_index=process_index,
        process_count=process_count,
    )


def held_out_loss(experiment: Experiment) -> Callable[[Any], float]:
    """`params -> loss` on held-out images, with the same noise each time, to rank checkpoints."""
    config, mesh, source = experiment.config, experiment.mesh, experiment.images.held_out
    count = min(len(source), _HELD_OUT_LOSS_IMAGES)
    size = round_up(min(config.evaluation.batch_size, count), mesh.size)
    labelled = config.network.classes > 0
    objective = make_objective(experiment, train=False)
    key = experiment.key("held out")

    @jax.jit
    def mean_loss(params: Any, key: jax.Array, batch: Examples) -> jax.Array:
        return jnp.mean(training.weighted_losses(objective, params, key, batch))

    @functools.cache
    def batches() -> list[Examples]:
        placed = placed_batches(source, size, mesh, labelled=labelled, count=count)
        return [batch for _, batch in placed]

    def loss(params: Any) -> float:
        losses = [
            mean_loss(params, jax.random.fold_in(key, index), batch)
            for index, batch in enumerate(batches())
        ]
        return float(np.mean(jax.device_get(losses)))

    return loss


def trained_model(experiment: Experiment) -> TrainedModel:
    """The argument of an evaluation's `make`.

    Args:
        experiment: with its images.

    Returns:
        The network as a function of its parameters, and the images.
    """
    network = experiment.config.network
    return TrainedModel(
        process=experiment.process,
        process_of=experiment.process_of,
        bind=experiment.bind,
        predicts=network.predicts,
        variance=network.variance,
        labelled=network.classes > 0,
        images=experiment.images.with_held_out(experiment.config.evaluation.held_out_images),
        mesh=experiment.mesh,
        key=experiment.key("bits per dim"),
        seed=experiment.config.seed,
        held_out_loss=held_out_loss(experiment),
    )
