"""One experiment: a member of each family, the run, and what has to hold of them together."""

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
    """The run."""

    steps: Annotated[
        int, LENGTH, Bound(lambda value: 1 <= value < 2**31, "1 or more, and below 2^31")
    ] = 800_000
    """A finished run is extended with more of them."""
    batch_size: Annotated[int, TRAINING, COUNT] = 128
    """Over all devices and processes."""
    label_dropout: Annotated[float, TRAINING, FRACTION] = 0.1
    """Share of the examples whose class is hidden from the network, so that it can be guided."""
    accumulate: Annotated[int, ROUNDING, COUNT] = 1
    """Parts that each batch is taken in, one after the other: less memory, the same result but for
    rounding."""
    skip_bad_steps: Annotated[int, TRAINING, NOT_NEGATIVE] = 0
    """Steps in a row whose update may be left out because loss or gradient is NaN or Inf; the run
    stops at the next."""
    log_every: Annotated[int, REPORTS, COUNT] = 100
    save_every: Annotated[int, REPORTS, COUNT] = 5000
    draw_every: Annotated[int, REPORTS, COUNT] = 10_000
    keep_latest: Annotated[int, REPORTS, COUNT] = 2
    """Checkpoints that stay: this many of the newest ..."""
    keep_best: Annotated[int, REPORTS, NOT_NEGATIVE] = 1
    """... and this many of those with the lowest held-out loss."""
    verify_checkpoints: Annotated[bool, REPORTS] = True
    """Compare every file with its checksum before anything is restored."""
    missed_saves: Annotated[int, REPORTS, NOT_NEGATIVE] = 3
    """Saves in a row that the disk may refuse; the run stops at the next."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

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
    """Directory of a run whose parameters a new run begins with, in place of random ones."""
    init_params: Annotated[
        Literal["ema", "raw"] | float,
        TRAINING,
        Bound(lambda value: isinstance(value, str) or value > 0.0, "'ema', 'raw' or a width"),
    ] = "ema"
    """Which of them: the moving average, the raw ones, or the post-hoc average of this width."""
    compilation_cache: Annotated[
        str | None, PLACE, Bound(lambda value: value != "", "the name of a folder, or None")
    ] = "~/.cache/ddpm_jax"
    """Where compiled programs are stored, so that the next start is quick; None for nowhere."""
    seed: Annotated[int, MODEL, Bound(lambda value: 0 <= value < 2**32, "in [0, 2^32)")] = 0
    """Of everything random: parameters, data order, noise, samples."""
    workdir: Annotated[str, PLACE, NOT_EMPTY] = "runs/run"
    """Where checkpoints, metrics and pictures go; the same command resumes from there."""


def validate(config: Config) -> Config:
    """`config` with each value as its field has it, before anything is built.

    Raises:
        UserError: for the first value that is of another type, or cannot work: a ConfigError if it
            is one of the config, and not a setting of JAX.
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
    """Each member of a config, and of its members, with its dotted name."""
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if isinstance(value, Member):
            yield prefix + field.name, value
            yield from members_of(value, f"{prefix}{field.name}.")


_OTHER_NUMBERS = "the random numbers of a run would be others"
_GUARD = "tables, images and results move between host and device"
_JAX_SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_threefry_partitionable": ((True,), _OTHER_NUMBERS),
    "jax_random_seed_offset": ((0,), _OTHER_NUMBERS),
    "jax_accurate_erf_inv": ((False,), _OTHER_NUMBERS),
    "jax_disable_jit": ((False,), "steps are compiled before they run"),
    "jax_debug_key_reuse": ((False,), "a key per example is folded in more than one program"),
    **{
        f"jax_transfer_guard{direction}": ((None, "allow", "log", "log_explicit"), _GUARD)
        for direction in ("", "_host_to_device", "_device_to_device", "_device_to_host")
    },
}
"""Settings of JAX, from the environment or `jax.config`: what each may be, and why nothing else.

A run has to end with the same bits wherever it is resumed, so what changes random numbers is
refused. All other settings leave the bits as they are, or change them by rounding:
`tests/config/test_jax_settings.py` has the table.
"""


def _check_jax_settings() -> None:
    """Raises UserError for the first setting of JAX under which no run is possible."""
    for name, (allowed, reason) in _JAX_SETTINGS.items():
        value = getattr(jax.config, name, allowed[0])  # an older JAX has fewer of them
        if value not in allowed:
            wanted = "unset" if allowed[0] is None else repr(allowed[0])
            raise UserError(f"{name.upper()} is {value!r}; it has to be {wanted}, since {reason}")
