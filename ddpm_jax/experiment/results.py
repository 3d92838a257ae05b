"""The results.json of a run, with a sha256 of itself, checked where it is read."""

import reprlib
from pathlib import Path
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.files import JsonFileError, json_digest, read_json

__all__ = ["ResultsError", "read_results", "sealed"]

_COUNTS = ("step", "images", "levels", "num_steps", "num_times", "histogram_images")
_NUMBERS = ("uniform", "histogram", "bits_per_dim", "prior", "kl", "decoder")


class ResultsError(UserError):
    """A results.json that a run did not write so."""


def sealed(results: dict[str, Any]) -> dict[str, Any]:
    """What is written of them: the same, and their sha256."""
    return {**results, "sha256": json_digest(results)}


def read_results(path: Path) -> dict[str, Any]:
    """The final evaluation of a run, each of its fields of the type that it has there.

    Raises:
        ResultsError: the file cannot be read, is not as it was written, or a field is absent or of
            another type.
    """
    remedy = "remove it, and the same `ddpm-jax train` evaluates the last checkpoint again"
    try:
        values = read_json(path)
    except JsonFileError as error:
        raise ResultsError(f"{error}; {remedy}") from None
    if values.pop("sha256", None) != json_digest(values):
        raise ResultsError(f"{str(path)!r} is not as it was written, by its sha256; {remedy}")
    for name, needed, good in (
        ("dataset", "text", _is_text),
        *((name, "a whole number, 0 or more", _is_count) for name in _COUNTS),
        *((name, "a number", _is_number) for name in _NUMBERS),
        ("standard_error", "a number or null", _is_number_or_none),
    ):
        if name not in values or not good(values[name]):
            here = reprlib.repr(values[name]) if name in values else "absent"
            raise ResultsError(
                f"{str(path)!r} is not as a run writes it: {name} is {here}, and has to be"
                f" {needed}; {remedy}"
            )
    return values


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def _is_number_or_none(value: Any) -> bool:
    """There is no standard error of one image."""
    return value is None or _is_number(value)
