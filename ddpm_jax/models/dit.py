"""The diffusion transformer of Peebles & Xie 2023 (https://arxiv.org/abs/2212.09748) in Flax Linen.

An image is cut into square patches. Each patch becomes a vector, to which the sines and cosines of
its row and column are added. Blocks of self-attention and a two-layer network follow. The time (and
the class, if there are classes) scales and shifts the input of both, and scales their output by a
gate (adaLN-Zero, section 3.2). The gates are zero at first, so that the blocks of a new network
change nothing, and its output is zero.

With the paper's sizes, latent images of 32x32x4, 1000 classes and a learned variance, the numbers
of parameters are the paper's: XL/2 has 674,834,720. The authors' program counts 675,129,632,
because it holds the table of positions, 256 * 1152 numbers, as a parameter that is not trained.
"""

import math
import typing
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int, Key

from ddpm_jax.checks import check_choice
from ddpm_jax.models.blocks import (
    InterpolationRange,
    class_vectors,
    fourier_features,
    of_each_example,
    sinusoidal_embedding,
    split_outputs,
)
from ddpm_jax.models.layers import (
    Dense,
    Dropout,
    attend,
    gathered,
    named,
    wide_dtype,
)

__all__ = ["DiT", "TokenRemat"]

TokenRemat = Literal["none", "attention", "blocks"]
"""What the backward pass recomputes; each value saves more memory than the one before."""

_EPSILON = 1e-6
_SINUSOIDS = 256

_xavier = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros_init()


class DiT(nn.Module):
    """The diffusion transformer, a Flax Linen module.

    `model.apply(variables, x_t, t)` returns the prediction, float32 with the shape of `x_t`,
    `[batch, height, width, channel]`. Times `t` are int or float, `[batch]`. More arguments:

    - `labels`: int32 `[batch]`, 0 to num_classes - 1, or -1 for no class.
    - `train`: turns dropout on.
    - `keys`: one key for each example, `[batch]`, for dropout; without it the rng stream "dropout"
      is used.

    With `learned_variance` it returns a pair, `(prediction, interpolation)`, both with the shape of
    `x_t`: see `ddpm_jax.reverse.learned_log_variance`. `ddpm_jax.config.DiT` checks the options
    before anything is built, and has the paper's sizes.

    Args:
        patch: side of a patch in pixels; it divides the image's height and width.
        width: channels of each patch; a multiple of `heads` and of 4.
        depth: number of blocks.
        heads: number of heads of each self-attention.
        mlp_ratio: width of the hidden layer in each block, as a multiple of `width`.
        dropout: rate after self-attention and inside the hidden layers, in [0, 1); the paper has
            none.
        frequency_shift: with 1 the lowest frequency of the sinusoids of t is 1 / 10000, with 0 it
            is one step higher. The paper's networks have 0, and diffusers' `DiTTransformer2DModel`
            has 1.
        time_scale: factor of t before the sinusoids.
        fourier_features: exponents n of the sines and cosines of 2^n pi x_t that the first layer
            gets beside x_t, see `ddpm_jax.models.UNet`.
        num_classes: number of classes; 0 for a network without classes.
        null_class: whether there is a vector for "no class". Without it each example needs a label,
            and the output for the label -1 is NaN.
        learned_variance: whether there is the second output.
        interpolation_range: range of the second output, see `InterpolationRange`. A new network
            returns 0: the small variance for "unit", half way to the large one for "symmetric".
        dtype: dtype of the computation inside. Parameters are always float32.
        remat: what the backward pass recomputes: "none"; "attention", the weights of attention;
            "blocks", all of each block. Parameters and results are the same.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax.models import DiT
        >>> model = DiT(width=8, depth=1, heads=2)
        >>> x_t, t = jnp.zeros((2, 8, 8, 3)), jnp.array([0, 99])
        >>> init = jax.jit(model.init_with_output)
        >>> prediction, variables = init(jax.random.key(0), x_t, t)
        >>> prediction.shape
        (2, 8, 8, 3)
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    frequency_shift: float = 0.0
    time_scale: float = 1.0
    fourier_features: Sequence[int] = ()
    num_classes: int = 0
    null_class: bool = True
    learned_variance: bool = False
    interpolation_range: InterpolationRange = "unit"
    dtype: DTypeLike = jnp.float32
    remat: TokenRemat = "none"

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
        check_choice("remat", self.remat, typing.get_args(TokenRemat))
        t, keys, labels = of_each_example(self, x_t, t, train=train, keys=keys, labels=labels)

        batch, height, width, channels = x_t.shape
        grid = height // self.patch, width // self.patch
        features = fourier_features(x_t, self.fourier_features)
        h = self._dense(self.width, "input")(_patches(features, self.patch))
        h = h + _positions(*grid, self.width).astype(self.dtype)

        wide = wide_dtype(self.dtype)
        time = sinusoidal_embedding(
            t.astype(wide) * self.time_scale,
            _SINUSOIDS,
            cosine_first=True,
            frequency_shift=self.frequency_shift,
            dtype=wide,
        ).astype(self.dtype)
        time = self._dense(self.width, "time_0", init=_small)(time)
        time = self._dense(self.width, "time_1", init=_small)(nn.swish(time))
        if self.num_classes > 0:
            shape = (self.num_classes + self.null_class, self.width)
            table = gathered(self.param("classes", named(_small, "in", "out"), shape, jnp.float32))
            vectors = class_vectors(table, labels, batch, num_classes=self.num_classes)
            time = time + vectors.astype(self.dtype)
        time = nn.swish(time)

        block = nn.remat(TransformerBlock) if self.remat == "blocks" else TransformerBlock
        for index in range(self.depth):
            h = block(
                self.heads,
                self.mlp_ratio,
                self.dropout,
                self.dtype,
                self.remat == "attention",
                name=f"block_{index}",
            )(h, time, keys)

        modulation = self._dense(2 * self.width, "output_modulation", init=_zeros)(time)
        shift, scale = jnp.split(modulation, 2, axis=-1)
        outputs = 2 if self.learned_variance else 1
        size = outputs * channels * self.patch**2
        h = self._dense(size, "output", init=_zeros)(_modulated(h, scale, shift))
        h = _image(h.astype(wide), grid, self.patch)
        if self.learned_variance:
            return split_outputs(h, self.interpolation_range)
        return h

    @nn.nowrap
    def _dense(
        self, features: int, name: str, *, init: nn.initializers.Initializer = _xavier
    ) -> Dense:
        return Dense(features, dtype=self.dtype, kernel_init=init, name=name)


class TransformerBlock(nn.Module):
    """Self-attention, then two dense layers, each added to its input behind a gate."""

    heads: int
    mlp_ratio: float
    dropout: float
    dtype: DTypeLike
    attends_again: bool
    """Whether the backward pass recomputes the weights of attention."""

    @nn.compact
    def __call__(self, x: Array, time: Array, keys: Array | None) -> Array:
        batch, positions, width = x.shape
        by_head = (batch, positions, self.heads, width // self.heads)

        def dense(features: int, name: str, init: nn.initializers.Initializer = _xavier) -> Dense:
            return Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        modulation = dense(6 * width, "modulation", _zeros)(time)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=-1)

        h = _modulated(x, scale, shift)
        query, key, value = (
            dense(width, name)(h).reshape(by_head) for name in ("query", "key", "value")
        )
        attention = jax.checkpoint(attend) if self.attends_again else attend
        h = dense(width, "output")(attention(query, key, value).reshape(x.shape))
        x = x + _spread(gate, x) * Dropout(self.dropout, name="dropout_0")(h, keys)

        h = dense(int(width * self.mlp_ratio), "mlp_0")(_modulated(x, mlp_scale, mlp_shift))
        h = Dropout(self.dropout, name="dropout_1")(nn.gelu(h, approximate=True), keys)
        return x + _spread(mlp_gate, x) * dense(width, "mlp_1")(h)


def _modulated(x: Array, scale: Array, shift: Array) -> Array:
    """Each vector with mean 0 and variance 1, then scaled by 1 + `scale`, and shifted."""
    wide = x.astype(wide_dtype(x.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = (centred * jax.lax.rsqrt(variance + _EPSILON)).astype(x.dtype)
    return normed * (1.0 + _spread(scale, x)) + _spread(shift, x)


def _spread(values: Array, x: Array) -> Array:
    """One vector of each example at all positions; its gradient is summed in float32 at least."""
    wide = values.astype(wide_dtype(x.dtype))
    return jnp.broadcast_to(wide[:, None, :], x.shape).astype(x.dtype)


def _patches(x: Array, side: int) -> Array:
    """`[batch, patch, value]`, row by row; the values of a patch are [row, column, channel]."""
    _, height, width, channels = x.shape
    squares = _reshaped(x, height // side, side, width // side, side, channels)
    return _reshaped(squares.transpose(0, 1, 3, 2, 4, 5), -1, side * side * channels)


def _image(patches: Array, grid: tuple[int, int], side: int) -> Array:
    """The inverse of `_patches`."""
    squares = _reshaped(patches, *grid, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return _reshaped(squares, grid[0] * side, grid[1] * side, -1)


def _reshaped(x: Array, *shape: int) -> Array:
    """Reshapes each example; an Explicit mesh splits the result as it splits `x`."""
    rest = math.prod(x.shape[1:]) // -math.prod(shape)
    sizes = [rest if size == -1 else size for size in shape]
    axis, *_ = jax.typeof(x).sharding.spec
    out_sharding = None if axis is None else PartitionSpec(axis, *(None for _ in sizes))
    return jax.lax.reshape(x, (x.shape[0], *sizes), out_sharding=out_sharding)


def _positions(height: int, width: int, features: int) -> Array:
    """`[1, height * width, features]`: sines and cosines of the column, then of the row.

    Half of the features are of each, at frequencies from 1 down to 1 / 10000 (exclusive).
    """
    quarter = features // 4
    frequencies = 10_000.0 ** -(np.arange(quarter) / quarter)

    def of(count: int) -> Array:
        angles = np.arange(count)[:, None] * frequencies
        return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))

    shape = (height, width, 2 * quarter)
    columns = jnp.broadcast_to(of(width)[None], shape)
    of_rows = jnp.broadcast_to(of(height)[:, None], shape)
    return jnp.concatenate([columns, of_rows], axis=-1).reshape(1, height * width, 4 * quarter)
