"""Layers that compute in bfloat16 and still learn in float32, with an axis name on each parameter.

A layer that casts its float32 parameters to bfloat16 gets its weight gradient in bfloat16 from
JAX, one per device, and casts the sum over devices back to float32: the sum itself is of bfloat16.
The layers here have a backward pass of their own in which the contraction over examples and
positions ends in float32, as the hardware accumulates it anyway, so that whatever adds up devices
(the all-reduce that `jit` inserts, `psum`, a scan over microbatches) adds float32. Input gradients
are as before.

Such a layer is for reverse mode: `jax.jvp` through it fails, and under `vmap` the gradient of the
shared kernel is formed for each example apart. Batches go in whole, therefore, and `Dropout` takes
a key per example in place of a `vmap` around the network.
"""

import functools
import zlib
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Key

__all__ = ["Conv", "Dense", "Dropout", "Gradients", "named"]

Gradients = Literal["float32", "compute"]
"""Dtype in which weight gradients leave the backward pass: float32, or that of the computation."""

_zeros = nn.initializers.zeros_init()


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis; parameters as those of `nn.Dense`."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    gradients: Gradients = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """In `dtype`, whatever that of `x` is."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", named(self.kernel_init, "in", "out"), shape)
        bias = self.param("bias", named(_zeros, "out"), (self.features,))
        multiply = _multiply if self.gradients == "compute" else _multiply_float32
        return multiply(x.astype(self.dtype), kernel, bias)


class Conv(nn.Module):
    """A convolution of images, zeros around them; parameters as those of `nn.Conv`."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    gradients: Gradients = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height2 width2 outputs"]:
        """In `dtype`, whatever that of `x` is."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        names = ("kernel_height", "kernel_width", "in", "out")
        kernel = self.param("kernel", named(self.kernel_init, *names), shape)
        bias = self.param("bias", named(_zeros, "out"), (self.features,))
        convolve = _convolve if self.gradients == "compute" else _convolve_float32
        return convolve(x.astype(self.dtype), kernel, bias, self.stride)


class Dropout(nn.Module):
    """Zeros in a share `rate` of places and the rest scaled up, by a key for each example.

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
        layer, keep = zlib.crc32("/".join(self.path).encode()), 1.0 - self.rate

        def mask(key: Key[Array, ""]) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, layer), keep, x.shape[1:])

        return jnp.where(jax.vmap(mask)(keys), x / keep, jnp.zeros_like(x))


def named(init: nn.initializers.Initializer, *names: str) -> Any:
    """The initializer, with a logical name for each axis of what it makes.

    The names are "kernel_height", "kernel_width", "in" and "out".
    """
    return nn.with_logical_partitioning(init, names)


def _multiply(x: Array, kernel: Array, bias: Array) -> Array:
    y = lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    return _add(y, bias)


@jax.custom_vjp
def _multiply_float32(x: Array, kernel: Array, bias: Array) -> Array:
    return _multiply(x, kernel, bias)


def _multiply_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(x, kernel, bias), (x, kernel)


def _multiply_backward(residuals: tuple[Array, Array], slope: Array) -> tuple[Array, Array, Array]:
    x, kernel = residuals
    last, leading = x.ndim - 1, tuple(range(x.ndim - 1))
    to_x = lax.dot_general(slope, kernel.astype(x.dtype), (((last,), (1,)), ((), ())))
    to_kernel = lax.dot_general(
        x, slope, ((leading, leading), ((), ())), preferred_element_type=jnp.float32
    )
    return to_x, to_kernel, jnp.sum(slope, leading, dtype=jnp.float32)


_multiply_float32.defvjp(_multiply_forward, _multiply_backward)


def _convolve(x: Array, kernel: Array, bias: Array, stride: int) -> Array:
    return _add(_without_bias(x, kernel, stride), bias)


def _without_bias(x: Array, kernel: Array, stride: int) -> Array:
    axes = ("NHWC", "HWIO", "NHWC")
    strides, kernel = (stride, stride), kernel.astype(x.dtype)
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _convolve_float32(x: Array, kernel: Array, bias: Array, stride: int) -> Array:
    return _convolve(x, kernel, bias, stride)


def _convolve_forward(
    x: Array, kernel: Array, bias: Array, stride: int
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, bias, stride), (x, kernel)


def _convolve_backward(
    stride: int, residuals: tuple[Array, Array], slope: Array
) -> tuple[Array, Array, Array]:
    x, kernel = residuals
    (to_x,) = jax.linear_transpose(lambda x: _without_bias(x, kernel, stride), x)(slope)
    # Offsets in the kernel are positions of the result, examples are what is contracted.
    to_kernel = lax.conv_general_dilated(
        x,
        slope,
        (1, 1),
        [
            _padding(*sizes, stride)
            for sizes in zip(x.shape[1:3], slope.shape[1:3], kernel.shape[:2], strict=True)
        ],
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=jnp.float32,
    )
    return to_x, to_kernel, jnp.sum(slope, (0, 1, 2), dtype=jnp.float32)


_convolve_float32.defvjp(_convolve_forward, _convolve_backward)


def _padding(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after the input that leave a position of the result for each offset."""
    reach = (outputs - 1) * stride + kernel
    before = max(reach - inputs, 0) // 2
    return before, reach - inputs - before


def _add(y: Array, bias: Array) -> Array:
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
