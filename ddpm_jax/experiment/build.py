"""From a config to the things it names, put together once for every command alike."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ddpm_jax import parallel, training
from ddpm_jax.config import Config, ConfigError, validate
from ddpm_jax.data import ImageSet, load, to_model_range
from ddpm_jax.experiment.process import make_process, measured_spectrum
from ddpm_jax.models import UNet
from ddpm_jax.processes import Modal
from ddpm_jax.samplers import Predict
from ddpm_jax.training.objective import LossFn

__all__ = [
    "Experiment",
    "abstract_state",
    "build",
    "check_batch",
    "check_image_size",
    "initial_state",
    "make_loss",
    "make_model",
]


class Experiment(NamedTuple):
    """Everything that a config stands for. Making one compiles nothing."""

    config: Config
    images: ImageSet
    process: Modal
    model: UNet
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    mesh: Mesh

    def bind(self, params: Any, *, with_variance: bool = False) -> Predict:
        """`(x_t, t) -> prediction` with these parameters, dropout off.

        `with_variance` hands on the pair of a network that has learned its variance.
        """
        takes_first = self.model.learned_variance and not with_variance

        def predict(x_t: Float[Array, "batch *data"], t: Int[Array, " batch"]) -> Any:
            output = self.model.apply(params, x_t, t)
            return output[0] if takes_first else output

        return predict

    def key(self, purpose: str) -> Array:
        """The root key of one use of randomness, so that no two uses share noise."""
        purposes = ("parameters", "training", "held out", "samples", "bits per dim")
        return jax.random.fold_in(jax.random.key(self.config.seed), purposes.index(purpose))


def build(config: Config) -> Experiment:
    """Checks `config` against itself, the images and the devices, and puts its parts together.

    Raises:
        UserError: a value that cannot work, a missing dataset, or images that the network's levels
            do not divide.
    """
    validate(config)
    mesh = parallel.make_mesh(config.mesh.data)
    images = load(config.data.name, config.data.dir)
    check_image_size(config, images.image_shape)
    spectrum = measured_spectrum(images) if config.process.name == "equal_snr" else None
    optimizer = config.optimizer
    learning_rate = training.learning_rate_schedule(
        optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        decay=optimizer.decay,
        total_steps=config.train.steps,
    )
    return Experiment(
        config=config,
        images=images,
        process=make_process(config, images.image_shape, spectrum=spectrum),
        model=make_model(config),
        learning_rate=learning_rate,
        optimizer=training.make_optimizer(
            learning_rate, b1=optimizer.b1, b2=optimizer.b2, clip_norm=optimizer.clip_norm
        ),
        mesh=mesh,
    )


def check_batch(config: Config) -> None:
    """Raises UserError unless the mesh is there and divides the training batch."""
    devices = parallel.make_mesh(config.mesh.data).size
    if config.train.batch_size % devices:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}; the {devices} devices of the mesh"
            f" have to divide it ({_multiples_near(config.train.batch_size, devices)} would)"
        )


def check_image_size(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError unless the levels divide the image and have the heights for attention."""
    multipliers, (height, width, _) = config.model.multipliers, image_shape
    factor = 2 ** (len(multipliers) - 1)
    if height % factor or width % factor:
        raise ConfigError(
            f"model.multipliers is {multipliers}, {len(multipliers)} levels that halve the image"
            f" {len(multipliers) - 1} times; the images of {config.data.name!r} are"
            f" {height}x{width}, which {factor} does not divide, so take fewer levels"
        )
    heights = [height // 2**level for level in range(len(multipliers))]
    for resolution in config.model.attention_resolutions:
        if resolution not in heights:
            raise ConfigError(
                f"model.attention_resolutions holds {resolution}; the levels have the heights"
                f" {heights}"
            )


def make_model(config: Config) -> UNet:
    """The network that `config.model` describes."""
    model = config.model
    return UNet(
        channels=model.channels,
        multipliers=model.multipliers,
        num_blocks=model.num_blocks,
        attention_resolutions=model.attention_resolutions,
        dropout=model.dropout,
        norm_groups=model.norm_groups,
        dtype=jnp.dtype(model.dtype),
        learned_variance=model.variance == "learned_range",
    )


def make_loss(experiment: Experiment, *, train: bool) -> LossFn:
    """A loss of uint8 images, which are scaled on the device; see `ddpm_jax.training.objective`.

    Held-out images have no memory: times that training draws by importance are stratified for them.
    """
    config, levels = experiment.config, experiment.images.levels
    times = config.train.times
    if times == "importance" and not train:
        times = "stratified"
    loss_fn = training.make_loss(
        experiment.model.apply,
        experiment.process,
        objective=config.train.objective,
        predicts=config.model.predicts,
        levels=levels,
        times=times,
        variance=config.model.variance,
        train=train,
    )

    def loss_of_images(params: Any, key: Array, images: Array, memory: Any) -> tuple[Array, Any]:
        return loss_fn(params, key, to_model_range(images, levels), memory)

    return loss_of_images


def initial_state(experiment: Experiment) -> training.TrainState:
    """The state before the first step, born on the mesh."""
    return _born(experiment)()


def abstract_state(experiment: Experiment) -> training.TrainState:
    """Shapes, dtypes and shardings of the state, for a restore; computes nothing."""
    everywhere = parallel.replicated(experiment.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(_born(experiment)),
    )


def _born(experiment: Experiment) -> Callable[[], training.TrainState]:
    @functools.partial(jax.jit, out_shardings=parallel.replicated(experiment.mesh))
    def born() -> training.TrainState:
        shape = (1, *experiment.images.image_shape)
        x_t, t = jnp.zeros(shape, jnp.float32), jnp.zeros((1,), jnp.int32)
        params = experiment.model.init(experiment.key("parameters"), x_t, t)
        memory = training.initial_memory(
            experiment.config.train.times, experiment.process.num_steps
        )
        return training.init_state(params, experiment.optimizer, experiment.key("training"), memory)

    return born


def _multiples_near(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)
