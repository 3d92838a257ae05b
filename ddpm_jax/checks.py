"""Guards at the door of the core's public functions.

Every check but `check_level_range` looks at shapes and dtypes only, so it runs while JAX traces and
costs nothing afterwards. A failed check names the argument, what it was, and what would do.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "check_choice",
    "check_count",
    "check_covariance",
    "check_draw",
    "check_float",
    "check_float32_range",
    "check_images",
    "check_key",
    "check_keys",
    "check_level_range",
    "check_result",
    "check_same_shape",
    "check_scalar",
    "check_times",
    "check_vector",
]


def check_float(name: str, value: jax.Array) -> None:
    """Raises TypeError unless `value` is an array of floats."""
    _check_array(name, value)
    try:
        chex.assert_type(value, jnp.floating)
    except AssertionError:
        raise TypeError(
            f"{name} has dtype {value.dtype}; it has to be floating point (images are scaled to"
            " [-1, 1] by ddpm_jax.data.to_model_range)"
        ) from None


def check_same_shape(name: str, value: jax.Array, like_name: str, like: jax.Array) -> None:
    """Raises TypeError or ValueError unless `value` is an array of floats shaped as `like`."""
    check_float(name, value)
    try:
        chex.assert_shape(value, like.shape)
    except AssertionError:
        raise ValueError(
            f"{name} has shape {value.shape}; it has to be that of {like_name}, {like.shape}"
        ) from None


def check_times(name: str, times: jax.Array, batch: int) -> None:
    """Raises TypeError or ValueError unless `times` is a signed integer array of shape [batch]."""
    _check_array(name, times)
    if not jnp.issubdtype(times.dtype, jnp.signedinteger):  # t - 1 of an unsigned 0 is no -1
        raise TypeError(
            f"{name} has dtype {times.dtype}; times are signed integers (jnp.int32), one per"
            " example"
        )
    try:
        chex.assert_shape(times, (batch,))
    except AssertionError:
        raise ValueError(
            f"{name} has shape {times.shape}; it has to be ({batch},), one time per example"
            f" (jnp.full({batch}, value) gives all the same one)"
        ) from None


def check_count(name: str, value: Any) -> None:
    """Raises TypeError unless `value` counts something: an int, or NumPy's, and no bool."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; it has to be a whole number, an int")


def check_level_range(name: str, x: jax.Array) -> None:
    """Raises ValueError if values that are known, and not traced, lie beyond the outer levels."""
    if isinstance(x, jax.core.Tracer) or x.size == 0:
        return
    with jax.ensure_compile_time_eval():  # a constant of a function that is traced is known, too
        largest = float(jnp.max(jnp.abs(x.astype(jnp.float32))))
    if largest > 1.0 + 1e-3:  # beyond what rounding leaves of 1; NaN is NaN afterwards, too
        raise ValueError(
            f"{name} has values of up to {largest:g}; grey levels lie in [-1, 1] (images are"
            " scaled there by ddpm_jax.data.to_model_range)"
        )


def check_vector(name: str, times: jax.Array) -> None:
    """Raises TypeError or ValueError unless `times` is a vector of integers, of any length."""
    check_times(name, times, times.shape[0] if getattr(times, "ndim", 0) else 0)


def check_key(name: str, key: jax.Array) -> None:
    """Raises TypeError or ValueError unless `key` is one typed random key."""
    _check_array(name, key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name} has dtype {key.dtype}; make a typed key with jax.random.key(seed)")
    if key.shape != ():
        raise ValueError(f"{name} has shape {key.shape}; it has to be a single key")


def check_keys(name: str, key: jax.Array, batch: int) -> None:
    """Raises TypeError or ValueError unless `key` is a typed key, or one for each example."""
    _check_array(name, key)
    if key.ndim == 0 or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        check_key(name, key)
    elif key.shape != (batch,):
        raise ValueError(
            f"{name} has shape {key.shape}; it has to be a single key, or one for each example,"
            f" ({batch},)"
        )


def check_images(name: str, x: jax.Array, **times: jax.Array) -> None:
    """Raises TypeError or ValueError unless `x` is floats `[batch, ...]`, each time `[batch]`."""
    check_float(name, x)
    for time, value in times.items():
        check_times(time, value, x.shape[0])


def check_draw(key: jax.Array, shape: tuple[int, ...], **times: jax.Array) -> None:
    """Raises TypeError or ValueError unless noise of `shape` = `[batch, ...]` can be drawn."""
    check_key("key", key)
    if not shape:
        raise ValueError("shape is (); it has to be (batch, ...)")
    for name, value in times.items():
        check_times(name, value, shape[0])


def check_float32_range(name: str, values: np.ndarray) -> None:
    """Raises ValueError unless float32 holds all `values`."""
    outside = ~(np.abs(values) <= np.finfo(np.float32).max)
    if outside.any():
        index = ", ".join(map(str, np.argwhere(outside)[0]))
        raise ValueError(f"{name}[{index}] is {values[outside][0]:g}; float32 has to hold it")


def check_covariance(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, none below 0, and eigenvectors of a float64 covariance `[d, d]`.

    Raises ValueError unless it is symmetric and positive semi-definite, but for 1e-6 of its largest
    entry, which is what float32 arithmetic may leave.
    """
    tolerance = 1e-6 * np.abs(matrix).max()
    asymmetry = np.abs(matrix - matrix.T)
    if asymmetry.max() > tolerance:
        i, j = np.unravel_index(np.argmax(asymmetry), matrix.shape)
        raise ValueError(
            f"{name} is not symmetric: [{i}, {j}] is {matrix[i, j]:g}, [{j}, {i}] {matrix[j, i]:g}"
        )
    eigenvalues, eigenvectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    if eigenvalues[0] < -tolerance:
        raise ValueError(
            f"{name} has the eigenvalue {eigenvalues[0]:g}; a covariance has none below 0"
        )
    return np.maximum(eigenvalues, 0.0), eigenvectors


def check_scalar(name: str, value: float | jax.Array) -> float | None:
    """`value` as a float, or None while it is traced; raises ValueError unless it is one number."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; it has to be one number")
    return None if isinstance(value, jax.core.Tracer) else float(value)


def check_result(function: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless `function` returned an array of floats of `shape`."""
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{function} returned a {type(value).__name__}; it has to return an array")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{function} returned {value.dtype}; it has to return floating point")
    if value.shape != shape:
        raise ValueError(f"{function} returned the shape {value.shape}; it has to return {shape}")


def check_choice(name: str, choice: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `choice` is one of `choices`."""
    if choice not in choices:
        raise ValueError(f"{name} is {choice!r}; it is one of {', '.join(map(repr, choices))}")


def _check_array(name: str, value: object) -> None:
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise TypeError(f"{name} is a {type(value).__name__}; it has to be an array")
