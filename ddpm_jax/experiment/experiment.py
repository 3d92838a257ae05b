"""Builds the objects that a config declares, in the same way for all commands."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ddpm_jax import config as configs
from ddpm_jax import parallel, training
from ddpm_jax.config import BoundModel, Config, ConfigError, validate
from ddpm_jax.data import ImageSet, ImageSpec, check_crop
from ddpm_jax.models import init_params, network_function
from ddpm_jax.models.interface import innermost
from ddpm_jax.processes import Modal
from ddpm_jax.samplers import Predict
from ddpm_jax.schedules import Schedule
from ddpm_jax.training.learned_schedule import COLLECTION, with_schedule_apart
from ddpm_jax.training.objective import TimeLaw

__all__ = [
    "Experiment",
    "build",
    "check_batch",
    "image_spec_of",
    "initial_state",
    "load_images",
    "make_network",
    "make_times",
    "state_of",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The objects that a config declares; `build` makes it. Nothing is compiled."""

    config: Config
    """The config, checked."""
    spec: ImageSpec
    """Shape, grey levels and classes of the images."""
    measured: np.ndarray | None
    """What the process has measured of the training images; None if it needs nothing."""
    loaded: ImageSet | None
    """The images, or None if the data set was not opened."""
    process: Modal
    """The forward process; if the schedule is learned, the one before the first step."""
    learned: training.LearnedSchedule | None
    """The functions of a learned schedule; None if the schedule stays."""
    model: nn.Module
    """The network."""
    learning_rate: optax.Schedule
    """The learning rate as a function of the step."""
    optimizer: optax.GradientTransformation
    """The optimizer, with the clip of the gradient."""
    mesh: Mesh
    """The devices."""

    @property
    def images(self) -> ImageSet:
        """The training images and the held-out ones.

        Raises:
            ValueError: this experiment was built without them.
        """
        if self.loaded is None:
            raise ValueError(f"the images of {self.spec.name!r} are not loaded; build loads them")
        return self.loaded

    def process_of(self, params: Any) -> Modal:
        """The forward process with these parameters: `process`, unless the schedule is learned.

        Args:
            params: variables of the network. If they are traced, so are the tables of a learned
                schedule; otherwise these are exact.

        Returns:
            The process.
        """
        if self.learned is None:
            return self.process
        return self.process_with(self.learned.schedule(params[COLLECTION]))

    def process_with(self, schedule: Schedule) -> Modal:
        """The forward process with another schedule.

        Args:
            schedule: the tables of the chain, which may be traced.

        Returns:
            The process.
        """
        process: Modal = self.config.process.make(schedule, self.spec.shape, self.measured)
        return process

    def at(self, params: Any) -> "Experiment":
        """The experiment with the process of these parameters, for use after training.

        Args:
            params: variables of the network, on the host or on devices.

        Returns:
            The same experiment, unless the schedule is learned; then `process` is the one that
            these parameters have, with exact tables, also for parameters that are traced later.
        """
        if self.learned is None:
            return self
        schedule = self.learned.schedule(params[COLLECTION])
        learned = self.learned._replace(schedule=lambda params: schedule)
        return dataclasses.replace(self, process=self.process_with(schedule), learned=learned)

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """The network as a function of its parameters, see `models.network_function`.

        A learned schedule among them is not for the network.

        Raises:
            ConfigError: when the function is traced, if the output does not have the shape of x_t.
        """
        network, name = self.config.network, type(self.config.network).__name__
        function, pair = network_function(self.model), network.variance == "learned_range"

        def apply(params: Any, x_t: Array, t: Array, **kwargs: Any) -> Any:
            if self.learned is not None:
                params = {name: leaf for name, leaf in params.items() if name != COLLECTION}
            output = function(params, x_t, t, **kwargs)
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(output)]
            if shapes != [x_t.shape] * (2 if pair else 1):
                what = "a pair of this shape" if pair else "one array of this shape"
                raise ConfigError(
                    f"network: {name} returns {' and '.join(str([*shape]) for shape in shapes)} for"
                    f" x_t {[*x_t.shape]}; it has to return {what}"
                )
            return output

        return apply

    def bind(
        self,
        params: Any,
        *,
        labels: Int[Array, " examples"] | None = None,
        with_variance: bool = False,
    ) -> Predict:
        """The network with its parameters, without dropout.

        Args:
            params: variables of the network.
            labels: class of each example; if there are more rows than labels, each label counts for
                the same number of neighbouring rows. None for no class: a network with classes
                gets -1.
            with_variance: return the pair of a network with a learned variance.

        Returns:
            A function `(x_t, t) -> prediction`, or `-> (prediction, interpolation)`.
        """
        learned = self.config.network.variance == "learned_range"
        takes_first = learned and not with_variance
        null_class = getattr(innermost(self.model), "null_class", True)
        hides_class = self.config.network.classes > 0 and null_class

        def predict(
            x_t: Float[Array, "rows *data"], t: Int[Array, " rows"] | Float[Array, " rows"]
        ) -> Any:
            classes: dict[str, Any] = {}
            if labels is not None:
                classes["labels"] = jnp.repeat(labels, x_t.shape[0] // labels.shape[0])
            elif hides_class:
                classes["labels"] = jnp.full(x_t.shape[0], -1, jnp.int32)
            output = self.apply(params, x_t, t, **classes)
            return output[0] if takes_first else output

        return predict

    def bind_for(
        self, sampler: configs.Sampler, params: Any, labels: Int[Array, " examples"] | None = None
    ) -> BoundModel:
        """The network with its parameters and the guidance of a sampler.

        Args:
            sampler: with the fields of guidance.
            params: variables of the network.
            labels: class of each example; None for no guidance.

        Returns:
            The argument of `sampler.make`.
        """

        def predict(with_variance: bool) -> Predict:
            own = functools.partial(self.bind, params, with_variance=with_variance)
            if labels is None or sampler.guidance == 1.0:
                return own(labels=labels)
            return sampler.guided(own(labels=labels), own())

        network = self.config.network
        return BoundModel(
            self.process_of(params),
            predict(False),
            predict(True),
            network.predicts,
            network.variance,
        )

    def key(self, purpose: str) -> Array:
        """The root key of one use of randomness; two uses never share noise.

        Args:
            purpose: "parameters", "training", "held out", "samples", "bits per dim",
                "evaluation samples" or "classifier".

        Returns:
            A typed threefry key, which follows from `config.seed`.
        """
        purposes = (
            *("parameters", "training", "held out", "samples", "bits per dim"),
            *("evaluation samples", "classifier"),
        )
        # Always threefry: with other generators a batch of keys gives other bits than single keys.
        root = jax.random.key(self.config.seed, impl="threefry2x32")
        return jax.random.fold_in(root, purposes.index(purpose))

    @functools.cached_property
    def abstract_state(self) -> training.TrainState:
        """Shapes, dtypes and shardings of the state, for a restore; nothing is computed.

        The state of the optimizer and the averages are split in the way of the parameters: by the
        names of their axes and `parallel.RULES`.
        """
        state: training.TrainState = parallel.abstract(self._abstract_boxed_state, self.mesh)
        return state

    @functools.cached_property
    def _abstract_boxed_state(self) -> training.TrainState:
        state: training.TrainState = jax.eval_shape(lambda: _boxed_state(self))
        return state

    @property
    def sharding_note(self) -> str | None:
        """How the parameters of a network that names no axes are split; None for other networks."""
        fsdp = self.mesh.shape["fsdp"]
        if fsdp == 1 or parallel.axis_names(self._abstract_boxed_state.params) - {parallel.LARGEST}:
            return None
        leaves = jax.tree.leaves(self.state_shardings.params)
        split = sum("fsdp" in leaf.spec for leaf in leaves)
        return (
            f"network {type(self.config.network).__name__} names no axes: {split} of"
            f" {len(leaves)} parameters are split along their largest axis, {len(leaves) - split}"
            " are whole on each device"
        )

    @property
    def state_shardings(self) -> training.TrainState:
        """The sharding of each array of the state."""
        shardings: training.TrainState = parallel.shardings(self.abstract_state)
        return shardings


def build(
    config: Config,
    *,
    images: ImageSet | None = None,
    spec: ImageSpec | None = None,
    measured: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Checks a config, and builds its objects.

    Args:
        config: of the experiment.
        images: the data set; by default it is loaded as the config says.
        spec: facts about the images, in place of the images: enough to sample or to plan.
        measured: what the process needs to know of the training images; by default it is measured.
        devices: the devices to use; by default all.

    Returns:
        The experiment.

    Raises:
        UserError: a value of the config does not work, the data set is missing, the network does
            not fit the images, or the `make` of a member returns a wrong type.
    """
    config = validate(config)
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    if spec is None:
        images = load_images(config) if images is None else images
        spec = images.spec
        if measured is None:
            measured = config.process.measure(images)
    _check_classes(config, spec)
    learning_rate = configs.make_learning_rate(config.optimizer, config.train.steps)
    process = configs.make_process(config.schedule, config.process, spec.shape, measured)
    learned = config.schedule.learned()
    optimizer = configs.make_optimizer(config.optimizer, learning_rate)
    return Experiment(
        config=config,
        spec=spec,
        measured=measured,
        loaded=images,
        process=process,
        learned=learned,
        model=make_network(config, spec, process),
        learning_rate=learning_rate,
        optimizer=optimizer if learned is None else with_schedule_apart(optimizer),
        mesh=mesh,
    )


def check_batch(config: Config, devices: Sequence[jax.Device] | None = None) -> None:
    """Checks that the devices of the mesh exist and divide the training batch.

    Args:
        config: of a training run.
        devices: the devices to use; by default all.

    Raises:
        UserError: there are too few devices, or the batch (or a part of it) cannot be divided.
    """
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % (mesh.size * accumulate):
        parts = f", in {accumulate} parts each" if accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size is {batch_size}; the {mesh.size} devices of the mesh have to divide"
            f" it{parts}; take {_multiples_near(batch_size, mesh.size * accumulate)}"
        )


def load_images(config: Config) -> ImageSet:
    """The prepared images of `config.data`."""
    return configs.load_images(config.data, config.preparation)


def image_spec_of(config: Config) -> ImageSpec:
    """Facts about the images of a config, if possible without the images.

    The classes are as many as those of the network, with one image each.

    Args:
        config: of an experiment.

    Returns:
        Shape, grey levels and classes.

    Raises:
        DataError: the images are needed and cannot be read, or the preparation does not fit them.
    """
    preparation = config.preparation
    (height, width, channel), levels = config.data.shape_and_levels(preparation.make())
    if preparation.crop is not None:
        check_crop(preparation.crop, (height, width, channel))
        height = width = preparation.crop
    count = config.network.classes
    return ImageSpec(
        name=config.data.title,
        shape=(height, width, channel),
        levels=levels,
        classes=tuple(map(str, range(count))) if count else None,
        class_counts=(1,) * count if count else None,
    )


def make_network(config: Config, spec: ImageSpec, process: Modal | None = None) -> nn.Module:
    """The network for these images.

    Args:
        config: of the experiment.
        spec: facts about the images.
        process: the forward process; by default that of the config, with a placeholder for what it
            measures of the images.

    Returns:
        A module with `init` and `apply`.

    Raises:
        ConfigError: the network does not fit the images, or `make` returned no network.
    """
    if process is None:
        measured = config.process.placeholder(spec.shape)
        process = configs.make_process(config.schedule, config.process, spec.shape, measured)
    model: Any = config.network.make_for(spec, process)
    if not (callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None))):
        raise ConfigError(
            f"network: {type(config.network).__name__}.make returned a {type(model).__name__}; it"
            " has to return a network with init and apply, such as a Flax module"
        )
    network: nn.Module = model
    return network


def _check_classes(config: Config, spec: ImageSpec) -> None:
    if config.network.classes not in (0, spec.num_classes):
        has = f"{spec.num_classes}" if spec.num_classes else "no labels"
        raise ConfigError(
            f"network.classes is {config.network.classes}; the data set {spec.name!r} has {has},"
            f" so set it to {spec.num_classes}"
        )


def make_times(times: configs.Times, process: Modal) -> TimeLaw:
    """The law by which t is drawn.

    Raises:
        ConfigError: the fields make no law of this process, or `make` returned something else.
    """
    try:
        law: Any = times.make(process)
    except ValueError as error:
        raise ConfigError(f"times: {error}") from error
    configs.check_made("times", times, law, TimeLaw)
    return law


def initial_state(experiment: Experiment, params: Any = None) -> training.TrainState:
    """The state before the first step, created already sharded; no device holds the full state.

    Args:
        experiment: the experiment.
        params: initial variables of the network, in place of random ones.

    Returns:
        The state on the mesh.
    """
    make = jax.jit(
        lambda params: (
            meta.unbox(_boxed_state(experiment)) if params is None else state_of(experiment, params)
        ),
        out_shardings=experiment.state_shardings,
        compiler_options=_options_of_one_run(experiment.mesh),
    )
    state: training.TrainState = make(params)
    return state


def state_of(experiment: Experiment, params: Any) -> training.TrainState:
    """The state before the first step, with given parameters; a pure function.

    Args:
        experiment: the experiment.
        params: variables of the network.

    Returns:
        The state.
    """
    return training.init_state(
        params,
        experiment.optimizer,
        experiment.key("training"),
        averages=len(experiment.config.averages.make()),
        memory=make_times(experiment.config.times, experiment.process).initial_memory(),
    )


def _options_of_one_run(mesh: Mesh) -> dict[str, int] | None:
    """Compiler options of a program that runs once: few optimizations on CPUs.

    The initial state has a random generator for each parameter. LLVM needs 20 s of one core to
    optimize those of the digits' network, and 4 s at level 1, which gives the same bits; level 0
    does not. A level in XLA_FLAGS is respected.
    """
    level = "xla_backend_optimization_level"
    if mesh.devices.flat[0].platform != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def _boxed_state(experiment: Experiment) -> training.TrainState:
    """The state with random parameters, boxed with the names of their axes."""
    key, shape = experiment.key("parameters"), experiment.spec.shape
    labelled = experiment.config.network.classes > 0
    params = init_params(experiment.model, key, shape, labelled=labelled)
    params = parallel.with_largest(params, experiment.mesh)
    if experiment.learned is not None:
        params = {**params, COLLECTION: experiment.learned.initial()}
    return state_of(experiment, params)


def _multiples_near(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)
