"""What the subcommands' argument parsing has in common."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from ddpm_jax import config as configs
from ddpm_jax.config import Config

__all__ = ["parse_config"]


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
    return tyro.cli(
        Config,
        prog=f"ddpm-jax {command} {path}",
        description=f"Fields of the config {path}, and their values in it.",
        args=overrides,
        default=default,
    )
