"""A config to and from JSON: the format of RUN/config.json and of each checkpoint.

An example::

    {"format": 1, "source": {"name": "own_network.py", "sha256": "..."} or null,
     "data": {"class": "ddpm_jax.config.data:Digits", "on_bad_image": "stop", ...},
     "network": {"class": "config.py:TinyMLP", "width": 128, ...}, ..., "seed": 0, ...}

It has all fields, and the class of each member: a class of this package, or one of the run's copy
of its config file. Later versions will read format 1; fields that they add take their defaults.
"""

import contextlib
import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ddpm_jax.config.base import Affects, ConfigError, Member, default_of
from ddpm_jax.config.config import Config
from ddpm_jax.config.source import OWN, PACKAGE, Source, class_text, execute, source_of
from ddpm_jax.config.values import effects, from_plain, nearest, shown

__all__ = [
    "Difference",
    "UnknownClassError",
    "differences",
    "flat",
    "from_json",
    "from_message",
    "plain",
    "to_json",
    "to_message",
]

FORMAT = 1


class UnknownClassError(ConfigError):
    """A stored config has a member of a class that does not exist."""


def to_json(config: Config) -> dict[str, Any]:
    """A config as plain values, for JSON.

    Args:
        config: to be stored.

    Returns:
        Nested dictionaries and lists, as `json.loads` returns them; `from_json` is the inverse.
    """
    source = source_of(config)
    values = {
        "format": FORMAT,
        "source": None if source is None else {"name": source.name, "sha256": source.sha256},
        **plain(config),
    }
    return json.loads(json.dumps(values))


def plain(values: Any) -> dict[str, Any]:
    """A config or a member as nested plain values.

    Args:
        values: a config or a member.

    Returns:
        The fields by name; a member also has its class, as "class".
    """
    result: dict[str, Any] = {"class": class_text(values)} if isinstance(values, Member) else {}
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        result[field.name] = plain(value) if dataclasses.is_dataclass(value) else value
    return result


def from_json(
    values: Any,
    *,
    copy: Path | None = None,
    own: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Config:
    """The inverse of `to_json`.

    Args:
        values: the stored config.
        copy: path of the run's copy of its config file. It is executed if one of its classes is
            needed.
        own: classes of the config file by name, in place of the copy.
        report: gets a line before the copy is executed, and a line that names the fields that take
            their defaults.

    Returns:
        The config.

    Raises:
        UnknownClassError: a class does not exist.
        ConfigError: the format is another one, this version does not know a field, a value has the
            wrong type, or the copy has changed.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"the stored config is {shown(values)}; it has to be an object")
    if (number := values.get("format")) != FORMAT:
        what = f"has the format {shown(number)}"
        if number is None:
            what = "has no format: an older version wrote it"
        raise ConfigError(f"the stored config {what}; this version of ddpm_jax reads {FORMAT}")

    def find_class(text: str, family: type, name: str) -> type:
        place, _, kind = text.partition(":")
        known: Mapping[str, Any] = {}
        where = "this version of ddpm_jax"
        if place == OWN and own is not None:
            known, where = own, "the config"
        elif place == OWN:
            known = vars(_own_module(copy, values.get("source"), f"{name} {kind}", report))
            where = str(copy)
        elif f"{place}.".startswith(PACKAGE):
            with contextlib.suppress(ImportError):
                known = vars(importlib.import_module(place))
        member: Any = known.get(kind)
        is_member = isinstance(member, type) and issubclass(member, family)
        if not is_member or inspect.isabstract(member):
            names = [key for key, value in known.items() if isinstance(value, type)]
            raise UnknownClassError(
                f"{name} is {shown(text)}, a class that {where} does not have{nearest(kind, names)}"
            )
        result: type = member
        return result

    fields = {name: value for name, value in values.items() if name not in ("format", "source")}
    absent: dict[str, str] = {}
    config: Config = from_plain(fields, Config, find_class=find_class, absent=absent)
    if absent:
        defaults = ", ".join(f"{name} = {default}" for name, default in absent.items())
        report(f"the stored config lacks fields, which take their defaults: {defaults}")
    return config


def to_message(config: Config) -> dict[str, Any]:
    """A config for another process: `to_json`, and the config file if it defines members.

    Args:
        config: to be sent.

    Returns:
        Plain values, which JSON can hold; `from_message` is the inverse.
    """
    source = source_of(config)
    content = None if source is None else source.content.decode("latin-1")
    return {"config": to_json(config), "content": content}


def from_message(message: dict[str, Any]) -> Config:
    """The inverse of `to_message`; executes the config file if there is one.

    Args:
        message: the result of `to_message`.

    Returns:
        The config.

    Raises:
        ConfigError: as in `from_json`.
    """
    values, content = message["config"], message["content"]
    if content is None:
        return from_json(values)
    source = Source(values["source"]["name"], content.encode("latin-1"))
    return from_json(values, own=vars(execute(source, source.name)))


def _own_module(
    copy: Path | None, stored: Any, what: str, report: Callable[[str], None]
) -> ModuleType:
    """The copy as a module; executes it unless a file with the same content was executed before."""
    if copy is None or not copy.is_file() or not isinstance(stored, dict):
        raise ConfigError(f"{what} is a class of the run's {OWN}, which is missing")
    source = Source(str(stored.get("name")), copy.read_bytes())
    if source.sha256 != stored.get("sha256"):
        raise ConfigError(
            f"{str(copy)!r} has changed since training began (its SHA-256 differs); restore the"
            f" original file, which defines {what}"
        )
    name = f"ddpm_jax_config_{source.sha256[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    report(f"executing {copy}, the run's copy of {source.name}, which defines {what}")
    try:
        return execute(source, str(copy))
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{str(copy)!r} fails with {type(error).__name__}: {error}; it defines {what}"
        ) from error


class Difference(NamedTuple):
    """A field in which two configs differ."""

    field: str
    """Dotted name of the field."""
    first: Any
    """Its value in the first config."""
    second: Any
    """Its value in the second config."""
    affects: Affects
    """What changes with the field."""


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], config: Config
) -> list[Difference]:
    """The fields in which two stored configs differ.

    If the classes of a member differ, its fields are not compared. A field that one config lacks
    has the default of its class. No code is executed.

    Args:
        first: a config as `to_json` returns it.
        second: another one.
        config: one of the two, or another config with the same classes, which say what a field
            affects.

    Returns:
        The differences, in the order in which the fields are declared.
    """
    known = effects(config)
    here, there = flat(first), flat(second)
    result: list[Difference] = []
    for field in {**here, **there}:
        # Its own name, and those of the members that it is in.
        parts = field.split(".")
        names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        if any(other.field in names for other in result):
            continue  # a field of a member of another class
        default = _default_of(config, field)
        pair = here.get(field, default), there.get(field, default)
        if pair[0] != pair[1]:
            affects = next((known[name] for name in names if name in known), Affects.MODEL)
            result.append(Difference(field, *pair, affects))
    return result


def _default_of(config: Config, field: str) -> Any:
    """The default of a field as `flat` has it; None if it has none."""
    *path, name = field.split(".")
    value: Any = config
    for part in path:
        value = getattr(value, part, None)
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    default = next((default_of(item) for item in fields if item.name == name), None)
    if isinstance(default, Member):
        return type(default).__name__
    if default is dataclasses.MISSING:
        return None
    return list(default) if isinstance(default, tuple) else default


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A stored config with dotted names in place of nested dictionaries.

    Args:
        values: the result of `to_json`.
        prefix: put before each name.

    Returns:
        Values by dotted name; the value of a member is the name of its class.
    """
    names: dict[str, Any] = {}
    for name, value in values.items():
        if not prefix and name in ("format", "source"):
            continue
        if name == "class":
            names[prefix.removesuffix(".")] = str(value).rpartition(":")[2]
        elif isinstance(value, Mapping):
            names |= flat(value, f"{prefix}{name}.")
        else:
            names[prefix + name] = value
    return names
