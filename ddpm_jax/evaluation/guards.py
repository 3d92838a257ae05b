"""Guards at the door of everything that is computed from features."""

import numpy as np

from ddpm_jax.errors import UserError

__all__ = ["EvaluationError", "check_at_least", "check_features", "check_rows", "check_same_dim"]


class EvaluationError(UserError):
    """Statistics that cannot be computed or compared: what, its value, and what would do."""


def check_features(name: str, features: np.ndarray, *, least: int = 1) -> None:
    """Raises EvaluationError unless `features` is finite floats [at least `least`, dim]."""
    _check_matrix(name, features, least)
    if not np.issubdtype(features.dtype, np.floating):
        raise EvaluationError(
            f"{name} has dtype {features.dtype}; it has to be floating point, as a network's"
            " features are"
        )
    _check_finite(name, features)


def check_rows(name: str, rows: np.ndarray, *, least: int = 1) -> None:
    """The same, where grey levels and other integers will do as well."""
    _check_matrix(name, rows, least)
    if np.issubdtype(rows.dtype, np.integer):
        return
    if not np.issubdtype(rows.dtype, np.floating):
        raise EvaluationError(f"{name} has dtype {rows.dtype}; it has to be floats or integers")
    _check_finite(name, rows)


def check_same_dim(name: str, rows: np.ndarray, like_name: str, like: np.ndarray) -> None:
    """Raises EvaluationError unless rows of the two are of one length."""
    if rows.shape[-1] != like.shape[-1]:
        raise EvaluationError(
            f"{name} has {rows.shape[-1]} dimensions and {like_name} {like.shape[-1]}; both have to"
            " be of one network"
        )


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises EvaluationError if `value` is below `least`."""
    if value < least:
        raise EvaluationError(f"{name} is {value}; it has to be at least {least}")


def _check_matrix(name: str, rows: np.ndarray, least: int) -> None:
    if not isinstance(rows, np.ndarray):
        raise EvaluationError(
            f"{name} is a {type(rows).__name__}; it has to be an array on the host (np.asarray)"
        )
    if rows.ndim != 2 or rows.shape[0] < least or rows.shape[1] < 1:
        raise EvaluationError(
            f"{name} has shape {rows.shape}; it has to be [n, dim] with n at least {least}"
        )


def _check_finite(name: str, values: np.ndarray) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(i) for i in np.unravel_index(np.argmin(finite), values.shape))
        raise EvaluationError(
            f"{name}[{row}, {column}] is {values[row, column]}; every value has to be finite"
        )
