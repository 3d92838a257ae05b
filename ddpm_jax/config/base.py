"""What each choice of a config is: a member of a family, with its fields, bounds and `make`.

A family is an abstract dataclass, such as `config.Schedule`; a member is a subclass of it, such as
`config.Cosine`, or one that a user's config file defines. No other code knows a member by its name:
a config holds it, and the command line and a stored config find it by its class.
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
    """What another value of a field would change.

    A run goes on only with the values of its first two kinds that its checkpoints were trained
    with, and with another length only if that leaves the steps that are done as they were.
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
    """What a field has to be, as a note in its annotation: `Annotated[float, FRACTION]`."""

    holds: Callable[[Any], bool]
    wanted: str
    """In words, after "it has to be"."""


COUNT = Bound(lambda value: value is None or value >= 1, "1 or more")
NOT_NEGATIVE = Bound(lambda value: value >= 0, "0 or more")
NOT_EMPTY = Bound(lambda value: value.strip() != "", "a name that is not empty")
POSITIVE = Bound(lambda value: 0.0 < value < math.inf, "positive and finite")
FRACTION = Bound(lambda value: 0.0 <= value < 1.0, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Member(abc.ABC):
    """One choice. Frozen, and of plain values: int, float, bool, str, None, tuples, members."""

    affects: ClassVar[Affects]
    """What its class, and each field without an `Affects` of its own, affects; a family sets it."""

    def check(self, config: "Config") -> None:  # noqa: B027 (most have nothing to check)
        """Checks what depends on the rest of the config; each field was checked alone before.

        Raises:
            ConfigError: with the field and its value.
        """


def check_made(field: str, member: Member, made: Any, kind: Any) -> None:
    """Raises ConfigError unless what the member's `make` returned is of this kind."""
    if not isinstance(made, kind):
        raise ConfigError(
            f"{field}: {type(member).__name__}.make returned {article(type(made).__name__)}; it"
            f" has to return {article(kind.__name__)}"
        )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; `dataclasses.MISSING` without one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
