"""Guards that the chains share."""

import jax
from jaxtyping import Array, Int, Key

from ddpm_jax.checks import check_float, check_key, check_times

__all__ = ["check_draw", "check_images"]


def check_images(name: str, x: jax.Array, **times: Int[Array, " batch"]) -> None:
    """Raises TypeError or ValueError unless `x` is floating point, with one of each time a row."""
    check_float(name, x)
    for time, value in times.items():
        check_times(time, value, x.shape[0])


def check_draw(key: Key[Array, ""], shape: tuple[int, ...], **times: Int[Array, " batch"]) -> None:
    """Raises TypeError or ValueError unless noise of `shape` = `[batch, ...]` can be drawn."""
    check_key("key", key)
    if not shape:
        raise ValueError("shape is (); it has to be (batch, ...)")
    for name, value in times.items():
        check_times(name, value, shape[0])
