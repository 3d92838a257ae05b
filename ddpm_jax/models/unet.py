"""The U-Net of Ho et al. 2020 (https://arxiv.org/abs/2006.11239, appendix B) in Flax Linen.

Residual blocks lead down and up, and each block on the way up also gets the output of its
counterpart on the way down. Norms are group norms, the activation is swish, the time enters each
block as a bias, and chosen resolutions have self-attention. The last layer of each residual branch
and of the network starts at zero. With the paper's CIFAR-10 settings it has 35,746,307 parameters.

The vector of a class is added to that of the time, as in Dhariwal & Nichol 2021, section 4
(https://arxiv.org/abs/2105.05233). By default there is one more vector, for "no class", so that one
network serves guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

With other options it is the network of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672),
of Dhariwal & Nichol 2021, or the `UNet2DModel` of diffusers, with the same parameters:
`ddpm_jax.weights` reads their files.
"""

import typing
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, Key

from ddpm_jax.checks import check_choice
from ddpm_jax.models.blocks import (
    AttentionKernel,
    InterpolationRange,
    Remat,
    Resample,
    class_vectors,
    conv,
    dense,
    fourier_features,
    of_each_example,
    remat_blocks,
    sinusoidal_embedding,
    split_outputs,
)
from ddpm_jax.models.layers import (
    GroupNorm,
    Padding,
    doubled,
    gathered,
    halved,
    named,
    wide_dtype,
)

__all__ = ["Resampling", "UNet"]

Resampling = Literal["convolution", "residual", "plain"]
"""Operation that halves and doubles the resolution.

"convolution" has stride 2 on the way down, and works on repeated pixels on the way up; "residual"
is a residual block that averages or repeats pixels (Brock et al. 2019,
https://arxiv.org/abs/1809.11096); "plain" only averages or repeats them, without parameters.
"""

_zeros = nn.initializers.zeros_init()
_normal = nn.initializers.normal(1.0)


class UNet(nn.Module):
    """The U-Net of DDPM, a Flax Linen module.

    `model.apply(variables, x_t, t)` returns the prediction, float32 with the shape of `x_t`,
    `[batch, height, width, channel]`. Times `t` are int or float, `[batch]`. More arguments:

    - `labels`: int32 `[batch]`, 0 to num_classes - 1, or -1 for no class.
    - `train`: turns dropout on.
    - `keys`: one key for each example, `[batch]`, for dropout; without it the rng stream "dropout"
      is used.

    With `learned_variance` it returns a pair, `(prediction, interpolation)`, both with the shape of
    `x_t`: see `ddpm_jax.reverse.learned_log_variance`.

    Image height and width have to be divisible by 2^(levels - 1). `ddpm_jax.config.UNet` checks
    that and the options below before anything is built.

    Args:
        channels: channels of the first level, and width of the sinusoids of t; even, 4 or more.
        multipliers: channels of each level, as multiples of `channels`. Each level after the first
            has half the resolution of the one before.
        num_blocks: residual blocks in each level on the way down; there is one more on the way up.
        attention_resolutions: heights of the levels with self-attention after each block.
        attention_levels: more levels with self-attention, by their number from 0.
        up_attention_levels: levels with self-attention on the way up; None for the same as on the
            way down.
        middle_attention: whether there is self-attention between the two blocks in the middle.
        heads: number of heads of each self-attention; it divides the channels.
        head_channels: channels of each head; it replaces `heads`.
        up_heads: heads on the way up; None for `heads`.
        attention_kernel: "xla", or on GPUs "cudnn": one fused kernel, which does not store the
            weights of attention. It needs bfloat16 and heads of at most 128 channels (256 on an
            H100 or newer), and has no forward-mode derivative.
        resampling: operation that halves and doubles the resolution, one for all levels or one for
            each. The entry of level i stands between i and i + 1 on the way down, and between i and
            i - 1 on the way up.
        up_resampling: operation that doubles the resolution; None for `resampling`.
        symmetric_padding: whether the convolution that halves the resolution is padded on all
            sides, not only right and below.
        scale_shift: whether the time scales and shifts the norm between the two convolutions of a
            block. Otherwise it is added before that norm.
        dropout: rate inside residual blocks, in [0, 1).
        dropout_resolutions: heights of the levels with dropout; None for all.
        norm_groups: groups of each group norm; it divides the channels of each level.
        middle_norm_groups: groups of the norm before the middle attention; None for `norm_groups`,
            0 for no norm, as in diffusers' networks with `scale_shift`.
        norm_epsilon: number added to the variance of each group.
        cosine_first: whether cosines of t stand before sines.
        frequency_shift: with 1 the lowest frequency of the sinusoids is 1 / max_period, with 0 it
            is one step higher.
        max_period: period of the slowest sinusoid, in units of 2 pi.
        time_scale: factor of t before the sinusoids.
        fourier_features: exponents n of the sines and cosines of 2^n pi x_t that the first layer
            gets beside x_t, in float32 for any `dtype`; `ddpm_jax.config.UNet` says how to choose
            them.
        num_classes: number of classes; 0 for a network without classes.
        null_class: whether there is a vector for "no class". Without it each example needs a label,
            and the output for the label -1 is NaN.
        learned_variance: whether there is the second output.
        interpolation_range: range of the second output, see `InterpolationRange`. A new network
            returns 0: the small variance for "unit", half way to the large one for "symmetric".
        dtype: dtype of the computation inside. Parameters are always float32.
        remat: what the backward pass recomputes: "none"; "attention", the attention blocks;
            "convolutions", all but the outputs of convolutions; "blocks", all blocks. Parameters
            and results are the same.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax.models import UNet
        >>> model = UNet(channels=8, multipliers=(1, 2), num_blocks=1, norm_groups=4)
        >>> x_t, t = jnp.zeros((2, 8, 8, 3)), jnp.array([0, 99])
        >>> init = jax.jit(model.init_with_output)
        >>> prediction, variables = init(jax.random.key(0), x_t, t)
        >>> prediction.shape
        (2, 8, 8, 3)
    """

    channels: int = 128
    multipliers: Sequence[int | float] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    attention_levels: Sequence[int] = ()
    up_attention_levels: Sequence[int] | None = None
    middle_attention: bool = True
    heads: int = 1
    head_channels: int | None = None
    up_heads: int | None = None
    attention_kernel: AttentionKernel = "xla"
    resampling: Resampling | Sequence[Resampling] = "convolution"
    up_resampling: Resampling | Sequence[Resampling] | None = None
    symmetric_padding: bool = False
    scale_shift: bool = False
    dropout: float = 0.1
    dropout_resolutions: Sequence[int] | None = None
    norm_groups: int = 32
    middle_norm_groups: int | None = None
    norm_epsilon: float = 1e-6
    cosine_first: bool = False
    frequency_shift: float = 1.0
    max_period: float = 10_000.0
    time_scale: float = 1.0
    fourier_features: Sequence[int] = ()
    num_classes: int = 0
    null_class: bool = True
    learned_variance: bool = False
    interpolation_range: InterpolationRange = "unit"
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "batch height width channel"],
        t: Int[Array, " batch"] | Float[Array, " batch"],
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
        """The prediction at `(x_t, t)`; see the class."""
        check_choice("remat", self.remat, typing.get_args(Remat))
        t, keys, labels = of_each_example(self, x_t, t, train=train, keys=keys, labels=labels)
        residual_block, attention_block = remat_blocks(self.remat)
        widths = [int(self.channels * multiplier) for multiplier in self.multipliers]
        last, padding = len(widths) - 1, _padding(self.symmetric_padding)

        def residual(h: jax.Array, width: int, name: str, resample: Resample = "no") -> jax.Array:
            heights = self.dropout_resolutions
            drops = heights is None or h.shape[1] in heights
            block = residual_block(
                width,
                self.dropout if drops else 0.0,
                self.norm_groups,
                self.norm_epsilon,
                self.scale_shift,
                resample,
                self.dtype,
                name=name,
            )
            return block(h, time, keys)

        def attention(
            h: jax.Array,
            name: str,
            heads: int = self.heads,
            norm_groups: int = self.norm_groups,
        ) -> jax.Array:
            if self.head_channels is not None:
                heads = h.shape[-1] // self.head_channels
            return attention_block(
                norm_groups,
                self.norm_epsilon,
                self.dtype,
                heads,
                self.attention_kernel,
                name=name,
            )(h)

        def halve(h: jax.Array, level: int) -> jax.Array:
            name = f"down_{level}_half"
            match _entry(self.resampling, level):
                case "residual":
                    return residual(h, widths[level], name, "halve")
                case "plain":
                    return halved(h)
            return conv(widths[level], self.dtype, name, stride=2, padding=padding)(h)

        def double(h: jax.Array, level: int) -> jax.Array:
            name = f"up_{level}_double"
            match _entry(self.up_resampling or self.resampling, level):
                case "residual":
                    return residual(h, widths[level], name, "double")
                case "plain":
                    return doubled(h)
            return conv(widths[level], self.dtype, name, doubled=True)(h)

        time = self._time_vectors(t, labels)
        h = conv(widths[0], self.dtype, "input")(fourier_features(x_t, self.fourier_features))
        skips = [h]
        for level, width in enumerate(widths):
            for index in range(self.num_blocks):
                h = residual(h, width, f"down_{level}_{index}")
                if self._attends(level, h):
                    h = attention(h, f"down_{level}_{index}_attention")
                skips.append(h)
            if level != last:
                h = halve(h, level)
                skips.append(h)

        h = residual(h, widths[-1], "middle_0")
        if self.middle_attention:
            groups = self.middle_norm_groups
            groups = self.norm_groups if groups is None else groups
            h = attention(h, "middle_attention", norm_groups=groups)
        h = residual(h, widths[-1], "middle_1")

        for level, width in reversed(list(enumerate(widths))):
            for index in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(h, width, f"up_{level}_{index}")
                if self._attends(level, h, up=True):
                    h = attention(h, f"up_{level}_{index}_attention", self.up_heads or self.heads)
            if level != 0:
                h = double(h, level)

        h = nn.swish(GroupNorm(self.norm_groups, self.norm_epsilon, name="output_norm")(h))
        outputs = 2 if self.learned_variance else 1
        h = conv(outputs * x_t.shape[-1], self.dtype, "output", init=_zeros)(h)
        h = h.astype(wide_dtype(self.dtype))
        if self.learned_variance:
            return split_outputs(h, self.interpolation_range)
        return h

    def _time_vectors(self, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        """The vectors of time and class that each block gets."""
        time = sinusoidal_embedding(
            t.astype(wide_dtype(self.dtype)) * self.time_scale,
            self.channels,
            cosine_first=self.cosine_first,
            frequency_shift=self.frequency_shift,
            max_period=self.max_period,
            dtype=wide_dtype(self.dtype),
        ).astype(self.dtype)
        time = dense(4 * self.channels, self.dtype, "time_0")(time)
        time = dense(4 * self.channels, self.dtype, "time_1")(nn.swish(time))
        if self.num_classes > 0:
            shape = (self.num_classes + self.null_class, 4 * self.channels)
            table = gathered(self.param("classes", named(_normal, "in", "out"), shape, jnp.float32))
            vectors = class_vectors(table, labels, t.shape[0], num_classes=self.num_classes)
            time = time + vectors.astype(self.dtype)
        return nn.swish(time)

    @nn.nowrap
    def _attends(self, level: int, h: jax.Array, *, up: bool = False) -> bool:
        """Whether attention follows the blocks of this level, whose images are `h`."""
        if up and self.up_attention_levels is not None:
            return level in self.up_attention_levels
        return level in self.attention_levels or h.shape[1] in self.attention_resolutions


def _entry(resampling: Resampling | Sequence[Resampling], level: int) -> str:
    """The operation of one level."""
    return resampling if isinstance(resampling, str) else resampling[level]


def _padding(symmetric: bool) -> Padding:
    return ((1, 1), (1, 1)) if symmetric else "SAME"
