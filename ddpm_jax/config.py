"""The typed configuration of an experiment: what `configs/*.py` return and `--a.b value` changes.

Frozen dataclasses of plain values: what they say can be printed, compared and stored as JSON.
"""

import dataclasses
import importlib.util
import json
import math
import operator
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm_jax import schedules
from ddpm_jax.data import DataError, OnBadImage, Preparation
from ddpm_jax.errors import UserError
from ddpm_jax.forward import Predicts
from ddpm_jax.models import Remat
from ddpm_jax.parallel import FormName, Reduction
from ddpm_jax.reverse import Variance, check_predicts
from ddpm_jax.samplers import Spacing
from ddpm_jax.schedules import Schedule
from ddpm_jax.training.objective import ObjectiveName, Times, check_objective
from ddpm_jax.training.optimizer import Decay

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "Difference",
    "EvaluationConfig",
    "HostsConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProcessConfig",
    "SamplerName",
    "ScheduleConfig",
    "TrainConfig",
    "differences",
    "from_json",
    "load",
    "make_preparation",
    "make_schedule",
    "to_json",
    "validate",
]


SamplerName = Literal["ancestral", "ddim", "dpm_solver_pp", "heun", "probability_flow"]
"""What `ddpm_jax.samplers` can do with a trained network and no more than its name."""


class ConfigError(UserError):
    """A configuration that cannot work, told before anything is built."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images."""

    name: str = "digits"
    """"digits" (scikit-learn's), "folder:PATH", "npz:PATH", or a dataset of TensorFlow Datasets:
    cifar10, fashion_mnist."""
    dir: str | None = None
    """Where prepared TensorFlow Datasets are; by default TFDS_DATA_DIR or ~/tensorflow_datasets."""
    grey: bool = False
    """Take the colours away."""
    size: int | None = None
    """Resize the shorter side to this, and keep the middle of the longer one."""
    pad: int | None = None
    """Put a black border around, to squares of this side."""
    crop: int | None = None
    """Train on squares of this side cut out at random; held-out images are cut in the middle."""
    flip: bool = False
    """Mirror each training image left to right half of the time."""
    on_bad_image: OnBadImage = "stop"
    """What to do of an image that cannot be decoded: "stop" with a sentence, or "skip", count and
    report it."""
    memory_gb: float = 4.0
    """Datasets of at most so many gigabytes of pixels are decoded once, into memory; larger ones as
    they are read."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How noise grows over the chain."""

    name: Literal["linear", "quadratic", "cosine", "sigmoid", "linear_log_snr"] = "linear"
    num_steps: int = 1000
    """T, the length of the chain."""
    beta_min: float = 1e-4
    """First beta of the linear and the quadratic schedule."""
    beta_max: float = 0.02
    """Last beta of the linear and the quadratic schedule."""
    log_snr_max: float = 7.0
    """log SNR at t = 0 of the linear_log_snr schedule."""
    log_snr_min: float = -8.0
    """log SNR at t = T - 1 of the linear_log_snr schedule."""
    zero_terminal_snr: bool = False
    """Bend the schedule so that no signal is left at T - 1; needs model.predicts v or x0."""


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """What that noise is to each frequency of the images; see `ddpm_jax.processes`."""

    name: Literal["isotropic", "blurring", "correlated", "equal_snr"] = "isotropic"
    """"isotropic": white noise, all frequencies alike; "blurring": white noise on an image that is
    blurred more and more; "correlated": noise of neighbouring pixels is alike; "equal_snr": noise
    with the spectrum of the training images."""
    max_blur: float = 2.0
    """Blurring: standard deviation of the kernel at t = T - 1, in pixels."""
    min_scale: float = 1e-3
    """Blurring: what blur alone leaves of each frequency's amplitude at least."""
    correlation_length: float = 0.5
    """Correlated: the noise of pixels (x, y) apart has the correlation exp(-(|x| + |y|) / this)."""
    floor: float = 1e-4
    """Equal_snr: variances below this share of the largest are raised to it."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The U-Net; see `ddpm_jax.models.UNet`."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    norm_groups: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation inside the network; parameters are float32 either way."""
    remat: Remat = "none"
    """What the backward pass computes again to save memory: nothing; attention; all but
    convolutions; whole blocks."""
    predicts: Predicts = "eps"
    """What the network's output stands for."""
    variance: Variance = "small"
    """Of p(x_{t-1} | x_t): fixed, or a second output of the network, "learned_range"."""
    classes: int = 0
    """Classes that the network is told, as many as the dataset has; 0 for none."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    decay: Decay = "constant"
    """What the learning rate does after the warm-up."""
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    """The gradient's global norm is cut to this."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run."""

    steps: int = 800_000
    batch_size: int = 128
    """Over all devices and processes."""
    objective: ObjectiveName = "simple"
    """"simple": mean squared error of what is predicted; "elbo": minus the ELBO, in bits per
    dimension; "hybrid": the first and a little of the second, for a learned variance; "min_snr",
    "p2" and "truncated_snr": mean squared errors with these weights."""
    times: Times = "uniform"
    """How t is drawn: "importance" by a history of losses, which is part of the state."""
    label_dropout: float = 0.1
    """Share of the examples whose class is kept from the network, so that it can be guided."""
    accumulate: int = 1
    """Parts that each batch is taken in, one after the other: less memory, the same result but for
    rounding."""
    ema_decay: tuple[float, ...] = (0.9999,)
    """Of the moving averages of the parameters; the first is evaluated and drawn from."""
    post_hoc_ema: tuple[float, ...] = ()
    """Widths sigma_rel of power-function averages (Karras et al. 2024), two as a rule, 0.05 and
    0.1, of which any other is made after training."""
    post_hoc_every: int = 10_000
    """Steps from one stored pair of these to the next; all are kept."""
    skip_bad_steps: int = 0
    """Steps in a row whose update may be left out because loss or gradient is NaN or Inf; the run
    stops at the next."""
    log_every: int = 100
    save_every: int = 5000
    draw_every: int = 10_000
    keep_latest: int = 2
    """Checkpoints kept: this many of the newest ..."""
    keep_best: int = 1
    """... and this many of those with the lowest held-out loss."""
    verify_checkpoints: bool = True
    """Compare every file with its checksum before anything is restored."""
    missed_saves: int = 3
    """Saves in a row that the disk may refuse; the run stops at the next."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is drawn and measured, during training and at its end."""

    batch_size: int = 128
    """Images in one compiled call, over all devices."""
    num_samples: int = 64
    """Images in a sample grid."""
    sampler: SamplerName = "ancestral"
    sampler_steps: int | None = None
    """Steps of the sampler; by default all T."""
    spacing: Spacing = "linspace"
    """How those steps are spread, see `ddpm_jax.samplers.time_grid`."""
    guidance: float = 1.0
    """Of a network with classes: 0 leaves them out, 1 is the network as it is, more is guided."""
    likelihood_times: int | None = None
    """ELBO terms computed of each held-out image, spread over the chain; by default all T."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices, and how one step runs on them; see `ddpm_jax.parallel`."""

    data: int = -1
    """Devices that share each batch and hold the same parameters; -1 for all there are."""
    fsdp: int = 1
    """Devices that share each batch and the parameters, too; neighbours."""
    form: FormName = "jit"
    """"jit": the compiler places everything; "shard_map": it is written out; "pmap": the classic
    form, which cannot split parameters."""
    reduction: Reduction = "float32"
    """In which dtype gradients are averaged over devices; "bfloat16" if the network is in it."""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """The processes that train together, one for each host as a rule. Alone if nothing is said."""

    detect: bool = False
    """Let JAX find the others, as it can under SLURM, on Cloud TPUs, on GKE and under Open MPI."""
    coordinator: str | None = None
    """host:port of process 0, reachable from all; then `count` and `index` are wanted, too."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which of them this one is, from 0."""
    heartbeat_seconds: int = 10
    """A process that is silent for so long counts as dead, and the others end."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    process: ProcessConfig = ProcessConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    compilation_cache: str | None = "~/.cache/ddpm_jax"
    """Where compiled programs are kept, so that the next start is quick; None keeps none."""
    seed: int = 0
    """Of everything random: parameters, data order, noise, samples."""
    workdir: str = "runs/run"
    """Where checkpoints, metrics and pictures go; the same command goes on from there."""


def load(path: Path) -> Config:
    """The `get_config()` of the Python file at `path`.

    Raises:
        ConfigError: no such file, it cannot be run, or it has no get_config that returns a Config.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"the config {str(path)!r} {what}; configs/ holds some")
    spec = importlib.util.spec_from_file_location(f"ddpm_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the config {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the config {str(path)!r} fails with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Config):
        raise ConfigError(
            f"get_config() of {str(path)!r} returns a {type(config).__name__}; it has to return"
            " a ddpm_jax.config.Config"
        )
    return config


def validate(config: Config) -> None:
    """Raises ConfigError for the first value that cannot work, before anything is built."""
    for field, (holds, wanted) in _RULES.items():
        _require(holds(operator.attrgetter(field)(config)), config, field, wanted)
    schedule = make_schedule(config.schedule)
    try:
        check_predicts(schedule, config.model.predicts)
    except ValueError as error:
        raise ConfigError(f"model.predicts: {error}") from error
    try:
        check_objective(config.train.objective, config.model.variance)
    except ValueError as error:
        raise ConfigError(f"train.{error}") from error
    try:
        make_preparation(config.data)
    except DataError as error:
        raise ConfigError(str(error)) from error
    _check_mesh(config)
    channels, num_steps = config.model.channels, config.schedule.num_steps
    _require(
        channels % config.model.norm_groups == 0,
        config,
        "model.norm_groups",
        f"a divisor of model.channels, {channels}",
    )
    _require(
        (config.evaluation.sampler_steps or 1) <= num_steps,
        config,
        "evaluation.sampler_steps",
        f"at most schedule.num_steps, {num_steps}",
    )
    _require(
        (config.evaluation.likelihood_times or 1) <= num_steps,
        config,
        "evaluation.likelihood_times",
        f"at most schedule.num_steps, {num_steps}",
    )
    _require(
        config.model.classes > 0 or config.evaluation.guidance == 1.0,
        config,
        "evaluation.guidance",
        "1 where model.classes is 0",
    )
    _require(
        config.train.times != "stratified" or config.train.batch_size * num_steps < 2**30,
        config,
        "train.batch_size",
        f"below 2^30 / schedule.num_steps = {2**30 // num_steps} where train.times is 'stratified'",
    )


def _check_mesh(config: Config) -> None:
    mesh, train = config.mesh, config.train
    _require(
        mesh.reduction == "float32" or config.model.dtype == "bfloat16",
        config,
        "mesh.reduction",
        "'float32' where model.dtype is 'float32'",
    )
    _require(
        mesh.form != "pmap" or mesh.fsdp == 1,
        config,
        "mesh.fsdp",
        "1 where mesh.form is 'pmap', which keeps all parameters on each device",
    )
    _require(
        train.batch_size % train.accumulate == 0,
        config,
        "train.accumulate",
        f"a divisor of train.batch_size, {train.batch_size}",
    )


_COUNT = (lambda value: value >= 1, "1 or more")
_NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
_POSITIVE = (lambda value: 0.0 < value < math.inf, "positive and finite")
_FRACTION = (lambda value: 0.0 <= value < 1.0, "in [0, 1)")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.memory_gb": (lambda value: value >= 0.0, "0 or more"),
    "data.crop": (lambda value: value is None or value >= 1, "1 or more"),
    "schedule.num_steps": (lambda value: value <= 1_000_000, "at most 1,000,000"),
    "process.max_blur": (lambda value: 0.0 <= value < math.inf, "0 or more, in pixels"),
    "process.min_scale": (lambda value: 0.0 < value <= 1.0, "in (0, 1]"),
    "process.correlation_length": (lambda value: 0.0 <= value < math.inf, "0 or more, in pixels"),
    "process.floor": (lambda value: 0.0 < value <= 1.0, "in (0, 1]"),
    "model.channels": (lambda value: value >= 4 and value % 2 == 0, "an even number, 4 or more"),
    "model.multipliers": (
        lambda values: len(values) > 0 and min(values) > 0,
        "a positive number for each level",
    ),
    "model.num_blocks": _COUNT,
    "model.norm_groups": _COUNT,
    "model.dropout": _FRACTION,
    "model.classes": _NOT_NEGATIVE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_steps": _NOT_NEGATIVE,
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "train.steps": _COUNT,
    "train.batch_size": _COUNT,
    "train.accumulate": _COUNT,
    "train.label_dropout": _FRACTION,
    "train.ema_decay": (
        lambda values: len(values) > 0 and all(0.0 <= value < 1.0 for value in values),
        "one or more numbers in [0, 1)",
    ),
    "train.post_hoc_ema": (
        lambda values: all(0.0 < value <= 12**-0.5 for value in values),
        "widths sigma_rel in (0, 0.2886]",
    ),
    "train.post_hoc_every": _COUNT,
    "train.skip_bad_steps": _NOT_NEGATIVE,
    "train.missed_saves": _NOT_NEGATIVE,
    "train.log_every": _COUNT,
    "train.save_every": _COUNT,
    "train.draw_every": _COUNT,
    "train.keep_latest": _COUNT,
    "train.keep_best": _NOT_NEGATIVE,
    "mesh.data": (lambda value: value == -1 or value >= 1, "1 or more, or -1 for all"),
    "mesh.fsdp": _COUNT,
    "evaluation.batch_size": _COUNT,
    "evaluation.num_samples": _COUNT,
    "evaluation.sampler_steps": (lambda value: value is None or value >= 1, "1 or more"),
    "evaluation.guidance": (lambda value: -math.inf < value < math.inf, "finite"),
    "evaluation.likelihood_times": (lambda value: value is None or value >= 2, "2 or more"),
    "seed": (lambda value: 0 <= value < 2**32, "in [0, 2^32)"),
}
"""What each field has to be on its own, in the order in which it is checked."""


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that `config` names.

    Raises:
        ConfigError: T below 2, a beta outside (0, 1), or log SNR that does not fall.
    """
    T = config.num_steps
    try:
        match config.name:
            case "linear":
                schedule = schedules.linear(T, config.beta_min, config.beta_max)
            case "quadratic":
                schedule = schedules.quadratic(T, config.beta_min, config.beta_max)
            case "cosine":
                schedule = schedules.cosine(T)
            case "sigmoid":
                schedule = schedules.sigmoid(T)
            case "linear_log_snr":
                schedule = schedules.linear_log_snr(T, config.log_snr_max, config.log_snr_min)
        return schedules.zero_terminal_snr(schedule) if config.zero_terminal_snr else schedule
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error


def make_preparation(config: DataConfig) -> Preparation:
    """What `config` has done to every image."""
    return Preparation(grey=config.grey, size=config.size, pad=config.pad)


class Difference(NamedTuple):
    """A field of two configs, by its dotted name, and its two values."""

    field: str
    first: Any
    second: Any


def differences(first: Config, second: Config) -> list[Difference]:
    """The fields in which two configs differ, in the order of their declaration."""
    flat_first, flat_second = _flatten(to_json(first)), _flatten(to_json(second))
    return [
        Difference(field, value, flat_second[field])
        for field, value in flat_first.items()
        if value != flat_second[field]
    ]


def to_json(config: Config) -> dict[str, Any]:
    """Nested plain values, as `json.dumps` likes them and as they come back from it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_json(values: dict[str, Any]) -> Config:
    """The inverse of `to_json`.

    Raises:
        ConfigError: a field that this version does not know, or one that it misses.
    """
    return _from_json(Config, values, prefix="")


def _from_json(kind: Any, values: dict[str, Any], *, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"the stored config holds {values!r} where fields have to be")
    fields = typing.get_type_hints(kind)
    for name in sorted(fields.keys() ^ values.keys()):
        what = "misses" if name in fields else "has an unknown"
        raise ConfigError(
            f"the stored config {what} field {prefix}{name}; another version wrote it"
        )
    built = {}
    for name, hint in fields.items():
        value = values[name]
        if dataclasses.is_dataclass(hint):
            value = _from_json(hint, value, prefix=f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _require(holds: bool, config: Config, field: str, wanted: str) -> None:
    if not holds:
        value = operator.attrgetter(field)(config)
        raise ConfigError(f"{field} is {value}; it has to be {wanted}")
