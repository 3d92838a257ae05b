"""The U-Net of Ho et al. 2020 (https://arxiv.org/abs/2006.11239, appendix B) in Flax Linen.

Residual blocks on the way down and up, joined at every block; group norm and swish; the time
enters each block as a bias; self-attention at chosen resolutions; the last layer of every
residual branch and of the network starts at zero. With the paper's CIFAR-10 settings it has
35,746,307 parameters.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

__all__ = ["UNet", "sinusoidal_embedding"]

_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros_init()


def sinusoidal_embedding(t: Int[Array, " batch"], width: int) -> Float[Array, "batch width"]:
    """sin and cos of `t` at width / 2 frequencies, 1 down to 1 / 10000 (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class UNet(nn.Module):
    """`model.apply(variables, x_t, t) -> prediction`, float32 and shaped as `x_t`.

    With `learned_variance` it returns a pair, `(prediction, interpolation)`, both shaped so: see
    `ddpm_jax.reverse.learned_log_variance`.

    Attributes:
        channels: width of the first level; even, and 4 or more.
        multipliers: width of each level in units of `channels`; each level after the first has
            half the resolution of the one before.
        num_blocks: residual blocks in each level, on the way down; one more on the way up.
        attention_resolutions: heights at which every block is followed by self-attention.
        dropout: rate inside residual blocks; the rng stream is "dropout".
        norm_groups: groups of each group norm; divides every level's width.
        dtype: of the computation inside; parameters are float32 whatever it is.
        learned_variance: whether there is the second output; at first it is 0, the small variance.

    Image height and width have to be divisible by 2^(levels - 1): `ddpm_jax.experiment`
    checks it before anything is built.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    learned_variance: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "batch height width channel"],
        t: Int[Array, " batch"],
        *,
        train: bool = False,
    ) -> (
        Float[Array, "batch height width channel"]
        | tuple[
            Float[Array, "batch height width channel"], Float[Array, "batch height width channel"]
        ]
    ):
        """The prediction at `(x_t, t)`; `train` turns dropout on."""
        time = sinusoidal_embedding(t, self.channels).astype(self.dtype)
        time = _dense(4 * self.channels, self.dtype, "time_0")(time)
        time = _dense(4 * self.channels, self.dtype, "time_1")(nn.swish(time))
        time = nn.swish(time)

        def block(h: jax.Array, width: int, name: str) -> jax.Array:
            h = ResidualBlock(width, self.dropout, self.norm_groups, self.dtype, name=name)(
                h, time, train
            )
            if h.shape[1] in self.attention_resolutions:
                h = SelfAttention(self.norm_groups, self.dtype, name=f"{name}_attention")(h)
            return h

        levels = list(enumerate(self.channels * multiplier for multiplier in self.multipliers))
        h = _conv(self.channels, self.dtype, "input")(x_t.astype(self.dtype))
        skips = [h]
        for level, width in levels:
            for index in range(self.num_blocks):
                h = block(h, width, f"down_{level}_{index}")
                skips.append(h)
            if level != levels[-1][0]:
                h = _conv(width, self.dtype, f"down_{level}_half", stride=2)(h)
                skips.append(h)

        width = levels[-1][1]
        h = ResidualBlock(width, self.dropout, self.norm_groups, self.dtype, name="middle_0")(
            h, time, train
        )
        h = SelfAttention(self.norm_groups, self.dtype, name="middle_attention")(h)
        h = ResidualBlock(width, self.dropout, self.norm_groups, self.dtype, name="middle_1")(
            h, time, train
        )

        for level, width in reversed(levels):
            for index in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, f"up_{level}_{index}")
            if level != 0:
                h = _conv(width, self.dtype, f"up_{level}_double")(_double(h))

        h = nn.swish(_norm(h, self.norm_groups, "output_norm"))
        outputs = 2 if self.learned_variance else 1
        h = _conv(outputs * x_t.shape[-1], self.dtype, "output", init=_zeros)(h)
        h = h.astype(jnp.float32)
        if self.learned_variance:
            prediction, interpolation = jnp.split(h, 2, axis=-1)
            return prediction, interpolation
        return h


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time as a bias between them, added to the input."""

    width: int
    dropout: float
    norm_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, train: bool) -> jax.Array:
        h = nn.swish(_norm(x, self.norm_groups, "norm_0"))
        h = _conv(self.width, self.dtype, "conv_0")(h)
        h = h + _dense(self.width, self.dtype, "time")(time)[:, None, None, :]
        h = nn.swish(_norm(h, self.norm_groups, "norm_1"))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = _conv(self.width, self.dtype, "conv_1", init=_zeros)(h)
        if x.shape[-1] != self.width:
            x = _dense(self.width, self.dtype, "shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """One head over all positions of the image, added to the input."""

    norm_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = _norm(x, self.norm_groups, "norm").reshape(batch, height * width, channels)
        query, key, value = (
            _dense(channels, self.dtype, name)(h) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqc,bkc->bqk", query, key).astype(jnp.float32) / math.sqrt(channels)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, value)
        h = _dense(channels, self.dtype, "output", init=_zeros)(h)
        return x + h.reshape(x.shape)


def _double(x: jax.Array) -> jax.Array:
    """Each pixel as a square of four."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _norm(x: jax.Array, groups: int, name: str) -> jax.Array:
    """Group norm, its sums in float32 whatever the dtype of `x`."""
    norm = nn.GroupNorm(num_groups=groups, dtype=jnp.float32, name=name)
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def _dense(
    width: int, dtype: DTypeLike, name: str, init: nn.initializers.Initializer = _fan_avg_uniform
) -> nn.Dense:
    return nn.Dense(width, dtype=dtype, kernel_init=init, name=name)


def _conv(
    width: int,
    dtype: DTypeLike,
    name: str,
    *,
    stride: int = 1,
    init: nn.initializers.Initializer = _fan_avg_uniform,
) -> nn.Conv:
    return nn.Conv(
        width, (3, 3), strides=(stride, stride), dtype=dtype, kernel_init=init, name=name
    )
