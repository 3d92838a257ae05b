"""What the subcommands' argument parsing has in common."""

import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import Experiment, Sampling
from ddpm_jax.terminal import escape

__all__ = ["check_at_least", "check_sampling", "check_seed", "parse_config", "parse_options"]


def parse_options(options: Any, prog: str, arguments: Sequence[str], **how: Any) -> Any:
    """`tyro.cli`; its messages show what a terminal would obey in arguments as `repr` does."""
    prog, harmless = escape(prog), [escape(argument) for argument in arguments]
    if harmless != list(arguments):
        unseen = io.StringIO()
        with (
            contextlib.suppress(SystemExit),
            contextlib.redirect_stdout(unseen),
            contextlib.redirect_stderr(unseen),
        ):
            return tyro.cli(options, prog=prog, args=arguments, **how)
    return tyro.cli(options, prog=prog, args=harmless, **how)


def parse_config(command: str, arguments: Sequence[str]) -> Config:
    """The config file named first, with the overrides that follow it.

    A wrong name or type ends the process with exit code 2 and a message that names the field and
    the nearest right one.

    Raises:
        UserError: no config file is named, or it cannot be loaded.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        default, path, overrides = Config(), "CONFIG", ["--help"]
    elif not arguments or arguments[0].startswith("-"):
        raise configs.ConfigError(
            f"ddpm-jax {command} wants a config file first: ddpm-jax {command} configs/digits.py"
        )
    else:
        path, overrides = arguments[0], list(arguments[1:])
        default = configs.load(Path(path))
    config: Config = parse_options(
        Config,
        f"ddpm-jax {command} {path}",
        overrides,
        description=escape(f"Fields of the config {path}, and their values in it."),
        default=default,
    )
    return config


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
