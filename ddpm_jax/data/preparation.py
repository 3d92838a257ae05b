"""From encoded bytes to the pixels a network sees: decoded, resized, cropped, bordered."""

import dataclasses
import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps

from ddpm_jax.data.images import DataError
from ddpm_jax.errors import first_line

__all__ = ["STORED", "BadImageError", "Preparation", "decode"]

_MOST_PIXELS = 89_478_485
"""A picture of more is refused before it is decoded: Pillow's own limit, 0.27 GB of colours."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow has readers of more, some of which run other programs."""
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB"}


class BadImageError(DataError):
    """One image that cannot be used: where it is, and why."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done to every image, in this order; nothing by default.

    Raises:
        DataError: a side that is not 1 or more.

    Example:
        >>> from ddpm_jax.data import Preparation
        >>> print(Preparation(pad=32))
        black border to 32x32
        >>> Preparation(pad=32).shape_of((28, 28, 1))
        (32, 32, 1)
    """

    grey: bool = False
    """Colours become grey by the weights of ITU-R 601."""
    size: int | None = None
    """The shorter side is resized to this, by Pillow's bicubic filter with its antialiasing, and
    the middle of the longer side is kept."""
    pad: int | None = None
    """A black border makes the image a square of this side, with the image in its middle."""

    def __post_init__(self) -> None:
        for name in ("size", "pad"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"preparation.{name} is {value}; it has to be 1 or more")

    def __str__(self) -> str:
        done = ["grey"] if self.grey else []
        if self.size is not None:
            done.append(
                f"shorter side to {self.size} (Pillow, bicubic, antialiased), centre crop to"
                f" {self.size}x{self.size}"
            )
        if self.pad is not None:
            done.append(f"black border to {self.pad}x{self.pad}")
        return ", ".join(done) or "as stored"

    def shape_of(self, stored: tuple[int | None, int | None, int]) -> tuple[int, int, int]:
        """(height, width, channel) of what comes out, of what is stored; None is of any length.

        Raises:
            DataError: images of several sizes and no `size`, or images larger than `pad`.
        """
        height, width, channels = stored
        if self.size is not None:
            height = width = self.size
        if height is None or width is None:
            raise DataError(
                f"images have the shape {stored}, no one size; --preparation.size 64 makes them"
                " 64x64"
            )
        if self.pad is not None:
            if max(height, width) > self.pad:
                raise DataError(
                    f"preparation.pad is {self.pad}; images of {height}x{width} have no place in it"
                )
            height = width = self.pad
        return height, width, 1 if self.grey else channels

    def of_picture(self, picture: PIL.Image.Image) -> np.ndarray:
        """uint8 `[height, width, channel]` of a picture in mode L or RGB.

        Raises:
            BadImageError: it is larger than `pad`, or too long and narrow to be resized.
        """
        if self.grey:
            picture = picture.convert("L")
        if self.size is not None:
            picture = _resized(picture, self.size)
        pixels = np.asarray(picture, np.uint8)
        pixels = pixels.reshape(picture.height, picture.width, -1)
        if self.pad is None:
            return pixels
        if max(picture.size) > self.pad:
            raise BadImageError(
                f"is {picture.height}x{picture.width}, and preparation.pad {self.pad};"
                " --preparation.size makes it smaller"
            )
        return _bordered(pixels, self.pad)

    def of_array(self, images: np.ndarray) -> np.ndarray:
        """The same of uint8 `[n, height, width, channel]` with 256 levels."""
        if self.grey or self.size is not None:
            flat = images.squeeze(-1) if images.shape[-1] == 1 else images
            return np.stack([self.of_picture(PIL.Image.fromarray(image)) for image in flat])
        return images if self.pad is None else _bordered(images, self.pad)


STORED = Preparation()
"""Leaves images as they are stored."""


def decode(encoded: bytes, channels: int) -> PIL.Image.Image:
    """A picture in mode L or RGB, upright as its EXIF says, transparency laid on white.

    Raises:
        BadImageError: no picture, half a picture, one of more than 89 million pixels, or of more
            than 8 bits; without saying which, as it does not know.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        with _open(encoded) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise BadImageError(_too_large(picture.height, picture.width))
            kind = _kind(picture)
            if picture.mode not in _EIGHT_BITS or ";16" in kind:
                raise BadImageError(f"has pixels of the kind {kind!r}, not of 8 bits")
            upright = PIL.ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                laid = PIL.Image.new("RGBA", upright.size, "white")
                laid.alpha_composite(upright.convert("RGBA"))
                upright = laid
            return upright.convert(mode)
    except BadImageError:
        raise
    except Exception as error:  # whatever damage makes of Pillow's many readers
        raise BadImageError(f"cannot be decoded ({first_line(error)})") from error


def _open(encoded: bytes) -> PIL.Image.Image:
    """As PIL.Image.open does, but for its warning of many pixels.

    That one would be printed, or raised, as filters say that belong to all threads alike.
    """
    if not encoded:
        raise BadImageError("is empty")
    PIL.Image.init()
    for name in _FORMATS:
        reader, accepts = PIL.Image.OPEN.get(name, (None, None))
        # What it returns in place of False may be a reason.
        if reader is None or (accepts is not None and accepts(encoded[:16]) is not True):
            continue
        try:
            return reader(io.BytesIO(encoded), "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as error:
            raise BadImageError(f"is a damaged {name} ({first_line(error)})") from error
    raise BadImageError(f"is no image ({', '.join(_FORMATS)} are)")


def _kind(picture: PIL.Image.Image) -> str:
    """Pixels as they are stored: Pillow makes 8 bits of some of 16 without a word."""
    for _, _, _, arguments in getattr(picture, "tile", ()):
        raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        if isinstance(raw, str):
            return raw
    return picture.mode


def _resized(picture: PIL.Image.Image, size: int) -> PIL.Image.Image:
    width, height = picture.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    if width * height > _MOST_PIXELS:
        raise BadImageError(
            f"is {picture.height}x{picture.width}, too long and narrow to be resized to {size}"
        )
    if (width, height) != picture.size:
        picture = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _bordered(pixels: np.ndarray, side: int) -> np.ndarray:
    """With black around the last three axes' height and width."""
    borders = [(0, 0)] * pixels.ndim
    for axis in (-3, -2):
        missing = side - pixels.shape[axis]
        borders[axis] = (missing // 2, missing - missing // 2)
    return np.pad(pixels, borders)


def _too_large(height: int, width: int) -> str:
    return (
        f"is {height}x{width}, of more than {_MOST_PIXELS:,} pixels: it may be a decompression bomb"
    )
