"""Small things that every room does with arrays: shapes, widths, places on a mesh, keys."""

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int, Shaped

__all__ = [
    "Value",
    "data_axes",
    "einsum",
    "flat",
    "fold_in",
    "is_traced",
    "normal",
    "on_every_device",
    "per_example",
    "register_with_nnx",
    "root",
    "rows",
    "split",
    "split_as",
    "widened",
]

# "highest": a TPU would else multiply in bfloat16.
einsum = functools.partial(jnp.einsum, precision="highest")

Outside = Literal["fill", "clip"]


class Value:
    """What frozen dataclasses of arrays inherit so that they are values, as numbers are.

    `==` is one bool: the same class, the same static fields, and arrays of the same dtype, shape
    and bits; `hash` agrees with it. So they can be static arguments of jit and keys of a
    dictionary. An attribute of a `flax.nnx.Module` is data there, as an array is. Both need the
    values: TypeError where they are traced, but for an object compared with itself.

    A dataclass has to be made with `eq=False, repr=False`, or it would write methods of its own; a
    NamedTuple takes the methods over one by one.
    """

    def __post_init__(self) -> None:
        register_with_nnx(type(self))

    def __repr__(self) -> str:
        """The fields, of arrays their dtype and shape."""
        texts = (f"{name}={_short(value)}" for name, value in _fields(self))
        return f"{type(self).__name__}({', '.join(texts)})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return _bits(self) == _bits(other)

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        digest = hashlib.blake2b(digest_size=8)
        treedef, *leaves = _bits(self)
        for leaf in leaves:
            digest.update(leaf[-1] if isinstance(leaf, tuple) else b"")
        others = tuple(leaf[:-1] if isinstance(leaf, tuple) else leaf for leaf in leaves)
        return hash((treedef, others, digest.digest()))


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    names = getattr(value, "_fields", None) or [one.name for one in dataclasses.fields(value)]
    return ((name, getattr(value, name)) for name in names)


def _short(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return repr(value)


def _bits(value: Any) -> list[Any]:
    """Structure, and of each array dtype, shape and bytes; what is no array stands for itself."""
    leaves, treedef = jax.tree.flatten(value)
    if is_traced(leaves):
        raise TypeError(
            f"a {type(value).__name__} is compared or hashed while it is traced; do that outside of"
            " the function that JAX transforms, or pass it as a static argument"
        )
    return [treedef, *(_bits_of(leaf) for leaf in leaves)]


def _bits_of(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def register_with_nnx(cls: type) -> None:
    """Tells `flax.nnx`, where a program uses it, that a class holds arrays.

    Nothing happens where `flax.nnx` is not imported. The classes of this package that hold arrays
    call it when one of them is made.

    Args:
        cls: a pytree class, such as a process of your own.
    """
    nnx = sys.modules.get("flax.nnx")
    register = getattr(nnx, "register_data_type", None)
    if register is not None:
        register(cls)


def per_example(values: Any, like: jax.Array) -> Any:
    """`values`, of each example or each of its modes, so that they broadcast over `like`.

    Floats take its dtype. A number of Python is returned as it is.

    Raises:
        ValueError: modes that are not those of the data: as many axes, each as long or 1.
    """
    if isinstance(values, int | float):
        return values
    modes, data = values.shape[1:], like.shape[1:]
    if modes and not (
        len(modes) == len(data) and all(k in (1, n) for k, n in zip(modes, data, strict=True))
    ):
        raise ValueError(
            f"the data have shape {like.shape}, and the process has the modes {modes}: as many axes"
            " as one example, each as long or 1"
        )
    if jnp.issubdtype(values.dtype, jnp.floating):
        # NumPy's float64 is float32 to JAX unless x64 is enabled.
        values = values.astype(jax.dtypes.canonicalize_dtype(like.dtype))
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def root(x: jax.Array) -> jax.Array:
    """sqrt(x), with 0 for its derivative at x = 0, where that of sqrt is infinite.

    For values that stay 0, such as the noise of the data: infinity times no change is NaN.
    """
    zero = x == 0.0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def data_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes but the batch's."""
    return tuple(range(1, x.ndim))


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 if it was narrower: bfloat16 is too coarse for sums of squared errors."""
    # promote_types would do, but not where JAX's dtype promotion is strict.
    x = jnp.asarray(x)  # of NumPy float64, what JAX takes it for
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def flat(x: jax.Array) -> Float[Array, "batch d"]:
    """`x` as vectors, in float32 if it was narrower."""
    wide = widened(x)
    return wide.reshape(x.shape[0], math.prod(x.shape[1:]))


def rows(
    table: Shaped[Array, "rows *rest"], index: Int[Array, " batch"], *, mode: Outside = "fill"
) -> jax.Array:
    """`table[index]`, `[batch, *rest]`, split over devices as `index` is.

    Outside of the table it is NaN, or with `mode` "clip" the first or the last row.
    """
    sharding = jax.typeof(index).sharding
    spec = PartitionSpec(*sharding.spec, *(None,) * (table.ndim - 1))
    return table.at[index].get(
        mode=mode,
        fill_value=jnp.nan if mode == "fill" else None,
        wrap_negative_indices=False,
        out_sharding=NamedSharding(sharding.mesh, spec),  # an explicit mesh needs it
    )


def split_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, its examples on the devices that have those of `like`.

    Only an explicit mesh needs it; noise that was drawn there is whole on every device.
    """
    sharding = jax.typeof(like).sharding
    if sharding.spec[0] is None:
        return x
    spec = PartitionSpec(sharding.spec[0], *(None,) * (x.ndim - 1))
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))


def is_traced(tree: Any) -> bool:
    """Whether a leaf of the tree stands for an array in a function that JAX is tracing."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def on_every_device(x: jax.Array) -> jax.Array:
    """`x` whole on every device of an explicit mesh, as what is drawn there."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def normal(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Standard normal numbers `[batch, ...]`, from one key or from a key `[batch]` for each row.

    A row by its own key is the same whatever rows are beside it.
    """
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda own: jax.random.normal(own, shape[1:], dtype))(key)


def split(key: jax.Array, num: int = 2) -> jax.Array:
    """`num` keys, `[num]` or `[num, batch]`, of one key or of a key for each example."""
    if key.ndim == 0:
        return jax.random.split(key, num)
    return jax.vmap(lambda own: jax.random.split(own, num), out_axes=1)(key)


def fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
    """The key of a number, or each example's key of the same number."""
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)
