"""A configuration from a Python file, and to and from JSON."""

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ddpm_jax.config import fields
from ddpm_jax.config.fields import Affects, Config, ConfigError
from ddpm_jax.config.values import checked, effects, from_plain, nearest, shown
from ddpm_jax.errors import UserError

__all__ = ["Difference", "affects", "differences", "flat", "from_json", "load", "to_json"]


def load(path: str | os.PathLike[str]) -> Config:
    """The `get_config()` of the Python file at `path`, which is executed with your rights.

    Each value is of its field's type, or becomes it (see `ddpm_jax.config.values`); `validate`
    checks the rest.

    Raises:
        ConfigError: no such file, an error in executing it, no get_config that returns a Config, or
            a value of another type.
    """
    path = Path(path)
    name = f"the config {str(path)!r}"
    if "\0" in str(path) or not path.is_file():
        what = "is no file" if "\0" not in str(path) and path.exists() else "does not exist"
        raise ConfigError(f"{name} {what}; configs/ holds some")
    spec = importlib.util.spec_from_file_location(f"ddpm_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{name} is not a Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass of the file looks for its types
    try:
        spec.loader.exec_module(module)
        config = _get_config(module)()
        if not isinstance(config, Config):
            forgotten = "; it may lack a `return`" if config is None else ""
            raise ConfigError(
                f"get_config() returns a {type(config).__name__}; it has to return a"
                f" ddpm_jax.config.Config{forgotten}"
            )
        typed: Config = checked(config, Config)
    except UserError as error:
        raise ConfigError(f"{name}{_place(error, str(spec.origin))}: {error}") from error
    except (Exception, SystemExit) as error:
        place = _place(error, str(spec.origin))
        raise ConfigError(f"{name} fails{place} with {_reason(error)}") from error
    return typed


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
    except ValueError:  # of a function that does not tell its arguments
        return get_config
    try:
        signature.bind()
    except TypeError as error:
        raise ConfigError(
            f"get_config{signature} needs arguments ({error}); it is called without any"
        ) from None
    return get_config


def _place(error: BaseException, path: str) -> str:
    """The line of the config file that fails, and that of another file in which it does."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        where = "" if error.filename == path else f" of {error.filename}"
        return f" in line {error.lineno}{where}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f" in line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    """Its type and its text, in one line."""
    text = ""
    with contextlib.suppress(Exception):  # of a class whose text cannot be made
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    sentence = f"{type(error).__name__}: {' '.join(text.split())}"
    if found := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        kind = getattr(fields, found[1], None)
        if dataclasses.is_dataclass(kind) and "Did you mean" not in text:
            sentence += nearest(found[2], [field.name for field in dataclasses.fields(kind)])
    return sentence


class Difference(NamedTuple):
    """A field of two configs, by its dotted name, and its two values."""

    field: str
    first: Any
    second: Any


def differences(first: Config, second: Config) -> list[Difference]:
    """The fields in which two configs differ, in the order of their declaration."""
    flat_first, flat_second = flat(to_json(first)), flat(to_json(second))
    return [
        Difference(field, value, flat_second[field])
        for field, value in flat_first.items()
        if value != flat_second[field]
    ]


def affects(difference: Difference) -> Affects:
    """What a difference changes, as its field declares."""
    return effects()[difference.field]


def to_json(config: Config) -> dict[str, Any]:
    """Nested plain values, as `json.dumps` likes them and as they come back from it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_json(values: dict[str, Any]) -> Config:
    """The inverse of `to_json`.

    Raises:
        ConfigError: a field that this version does not know, or one that it misses, or a value that
            is not of its field's type.
    """
    config: Config = from_plain(values, Config)
    return config


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What `to_json` returns, by dotted names."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            plain |= flat(value, f"{prefix}{name}.")
        else:
            plain[prefix + name] = value
    return plain
