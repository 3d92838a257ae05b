"""What the subcommands' argument parsing has in common."""

import math
from collections.abc import Sequence
from typing import Any

import tyro

from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import Experiment, Sampling

__all__ = ["EXECUTED", "check_at_least", "check_sampling", "check_seed", "parse_config"]

EXECUTED = (
    "A config file is a Python program: it is executed with your rights, as a script would be, so"
    " read one from somebody else before you run it."
)
"""What the help of each command that takes a config file says."""


def parse_config(command: str, arguments: Sequence[str]) -> Config:
    """The config file named first, which is executed, with the overrides that follow it.

    A wrong name or type ends the process with exit code 2 and a message that names the field and
    the nearest right one.

    Raises:
        UserError: no config file is named, it cannot be loaded, or a value is not of its field's
            type.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        default, path, overrides = Config(), "CONFIG", ["--help"]
    elif not arguments or arguments[0].startswith("-"):
        raise configs.ConfigError(
            f"ddpm-jax {command} wants a config file first: ddpm-jax {command} configs/digits.py"
        )
    else:
        path, overrides = arguments[0], list(arguments[1:])
        default = configs.load(path)
    config = tyro.cli(
        Config,
        prog=f"ddpm-jax {command} {path}",
        description=f"Fields of the config {path}, and their values in it. {EXECUTED}",
        args=overrides,
        default=default,
    )
    return configs.checked(config, Config)


def check_at_least(asked: Any, least: int, *names: str) -> None:
    """Raises UserError if an option of one of these names was given and is less."""
    for name in names:
        value = getattr(asked, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it has to be {least} or more")


def check_seed(seed: int) -> None:
    """Raises UserError unless JAX's keys can be made of it."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it has to be in [0, 2^32)")


def check_sampling(how: Sampling, experiment: Experiment) -> None:
    """Raises UserError unless images can be drawn so of this experiment."""
    num_steps, classes = experiment.process.num_steps, experiment.config.model.classes
    if how.steps is not None and not 1 <= how.steps <= num_steps:
        raise UserError(f"--steps is {how.steps}; the chain has 1 to T = {num_steps}")
    if not math.isfinite(how.guidance):
        raise UserError(f"--guidance is {how.guidance}; it has to be finite")
    for name, given in (("label", how.label is not None), ("guidance", how.guidance != 1.0)):
        if given and classes == 0:
            raise UserError(f"--{name} is for runs with classes; this one has none")
    if how.label is not None and not 0 <= how.label < classes:
        raise UserError(f"--label is {how.label}; the run has the classes 0 to {classes - 1}")
