r"""Checks of images and labels, and the conversion of grey levels to numbers for a network.

On the host images are uint8 `[n, height, width, channel]` with values 0 to levels - 1: 256 levels
for 8-bit pictures, 17 for scikit-learn's digits. They are converted inside the compiled step, so
that only a quarter of the bytes is sent to the device. There a level u becomes

.. math::

    x = \frac{2 u}{\mathrm{levels} - 1} - 1

in float32, in [-1, 1]. The discretized likelihood of the ELBO's decoder term uses the same grid of
`levels` values, 2 / (levels - 1) apart.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.checks import check_float
from ddpm_jax.errors import UserError

__all__ = [
    "DataError",
    "check_images",
    "check_labels",
    "to_bytes",
    "to_levels",
    "to_model_range",
]


class DataError(UserError):
    """Data that cannot be used; the sentence names the argument, its value, and what would do."""


def check_images(name: str, images: np.ndarray, levels: int = 256) -> None:
    """Checks an array of images.

    Args:
        name: of the array, for the sentence.
        images: to be checked: uint8 `[n, height, width, 1 or 3]`, values 0 to levels - 1.
        levels: number of grey levels, 2 to 256.

    Raises:
        DataError: the array is of another type, dtype or shape, is empty, or has larger values.
    """
    _check_levels(levels)
    _check_array(name, images)
    if images.dtype != np.uint8:
        raise DataError(
            f"{name} has dtype {images.dtype}; images are uint8, grey levels 0 to {levels - 1}"
        )
    if images.ndim != 4:
        raise DataError(
            f"{name} has shape {images.shape}; images are [n, height, width, channel], with 1"
            " channel if they are grey"
        )
    if images.size == 0:
        raise DataError(f"{name} has shape {images.shape}; it has to hold at least one image")
    if images.shape[3] not in (1, 3):
        raise DataError(
            f"{name} has {images.shape[3]} channels, in shape {images.shape}; it has to be 1 (grey)"
            " or 3 (RGB), last"
        )
    if int(images.max()) >= levels:
        index = tuple(int(i) for i in np.unravel_index(np.argmax(images >= levels), images.shape))
        raise DataError(
            f"{name}{list(index)} is {images[index]}; with levels = {levels} values are 0 to"
            f" {levels - 1}"
        )


def check_labels(name: str, labels: np.ndarray, count: int) -> None:
    """Checks an array of labels.

    Args:
        name: of the array, for the sentence.
        labels: to be checked: integers `[count]`, 0 or more.
        count: number of images.

    Raises:
        DataError: the array is of another type, dtype or shape, or has negative values.
    """
    _check_array(name, labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name} has dtype {labels.dtype}; labels are integers, 0 or more")
    if labels.shape != (count,):
        raise DataError(
            f"{name} has shape {labels.shape}; it has to be ({count},), one label per image"
        )
    negative = np.flatnonzero(labels < 0)
    if negative.size:
        index = int(negative[0])
        raise DataError(f"{name}[{index}] is {labels[index]}; labels are 0 or more")


def to_model_range(
    images: UInt8[Array | np.ndarray, "*shape"], levels: int
) -> Float[Array, "*shape"]:
    r"""Converts grey levels to numbers in [-1, 1]; call it inside `jax.jit`.

    .. math::

        x = \frac{2 u}{\mathrm{levels} - 1} - 1

    Args:
        images: uint8, any shape, values 0 to levels - 1.
        levels: number of grey levels, 2 to 256.

    Returns:
        float32 in [-1, 1], same shape.

    Raises:
        DataError: `images` is not uint8, or `levels` is outside 2 to 256.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import to_model_range
        >>> to_model_range(np.array([0, 8, 16], np.uint8), 17).tolist()
        [-1.0, 0.0, 1.0]
    """
    _check_levels(levels)
    _check_array("images", images)
    if images.dtype != jnp.uint8:
        raise DataError(
            f"images has dtype {images.dtype}; only grey levels, uint8 from 0 to {levels - 1}, are"
            " scaled"
        )
    # 2 u - (levels - 1) is exact, so that the single rounded product gives the same bits with and
    # without jit. jit would turn a division into a product and fuse it with the - 1.
    return (2.0 * jnp.asarray(images).astype(jnp.float32) - (levels - 1)) * (1.0 / (levels - 1))


def to_levels(x: Float[Array, "*shape"], levels: int) -> UInt8[Array, "*shape"]:
    """Converts numbers in [-1, 1] to the nearest grey levels: the inverse of `to_model_range`.

    Args:
        x: floating point, any shape. Values outside [-1, 1] are clipped. The computation is in
            float32.
        levels: number of grey levels, 2 to 256.

    Returns:
        uint8, 0 to levels - 1, same shape.

    Raises:
        TypeError: `x` is not floating point.
        DataError: `levels` is outside 2 to 256.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.data import to_levels
        >>> to_levels(jnp.array([-1.2, 0.0, 0.99]), 17).tolist()
        [0, 8, 16]
    """
    _check_levels(levels)
    check_float("x", x)
    nearest = jnp.round((x.astype(jnp.float32) + 1.0) * 0.5 * (levels - 1))
    return jnp.clip(nearest, 0, levels - 1).astype(jnp.uint8)


def to_bytes(images: UInt8[np.ndarray, "*shape"], levels: int) -> UInt8[np.ndarray, "*shape"]:
    """Scales grey levels 0 to levels - 1 to 0 to 255, for pictures and for feature networks.

    Args:
        images: uint8, any shape, values 0 to levels - 1.
        levels: number of grey levels, 2 to 256.

    Returns:
        uint8, 0 to 255, same shape.

    Raises:
        DataError: `levels` is outside 2 to 256.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import to_bytes
        >>> to_bytes(np.array([0, 8, 16], np.uint8), 17).tolist()
        [0, 128, 255]
    """
    _check_levels(levels)
    return np.round(np.arange(levels) * (255.0 / (levels - 1))).astype(np.uint8)[images]


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= 256:
        raise DataError(f"levels is {levels}; it has to be 2 to 256, as images are uint8")


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray | jax.Array):
        raise DataError(f"{name} is a {type(value).__name__}; it has to be an array")
