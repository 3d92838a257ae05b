"""The base class of every choice in a config, and the bounds of fields.

A family is an abstract dataclass, such as `config.Schedule`. A member is a subclass of it, such as
`config.Cosine`, or one that a user's config file defines. No other code knows a member by its name:
a config holds the member, and the command line and stored configs find it by its class.
"""

import abc
import dataclasses
import enum
import math
import typing
from collections.abc import Callable
from typing import Any, ClassVar

from ddpm_jax.errors import UserError

if typing.TYPE_CHECKING:
    from ddpm_jax.config.config import Config

__all__ = [
    "COUNT",
    "FRACTION",
    "NOT_EMPTY",
    "NOT_NEGATIVE",
    "POSITIVE",
    "Affects",
    "Bound",
    "ConfigError",
    "Member",
    "check_made",
    "default_of",
]


class Affects(enum.Enum):
    """What changes when a field gets another value.

    A run resumes only if all fields of the kinds `MODEL` and `TRAINING` have the values that its
    checkpoints were trained with. A field of the kind `LENGTH` may change if the steps that are
    already done would be the same. All other fields may change.
    """

    MODEL = "what the parameters mean: the images, the noise, the network"
    TRAINING = "the parameters that training ends with, not how they are used"
    LENGTH = "at which step training ends"
    ROUNDING = "how the same numbers are computed: no more than rounding"
    REPORTS = "what is drawn, measured, logged and saved, and at what a run stops"
    PLACE = "where things are, and who computes"


class ConfigError(UserError):
    """A configuration that cannot work; raised before anything is built."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The allowed values of a field, as a note in its annotation: `Annotated[float, FRACTION]`."""

    holds: Callable[[Any], bool]
    """Returns whether a value is allowed."""
    wanted: str
    """The allowed values in words; error sentences put it after "it has to be"."""


COUNT = Bound(lambda value: value is None or value >= 1, "1 or more")
"""A number of things: 1 or more, or None."""
NOT_NEGATIVE = Bound(lambda value: value >= 0, "0 or more")
"""A number that is 0 or more."""
NOT_EMPTY = Bound(lambda value: value.strip() != "", "a name that is not empty")
"""A text that is not only white space."""
POSITIVE = Bound(lambda value: 0.0 < value < math.inf, "positive and finite")
"""A number that is positive and finite."""
FRACTION = Bound(lambda value: 0.0 <= value < 1.0, "in [0, 1)")
"""A number in [0, 1)."""


@dataclasses.dataclass(frozen=True)
class Member(abc.ABC):
    """One choice of a config: the base class of all families.

    A member is a frozen dataclass. Its fields are int, float, bool, str, None, tuples of these, or
    other members.
    """

    affects: ClassVar[Affects]
    """What changes with the class, and with each field that has no `Affects` in its annotation.
    Each family sets it."""

    def check(self, config: "Config") -> None:  # noqa: B027 (most have nothing to check)
        """Checks what depends on other members of the config; each field has been checked alone.

        Args:
            config: the whole config that holds this member.

        Raises:
            ConfigError: a value that does not fit the rest; the sentence names field and value.
        """


def check_made(field: str, member: Member, made: Any, kind: Any) -> None:
    """Checks the type of what a member's `make` returned.

    Args:
        field: dotted name of the member in the config, for the sentence.
        member: the member.
        made: what its `make` returned.
        kind: the class that `made` has to be an instance of.

    Raises:
        ConfigError: `made` is of another class.
    """
    if not isinstance(made, kind):
        raise ConfigError(
            f"{field}: {type(member).__name__}.make returned {article(type(made).__name__)}; it"
            f" has to return {article(kind.__name__)}"
        )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field.

    Args:
        field: of a dataclass.

    Returns:
        The value, made by the default factory if there is one; `dataclasses.MISSING` if the field
        has no default.
    """
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
