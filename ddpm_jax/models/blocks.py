"""Parts of the networks: sinusoids of the time, residual blocks, self-attention.

The last layer of each block starts at zero, and its output is added to the block's input.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int, Key, Shaped

from ddpm_jax.models.layers import (
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    Padding,
    attend,
    doubled,
    halved,
    rows,
    split_like,
    wide_dtype,
)

__all__ = [
    "AttentionKernel",
    "InterpolationRange",
    "Remat",
    "Resample",
    "ResidualBlock",
    "SelfAttention",
    "class_vectors",
    "conv",
    "dense",
    "fourier_features",
    "of_each_example",
    "remat_blocks",
    "sinusoidal_embedding",
    "split_outputs",
]

Remat = Literal["none", "attention", "convolutions", "blocks"]
"""What the backward pass recomputes; each value saves more memory than the one before."""

AttentionKernel = Literal["xla", "cudnn"]
"""Implementation of attention: products and a softmax, or cuDNN's fused kernel."""

InterpolationRange = Literal["unit", "symmetric"]
"""Range of the output for the variance: u in [0, 1], or v in [-1, 1] with u = (v + 1) / 2."""

Resample = Literal["no", "halve", "double"]

_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros_init()
_CONVOLUTION = "convolution"


def sinusoidal_embedding(
    t: Int[Array, " batch"] | Float[Array, " batch"],
    width: int,
    *,
    cosine_first: bool = False,
    frequency_shift: float = 1.0,
    max_period: float = 10_000.0,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch width"]:
    """sin(t w_k) and cos(t w_k), w_k = max_period^(-k / (n - shift)) for k < n = width / 2.

    With the shift 1, w goes from 1 down to 1 / max_period (Vaswani et al. 2017, as in the code of
    Ho et al. 2020).
    """
    half = width // 2
    frequencies = max_period ** (-np.arange(half) / (half - frequency_shift))
    angles = t.astype(dtype)[:, None] * jnp.asarray(frequencies, dtype)[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=-1)


def fourier_features(
    x: Float[Array, "batch height width channel"], exponents: Sequence[int]
) -> Float[Array, "batch height width features"]:
    """x, and sin(2^n pi x) and cos(2^n pi x) for each n of `exponents`, as channels.

    Kingma et al. 2021, appendix C.3. In float32 at least, whatever dtype the network computes in:
    bfloat16 has 8 bits, of which 2^8 pi x leaves none for the angle. Whole turns are taken off
    first, which is exact because 2^n is a power of two: the angle has all digits that x has.
    """
    wide = x.astype(wide_dtype(x.dtype))
    half_turns = [2.0**n * wide for n in exponents]
    angles = [jnp.pi * (turned - 2.0 * jnp.round(0.5 * turned)) for turned in half_turns]
    return jnp.concatenate([wide, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)


def of_each_example(
    module: Any,
    x_t: Float[Array, "batch height width channel"],
    t: Shaped[Array, " batch"],
    *,
    train: bool,
    keys: Key[Array, " batch"] | None,
    labels: Int[Array, " batch"] | None,
) -> tuple[Array, Array | None, Array | None]:
    """`t`, `keys` and `labels` of a network's call, each on the device of its example of `x_t`.

    Keys are None without dropout; if they are missing, the stream "dropout" is split over examples.

    Args:
        module: with `dropout`, `num_classes` and `null_class`.
        x_t, t, train, keys, labels: of the call.

    Raises:
        ValueError: labels of a network without classes, or none where each example needs one.
    """
    if labels is not None and module.num_classes == 0:
        raise ValueError("labels are given to a network without classes (num_classes is 0)")
    needed = module.num_classes > 0 and not module.null_class
    if labels is None and needed and not module.is_initializing():
        raise ValueError(
            f"labels are missing; the network has {module.num_classes} classes and no vector for"
            " 'no class' (null_class is False)"
        )
    if not train or module.dropout == 0.0:
        keys = None
    elif keys is None:
        keys = jax.random.split(module.make_rng("dropout"), x_t.shape[0])
    placed: tuple[Array, Array | None, Array | None] = jax.tree.map(
        lambda values: split_like(values, x_t), (t, keys, labels)
    )
    return placed


def class_vectors(
    table: Float[Array, "rows width"],
    labels: Int[Array, " batch"] | None,
    batch: int,
    *,
    num_classes: int,
) -> Float[Array, "batch width"]:
    """The vector of each example's class; without a class it is the last row of the table."""
    if labels is None:
        return jnp.broadcast_to(table[-1:], (batch, table.shape[1]))
    return rows(table, jnp.where(labels < 0, num_classes, labels))


def split_outputs(
    output: Float[Array, "batch height width outputs"], interpolation_range: InterpolationRange
) -> tuple[Array, Array]:
    """The prediction, and the interpolation in [0, 1], of a network with a learned variance."""
    prediction, interpolation = jnp.split(output, 2, axis=-1)
    if interpolation_range == "symmetric":
        interpolation = 0.5 * (interpolation + 1.0)
    return prediction, interpolation


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time between them, added to the input."""

    width: int
    dropout: float
    norm_groups: int
    norm_epsilon: float
    scale_shift: bool
    resample: Resample
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Of images and vectors of their times; dropout is off without keys."""
        h = nn.swish(GroupNorm(self.norm_groups, self.norm_epsilon, name="norm_0")(x))
        if self.resample == "halve":
            h, x = halved(h), halved(x)
        doubles = self.resample == "double"
        h = conv(self.width, self.dtype, "conv_0", doubled=doubles)(h)
        h = checkpoint_name(h, _CONVOLUTION)
        time = dense((1 + self.scale_shift) * self.width, self.dtype, "time")(time)
        time = time[:, None, None, :]
        norm = GroupNorm(self.norm_groups, self.norm_epsilon, name="norm_1")
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm(h) * (1.0 + scale) + shift
        else:
            h = norm(h + time)
        h = Dropout(self.dropout, name="dropout")(nn.swish(h), keys)
        h = checkpoint_name(conv(self.width, self.dtype, "conv_1", init=_zeros)(h), _CONVOLUTION)
        if x.shape[-1] != self.width:
            x = dense(self.width, self.dtype, "shortcut")(x)
        return (doubled(x) if doubles else x) + h


class SelfAttention(nn.Module):
    """Over all positions of the image, added to the input (Vaswani et al. 2017, section 3.2)."""

    norm_groups: int
    """0 for no norm."""
    norm_epsilon: float
    dtype: DTypeLike
    heads: int
    kernel: AttentionKernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of images."""
        batch, height, width, channels = x.shape
        by_head = (batch, height * width, self.heads, channels // self.heads)
        h = x
        if self.norm_groups > 0:
            h = GroupNorm(self.norm_groups, self.norm_epsilon, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        query, key, value = (
            dense(channels, self.dtype, name)(h).reshape(by_head)
            for name in ("query", "key", "value")
        )
        if self.kernel == "cudnn":
            h = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        else:
            h = attend(query, key, value)
        h = h.reshape(batch, height * width, channels)
        h = dense(channels, self.dtype, "output", init=_zeros)(h)
        return x + h.reshape(x.shape)


def remat_blocks(remat: Remat) -> tuple[type[ResidualBlock], type[SelfAttention]]:
    """The two kinds of blocks, wrapped so that the backward pass keeps no more of them."""
    policy = None
    if remat == "convolutions":
        policy = jax.checkpoint_policies.save_only_these_names(_CONVOLUTION)
    residual = ResidualBlock
    if remat in ("convolutions", "blocks"):
        residual = nn.remat(ResidualBlock, policy=policy)
    attention = SelfAttention if remat == "none" else nn.remat(SelfAttention)
    return residual, attention


def dense(
    width: int, dtype: DTypeLike, name: str, *, init: nn.initializers.Initializer = _fan_avg_uniform
) -> Dense:
    """The layer with the initial values of Ho et al. 2020."""
    return Dense(width, dtype=dtype, kernel_init=init, name=name)


def conv(
    width: int,
    dtype: DTypeLike,
    name: str,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    doubled: bool = False,
    init: nn.initializers.Initializer = _fan_avg_uniform,
) -> Conv:
    """The 3x3 convolution with the initial values of Ho et al. 2020."""
    return Conv(
        width,
        stride=stride,
        padding=padding,
        doubled=doubled,
        dtype=dtype,
        kernel_init=init,
        name=name,
    )
