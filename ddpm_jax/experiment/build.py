"""From a config to the things it names, put together once for every command alike."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ddpm_jax import parallel, samplers, training
from ddpm_jax.config import Config, ConfigError, TrainConfig, make_preparation, validate
from ddpm_jax.data import (
    BatchIterator,
    Examples,
    ImageSet,
    ImageSpec,
    image_shape,
    load,
    make_iterator,
    to_model_range,
)
from ddpm_jax.experiment.process import make_process, measured_spectrum
from ddpm_jax.models import AttentionKernel, UNet, init_params
from ddpm_jax.parallel import Form
from ddpm_jax.processes import Modal
from ddpm_jax.samplers import Predict
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Labelled, Objective
from ddpm_jax.training.step import Decay

__all__ = [
    "Experiment",
    "abstract_batch",
    "build",
    "check_batch",
    "check_image_size",
    "image_shape_of",
    "initial_state",
    "load_images",
    "lower_step",
    "make_batches",
    "make_form",
    "make_model",
    "make_objective",
    "make_step",
    "state_of",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a config stands for. Making one compiles nothing."""

    config: Config
    spec: ImageSpec
    """Of the images."""
    spectrum: np.ndarray | None
    """Variance of the training images in each cosine mode, where the process has a use for it."""
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

    def bind(
        self,
        params: Any,
        *,
        labels: Int[Array, " examples"] | None = None,
        guidance: float = 1.0,
        with_variance: bool = False,
    ) -> Predict:
        """`(x_t, t) -> prediction` with these parameters, dropout off.

        Args:
            params: of the network.
            labels: class of each example, or of as many neighbouring rows as there are for each.
            guidance: scale of `samplers.guidance.classifier_free`, where there are labels.
            with_variance: hands on the pair of a network that has learned its variance.
        """
        learned = self.config.model.variance == "learned_range"
        takes_first = learned and not with_variance

        def told(labels: Array | None) -> Predict:
            def predict(x_t: Float[Array, "rows *data"], t: Int[Array, " rows"]) -> Any:
                classes: dict[str, Any] = {}
                if labels is not None:
                    classes["labels"] = jnp.repeat(labels, x_t.shape[0] // labels.shape[0])
                output = self.model.apply(params, x_t, t, **classes)
                return output[0] if takes_first else output

            return predict

        if labels is None or guidance == 1.0:
            return told(labels)
        return samplers.guidance.classifier_free(told(labels), told(None), scale=guidance)

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
        state: training.TrainState = parallel.abstract(
            jax.eval_shape(lambda: _boxed_state(self)), self.mesh
        )
        return state

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
    spectrum: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Checks `config` against itself, the images and the devices, and puts its parts together.

    Args:
        config: what is asked for.
        images: loaded as it says, if neither they nor their `spec` are given.
        spec: of the images, in their place: for whoever needs no images, to sample or to plan.
        spectrum: of the training images, `[height, width, channel]`; measured if it is needed and
            not given.
        devices: all there are, if not given.

    Raises:
        UserError: a value that cannot work, a missing dataset, or images that the network's levels
            do not divide.
    """
    config = validate(config)
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    if spec is None:
        images = load_images(config) if images is None else images
        spec = images.spec
        if spectrum is None and config.process.name == "equal_snr":
            spectrum = measured_spectrum(images)
    check_image_size(config, spec.shape)
    _check_attention_kernel(config, spec.shape)
    _check_classes(config, spec)
    optimizer = config.optimizer
    learning_rate = training.learning_rate_schedule(
        optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        decay=optimizer.decay,
        total_steps=config.train.steps,
    )
    return Experiment(
        config=config,
        spec=spec,
        spectrum=spectrum,
        loaded=images,
        process=make_process(config, spec.shape, spectrum=spectrum),
        model=make_model(config),
        learning_rate=learning_rate,
        optimizer=training.make_optimizer(
            learning_rate, b1=optimizer.b1, b2=optimizer.b2, clip_norm=optimizer.clip_norm
        ),
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
    """The images that `config.data` names."""
    data = config.data
    return load(
        data.name,
        data.dir,
        preparation=make_preparation(data),
        crop=data.crop,
        on_bad_image=data.on_bad_image,
        memory_gb=data.memory_gb,
    )


def image_shape_of(config: Config) -> tuple[int, int, int]:
    """(height, width, channel) of the images that `config.data` names; they need not be there."""
    data = config.data
    return image_shape(data.name, data.dir, preparation=make_preparation(data), crop=data.crop)


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
    heights = _heights(config, height)
    for resolution in config.model.attention_resolutions:
        if resolution not in heights:
            raise ConfigError(
                f"model.attention_resolutions holds {resolution}; the levels have the heights"
                f" {heights}"
            )


def _check_classes(config: Config, spec: ImageSpec) -> None:
    if config.model.classes not in (0, spec.num_classes):
        has = f"{spec.num_classes}" if spec.num_classes else "no labels"
        raise ConfigError(
            f"model.classes is {config.model.classes}; the dataset {config.data.name!r} has {has},"
            f" so take {spec.num_classes}"
        )


def _check_attention_kernel(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError unless the kernel for attention takes the network's heads on this GPU."""
    model, (height, *_) = config.model, image_shape
    if _attention_kernel(config) == "xla":
        return
    heights = _heights(config, height)
    for side, multiplier in zip(heights, model.multipliers, strict=True):
        if side in (*model.attention_resolutions, heights[-1]):
            shape = (1, side**2, model.heads, model.channels * multiplier // model.heads)
            array = jax.ShapeDtypeStruct(shape, model.dtype)
            attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
            try:
                jax.eval_shape(attention, array, array, array)
            except RuntimeError as error:  # of which NotImplementedError is one
                raise ConfigError(
                    f"model.attention_kernel is 'cudnn', which JAX cannot use for heads of"
                    f" {shape[-1]} channels here ({error}); take 'xla'"
                ) from error


def _heights(config: Config, height: int) -> list[int]:
    """Of the images on each level of the network."""
    return [height // 2**level for level in range(len(config.model.multipliers))]


def _attention_kernel(config: Config) -> AttentionKernel:
    fused = config.model.attention_kernel == "cudnn" and jax.default_backend() == "gpu"
    return "cudnn" if fused else "xla"


def make_model(config: Config) -> UNet:
    """The network that `config.model` describes."""
    model = config.model
    return UNet(
        channels=model.channels,
        multipliers=model.multipliers,
        num_blocks=model.num_blocks,
        attention_resolutions=model.attention_resolutions,
        heads=model.heads,
        attention_kernel=_attention_kernel(config),
        dropout=model.dropout,
        norm_groups=model.norm_groups,
        dtype=jnp.dtype(model.dtype),
        learned_variance=model.variance == "learned_range",
        num_classes=model.classes,
        remat=model.remat,
    )


def make_objective(experiment: Experiment, *, train: bool) -> Objective:
    """The objective of uint8 images, which are scaled on the device.

    Held-out images have no memory: times that training draws by importance are stratified for them.
    """
    config, levels = experiment.config, experiment.spec.levels
    times = config.train.times
    if times == "importance" and not train:
        times = "stratified"
    objective = training.make_objective(
        experiment.model.apply,
        experiment.process,
        objective=config.train.objective,
        predicts=config.model.predicts,
        levels=levels,
        times=times,
        variance=config.model.variance,
        label_dropout=config.train.label_dropout,
        train=train,
    )

    def losses(params: Any, batch: Examples, drawn: training.Drawn) -> Array:
        x0 = to_model_range(batch.images, levels)
        return objective.losses(
            params, x0 if batch.labels is None else Labelled(x0, batch.labels), drawn
        )

    return objective._replace(losses=losses)


def make_form(experiment: Experiment) -> Form:
    """How the train step runs on the mesh."""
    mesh = experiment.config.mesh
    return parallel.make_form(
        mesh.form,
        experiment.mesh,
        experiment.state_shardings,
        mesh.reduction,
        compute=experiment.config.model.dtype,
    )


def make_step(experiment: Experiment, form: Form) -> training.TrainStep:
    """The train step, to be compiled as `form` does it."""
    train = experiment.config.train
    return training.make_train_step(
        make_objective(experiment, train=True),
        experiment.optimizer,
        averages=_decays(train),
        window_steps=train.log_every,
        accumulate=train.accumulate,
        skips=train.skip_bad_steps,
        form=form,
    )


def lower_step(experiment: Experiment, form: Form) -> jax.stages.Lowered:
    """The train step for this mesh, before it is compiled; nothing is computed."""
    batch = form.abstract_batch(abstract_batch(experiment))
    return form.lower(make_step(experiment, form), experiment.abstract_state, batch)


def abstract_batch(experiment: Experiment) -> Examples:
    """Shapes and dtypes of a whole training batch."""
    size = experiment.config.train.batch_size
    images = jax.ShapeDtypeStruct((size, *experiment.spec.shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    return Examples(images, labels if experiment.config.model.classes else None)


def make_batches(
    experiment: Experiment, *, process_index: int = 0, process_count: int = 1
) -> BatchIterator:
    """This process's share of the training batches."""
    config = experiment.config
    return make_iterator(
        experiment.images.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        crop=config.data.crop,
        with_labels=config.model.classes > 0,
        process_index=process_index,
        process_count=process_count,
    )


def initial_state(experiment: Experiment) -> training.TrainState:
    """The state before the first step, born on the mesh: nobody ever holds more than his part."""
    born = jax.jit(
        lambda: meta.unbox(_boxed_state(experiment)),
        out_shardings=experiment.state_shardings,
        compiler_options=_options_of_one_run(experiment.mesh),
    )
    state: training.TrainState = born()
    return state


def state_of(experiment: Experiment, params: Any) -> training.TrainState:
    """The state before the first step, with these parameters. Pure."""
    return training.init_state(
        params,
        experiment.optimizer,
        experiment.key("training"),
        averages=len(_decays(experiment.config.train)),
        memory=make_objective(experiment, train=True).initial_memory(),
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
    return state_of(experiment, init_params(experiment.model, key, shape))


def _decays(train: TrainConfig) -> list[Decay]:
    """Of the moving averages, in the order in which the state holds them."""
    return [
        *(functools.partial(ema.decay_at, decay=decay) for decay in train.ema_decay),
        *(
            functools.partial(ema.power_decay_at, gamma=ema.gamma_of(width))
            for width in train.post_hoc_ema
        ),
    ]


def _multiples_near(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)
