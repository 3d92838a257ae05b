"""What the chains share: rows of tables, columns, where things lie on a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import check_key, check_times

__all__ = ["check_draw", "column", "einsum", "flat", "on_every_device", "rows", "split_as"]

# "highest", or a TPU would multiply in bfloat16 what is meant to be exact.
einsum = functools.partial(jnp.einsum, precision="highest")


def rows(table: Float[Array, "rows *rest"], index: Int[Array, " batch"]) -> jax.Array:
    """`table[index]`, `[batch, *rest]`, split over devices as `index` is; NaN outside of it."""
    sharding = jax.typeof(index).sharding
    spec = PartitionSpec(*sharding.spec, *(None,) * (table.ndim - 1))
    return table.at[index].get(
        mode="fill",
        fill_value=jnp.nan,
        wrap_negative_indices=False,
        out_sharding=NamedSharding(sharding.mesh, spec),  # an explicit mesh wants to be told
    )


def column(values: Float[Array, " batch"], like: jax.Array) -> jax.Array:
    """`values` as a column that broadcasts over the data axes of `like`, in its dtype."""
    return values.astype(like.dtype).reshape(values.shape + (1,) * (like.ndim - 1))


def flat(x: jax.Array) -> Float[Array, "batch d"]:
    """`x` as vectors, in float32 if it was narrower."""
    x = jnp.asarray(x)  # of NumPy float64, what JAX takes it for
    wide = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
    return wide.reshape(x.shape[0], math.prod(x.shape[1:]))


def split_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, its examples on the devices that have those of `like`.

    Only an explicit mesh has to be told; noise that was drawn there is whole on every device.
    """
    sharding = jax.typeof(like).sharding
    if sharding.spec[0] is None:
        return x
    spec = PartitionSpec(sharding.spec[0], *(None,) * (x.ndim - 1))
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))


def on_every_device(x: jax.Array) -> jax.Array:
    """`x` whole on every device of an explicit mesh, as what is drawn there."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def check_draw(key: Key[Array, ""], shape: tuple[int, ...], **times: Int[Array, " batch"]) -> None:
    """Raises TypeError or ValueError unless noise of `shape` = `[batch, ...]` can be drawn."""
    check_key("key", key)
    if not shape:
        raise ValueError("shape is (); it has to be (batch, ...)")
    for name, value in times.items():
        check_times(name, value, shape[0])
