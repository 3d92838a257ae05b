"""The typed configuration of an experiment: what `configs/*.py` return and `--a.b value` changes.

Frozen dataclasses of plain values: what they say can be printed, compared and stored as JSON. The
annotation of each field says what its values are, which `ddpm_jax.config.values` checks, and what
the field affects, which decides whether a run may go on with another value.
"""

import dataclasses
import enum
from typing import Annotated, Literal

from ddpm_jax.data import OnBadImage
from ddpm_jax.errors import UserError
from ddpm_jax.forward import Predicts
from ddpm_jax.models import AttentionKernel, Remat
from ddpm_jax.parallel import FormName, Reduction
from ddpm_jax.reverse import Variance
from ddpm_jax.samplers import Spacing
from ddpm_jax.training.objective import ObjectiveName, Times
from ddpm_jax.training.optimizer import Decay

__all__ = [
    "Affects",
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


class Affects(enum.Enum):
    """What another value of a field would change.

    A run goes on only with the values of its first two kinds that its checkpoints were trained
    with.
    """

    MODEL = "what the parameters mean: the images, the noise, the network"
    TRAINING = "the parameters that training ends with, not how they are used"
    ROUNDING = "how the same numbers are computed: no more than rounding"
    REPORTS = "what is drawn, measured, logged and saved, and at what a run stops"
    PLACE = "where things are, and who computes"


MODEL, TRAINING, ROUNDING, REPORTS, PLACE = Affects


class ConfigError(UserError):
    """A configuration that cannot work, told before anything is built."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images."""

    name: Annotated[str, PLACE] = "digits"
    """"digits" (scikit-learn's), "folder:PATH", "npz:PATH", or a dataset of TensorFlow Datasets:
    cifar10, fashion_mnist. A run that goes on compares the content of the images, not this."""
    dir: Annotated[str | None, PLACE] = None
    """Where prepared TensorFlow Datasets are; by default TFDS_DATA_DIR or ~/tensorflow_datasets.
    Relative paths of folders and archives are below it, too; by default below the working
    directory."""
    grey: Annotated[bool, MODEL] = False
    """Take the colours away."""
    size: Annotated[int | None, MODEL] = None
    """Resize the shorter side to this, and keep the middle of the longer one."""
    pad: Annotated[int | None, MODEL] = None
    """Put a black border around, to squares of this side."""
    crop: Annotated[int | None, MODEL] = None
    """Train on squares of this side cut out at random; held-out images are cut in the middle."""
    flip: Annotated[bool, TRAINING] = False
    """Mirror each training image left to right half of the time."""
    on_bad_image: Annotated[OnBadImage, REPORTS] = "stop"
    """What to do of an image that cannot be decoded: "stop" with a sentence, or "skip", count and
    report it."""
    memory_gb: Annotated[float, PLACE] = 4.0
    """Datasets of at most so many gigabytes of pixels are decoded once, into memory; larger ones as
    they are read."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How noise grows over the chain."""

    name: Annotated[
        Literal["linear", "quadratic", "cosine", "sigmoid", "linear_log_snr"], MODEL
    ] = "linear"
    num_steps: Annotated[int, MODEL] = 1000
    """T, the length of the chain."""
    beta_min: Annotated[float, MODEL] = 1e-4
    """First beta of the linear and the quadratic schedule."""
    beta_max: Annotated[float, MODEL] = 0.02
    """Last beta of the linear and the quadratic schedule."""
    log_snr_max: Annotated[float, MODEL] = 7.0
    """log SNR at t = 0 of the linear_log_snr schedule."""
    log_snr_min: Annotated[float, MODEL] = -8.0
    """log SNR at t = T - 1 of the linear_log_snr schedule."""
    zero_terminal_snr: Annotated[bool, MODEL] = False
    """Bend the schedule so that no signal is left at T - 1; needs model.predicts v or x0."""


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """What that noise is to each frequency of the images; see `ddpm_jax.processes`."""

    name: Annotated[Literal["isotropic", "blurring", "correlated", "equal_snr"], MODEL] = (
        "isotropic"
    )
    """"isotropic": white noise, all frequencies alike; "blurring": white noise on an image that is
    blurred more and more; "correlated": noise of neighbouring pixels is alike; "equal_snr": noise
    with the spectrum of the training images."""
    max_blur: Annotated[float, MODEL] = 2.0
    """Blurring: standard deviation of the kernel at t = T - 1, in pixels."""
    min_scale: Annotated[float, MODEL] = 1e-3
    """Blurring: what blur alone leaves of each frequency's amplitude at least."""
    correlation_length: Annotated[float, MODEL] = 0.5
    """Correlated: the noise of pixels (x, y) apart has the correlation exp(-(|x| + |y|) / this)."""
    floor: Annotated[float, MODEL] = 1e-4
    """Equal_snr: variances below this share of the largest are raised to it."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The U-Net; see `ddpm_jax.models.UNet`."""

    channels: Annotated[int, MODEL] = 128
    multipliers: Annotated[tuple[int, ...], MODEL] = (1, 2, 2, 2)
    num_blocks: Annotated[int, MODEL] = 2
    attention_resolutions: Annotated[tuple[int, ...], MODEL] = (16,)
    heads: Annotated[int, MODEL] = 1
    """Of each self-attention."""
    attention_kernel: Annotated[AttentionKernel, ROUNDING] = "xla"
    """What computes attention on a GPU: "cudnn" is one fused kernel, for bfloat16 and heads of at
    most 128 channels (256 from an H100 on). Elsewhere it is always "xla"."""
    dropout: Annotated[float, TRAINING] = 0.1
    norm_groups: Annotated[int, MODEL] = 32
    dtype: Annotated[Literal["float32", "bfloat16"], MODEL] = "float32"
    """Of the computation inside the network; parameters are float32 either way."""
    remat: Annotated[Remat, ROUNDING] = "none"
    """What the backward pass computes again to save memory: nothing; attention; all but
    convolutions; whole blocks."""
    predicts: Annotated[Predicts, MODEL] = "eps"
    """What the network's output stands for."""
    variance: Annotated[Variance, MODEL] = "small"
    """Of p(x_{t-1} | x_t): fixed, or a second output of the network, "learned_range"."""
    classes: Annotated[int, MODEL] = 0
    """Classes that the network is told, as many as the dataset has; 0 for none."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: Annotated[float, TRAINING] = 2e-4
    warmup_steps: Annotated[int, TRAINING] = 5000
    decay: Annotated[Decay, TRAINING] = "constant"
    """What the learning rate does after the warm-up."""
    b1: Annotated[float, TRAINING] = 0.9
    b2: Annotated[float, TRAINING] = 0.999
    clip_norm: Annotated[float, TRAINING] = 1.0
    """The gradient's global norm is cut to this."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run."""

    steps: Annotated[int, TRAINING] = 800_000
    batch_size: Annotated[int, TRAINING] = 128
    """Over all devices and processes."""
    objective: Annotated[ObjectiveName, TRAINING] = "simple"
    """"simple": mean squared error of what is predicted; "elbo": minus the ELBO, in bits per
    dimension; "hybrid": the first and a little of the second, for a learned variance; "min_snr",
    "p2" and "truncated_snr": mean squared errors with these weights."""
    times: Annotated[Times, TRAINING] = "uniform"
    """How t is drawn: "importance" by a history of losses, which is part of the state."""
    label_dropout: Annotated[float, TRAINING] = 0.1
    """Share of the examples whose class is kept from the network, so that it can be guided."""
    accumulate: Annotated[int, ROUNDING] = 1
    """Parts that each batch is taken in, one after the other: less memory, the same result but for
    rounding."""
    ema_decay: Annotated[tuple[float, ...], TRAINING] = (0.9999,)
    """Of the moving averages of the parameters; the first is evaluated and drawn from."""
    post_hoc_ema: Annotated[tuple[float, ...], TRAINING] = ()
    """Widths sigma_rel of power-function averages (Karras et al. 2024), two as a rule, 0.05 and
    0.1, of which any other is made after training."""
    post_hoc_every: Annotated[int, REPORTS] = 10_000
    """Steps from one stored pair of these to the next; all are kept."""
    skip_bad_steps: Annotated[int, TRAINING] = 0
    """Steps in a row whose update may be left out because loss or gradient is NaN or Inf; the run
    stops at the next."""
    log_every: Annotated[int, REPORTS] = 100
    save_every: Annotated[int, REPORTS] = 5000
    draw_every: Annotated[int, REPORTS] = 10_000
    keep_latest: Annotated[int, REPORTS] = 2
    """Checkpoints kept: this many of the newest ..."""
    keep_best: Annotated[int, REPORTS] = 1
    """... and this many of those with the lowest held-out loss."""
    verify_checkpoints: Annotated[bool, REPORTS] = True
    """Compare every file with its checksum before anything is restored."""
    missed_saves: Annotated[int, REPORTS] = 3
    """Saves in a row that the disk may refuse; the run stops at the next."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is drawn and measured, during training and at its end."""

    batch_size: Annotated[int, REPORTS] = 128
    """Images in one compiled call, over all devices."""
    num_samples: Annotated[int, REPORTS] = 64
    """Images in a sample grid."""
    sampler: Annotated[SamplerName, REPORTS] = "ancestral"
    sampler_steps: Annotated[int | None, REPORTS] = None
    """Steps of the sampler; by default all T."""
    spacing: Annotated[Spacing, REPORTS] = "linspace"
    """How those steps are spread, see `ddpm_jax.samplers.time_grid`."""
    guidance: Annotated[float, REPORTS] = 1.0
    """Of a network with classes: 0 leaves them out, 1 is the network as it is, more is guided."""
    likelihood_times: Annotated[int | None, REPORTS] = None
    """ELBO terms computed of each held-out image, spread over the chain; by default all T."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices, and how one step runs on them; see `ddpm_jax.parallel`."""

    data: Annotated[int, ROUNDING] = -1
    """Devices that share each batch and hold the same parameters; -1 for all there are."""
    fsdp: Annotated[int, ROUNDING] = 1
    """Devices that share each batch and the parameters, too; neighbours."""
    form: Annotated[FormName, ROUNDING] = "jit"
    """"jit": the compiler places everything; "shard_map": it is written out; "pmap": the classic
    form, which cannot split parameters."""
    reduction: Annotated[Reduction, ROUNDING] = "float32"
    """In which dtype gradients are averaged over devices; "bfloat16" if the network is in it."""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """The processes that train together, one for each host as a rule. Alone if nothing is said."""

    detect: Annotated[bool, PLACE] = False
    """Let JAX find the others, as it can under SLURM, on Cloud TPUs, on GKE and under Open MPI."""
    coordinator: Annotated[str | None, PLACE] = None
    """host:port of process 0, reachable from all; then `count` and `index` are wanted, too."""
    count: Annotated[int | None, PLACE] = None
    """How many processes there are."""
    index: Annotated[int | None, PLACE] = None
    """Which of them this one is, from 0."""
    heartbeat_seconds: Annotated[int, PLACE] = 10
    """A process that is silent for so long counts as dead, and the others end."""
    start_seconds: Annotated[int, PLACE] = 300
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
    compilation_cache: Annotated[str | None, PLACE] = "~/.cache/ddpm_jax"
    """Where compiled programs are kept, so that the next start is quick; None keeps none."""
    seed: Annotated[int, MODEL] = 0
    """Of everything random: parameters, data order, noise, samples."""
    workdir: Annotated[str, PLACE] = "runs/run"
    """Where checkpoints, metrics and pictures go; the same command goes on from there."""
