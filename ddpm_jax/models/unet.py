"""The U-Net of Ho et al. 2020 (https://arxiv.org/abs/2006.11239, appendix B) in Flax Linen.

Residual blocks on the way down and up, joined at every block; group norm and swish; the time
enters each block as a bias; self-attention at chosen resolutions; the last layer of every
residual branch and of the network starts at zero. With the paper's CIFAR-10 settings it has
35,746,307 parameters. A class, where there are any, is a vector added to that of the time
(Dhariwal & Nichol 2021, section 4, https://arxiv.org/abs/2105.05233, do it so), and there is one
more vector for no class, so that one network can be guided (Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598).
"""

import math
import typing
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int, Key

from ddpm_jax.checks import check_choice
from ddpm_jax.models.layers import (
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    attend,
    gathered,
    named,
    rows,
    split_like,
)

__all__ = ["AttentionKernel", "Remat", "UNet", "sinusoidal_embedding"]

Remat = Literal["none", "attention", "convolutions", "blocks"]
"""What the backward pass computes again instead of keeping it; each saves more memory."""

AttentionKernel = Literal["xla", "cudnn"]
"""What computes attention: products and a softmax, or `jax.nn.dot_product_attention` by cuDNN."""

_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros_init()
_normal = nn.initializers.normal(1.0)
_CONVOLUTION = "convolution"


def sinusoidal_embedding(t: Int[Array, " batch"], width: int) -> Float[Array, "batch width"]:
    """sin and cos of `t` at width / 2 frequencies, 1 down to 1 / 10000 (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class UNet(nn.Module):
    """`model.apply(variables, x_t, t) -> prediction`, float32 and shaped as `x_t`.

    With `num_classes` it takes a class for each example, `apply(..., labels=labels)`.

    With `learned_variance` it returns a pair, `(prediction, interpolation)`, both shaped so: see
    `ddpm_jax.reverse.learned_log_variance`.

    Attributes:
        channels: width of the first level; even, and 4 or more.
        multipliers: width of each level in units of `channels`; each level after the first has
            half the resolution of the one before.
        num_blocks: residual blocks in each level, on the way down; one more on the way up.
        attention_resolutions: heights at which every block is followed by self-attention.
        heads: of each self-attention; divides the width of every level that has one.
        attention_kernel: "xla"; or "cudnn", on GPUs: one fused kernel, which does not store the
            weights of attention. It takes bfloat16 and heads of at most 128 channels (256 from an
            H100 on), and has no forward-mode derivative.
        dropout: rate inside residual blocks; the rng stream is "dropout".
        norm_groups: groups of each group norm; divides every level's width.
        dtype: of the computation inside; parameters are float32 whatever it is.
        learned_variance: whether there is the second output; at first it is 0, the small variance.
        num_classes: classes that it takes; 0 for none.
        remat: what the backward pass computes again: "none"; "attention", all of its blocks;
            "convolutions", all blocks but the outputs of their convolutions; "blocks", all blocks.
            Parameters and results are the same.

    Image height and width have to be divisible by 2^(levels - 1): `ddpm_jax.config.UNet` checks
    it before anything is built.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    heads: int = 1
    attention_kernel: AttentionKernel = "xla"
    dropout: float = 0.1
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    learned_variance: bool = False
    num_classes: int = 0
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "batch height width channel"],
        t: Int[Array, " batch"],
        *,
        train: bool = False,
        keys: Key[Array, " batch"] | None = None,
        labels: Int[Array, " batch"] | None = None,
    ) -> (
        Float[Array, "batch height width channel"]
        | tuple[
            Float[Array, "batch height width channel"], Float[Array, "batch height width channel"]
        ]
    ):
        """The prediction at `(x_t, t)`; `train` turns dropout on.

        Its masks are drawn by `keys`, one for each example; if there are none, by the rng stream
        "dropout", whose one key is split over the examples. A label is 0 to num_classes - 1, or -1
        for no class, as is everything without labels.
        """
        if labels is not None and self.num_classes == 0:
            raise ValueError("labels are given to a network without classes (num_classes is 0)")
        check_choice("remat", self.remat, typing.get_args(Remat))
        if not train or self.dropout == 0.0:
            keys = None
        elif keys is None:
            keys = jax.random.split(self.make_rng("dropout"), x_t.shape[0])
        t, keys, labels = jax.tree.map(lambda values: split_like(values, x_t), (t, keys, labels))
        residual_block, attention_block = _blocks(self.remat)

        def residual(h: jax.Array, width: int, name: str) -> jax.Array:
            block = residual_block(width, self.dropout, self.norm_groups, self.dtype, name=name)
            return block(h, time, keys)

        def attention(h: jax.Array, name: str) -> jax.Array:
            return attention_block(
                self.norm_groups, self.dtype, self.heads, self.attention_kernel, name=name
            )(h)

        def block(h: jax.Array, width: int, name: str) -> jax.Array:
            h = residual(h, width, name)
            attends = h.shape[1] in self.attention_resolutions
            return attention(h, f"{name}_attention") if attends else h

        time = sinusoidal_embedding(t, self.channels).astype(self.dtype)
        time = _dense(4 * self.channels, self.dtype, "time_0")(time)
        time = _dense(4 * self.channels, self.dtype, "time_1")(nn.swish(time))
        if self.num_classes > 0:
            time = time + self._class_vectors(labels, x_t.shape[0]).astype(self.dtype)
        time = nn.swish(time)

        levels = list(enumerate(self.channels * multiplier for multiplier in self.multipliers))
        h = _conv(self.channels, self.dtype, "input")(x_t)
        skips = [h]
        for level, width in levels:
            for index in range(self.num_blocks):
                h = block(h, width, f"down_{level}_{index}")
                skips.append(h)
            if level != levels[-1][0]:
                h = _conv(width, self.dtype, f"down_{level}_half", stride=2)(h)
                skips.append(h)

        width = levels[-1][1]
        h = residual(h, width, "middle_0")
        h = attention(h, "middle_attention")
        h = residual(h, width, "middle_1")

        for level, width in reversed(levels):
            for index in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, f"up_{level}_{index}")
            if level != 0:
                h = _conv(width, self.dtype, f"up_{level}_double", doubled=True)(h)

        h = nn.swish(GroupNorm(self.norm_groups, name="output_norm")(h))
        outputs = 2 if self.learned_variance else 1
        h = _conv(outputs * x_t.shape[-1], self.dtype, "output", init=_zeros)(h)
        h = h.astype(jnp.float32)
        if self.learned_variance:
            prediction, interpolation = jnp.split(h, 2, axis=-1)
            return prediction, interpolation
        return h

    def _class_vectors(self, labels: jax.Array | None, batch: int) -> jax.Array:
        """Of each example's class; the last row of the table is for those without."""
        shape = (self.num_classes + 1, 4 * self.channels)
        table = gathered(self.param("classes", named(_normal, "in", "out"), shape, jnp.float32))
        if labels is None:
            return jnp.broadcast_to(table[-1:], (batch, shape[1]))
        return rows(table, jnp.where(labels < 0, self.num_classes, labels))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time as a bias between them, added to the input."""

    width: int
    dropout: float
    norm_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, keys: jax.Array | None) -> jax.Array:
        h = nn.swish(GroupNorm(self.norm_groups, name="norm_0")(x))
        h = checkpoint_name(_conv(self.width, self.dtype, "conv_0")(h), _CONVOLUTION)
        h = h + _dense(self.width, self.dtype, "time")(time)[:, None, None, :]
        h = nn.swish(GroupNorm(self.norm_groups, name="norm_1")(h))
        h = Dropout(self.dropout, name="dropout")(h, keys)
        h = checkpoint_name(_conv(self.width, self.dtype, "conv_1", init=_zeros)(h), _CONVOLUTION)
        if x.shape[-1] != self.width:
            x = _dense(self.width, self.dtype, "shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """Over all positions of the image, added to the input (Vaswani et al. 2017, section 3.2)."""

    norm_groups: int
    dtype: DTypeLike
    heads: int
    kernel: AttentionKernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        by_head = (batch, height * width, self.heads, channels // self.heads)
        h = GroupNorm(self.norm_groups, name="norm")(x).reshape(batch, height * width, channels)
        query, key, value = (
            _dense(channels, self.dtype, name)(h).reshape(by_head)
            for name in ("query", "key", "value")
        )
        if self.kernel == "cudnn":
            h = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        else:
            h = attend(query, key, value)
        h = h.reshape(batch, height * width, channels)
        h = _dense(channels, self.dtype, "output", init=_zeros)(h)
        return x + h.reshape(x.shape)


def _blocks(remat: Remat) -> tuple[type[ResidualBlock], type[SelfAttention]]:
    """The two kinds of blocks, wrapped so that the backward pass keeps no more of them."""
    policy = None
    if remat == "convolutions":
        policy = jax.checkpoint_policies.save_only_these_names(_CONVOLUTION)
    residual = ResidualBlock
    if remat in ("convolutions", "blocks"):
        residual = nn.remat(ResidualBlock, policy=policy)
    attention = SelfAttention if remat == "none" else nn.remat(SelfAttention)
    return residual, attention


def _dense(
    width: int, dtype: DTypeLike, name: str, *, init: nn.initializers.Initializer = _fan_avg_uniform
) -> Dense:
    return Dense(width, dtype=dtype, kernel_init=init, name=name)


def _conv(
    width: int,
    dtype: DTypeLike,
    name: str,
    *,
    stride: int = 1,
    doubled: bool = False,
    init: nn.initializers.Initializer = _fan_avg_uniform,
) -> Conv:
    return Conv(width, stride=stride, doubled=doubled, dtype=dtype, kernel_init=init, name=name)
