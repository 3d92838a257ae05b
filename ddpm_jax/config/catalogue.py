"""The families and their members, for the command line and `ddpm-jax list`."""

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
    """The families of a dataclass.

    Args:
        values: a dataclass, or an instance of one. An instance also gives the families of the
            members that it holds.
        prefix: put before each name.

    Returns:
        The base class of each family by the dotted name of its field, such as
        `{"sampler": Sampler, "sampler.threshold": Threshold}`.

    Raises:
        ConfigError: a member has an annotation that is not supported.
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
    """The members of a family.

    Args:
        family: its base class.
        *modules: names of modules that may define members, beside the family's own module.

    Returns:
        The classes that are not abstract, in the order of their definition.
    """
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
    """The name of a member on the command line.

    Args:
        kind: the member's class.

    Returns:
        The words of the class name in lower case, joined by hyphens.

    Example:
        >>> from ddpm_jax import config
        >>> config.member_name(config.DPMSolverPP)
        'dpm-solver-pp'
    """
    words = re.findall(
        r"[A-Z][a-z][A-Z]$|[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z0-9]+|[A-Z]+[0-9]*", kind.__name__
    )
    return "-".join(words).lower()


def find_member(family: type[Member], text: str, name: str, *modules: str) -> type[Member]:
    """The member of a family that has this name.

    Args:
        family: its base class.
        text: the name. Case, hyphens and underscores are ignored; the name of the family at its end
            may be left out, as in `cosine` for `CosineDecay`.
        name: of the option, for the sentence.
        *modules: names of modules that may define members, beside the family's own module.

    Returns:
        The member's class.

    Raises:
        ConfigError: no member has this name.
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
