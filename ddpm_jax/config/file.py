"""Loads a config from a Python file."""

import contextlib
import dataclasses
import inspect
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpm_jax import config as configs
from ddpm_jax.config.base import ConfigError
from ddpm_jax.config.config import Config
from ddpm_jax.config.packaged import is_name, packaged, packaged_file
from ddpm_jax.config.source import Source, execute
from ddpm_jax.config.values import checked, nearest, shown
from ddpm_jax.errors import UserError

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> Config:
    """The config of a Python file, or of a name in the package.

    The file is executed with your rights. Each value is checked and converted to the type of its
    field; call `validate` to check what depends on several fields.

    Args:
        path: of the file, whose name ends in .py; or the name of a config of the package, such as
            "digits", see `packaged`.

    Returns:
        The config.

    Raises:
        ConfigError: the file or name does not exist, the file fails, it has no `get_config` that
            returns a Config, or a value has the wrong type.
    """
    path = packaged_file(str(path)) if is_name(str(path)) else Path(path)
    name = f"the config {str(path)!r}"
    if "\0" in str(path) or not path.is_file():
        what = "is not a file" if "\0" not in str(path) and path.exists() else "does not exist"
        near = nearest(path.stem, packaged())
        raise ConfigError(f"{name} {what}; `ddpm-jax configs` lists those of the package{near}")
    if path.suffix != ".py":
        raise ConfigError(f"{name} is not a Python file; its name has to end in .py")
    place = str(path)
    try:
        module = execute(Source(path.name, path.read_bytes()), place)
        config = _get_config(module)()
        if not isinstance(config, Config):
            forgotten = "; it may lack a `return`" if config is None else ""
            raise ConfigError(
                f"get_config() returns a {type(config).__name__}; it has to return a"
                f" ddpm_jax.config.Config{forgotten}"
            )
        return checked(config, Config)
    except UserError as error:
        raise ConfigError(f"{name}{_place(error, place)}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name} fails{_place(error, place)} with {_reason(error)}") from error


def _get_config(module: ModuleType) -> Callable[[], Any]:
    """The function of this name in a config file.

    Raises:
        ConfigError: there is none, or it needs arguments.
    """
    wanted = "it has to define a function get_config() that returns a ddpm_jax.config.Config"
    if not hasattr(module, "get_config"):
        near = nearest("get_config", vars(module))
        raise ConfigError(f"AttributeError: it has no get_config{near}; {wanted}")
    get_config = module.get_config
    if not callable(get_config) or inspect.iscoroutinefunction(get_config):
        raise ConfigError(f"get_config is {shown(get_config)}; {wanted}")
    try:
        signature = inspect.signature(get_config)
    except ValueError:  # a callable without a signature
        return get_config
    try:
        signature.bind()
    except TypeError as error:
        raise ConfigError(
            f"get_config{signature} needs arguments ({error}); it is called without any"
        ) from None
    return get_config


def _place(error: BaseException, path: str) -> str:
    """The line of the config file that fails, or that of another file with a syntax error."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        where = "" if error.filename == path else f" of {error.filename}"
        return f" in line {error.lineno}{where}"
    steps = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in steps if frame.f_code.co_filename == path]
    return f" in line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    """Type and text of the error in one line; for a misspelt field also the nearest name."""
    text = ""
    with contextlib.suppress(Exception):  # str() of a strange error may raise
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    sentence = f"{type(error).__name__}: {' '.join(text.split())}"
    if match := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        kind = frame.f_globals.get(match[1], getattr(configs, match[1], None))
        if dataclasses.is_dataclass(kind) and "Did you mean" not in text:
            sentence += nearest(match[2], [field.name for field in dataclasses.fields(kind)])
    return sentence
