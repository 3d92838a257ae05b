"""Resizes of images as the programs do them that published numbers were computed with.

Each is separable: a product with a matrix of weights along the height and another along the width.
A function of this module returns the matrix of one axis, `[wanted, given]`, on the host. The same
image resized in two ways gives features that differ, and numbers that cannot be compared (Parmar
et al. 2022, https://arxiv.org/abs/2104.11222). In all of them pixel i of the result lies at a
position among the n given pixels, where c = n / wanted:

    tensorflow_bilinear   c i. TensorFlow 1 without half-pixel centres and without aligned corners.
                          Between floor and the next pixel, the last repeated after the last.
    torch_bilinear        c (i + 1/2) - 1/2, at least 0. `torch.nn.functional.interpolate` with
                          align_corners=False and antialias=False.
    torch_bicubic         the same position, of 4 pixels, where the border's are repeated. The cubic
                          has a = -3/4. With `scale` in place of 1 / c, as with `scale_factor`.
    pil_bicubic           the same position. The cubic has a = -1/2, and is c times as wide where
                          the image shrinks (antialias); what is beyond the border is left out.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.arrays import einsum

__all__ = [
    "Weights",
    "pil_bicubic",
    "resize",
    "resize_bytes",
    "tensorflow_bilinear",
    "torch_bicubic",
    "torch_bilinear",
]

Images = Float[Array, "batch _ _ _"]
"""`[batch, height, width, channel]`."""

Weights = Callable[[int, int], np.ndarray]
"""`weights(given, wanted) -> [wanted, given]`, of one axis."""

_FRACTION = 22
"""Binary digits of a fraction to which PIL rounds the weights for images of bytes."""
_LOW = 8
"""Digits of the lower part of such a weight. Sums of bytes times either part are exact in float32,
where a pixel is made of at most 256: so many are in one of 224 if the image has 14,000."""


def resize(images: Images, side: int, weights: Weights) -> Images:
    """Resizes images to `side` x `side`, in their own dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> row = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
        >>> resize(row, 4, tensorflow_bilinear)[0, 0, :, 0].tolist()
        [0.0, 2.0, 4.0, 4.0]
    """
    _, height, width, _ = images.shape
    rows, columns = (jnp.asarray(weights(n, side), images.dtype) for n in (height, width))
    # Products with matrices need no care where the batch is sharded.
    return _along_columns(columns, _along_rows(rows, images))


def resize_bytes(images: UInt8[Array, "batch _ _ _"], side: int) -> Images:
    """PIL's bicubic resize of images of bytes, to the bit; bytes as float32.

    PIL rounds the weights to 22 binary digits of a fraction, adds integers, and rounds to bytes
    after the width and again after the height. Pillow 13 begins with the height where an image is
    higher than wide; here it is always the width, as in the versions before.
    """
    _, height, width, _ = images.shape

    def weigh(product: Callable[[Array, Images], Images], given: int, x: Images) -> Images:
        fixed = _fixed_point(pil_bicubic(given, side))
        high, low = (jnp.asarray(part, jnp.float32) for part in np.divmod(fixed, 2**_LOW))
        total = product(high, x).astype(jnp.int32) * 2**_LOW + product(low, x).astype(jnp.int32)
        half = 2 ** (_FRACTION - 1)
        return jnp.clip((total + half) >> _FRACTION, 0, 255).astype(jnp.float32)

    return weigh(_along_rows, height, weigh(_along_columns, width, images.astype(jnp.float32)))


def tensorflow_bilinear(given: int, wanted: int) -> np.ndarray:
    """See the module's docstring; positions are rounded to float32, as in TensorFlow."""
    index = np.arange(wanted, dtype=np.float32)
    return _between(index * (np.float32(given) / np.float32(wanted)), given)


def torch_bilinear(given: int, wanted: int) -> np.ndarray:
    """See the module's docstring; positions are rounded to float32, as in PyTorch."""
    index = np.arange(wanted, dtype=np.float32) + np.float32(0.5)
    position = index * (np.float32(given) / np.float32(wanted)) - np.float32(0.5)
    return _between(np.maximum(position, np.float32(0)), given)


def torch_bicubic(given: int, wanted: int, scale: float | None = None) -> np.ndarray:
    """See the module's docstring; in float64."""
    step = given / wanted if scale is None else 1 / scale
    position = (np.arange(wanted) + 0.5) * step - 0.5
    weights = np.zeros((wanted, given))
    below = np.floor(position).astype(int)
    for offset in (-1, 0, 1, 2):
        pixel = below + offset
        np.add.at(
            weights,
            (np.arange(wanted), np.clip(pixel, 0, given - 1)),
            _cubic(position - pixel, -0.75),
        )
    return weights


def pil_bicubic(given: int, wanted: int) -> np.ndarray:
    """See the module's docstring; in float64."""
    step = given / wanted
    centre = (np.arange(wanted) + 0.5) * step
    distance = np.arange(given) + 0.5 - centre[:, None]
    weights = _cubic(distance / max(step, 1.0), -0.5)
    return weights / np.sum(weights, axis=1, keepdims=True)


def _along_rows(weights: Array, images: Images) -> Images:
    return einsum("yh,bhwc->bywc", weights, images)


def _along_columns(weights: Array, images: Images) -> Images:
    return einsum("xw,bhwc->bhxc", weights, images)


def _between(position: np.ndarray, given: int) -> np.ndarray:
    """Which two pixels each position lies between, and how near it is to them."""
    index = np.arange(len(position))
    below = np.minimum(position.astype(np.intp), given - 1)
    above = np.minimum(below + 1, given - 1)
    share = position - below.astype(np.float32)
    weights = np.zeros((len(position), given), np.float32)
    weights[index, below] += 1 - share
    weights[index, above] += share
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981 (https://doi.org/10.1109/TASSP.1981.1163711), equation 4 with any a."""
    x = np.abs(x)
    inside = ((a + 2) * x - (a + 3)) * x * x + 1
    outside = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inside, np.where(x < 2, outside, 0.0))


def _fixed_point(weights: np.ndarray) -> np.ndarray:
    """Integers, halves rounded away from zero."""
    scaled = weights * 2**_FRACTION
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)
