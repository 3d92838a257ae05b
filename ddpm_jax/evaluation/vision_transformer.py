"""The vision transformer of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929).

DINOv2 and the image half of CLIP are the same network with few differences, which are options here.
An image is cut into square patches; each becomes a vector; a vector of the class stands before
them, and a table of positions is added. In each block

    x <- x + scale_1 * attention(norm_1(x))
    x <- x + scale_2 * mlp(norm_2(x))

where the scales are 1 without `layer_scale`. The vector of the class after the last norm is the
output, or its projection. There is no dropout and no mask: the network is not trained here.

The blocks have one program, which runs once for each of them: parameters of `blocks` have a leading
axis of layers. Multiplications ask for the highest precision, as in `inception`.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import einsum

__all__ = ["Activation", "Block", "VisionTransformer", "normalized"]

Activation = Literal["gelu", "quick_gelu"]
"""x Phi(x) (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415), or x sigmoid(1.702 x)."""

Tokens = Float[Array, "batch token width"]

_HIGHEST = jax.lax.Precision.HIGHEST


class Block(nn.Module):
    """Self-attention and a two-layer network; see `VisionTransformer` about the options."""

    heads: int
    hidden: int
    activation: Activation
    gated: bool
    layer_scale: bool
    epsilon: float

    @nn.compact
    def __call__(self, x: Tokens, _: None = None) -> tuple[Tokens, None]:
        """The tokens after the block, and nothing: it is the body of a scan."""
        x = x + self._scaled("scale_1", self._attention(_norm("norm_1", self.epsilon, x)))
        x = x + self._scaled("scale_2", self._mlp(_norm("norm_2", self.epsilon, x)))
        return x, None

    def _scaled(self, name: str, x: Tokens) -> Tokens:
        if not self.layer_scale:
            return x
        scale = self.param(name, nn.initializers.ones, (x.shape[-1],))
        return x * scale.astype(x.dtype)[None, None]

    def _attention(self, x: Tokens) -> Tokens:
        def split(name: str) -> Array:
            y = _dense(name, x.shape[-1], x)
            return jnp.moveaxis(y.reshape(*y.shape[:-1], self.heads, -1), 2, 0)

        def of_head(of: tuple[Array, Array, Array]) -> Tokens:
            query, key, value = of
            logits = einsum("bqw,bkw->bqk", query, key) * query.shape[-1] ** -0.5
            return einsum("bqk,bkw->bqw", jax.nn.softmax(logits, axis=-1), value)

        # One head after the other: the weights of all of them would be the largest array by far.
        heads = jax.lax.map(of_head, (split("query"), split("key"), split("value")))
        return _dense("out", x.shape[-1], jnp.moveaxis(heads, 0, 2).reshape(x.shape))

    def _mlp(self, x: Tokens) -> Tokens:
        if self.gated:  # SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)
            hidden = nn.silu(_dense("gate", self.hidden, x)) * _dense("up", self.hidden, x)
        else:
            hidden = _dense("up", self.hidden, x)
            if self.activation == "gelu":
                hidden = nn.gelu(hidden, approximate=False)
            else:
                hidden = hidden * nn.sigmoid(1.702 * hidden)
        return _dense("down", x.shape[-1], hidden)


class VisionTransformer(nn.Module):
    """The vector of the class, `[batch, width]` or `[batch, projection]`.

    Args:
        patch: side of a patch in pixels.
        width: channels of each token.
        depth: number of blocks.
        heads: number of heads of each self-attention.
        hidden: width of the hidden layer in each block.
        activation: of the hidden layer, unless it is gated.
        gated: whether the hidden layer is a SwiGLU, as in the largest DINOv2.
        layer_scale: whether each block has scales.
        first_norm: whether the tokens are normalized before the first block, as in CLIP, whose
            patches have no bias.
        projection: width of the output's projection; 0 for none.
        epsilon: of the norms.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    activation: Activation = "gelu"
    gated: bool = False
    layer_scale: bool = False
    first_norm: bool = False
    projection: int = 0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Float[Array, "batch dim"]:
        """Of images that are prepared, whose sides are multiples of `patch`; in their dtype."""
        patches = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            use_bias=not self.first_norm,
            dtype=x.dtype,
            precision=_HIGHEST,
            name="patches",
        )(x)
        tokens = patches.reshape(len(x), -1, self.width)
        first = self.param("class_token", nn.initializers.zeros, (self.width,))
        tokens = jnp.pad(tokens, ((0, 0), (1, 0), (0, 0)))
        positions = self.param("positions", nn.initializers.zeros, tokens.shape[1:])
        tokens = tokens + positions.at[0].add(first).astype(x.dtype)[None]
        if self.first_norm:
            tokens = _norm("first_norm", self.epsilon, tokens)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        tokens, _ = blocks(
            self.heads,
            self.hidden,
            self.activation,
            self.gated,
            self.layer_scale,
            self.epsilon,
            name="blocks",
        )(tokens, None)
        out = _norm("last_norm", self.epsilon, tokens[:, 0])
        return _dense("projection", self.projection, out, bias=False) if self.projection else out


def normalized(
    images: Float[Array, "batch height width channel"],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
) -> Float[Array, "batch height width channel"]:
    """Images with a mean subtracted from each channel, and divided by its standard deviation."""
    per_channel = (
        jnp.array(values, images.dtype)[None, None, None] for values in (mean, deviation)
    )
    centre, width = per_channel
    return (images - centre) / width


class Norm(nn.Module):
    """Mean 0 and variance 1 over channels (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

    With parameters and outputs of `nn.LayerNorm`, whose float32 in between a float64 cannot pass.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """In the dtype of `x`."""
        initial = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        scale, bias = (
            jnp.expand_dims(self.param(name, init, x.shape[-1:]), range(x.ndim - 1)).astype(x.dtype)
            for name, init in initial.items()
        )
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


def _norm(name: str, epsilon: float, x: Array) -> Array:
    out: Array = Norm(epsilon, name=name)(x)
    return out


def _dense(name: str, features: int, x: Array, *, bias: bool = True) -> Array:
    dense = nn.Dense(features, use_bias=bias, dtype=x.dtype, precision=_HIGHEST, name=name)
    out: Array = dense(x)
    return out
