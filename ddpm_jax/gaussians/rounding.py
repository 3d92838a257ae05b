"""What keeps the digits: the dtype to compute in, and differences that would cancel."""

import math

import jax
import jax.numpy as jnp

__all__ = ["LOG_TWO_PI", "excess_minus_log", "expm1_minus_argument", "half_square", "widened"]

LOG_TWO_PI = math.log(2.0 * math.pi)


def widened(*arrays: jax.Array) -> tuple[jnp.dtype, tuple[jax.Array, ...]]:
    """The dtype of a result made of these arrays, and the arrays in the one to compute it in."""
    dtype = jnp.result_type(*arrays)
    wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    return dtype, tuple(array.astype(wide) for array in arrays)


def half_square(z: jax.Array) -> jax.Array:
    """z^2 / 2, also where z^2 is beyond the largest number."""
    return (0.5 * z) * z


def excess_minus_log(excess: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """r - 1 - log r for r > 0, from r - 1, which has the digits near r = 1, and log r.

    `log_ratio` is read below r = 1/2 only, where r - 1 has lost what log r needs.
    """
    # With x = r - 1 and z = x / (2 + x): log r = 2 artanh z, x - 2 z = x z, and no difference
    # of rounded numbers is left.
    x = jnp.clip(excess, -0.5, 0.5)
    z = x / (2.0 + x)
    series = sum(jnp.square(z) ** k / (2 * k + 3) for k in range(7))
    near = x * z - 2.0 * z**3 * series
    log_above = jnp.log1p(jnp.maximum(excess, 0.0))
    far = excess - jnp.where(excess > 0.0, log_above, log_ratio)
    return jnp.where(jnp.abs(excess) < 0.5, near, far)


@jax.custom_jvp
def expm1_minus_argument(d: jax.Array) -> jax.Array:
    """e^d - 1 - d, with its Taylor series where the three terms cancel."""
    x = jnp.clip(d, -1.0, 1.0)
    series = jnp.ones_like(x)
    for n in range(12, 2, -1):
        series = 1.0 + x / n * series
    return jnp.where(jnp.abs(d) < 1.0, half_square(x) * series, jnp.expm1(d) - d)


@expm1_minus_argument.defjvp
def _expm1_minus_argument_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (d,), (dd,) = primals, tangents
    return expm1_minus_argument(d), jnp.expm1(d) * dd
