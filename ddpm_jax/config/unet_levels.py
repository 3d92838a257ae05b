"""The levels of a `config.UNet`: their widths and heights, and the heads of self-attention."""

import functools
from typing import Any

import jax

from ddpm_jax.config.base import ConfigError
from ddpm_jax.data import ImageSpec
from ddpm_jax.models import AttentionKernel

__all__ = ["attention_kernel", "check_images", "head_shapes", "widths"]


def widths(unet: Any) -> list[int]:
    """Channels of each level."""
    return [int(unet.channels * multiplier) for multiplier in unet.multipliers]


def check_images(unet: Any, images: ImageSpec) -> None:
    """Checks that the levels divide the images, and have the heights that fields of `unet` name.

    Raises:
        ConfigError: they do not, or the heads of self-attention do not divide the channels.
    """
    height, width, _ = images.shape
    levels, heights = len(unet.multipliers), _heights(unet, height)
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise ConfigError(
            f"network.multipliers is {unet.multipliers}, {levels} levels that halve the image"
            f" {levels - 1} times; the images of {images.name!r} are"
            f" {height}x{width}, which {factor} does not divide, so take fewer levels"
        )
    for name in ("attention_resolutions", "dropout_resolutions"):
        for resolution in getattr(unet, name) or ():
            if resolution not in heights:
                raise ConfigError(
                    f"network.{name} holds {resolution}; the levels have the heights {heights}"
                )
    head_shapes(unet, height)


def head_shapes(unet: Any, height: int) -> list[tuple[int, int, int]]:
    """(positions, heads, channels of a head) of each self-attention, for images of this height.

    Raises:
        ConfigError: the heads do not divide the channels.
    """
    kinds: list[tuple[int, int, str]] = []
    own, up_own = ("heads", "up_heads" if unet.up_heads else "heads")
    levels = list(zip(_heights(unet, height), widths(unet), strict=True))
    for level, (side, width) in enumerate(levels):
        down = level in unet.attention_levels or side in unet.attention_resolutions
        up = down if unet.up_attention_levels is None else level in unet.up_attention_levels
        middle = unet.middle_attention and level == len(levels) - 1
        kinds += [(side, width, own)] * (down or middle) + [(side, width, up_own)] * up
    shapes = []
    for side, width, field in kinds:
        field = field if unet.head_channels is None else "head_channels"
        value = getattr(unet, field)
        if width % value:
            raise ConfigError(
                f"network.{field} is {value}; it has to be a divisor of the channels of each level"
                f" with self-attention, and one has {width}"
            )
        heads = value if unet.head_channels is None else width // value
        shapes.append((side**2, heads, width // heads))
    return shapes


def attention_kernel(unet: Any, height: int) -> AttentionKernel:
    """The implementation of attention on this machine: "cudnn" only on a GPU that supports it.

    Raises:
        ConfigError: JAX has no such kernel for the heads of this network.
    """
    if unet.attention_kernel == "xla" or jax.default_backend() != "gpu":
        return "xla"
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    for shape in head_shapes(unet, height):
        array = jax.ShapeDtypeStruct((1, *shape), unet.dtype)
        try:
            jax.eval_shape(attention, array, array, array)
        except RuntimeError as error:  # of which NotImplementedError is one
            raise ConfigError(
                f"network.attention_kernel is 'cudnn', which JAX cannot use for heads of"
                f" {shape[-1]} channels here ({error}); take 'xla'"
            ) from error
    kernel: AttentionKernel = unet.attention_kernel
    return kernel


def _heights(unet: Any, height: int) -> list[int]:
    """Height of the images on each level."""
    return [height // 2**level for level in range(len(unet.multipliers))]
