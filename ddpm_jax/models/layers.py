"""Flax's layers with an axis name on each parameter, and what Flax's own cannot do.

A bias that Flax adds in bfloat16 has a gradient that is summed in bfloat16, over all examples and
positions: on a CPU that sum does not grow above 2048 if its terms are 1. Here each term is widened
before the sum. A parameter that an Explicit mesh splits is gathered where a layer uses it. A mask
of `Dropout` is drawn by a key for each example, and does not depend on the rest of the batch.

Apart from that these layers are Flax's: the same parameters and outputs, and every transformation
of JAX goes through them.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int, Key, Shaped

__all__ = [
    "Conv",
    "Dense",
    "Dropout",
    "GroupNorm",
    "Padding",
    "attend",
    "doubled",
    "gathered",
    "halved",
    "named",
    "rows",
    "split_like",
    "wide_dtype",
]

_zeros = nn.initializers.zeros_init()
_ones = nn.initializers.ones_init()

Padding = str | tuple[tuple[int, int], tuple[int, int]]

_DRAWS = 2**16
"""Values of a random draw of `Dropout`."""

_CACHE = 8 * 2**20
"""Bytes of an output, the largest that a convolution's gradient is taken of at once on a CPU."""


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Of sums and sinusoids in a network of this dtype: float32, or float64 if it has that."""
    return jnp.dtype("float64" if jnp.dtype(dtype) == jnp.float64 else "float32")


def named(init: nn.initializers.Initializer, *names: str) -> Any:
    """The initializer, with a logical name for each axis of what it makes.

    The names are "kernel_height", "kernel_width", "in" and "out".
    """
    return nn.with_logical_partitioning(init, names)


def gathered(param: Array | np.ndarray) -> Array:
    """All of a parameter on each device, if an Explicit mesh splits it; its gradient is split.

    On other meshes the compiler, or whoever wrote the `shard_map`, gathers it. Parameters read from
    a file may be NumPy's.
    """
    param = jnp.asarray(param)
    return jax.sharding.reshard(param, PartitionSpec()) if _is_split(param) else param


def split_like(values: Shaped[Array, " batch"], x: Shaped[Array, "batch ..."]) -> Array:
    """One value for each example, on the device that an Explicit mesh has the example of `x` on."""
    (own, *_), (wanted, *_) = (jax.typeof(array).sharding.spec for array in (values, x))
    return values if own == wanted else jax.sharding.reshard(values, PartitionSpec(wanted))


def rows(table: Float[Array, "rows width"], index: Int[Array, " batch"]) -> Array:
    """`table[index]`, split over an Explicit mesh as the index is; NaN outside of the table."""
    (axis,) = jax.typeof(index).sharding.spec
    out_sharding = None if axis is None else PartitionSpec(axis, None)
    return table.at[index].get(mode="fill", fill_value=jnp.nan, out_sharding=out_sharding)


def attend(
    query: Float[Array, "batch query head width"],
    key: Float[Array, "batch position head width"],
    value: Float[Array, "batch position head width"],
) -> Float[Array, "batch query head width"]:
    """softmax(query key^T / sqrt(width)) value, of each head (Vaswani et al. 2017, equation 1).

    Derivatives of `jax.nn.dot_product_attention` in bfloat16 multiply float32 by bfloat16, which
    takes twice the memory, and which JAX refuses under strict promotion of dtypes.
    """

    @functools.partial(jax.vmap, in_axes=2, out_axes=2)
    def of_head(query: Array, key: Array, value: Array) -> Array:
        logits = jnp.einsum("bqw,bkw->bqk", query, key).astype(wide_dtype(query.dtype))
        weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1)
        return jnp.einsum("bqk,bkw->bqw", weights.astype(value.dtype), value)

    return of_head(query, key, value)


class _Gathering(nn.Module):
    """A layer that has all of its parameters on each device."""

    @nn.nowrap
    def param(self, *args: Any, **kwargs: Any) -> Any:
        return gathered(super().param(*args, **kwargs))


class GroupNorm(_Gathering):
    """Mean 0 and variance 1 in each group of channels, then a scale and a shift for each channel.

    Parameters and outputs are those of `nn.GroupNorm` (Wu & He 2018,
    https://arxiv.org/abs/1803.08494). Sums are taken of each channel first, and of a group's
    channels then. Flax splits the channels' axis into groups, which chips pay for with a copy of
    the activations in float32.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "batch *positions channel"]) -> Array:
        """Computed in float32 at least; the output has the dtype of `x`."""
        channels = x.shape[-1]
        scale = self.param("scale", named(_ones, "out"), (channels,), jnp.float32)
        bias = self.param("bias", named(_zeros, "out"), (channels,), jnp.float32)
        positions, width = tuple(range(1, x.ndim - 1)), channels // self.groups
        size = math.prod(x.shape[1:]) // self.groups

        def mean_of_group(values: Array) -> Array:
            sums = jnp.sum(values, positions).reshape(-1, self.groups, width).sum(axis=-1)
            return jnp.repeat(sums / size, width, axis=-1)

        wide = x.astype(wide_dtype(x.dtype))
        scale, bias = scale.astype(wide.dtype), bias.astype(wide.dtype)
        mean = mean_of_group(wide)
        variance = jnp.maximum(mean_of_group(jnp.square(wide)) - jnp.square(mean), 0.0)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale[None]
        mean, factor, shift = (jnp.expand_dims(v, positions) for v in (mean, factor, bias[None]))
        return ((wide - mean) * factor + shift).astype(x.dtype)


class Dense(_Gathering):
    """`x @ kernel + bias` over the last axis; parameters and outputs as those of `nn.Dense`."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """In `dtype`, whatever that of `x` is."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", named(self.kernel_init, "in", "out"), shape, jnp.float32)
        bias = self.param("bias", named(_zeros, "out"), (self.features,), jnp.float32)
        return _add(jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)), bias)


class Conv(_Gathering):
    """A convolution of images, zeros around them; parameters and outputs as those of `nn.Conv`."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding = "SAME"
    """"SAME" with stride 2 has zeros to the right and below."""
    doubled: bool = False
    """Of images whose pixels are squares of four; the kernel is 3x3 then, and the stride 1."""
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height2 width2 outputs"]:
        """In `dtype`, whatever that of `x` is."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        names = ("kernel_height", "kernel_width", "in", "out")
        kernel = self.param("kernel", named(self.kernel_init, *names), shape, jnp.float32)
        bias = self.param("bias", named(_zeros, "out"), (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        if self.doubled:
            return _add(_convolve_doubled(x, kernel), bias)
        return _add(_convolution(self.stride, self.padding)(x, kernel.astype(self.dtype)), bias)


class Dropout(nn.Module):
    """Zeros in a share `rate` of places and the rest scaled up, by a key for each example.

    A place is decided by 16 random bits, so the share is `rate` to the nearest 2^-16, and the rest
    are scaled by what that leaves.

    An example's mask follows from its own key and the layer's path in the network, whatever batch
    or device it is on. (Of threefry keys that is true; `rbg` draws for a whole array of keys from
    the first of them.)
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *data"], keys: Key[Array, " batch"] | None
    ) -> Float[Array, "batch *data"]:
        """`x` as it is without keys."""
        if keys is None or self.rate == 0.0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        dropped = round(self.rate * _DRAWS)

        def mask(key: Key[Array, ""]) -> Array:
            return _draws(jax.random.fold_in(key, layer), x.shape[1:]) >= dropped

        scale = 1.0 - dropped / _DRAWS
        return jnp.where(jax.vmap(mask)(keys), x / scale, jnp.zeros_like(x))


def halved(x: Shaped[Array, "batch height width channel"]) -> Array:
    """The mean of each square of four pixels."""
    rows = x[:, 0::2] + x[:, 1::2]
    return 0.25 * (rows[:, :, 0::2] + rows[:, :, 1::2])


def doubled(x: Shaped[Array, "batch height width channel"]) -> Array:
    """Each pixel as a square of four."""
    batch, height, width, channels = x.shape
    squares = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return _interleaved(squares, x)


def _convolve_doubled(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution of the image in which each pixel of `x` is a square of four.

    Of the three taps of an axis two fall on the same pixel of `x`: on an even place the second and
    third, on an odd one the first and second. So each of the four places of a square is a 2x2
    convolution of `x`, and all of it takes 4 * 4 products instead of 4 * 9.
    """

    def by_place(kernel: Array, axis: int) -> tuple[Array, Array]:
        first, second, third = jnp.split(kernel, 3, axis)
        return (
            jnp.concatenate([first, second + third], axis),
            jnp.concatenate([first + second, third], axis),
        )

    kernel = kernel.astype(wide_dtype(x.dtype))  # the taps are added in
    rows = []
    for row, kernels in enumerate(by_place(kernel, 0)):
        places = []
        for column, small in enumerate(by_place(kernels, 1)):
            padding = ((1 - row, row), (1 - column, column))
            places.append(_convolution(1, padding)(x, small.astype(x.dtype)))
        rows.append(jnp.stack(places, axis=3))
    return _interleaved(jnp.stack(rows, axis=2), x)


def _interleaved(squares: Array, x: Array) -> Array:
    """`[batch, height, 2, width, 2, channel]` as images, split over an Explicit mesh as `x` is."""
    batch, height, _, width, _, channels = squares.shape
    out_sharding = PartitionSpec(*jax.typeof(x).sharding.spec) if _is_split(x) else None
    shape = (batch, 2 * height, 2 * width, channels)
    return jax.lax.reshape(squares, shape, out_sharding=out_sharding)


@functools.cache
def _convolution(stride: int, padding: Padding) -> Callable[[Array, Array], Array]:
    """`(x, kernel) -> y`, whose slope to the kernel is written for XLA's CPU kernels."""

    @jax.custom_jvp
    def convolve(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @convolve.defjvp
    def push_forward(
        primals: tuple[Array, Array], tangents: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        (x, kernel), (to_x, to_kernel) = primals, tangents
        if _is_split(x) or x.dtype != jnp.float32:
            of_kernel = convolve(x, to_kernel)
        else:
            on_cpu = functools.partial(_convolve_in_parts, stride=stride, padding=padding)
            of_kernel = jax.lax.platform_dependent(x, to_kernel, cpu=on_cpu, default=convolve)
        return convolve(x, kernel), convolve(to_x, kernel) + of_kernel

    return convolve


def _convolve_in_parts(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    """The same, in an order of axes and in parts of a batch that suit its transpose on a CPU.

    JAX transposes it to the slope of the kernel, which contracts over examples and positions. In
    these orders that is a convolution with the axes as XLA's CPU kernels want them, those of x
    being [channel, height, width, batch]. XLA reorders other axes by itself, but not within loops,
    where it falls back on code that takes 50 times as long. Its kernels read all of the output's
    slope for every few rows of the result, so each part's has to stay in the cache: of 32x32 pixels
    and 128 channels, 64 images at once take 38 times as long as 16.
    """
    # Where x, the kernel and the output have the axes that JAX calls 0, 1, 2 and 3.
    axes = jax.lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))

    def of_part(x: Array) -> Array:
        y = jax.lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),
            kernel.transpose(2, 0, 1, 3),
            (stride, stride),
            padding,
            dimension_numbers=axes,
        )
        return y.transpose(2, 0, 1, 3)

    of_one = math.prod(x.shape[1:3]) // stride**2 * kernel.shape[-1] * x.dtype.itemsize
    examples = max(_CACHE // max(of_one, 1), 1)
    parts = [of_part(x[start : start + examples]) for start in range(0, max(len(x), 1), examples)]
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _draws(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Integers from 0 to 2^16 - 1, two of each word that the generator gives.

    Without the barrier the generator would be compiled into every loop that reads the words. What
    splits them is the same twice: chips would write a concatenation to memory, and a CPU, which
    ignores the barrier, takes a twelfth longer to compile shifts.
    """
    first, *rest = shape
    words = jax.lax.optimization_barrier(
        jax.random.bits(key, (1, -(-first // 2), *rest), jnp.uint32)
    )

    def by_concatenation(words: Array) -> Array:
        return jnp.concatenate([words & (_DRAWS - 1), words >> 16])

    def by_shifts(words: Array) -> Array:
        shifts = jnp.array([0, 16], jnp.uint32).reshape(2, *(1 for _ in shape))
        words, shifts = jnp.broadcast_arrays(words, shifts)
        return (words >> shifts) & (_DRAWS - 1)

    halves = jax.lax.platform_dependent(words, cpu=by_concatenation, default=by_shifts)
    return halves.reshape(-1, *rest)[:first]


def _is_split(array: Array) -> bool:
    """Whether an Explicit mesh has parts of it on different devices."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def _add(y: Array, bias: Array) -> Array:
    """`y + bias`. The bias is narrowed after it is broadcast: its gradient is summed in float32."""
    return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)
