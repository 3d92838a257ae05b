"""The typed configuration of an experiment: what `configs/*.py` return and `--a.b value` changes.

Frozen dataclasses of plain values: what they say can be printed, compared and stored as JSON.
"""

import dataclasses
from typing import Literal

from ddpm_jax.data import OnBadImage
from ddpm_jax.errors import UserError
from ddpm_jax.forward import Predicts
from ddpm_jax.models import Remat
from ddpm_jax.parallel import FormName, Reduction
from ddpm_jax.reverse import Variance
from ddpm_jax.samplers import Spacing
from ddpm_jax.training.objective import ObjectiveName, Times
from ddpm_jax.training.optimizer import Decay

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "HostsConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProcessConfig",
    "SamplerName",
    "ScheduleConfig",
    "TrainConfig",
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
    start_seconds: int = 300
    """A process waits so long for the others to start, and then ends: before all have met, none can
    tell one that died from one that comes late."""


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
