"""From a config to the things that it declares, put together once for every command alike."""

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
from ddpm_jax.processes import Modal
from ddpm_jax.samplers import Predict
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
    """Everything that a config stands for. Making one compiles nothing."""

    config: Config
    spec: ImageSpec
    """Of the images."""
    measured: np.ndarray | None
    """What the process has measured of the training images, if it needs anything of them."""
    loaded: ImageSet | None
    """The images, or None where the data set was not opened."""
    process: Modal
    model: nn.Module
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    mesh: Mesh

    @property
    def images(self) -> ImageSet:
        """To train on and held out.

        Raises:
            ValueError: this experiment was built without them.
        """
        if self.loaded is None:
            raise ValueError(f"the images of {self.spec.name!r} are not loaded; build loads them")
        return self.loaded

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """The network as a function of its parameters, see `models.network_function`.

        Raises:
            ConfigError: when it is traced, if its output has not the shape of x_t.
        """
        network, name = self.config.network, type(self.config.network).__name__
        function, pair = network_function(self.model), network.variance == "learned_range"

        def apply(params: Any, x_t: Array, t: Array, **kwargs: Any) -> Any:
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
        """`(x_t, t) -> prediction` with these parameters, dropout off.

        Args:
            params: of the network.
            labels: class of each example, or of as many neighbouring rows as there are for each.
            with_variance: hands on the pair of a network that has learned its variance.
        """
        learned = self.config.network.variance == "learned_range"
        takes_first = learned and not with_variance

        def predict(x_t: Float[Array, "rows *data"], t: Int[Array, " rows"]) -> Any:
            classes: dict[str, Any] = {}
            if labels is not None:
                classes["labels"] = jnp.repeat(labels, x_t.shape[0] // labels.shape[0])
            output = self.apply(params, x_t, t, **classes)
            return output[0] if takes_first else output

        return predict

    def bind_for(
        self, sampler: configs.Sampler, params: Any, labels: Int[Array, " examples"] | None = None
    ) -> BoundModel:
        """The network as this sampler has it: with its guidance, where there are labels."""

        def predict(with_variance: bool) -> Predict:
            own = functools.partial(self.bind, params, with_variance=with_variance)
            if labels is None or sampler.guidance == 1.0:
                return own(labels=labels)
            return sampler.guided(own(labels=labels), own())

        network = self.config.network
        return BoundModel(
            self.process, predict(False), predict(True), network.predicts, network.variance
        )

    def key(self, purpose: str) -> Array:
        """The root key of one use of randomness, so that no two uses share noise."""
        purposes = (
            *("parameters", "training", "held out", "samples", "bits per dim"),
            *("evaluation samples", "classifier"),
        )
        # Threefry whatever JAX's default: of others, a batch of keys gives other bits than each.
        root = jax.random.key(self.config.seed, impl="threefry2x32")
        return jax.random.fold_in(root, purposes.index(purpose))

    @functools.cached_property
    def abstract_state(self) -> training.TrainState:
        """Shapes, dtypes and shardings of the state, for a restore; computes nothing.

        What the optimizer and the averages hold of a parameter is split as the parameter is: by
        the names of its axes and `parallel.RULES`.
        """
        state: training.TrainState = parallel.abstract(self._abstract_boxed_state, self.mesh)
        return state

    @functools.cached_property
    def _abstract_boxed_state(self) -> training.TrainState:
        state: training.TrainState = jax.eval_shape(lambda: _boxed_state(self))
        return state

    @property
    def sharding_note(self) -> str | None:
        """How the parameters are split of a network that names no axes; None of any other."""
        fsdp = self.mesh.shape["fsdp"]
        if fsdp == 1 or parallel.axis_names(self._abstract_boxed_state.params) - {parallel.LARGEST}:
            return None
        leaves = jax.tree.leaves(self.state_shardings.params)
        split = sum("fsdp" in leaf.spec for leaf in leaves)
        return (
            f"network {type(self.config.network).__name__} names no axes: {split} of"
            f" {len(leaves)} parameters are split along their largest axis, {len(leaves) - split}"
            " are whole"
        )

    @property
    def state_shardings(self) -> training.TrainState:
        """Where each array of the state lives."""
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
    """Checks `config` against itself, the images and the devices, and puts its parts together.

    Args:
        config: of the experiment.
        images: loaded as it says, if neither they nor their `spec` are given.
        spec: of the images, in their place: for whoever needs no images, to sample or to plan.
        measured: what the process needs of the training images; measured if it is not given.
        devices: all there are, if not given.

    Raises:
        UserError: a value that cannot work, a missing data set, images that the network cannot
            have, or a member whose `make` returns something else than its family says.
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
    return Experiment(
        config=config,
        spec=spec,
        measured=measured,
        loaded=images,
        process=process,
        model=make_network(config, spec, process),
        learning_rate=learning_rate,
        optimizer=configs.make_optimizer(config.optimizer, learning_rate),
        mesh=mesh,
    )


def check_batch(config: Config, devices: Sequence[jax.Device] | None = None) -> None:
    """Raises UserError unless the mesh is there and divides the training batch, or its parts."""
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % (mesh.size * accumulate):
        parts = f", in {accumulate} parts each" if accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size is {batch_size}; the {mesh.size} devices of the mesh have to divide"
            f" it{parts} ({_multiples_near(batch_size, mesh.size * accumulate)} would)"
        )


def load_images(config: Config) -> ImageSet:
    """The images of `config.data`, prepared."""
    return configs.load_images(config.data, config.preparation)


def image_spec_of(config: Config) -> ImageSpec:
    """Of the images of `config.data`, which need not be there if their shape is known without.

    It has as many classes as the network, with one image each.
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
        spec: of the images.
        process: the forward process; by default that of the config, with a placeholder for what it
            measures of the images.

    Raises:
        ConfigError: images that it cannot have, or `make` returned no network.
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
            f" so take {spec.num_classes}"
        )


def make_times(times: configs.Times, process: Modal) -> TimeLaw:
    """The law by which t is drawn.

    Raises:
        ConfigError: `make` returned something else.
    """
    law: Any = times.make(process.num_steps)
    configs.check_made("times", times, law, TimeLaw)
    return law


def initial_state(experiment: Experiment, params: Any = None) -> training.TrainState:
    """The state before the first step, made on the mesh: no device ever holds more than its part.

    Args:
        experiment: of which network and optimizer.
        params: to begin with, in place of random ones.
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
    """The state before the first step, with these parameters. Pure."""
    return training.init_state(
        params,
        experiment.optimizer,
        experiment.key("training"),
        averages=len(experiment.config.averages.make()),
        memory=make_times(experiment.config.times, experiment.process).initial_memory(),
    )


def _options_of_one_run(mesh: Mesh) -> dict[str, int] | None:
    """For the compiler of a program that runs once: few optimizations on CPUs.

    The initial state has a random generator for each parameter. LLVM takes 20 s of a core to
    optimize those of the digits' network and 4 s at level 1, of which the bits are the same; those
    of level 0 are not. A level in XLA_FLAGS stays as it is.
    """
    level = "xla_backend_optimization_level"
    if mesh.devices.flat[0].platform != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def _boxed_state(experiment: Experiment) -> training.TrainState:
    """With random parameters, and the names of the axes around the arrays that have such."""
    key, shape = experiment.key("parameters"), experiment.spec.shape
    params = init_params(experiment.model, key, shape)
    return state_of(experiment, parallel.with_largest(params, experiment.mesh))


def _multiples_near(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)
