"""The U-Net of Ho et al. 2020 (https://arxiv.org/abs/2006.11239, appendix B) in Flax Linen.

Residual blocks on the way down and up, joined at every block; group norm and swish; the time
enters each block as a bias; self-attention at chosen resolutions; the last layer of every
residual branch and of the network starts at zero. With the paper's CIFAR-10 settings it has
35,746,307 parameters. A class, where there are any, is a vector added to that of the time
(Dhariwal & Nichol 2021, section 4, https://arxiv.org/abs/2105.05233, do it so); by default there is
one more vector for no class, so that one network can be guided (Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598).

Options make it the networks of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672), of
Dhariwal & Nichol 2021 and of diffusers' `UNet2DModel`, with the same parameters:
`ddpm_jax.weights` reads theirs.
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
"""What halves and doubles the resolution: a convolution of stride 2, and one of repeated pixels; a
residual block that averages or repeats pixels (Brock et al. 2019, https://arxiv.org/abs/1809.11096);
or that average alone, without parameters."""

_zeros = nn.initializers.zeros_init()
_normal = nn.initializers.normal(1.0)


class UNet(nn.Module):
    """`model.apply(variables, x_t, t) -> prediction`, float32 and shaped as `x_t`.

    With `num_classes` it takes a class for each example, `apply(..., labels=labels)`.

    With `learned_variance` it returns a pair, `(prediction, interpolation)`, both shaped so: see
    `ddpm_jax.reverse.learned_log_variance`.

    Attributes:
        channels: width of the sinusoids of t, and the unit of `multipliers`; even, and 4 or more.
        multipliers: width of each level in units of `channels`; each level after the first has
            half the resolution of the one before.
        num_blocks: residual blocks in each level, on the way down; one more on the way up.
        attention_resolutions: heights at which every block is followed by self-attention.
        attention_levels: levels, from 0, on which it is, too.
        up_attention_levels: levels on which it is on the way up, where they are others than on the
            way down.
        middle_attention: whether it is between the two blocks in the middle.
        heads: of each self-attention; divides the width of every level that has one.
        head_channels: width of each head, in place of their number.
        up_heads: of those on the way up, if it is another number.
        attention_kernel: "xla"; or "cudnn", on GPUs: one fused kernel, which does not store the
            weights of attention. It takes bfloat16 and heads of at most 128 channels (256 from an
            H100 on), and has no forward-mode derivative.
        resampling: what halves and doubles the resolution, on all levels or on each. The entry of
            level i stands between i and i + 1 on the way down, and between i and i - 1 on the way
            up.
        up_resampling: what doubles it, if it is something else.
        symmetric_padding: whether the convolution that halves has zeros on all sides, not to the
            right and below alone.
        scale_shift: the time scales and shifts the norm between a block's convolutions, where it is
            only added before that norm otherwise.
        dropout: rate inside residual blocks; the rng stream is "dropout".
        dropout_resolutions: heights at which it is, or None for all.
        norm_groups: groups of each group norm; divides every level's width.
        middle_norm_groups: groups of the norm of the middle attention, if it is another number; 0
            for none, which diffusers' networks have beside scales and shifts.
        norm_epsilon: added to the variance of each group.
        cosine_first, frequency_shift, max_period: see `sinusoidal_embedding`.
        time_scale: factor of t before that.
        num_classes: classes that it takes; 0 for none.
        null_class: whether there is one more vector, for no class. Otherwise every example needs a
            label, and the output for one of -1 is NaN.
        learned_variance: whether there is the second output.
        interpolation_range: of the second output. At first it is the middle of its range: the small
            variance, or half way to the large one.
        dtype: of the computation inside; parameters are float32 whatever it is.
        remat: what the backward pass computes again: "none"; "attention", all of its blocks;
            "convolutions", all blocks but the outputs of their convolutions; "blocks", all blocks.
            Parameters and results are the same.

    Image height and width have to be divisible by 2^(levels - 1): `ddpm_jax.config.UNet` checks
    it before anything is built.
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
        """The prediction at `(x_t, t)`; `train` turns dropout on.

        Its masks are drawn by `keys`, one for each example; if there are none, by the rng stream
        "dropout", whose one key is split over the examples. A label is 0 to num_classes - 1, or -1
        for no class, as is everything without labels.
        """
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
        h = conv(widths[0], self.dtype, "input")(x_t)
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
        """What each block gets of an example's time and class."""
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
        """Whether the blocks of this level, whose images `h` are, are followed by attention."""
        if up and self.up_attention_levels is not None:
            return level in self.up_attention_levels
        return level in self.attention_levels or h.shape[1] in self.attention_resolutions


def _entry(resampling: Resampling | Sequence[Resampling], level: int) -> str:
    """That of a level; a name is that of all."""
    return resampling if isinstance(resampling, str) else resampling[level]


def _padding(symmetric: bool) -> Padding:
    return ((1, 1), (1, 1)) if symmetric else "SAME"
