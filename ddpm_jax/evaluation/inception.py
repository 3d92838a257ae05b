"""The Inception-v3 of the FID literature, and how images are prepared for it.

The network is that of TensorFlow's graph of 2015-12-05 (Szegedy et al. 2015,
https://arxiv.org/abs/1512.00567), which Salimans et al. 2016 (https://arxiv.org/abs/1606.03498)
took the Inception score from and Heusel et al. 2017 (TTUR, https://arxiv.org/abs/1706.08500) the
FID. Its layers are named as in the PyTorch port of its weights. It is not the Inception-v3 that
torchvision trained: there are 1008 classes, average pools divide by the number of pixels and not
by 9 at the border, and the last block has a maximum where the paper has an average.

An image of any size becomes 299 x 299 in one of three ways, whose numbers differ (Parmar et al.
2022, https://arxiv.org/abs/2104.11222); `resizing` has the formulas:

    tensorflow    TensorFlow 1's bilinear resize, which the graph does itself; then (u - 128) / 128.
                  TTUR, guided-diffusion, EDM, torch-fidelity.
    pytorch-fid   torch's bilinear resize, with half-pixel centres; then 2 u / 255 - 1.
    clean-fid     PIL's bicubic filter in floats, which also averages where an image shrinks, and
                  whose overshoot is clipped to [0, 255]; then (u - 128) / 128.

sFID (Nash et al. 2021, https://arxiv.org/abs/2103.03841) compares features that keep positions:
the first 7 channels of 17 x 17 pixels of the tensor `mixed_6/conv:0` of the graph, 2023 numbers, by
row, column and channel. That is the 1x1 branch of `Mixed_6d`, after its relu: the graph's blocks
are mixed, mixed_1, ..., and the port's Mixed_5b, 5c, 5d, 6a, .... The branch is the first of those
that the block joins, so that these are the first 7 channels of the block.

The logits are without bias, because the Inception score is: Salimans et al. multiplied the pooled
features by the last layer's matrix alone, and so do those who compare with them.

Multiplications ask for the highest precision. A TPU would otherwise round their factors to
bfloat16, and some GPUs to TF32. With factors in bfloat16 and weights at random the features are off
by 0.4 % of their size, and 20 % of what tells one image of noise from another.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ddpm_jax.evaluation import resizing
from ddpm_jax.evaluation.features import Features, as_rgb

__all__ = [
    "CLASSES",
    "DIM",
    "PREPARATIONS",
    "SIDE",
    "SPATIAL_DIM",
    "InceptionV3",
    "Preparation",
    "features",
]

SIDE = 299
DIM = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS

Images = Float[Array, "batch _ _ _"]
"""`[batch, height, width, channel]`; layers change all but the batch."""

Size = int | tuple[int, int]


class Preparation(NamedTuple):
    """How images of 256 levels and any size become those that the network takes."""

    suffix: str
    """What the network's name says of it."""
    sentence: str
    """A part of the network's identity: change this sentence with what it says."""
    prepare: Callable[[Images], Images]
    """Of levels from 0 to 255, as floats."""


def _as_tensorflow(images: Images) -> Images:
    return (resizing.resize(images, SIDE, resizing.tensorflow_bilinear) - 128.0) / 128.0


def _as_pytorch_fid(images: Images) -> Images:
    return 2.0 * resizing.resize(images / 255.0, SIDE, resizing.torch_bilinear) - 1.0


def _as_clean_fid(images: Images) -> Images:
    resized = resizing.resize(images, SIDE, resizing.pil_bicubic)
    return (jnp.clip(resized, 0.0, 255.0) - 128.0) / 128.0


PREPARATIONS = {
    "tensorflow": Preparation(
        "",
        "TensorFlow 1 bilinear to 299 x 299, (u - 128) / 128, grey repeated to RGB",
        _as_tensorflow,
    ),
    "pytorch-fid": Preparation(
        ", pytorch-fid's resize",
        "torch bilinear to 299 x 299, 2 u / 255 - 1, grey repeated to RGB",
        _as_pytorch_fid,
    ),
    "clean-fid": Preparation(
        ", clean-fid's resize",
        "PIL bicubic in floats to 299 x 299, clipped, (u - 128) / 128, grey repeated to RGB",
        _as_clean_fid,
    ),
}
"""By the name of the option."""


class Conv(nn.Module):
    """A convolution without bias, batch normalization by stored moments, relu."""

    features: int
    size: Size
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """In the dtype of `x`."""
        x = nn.Conv(
            self.features,
            (self.size, self.size) if isinstance(self.size, int) else self.size,
            strides=self.stride,
            padding=self.padding,
            use_bias=False,
            dtype=x.dtype,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, dtype=x.dtype, name="bn")
        return nn.relu(norm(x))


# Of stride 2, and of the stem: no zeros around the image.
Valid = functools.partial(Conv, padding="VALID")
Half = functools.partial(Conv, stride=2, padding="VALID")


class MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, average."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """64 + 64 + 96 + `pool_features` channels."""
        return _joined(
            Conv(64, 1, name="branch1x1")(x),
            _chain("branch5x5", x, (48, 1), (64, 5)),
            _chain("branch3x3dbl", x, (64, 1), (96, 3), (96, 3)),
            Conv(self.pool_features, 1, name="branch_pool")(_average(x)),
        )


class MixedB(nn.Module):
    """35 x 35 to 17 x 17: 3x3, two 3x3, maximum."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """480 channels more."""
        double = _chain("branch3x3dbl", x, (64, 1), (96, 3))
        return _joined(
            Half(384, 3, name="branch3x3")(x),
            Half(96, 3, name="branch3x3dbl_3")(double),
            _halved(x),
        )


class MixedC(nn.Module):
    """17 x 17: 1x1, one and two 7x7 as rows and columns, average."""

    inner: int

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """4 x 192 channels."""
        c, row, column = self.inner, (1, 7), (7, 1)
        double = ((c, 1), (c, column), (c, row), (c, column), (192, row))
        return _joined(
            Conv(192, 1, name="branch1x1")(x),
            _chain("branch7x7", x, (c, 1), (c, row), (192, column)),
            _chain("branch7x7dbl", x, *double),
            Conv(192, 1, name="branch_pool")(_average(x)),
        )


class MixedD(nn.Module):
    """17 x 17 to 8 x 8: 3x3, 7x7 and 3x3, maximum."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """512 channels more."""
        single = Conv(192, 1, name="branch3x3_1")(x)
        seven = _chain("branch7x7x3", x, (192, 1), (192, (1, 7)), (192, (7, 1)))
        return _joined(
            Half(320, 3, name="branch3x3_2")(single),
            Half(192, 3, name="branch7x7x3_4")(seven),
            _halved(x),
        )


class MixedE(nn.Module):
    """8 x 8: 1x1, 3x3 as a row beside a column, the same after a 3x3, a pool."""

    maximum: bool
    """The pool of the very last block. The paper has an average there, too; the graph does not."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """320 + 768 + 768 + 192 channels."""
        single = Conv(384, 1, name="branch3x3_1")(x)
        double = _chain("branch3x3dbl", x, (448, 1), (384, 3))
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.maximum else _average(x)
        return _joined(
            Conv(320, 1, name="branch1x1")(x),
            Conv(384, (1, 3), name="branch3x3_2a")(single),
            Conv(384, (3, 1), name="branch3x3_2b")(single),
            Conv(384, (1, 3), name="branch3x3dbl_3a")(double),
            Conv(384, (3, 1), name="branch3x3dbl_3b")(double),
            Conv(192, 1, name="branch_pool")(pooled),
        )


class InceptionV3(nn.Module):
    """Pooled features, logits without bias, and the features for sFID.

    Layers and blocks are submodules, so that `capture_intermediates=True` hands out what each made.
    """

    @nn.compact
    def __call__(self, x: Images) -> Features:
        """Of images that are prepared; in the dtype of `x` and of the parameters."""
        x = Half(32, 3, name="Conv2d_1a_3x3")(x)
        x = Valid(32, 3, name="Conv2d_2a_3x3")(x)
        x = _halved(Conv(64, 3, name="Conv2d_2b_3x3")(x))
        x = Valid(80, 1, name="Conv2d_3b_1x1")(x)
        x = _halved(Valid(192, 3, name="Conv2d_4a_3x3")(x))
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = MixedA(pool_features, name=f"Mixed_5{letter}")(x)
        x = MixedB(name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = MixedC(inner, name=f"Mixed_6{letter}")(x)
            if letter == "d":
                spatial = x[..., :SPATIAL_CHANNELS]
        x = MixedD(name="Mixed_7a")(x)
        x = MixedE(maximum=False, name="Mixed_7b")(x)
        x = MixedE(maximum=True, name="Mixed_7c")(x)
        pooled = jnp.mean(x, axis=(1, 2))
        precision = jax.lax.Precision.HIGHEST
        last = nn.Dense(CLASSES, use_bias=False, dtype=x.dtype, precision=precision, name="fc")
        return Features(pooled, last(pooled), spatial.reshape(len(x), -1))


def features(
    variables: Any,
    images: UInt8[Array, "batch height width channel"],
    resize: str = "tensorflow",
) -> Features:
    """Features of images by Inception-v3 with these variables.

    Args:
        variables: the collections "params" and "batch_stats" of `InceptionV3`, in float32.
        images: of 256 levels and any size, with 1 channel (repeated to RGB) or 3.
        resize: a key of `PREPARATIONS`.

    Raises:
        TypeError: `images` are not uint8.
        ValueError: they are not `[batch, height, width, 1 or 3]`.
    """
    x = PREPARATIONS[resize].prepare(as_rgb(images).astype(jnp.float32))
    out: Any = InceptionV3().apply(variables, x)
    return out


def _chain(name: str, x: Images, *layers: tuple[int, Size]) -> Images:
    """Convolutions one after another, named as in the port: `name_1`, `name_2`, ..."""
    for number, (channels, size) in enumerate(layers, start=1):
        x = Conv(channels, size, name=f"{name}_{number}")(x)
    return x


def _joined(*branches: Images) -> Images:
    return jnp.concatenate(branches, axis=-1)


def _halved(x: Images) -> Images:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _average(x: Images) -> Images:
    """Over those of the 3 x 3 pixels that are in the image."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
