"""One experiment: a member of each family, the run, and the checks that involve several of them."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jax

from ddpm_jax.config.averages import EMA, Averages
from ddpm_jax.config.base import (
    COUNT,
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    Affects,
    Bound,
    ConfigError,
    Member,
)
from ddpm_jax.config.data import Data, Digits, Preparation, Standard
from ddpm_jax.config.evaluation import BitsPerDim, Evaluation
from ddpm_jax.config.logger import Logger, TensorBoard
from ddpm_jax.config.mesh import Hosts, JaxHosts, Jit, Mesh
from ddpm_jax.config.network import Network, UNet
from ddpm_jax.config.objective import Objective, Simple, Times, Uniform
from ddpm_jax.config.optimizer import Adam, Optimizer
from ddpm_jax.config.process import Isotropic, Process
from ddpm_jax.config.sampler import Ancestral, Sampler
from ddpm_jax.config.schedule import Linear, Schedule, make_schedule
from ddpm_jax.config.values import checked
from ddpm_jax.data import DataError
from ddpm_jax.errors import UserError
from ddpm_jax.reverse import check_predicts

__all__ = ["Config", "Train", "members_of", "validate"]

MODEL, TRAINING, LENGTH, ROUNDING, REPORTS, PLACE = Affects


@dataclasses.dataclass(frozen=True)
class Train:
    """Length of the run, batches, checkpoints, logs."""

    steps: Annotated[
        int, LENGTH, Bound(lambda value: 1 <= value < 2**31, "1 or more, and below 2^31")
    ] = 800_000
    """Number of training steps. Raise it to extend a finished run."""
    batch_size: Annotated[int, TRAINING, COUNT] = 128
    """Images in each step, over all devices and processes."""
    label_dropout: Annotated[float, TRAINING, FRACTION] = 0.1
    """Share of the training images whose class is hidden from the network, in [0, 1). Guidance
    needs it above 0."""
    accumulate: Annotated[int, ROUNDING, COUNT] = 1
    """Number of parts that each batch is split into; they are computed one after the other. Raise
    it if memory runs out: the result is the same up to rounding."""
    skip_bad_steps: Annotated[int, TRAINING, NOT_NEGATIVE] = 0
    """Number of consecutive steps that may be skipped because their loss or gradient is NaN or Inf.
    The run stops at the next one."""
    log_every: Annotated[int, REPORTS, COUNT] = 100
    """Steps between two logged losses."""
    eval_every: Annotated[int | None, REPORTS, COUNT] = 1000
    """Steps between two numbers of the moving average on held-out images, see
    `Evaluation.monitor`; None for none."""
    save_every: Annotated[int, REPORTS, COUNT] = 5000
    """Steps between two checkpoints."""
    draw_every: Annotated[int, REPORTS, COUNT] = 10_000
    """Steps between two sample grids."""
    keep_latest: Annotated[int, REPORTS, COUNT] = 2
    """Number of newest checkpoints to keep."""
    keep_best: Annotated[int, REPORTS, NOT_NEGATIVE] = 1
    """Number of checkpoints with the lowest held-out loss to keep, beside the newest. The loss is
    that of the first 1,024 held-out images, or of all if there are fewer."""
    verify_checkpoints: Annotated[bool, REPORTS] = True
    """Compare each file of a checkpoint with its checksum before restoring it."""
    missed_saves: Annotated[int, REPORTS, NOT_NEGATIVE] = 3
    """Number of consecutive saves that may fail because of the disk. The run stops at the next
    failure."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: a member of each family, and the run.

    - `data`: the data set.
    - `preparation`: what is done to each image.
    - `schedule`: how noise grows over the chain.
    - `process`: how the noise acts on the frequencies of an image.
    - `network`: the network, and what it predicts.
    - `objective`: the loss of each example.
    - `times`: how training draws t.
    - `optimizer`: the optimizer, and its learning rate.
    - `averages`: moving averages of the parameters.
    - `sampler`: how images are drawn.
    - `evaluation`: what is measured on held-out images.
    - `mesh`: the devices, and how a step runs on them.
    - `hosts`: the processes that train together.
    - `logger`: where figures and pictures go, beside the run's own files.
    - `train`: length of the run, batches, checkpoints, logs.
    """

    data: Data = Digits()
    preparation: Preparation = Standard()
    schedule: Schedule = Linear()
    process: Process = Isotropic()
    network: Network = UNet()
    objective: Objective = Simple()
    times: Times = Uniform()
    optimizer: Optimizer = Adam()
    averages: Averages = EMA()
    sampler: Sampler = Ancestral()
    evaluation: Evaluation = BitsPerDim()
    mesh: Mesh = Jit()
    hosts: Hosts = JaxHosts()
    logger: Logger = TensorBoard()
    train: Train = Train()
    init_from: Annotated[
        str | None, TRAINING, Bound(lambda value: value != "", "a run, or None")
    ] = None
    """Directory of another run, whose parameters a new run starts from. None starts from random
    parameters."""
    init_params: Annotated[
        Literal["ema", "raw"] | float,
        TRAINING,
        Bound(lambda value: isinstance(value, str) or value > 0.0, "'ema', 'raw' or a width"),
    ] = "ema"
    """Which parameters of the run `init_from`: its moving average "ema", the "raw" ones, or a
    number, the relative width of a post-hoc average."""
    compilation_cache: Annotated[
        str | None, PLACE, Bound(lambda value: value != "", "the name of a folder, or None")
    ] = "~/.cache/ddpm_jax"
    """Folder for compiled programs, which makes the next start faster. None stores none."""
    seed: Annotated[int, MODEL, Bound(lambda value: 0 <= value < 2**32, "in [0, 2^32)")] = 0
    """Seed of all randomness: parameters, order of the data, noise, samples. In [0, 2^32)."""
    workdir: Annotated[str, PLACE, NOT_EMPTY] = "runs/run"
    """Directory for checkpoints, metrics and pictures. The same command resumes from there."""


def validate(config: Config) -> Config:
    """Checks a whole config before anything is built.

    Args:
        config: to be checked.

    Returns:
        The config, each value converted to the type of its field.

    Raises:
        ConfigError: a value is of the wrong type, out of bounds, or does not fit another value.
        UserError: a setting of JAX would change the results.
    """
    _check_jax_settings()
    config = checked(config, Config)
    schedule = make_schedule(config.schedule)
    try:
        check_predicts(schedule, config.network.predicts)
    except ValueError as error:
        raise ConfigError(f"network.predicts: {error}") from error
    for _, member in members_of(config):
        member.check(config)
    try:
        config.preparation.make()
    except DataError as error:
        raise ConfigError(str(error)) from error
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % accumulate:
        raise ConfigError(
            f"train.accumulate is {accumulate}; it has to be a divisor of train.batch_size,"
            f" {batch_size}"
        )
    return config


def members_of(values: Any, prefix: str = "") -> Iterator[tuple[str, Member]]:
    """All members of a config, also those inside other members.

    Args:
        values: a config, or a member.
        prefix: put before each name.

    Returns:
        Pairs (dotted name, member).
    """
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if isinstance(value, Member):
            yield prefix + field.name, value
            yield from members_of(value, f"{prefix}{field.name}.")


_OTHER_NUMBERS = "otherwise the run would draw different random numbers"
_GUARD = "tables, images and results move between host and device"
_JAX_SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_threefry_partitionable": ((True,), _OTHER_NUMBERS),
    "jax_random_seed_offset": ((0,), _OTHER_NUMBERS),
    "jax_accurate_erf_inv": ((False,), _OTHER_NUMBERS),
    "jax_disable_jit": ((False,), "steps are compiled before they run"),
    "jax_debug_key_reuse": ((False,), "several programs fold the key of the same example"),
    **{
        f"jax_transfer_guard{direction}": ((None, "allow", "log", "log_explicit"), _GUARD)
        for direction in ("", "_host_to_device", "_device_to_device", "_device_to_host")
    },
}
"""Settings of JAX, from the environment or `jax.config`: the allowed values, and the reason.

A run has to end with the same bits wherever it is resumed, so settings that change random numbers
are refused. All other settings leave the bits as they are, or change them by rounding:
`tests/config/test_jax_settings.py` has the table.
"""


def _check_jax_settings() -> None:
    """Raises UserError for the first setting of JAX that is not allowed."""
    for name, (allowed, reason) in _JAX_SETTINGS.items():
        value = getattr(jax.config, name, allowed[0])  # an older JAX lacks some of them
        if value not in allowed:
            wanted = "unset" if allowed[0] is None else repr(allowed[0])
            raise UserError(f"{name.upper()} is {value!r}; it has to be {wanted}, since {reason}")
