"""A configuration from a Python file, and to and from JSON."""

import dataclasses
import importlib.util
import json
import typing
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.config.fields import Config, ConfigError

__all__ = ["Difference", "differences", "from_json", "load", "to_json"]


def load(path: Path) -> Config:
    """The `get_config()` of the Python file at `path`.

    Raises:
        ConfigError: no such file, it cannot be run, or it has no get_config that returns a Config.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"the config {str(path)!r} {what}; configs/ holds some")
    spec = importlib.util.spec_from_file_location(f"ddpm_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the config {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the config {str(path)!r} fails with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Config):
        raise ConfigError(
            f"get_config() of {str(path)!r} returns a {type(config).__name__}; it has to return"
            " a ddpm_jax.config.Config"
        )
    return config


class Difference(NamedTuple):
    """A field of two configs, by its dotted name, and its two values."""

    field: str
    first: Any
    second: Any


def differences(first: Config, second: Config) -> list[Difference]:
    """The fields in which two configs differ, in the order of their declaration."""
    flat_first, flat_second = _flatten(to_json(first)), _flatten(to_json(second))
    return [
        Difference(field, value, flat_second[field])
        for field, value in flat_first.items()
        if value != flat_second[field]
    ]


def to_json(config: Config) -> dict[str, Any]:
    """Nested plain values, as `json.dumps` likes them and as they come back from it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_json(values: dict[str, Any]) -> Config:
    """The inverse of `to_json`.

    Raises:
        ConfigError: a field that this version does not know, or one that it misses.
    """
    return _from_json(Config, values, prefix="")


def _from_json(kind: Any, values: dict[str, Any], *, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"the stored config holds {values!r} where fields have to be")
    fields = typing.get_type_hints(kind)
    for name in sorted(fields.keys() ^ values.keys()):
        what = "misses" if name in fields else "has an unknown"
        raise ConfigError(
            f"the stored config {what} field {prefix}{name}; another version wrote it"
        )
    built = {}
    for name, hint in fields.items():
        value = values[name]
        if dataclasses.is_dataclass(hint):
            value = _from_json(hint, value, prefix=f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
