"""What the values of a configuration have to be, each on its own and together."""

import math
import operator
from collections.abc import Callable
from typing import Any

from ddpm_jax import schedules
from ddpm_jax.config.fields import Config, ConfigError, DataConfig, ScheduleConfig
from ddpm_jax.config.jax_settings import check_jax_settings
from ddpm_jax.config.values import checked, effects
from ddpm_jax.data import DataError, Preparation
from ddpm_jax.reverse import check_predicts
from ddpm_jax.schedules import Schedule
from ddpm_jax.training.objective import check_objective

__all__ = ["make_preparation", "make_schedule", "validate"]


def validate(config: Config) -> Config:
    """`config` with each value as its field has it, before anything is built.

    Raises:
        UserError: for the first value that is of another type, or cannot work: a ConfigError if it
            is one of the config, and not a setting of JAX.
    """
    check_jax_settings()
    config = checked(config, Config)
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
        channels % config.model.heads == 0,
        config,
        "model.heads",
        f"a divisor of model.channels, {channels}",
    )
    _require(
        config.model.attention_kernel == "xla" or config.model.dtype == "bfloat16",
        config,
        "model.attention_kernel",
        "'xla' where model.dtype is 'float32'",
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
    for field in effects():
        value = operator.attrgetter(field)(config)
        _require(not isinstance(value, float) or math.isfinite(value), config, field, "finite")
    return config


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
_STEPS = (lambda value: 1 <= value < 2**31, "1 or more, and below 2^31")
_NOT_EMPTY = (lambda value: value.strip() != "", "a name that is not empty")
_POSITIVE = (lambda value: 0.0 < value < math.inf, "positive and finite")
_FRACTION = (lambda value: 0.0 <= value < 1.0, "in [0, 1)")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.name": _NOT_EMPTY,
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
    "model.heads": _COUNT,
    "model.norm_groups": _COUNT,
    "model.dropout": _FRACTION,
    "model.classes": _NOT_NEGATIVE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_steps": (lambda value: 0 <= value < 2**31, "0 or more, and below 2^31"),
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "train.steps": _STEPS,
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
    "workdir": _NOT_EMPTY,
    "compilation_cache": (lambda value: value != "", "the name of a folder, or None"),
    "seed": (lambda value: 0 <= value < 2**32, "in [0, 2^32)"),
}
"""What each field has to be on its own, in the order in which it is checked."""


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that `config` names.

    Raises:
        ConfigError: T below 2, a beta outside (0, 1), or log SNR that does not fall.
    """
    config = checked(config, ScheduleConfig, "schedule")
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


def _require(holds: bool, config: Config, field: str, wanted: str) -> None:
    if not holds:
        value = operator.attrgetter(field)(config)
        raise ConfigError(f"{field} is {str(value) or repr(value)}; it has to be {wanted}")
