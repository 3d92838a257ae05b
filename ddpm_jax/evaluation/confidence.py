"""A number with its 95 % interval, or with the reason why it has none."""

from typing import NamedTuple

__all__ = ["Estimate"]


class Estimate(NamedTuple):
    """A number that was estimated from samples."""

    value: float
    """The estimate."""
    low: float | None = None
    """Lower end of the 95 % interval; None without an interval."""
    high: float | None = None
    """Upper end of the 95 % interval; None without an interval."""
    note: str = ""
    """What the interval covers, or why there is none."""
