"""What the networks are made of: sinusoids of the time, residual blocks, self-attention.

Each block is added to its input by a last layer that starts at zero.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from ddpm_jax.models.layers import (
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    Padding,
    attend,
    doubled,
    halved,
)

__all__ = [
    "AttentionKernel",
    "Remat",
    "Resample",
    "ResidualBlock",
    "SelfAttention",
    "conv",
    "dense",
    "remat_blocks",
    "sinusoidal_embedding",
]

Remat = Literal["none", "attention", "convolutions", "blocks"]
"""What the backward pass computes again instead of keeping it; each saves more memory."""

AttentionKernel = Literal["xla", "cudnn"]
"""What computes attention: products and a softmax, or `jax.nn.dot_product_attention` by cuDNN."""

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
    norm_epsilon: float
    dtype: DTypeLike
    heads: int
    kernel: AttentionKernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of images."""
        batch, height, width, channels = x.shape
        by_head = (batch, height * width, self.heads, channels // self.heads)
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
