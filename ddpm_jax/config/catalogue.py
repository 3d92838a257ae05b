"""Families and their members, read from their declarations: for the command line and `list`."""

import inspect
import re
import sys
import typing
from typing import Any

from ddpm_jax.config.base import ConfigError, Member
from ddpm_jax.config.config import Config
from ddpm_jax.config.values import annotations, nearest

__all__ = ["families", "find_member", "member_name", "members"]


def families(values: Any = Config, prefix: str = "") -> dict[str, type[Member]]:
    """The base of each family that a dataclass has members of, by the dotted name of its field.

    Args:
        values: a class; or an instance, whose members may have members that others of their
            family do not have.
        prefix: of the names.

    Raises:
        ConfigError: a member with an annotation that is not supported.
    """
    bases: dict[str, type[Member]] = {}
    is_class = isinstance(values, type)
    kind = values if is_class else type(values)
    if issubclass(kind, Member):
        hints = annotations(kind, prefix.removesuffix("."))
    else:
        hints = typing.get_type_hints(kind)
    for name, hint in hints.items():
        if isinstance(hint, type) and issubclass(hint, Member):
            member = None if is_class else getattr(values, name)
            bases[prefix + name] = hint
            bases |= families(member if isinstance(member, Member) else hint, f"{prefix}{name}.")
    return bases


def members(family: type[Member], *modules: str) -> list[type[Member]]:
    """The members of a family that its module and those named define."""
    kinds: dict[str, type[Member]] = {}
    for name in (family.__module__, *modules):
        for value in vars(sys.modules[name]).values():
            if (
                isinstance(value, type)
                and issubclass(value, family)
                and value.__module__ == name
                and not inspect.isabstract(value)
            ):
                kinds[value.__name__] = value
    return list(kinds.values())


def member_name(kind: type[Member]) -> str:
    """The name of a class on the command line: dpm-solver-pp, dit."""
    words = re.findall(
        r"[A-Z][a-z][A-Z]$|[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z0-9]+|[A-Z]+[0-9]*", kind.__name__
    )
    return "-".join(words).lower()


def find_member(family: type[Member], text: str, name: str, *modules: str) -> type[Member]:
    """The member of this name; case, - and _ do not matter.

    Args:
        family: its base.
        text: such as dpm-solver-pp; the family's own name may be left out, as in `cosine`.
        name: of the option, for errors.
        modules: that may define members, beside the family's own.

    Raises:
        ConfigError: there is none.
    """
    known = {_letters(member.__name__): member for member in members(family, *modules)}
    ending = _letters(family.__name__)
    short = {letters.removesuffix(ending): member for letters, member in known.items()}
    if member := (short | known).get(_letters(text)):
        return member
    names = [member_name(member) for member in known.values()]
    raise ConfigError(
        f"{name} is {text!r}; it has to be one of {', '.join(names)}{nearest(text, names)}"
    )


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())
