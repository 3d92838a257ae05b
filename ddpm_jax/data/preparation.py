"""Decodes images and prepares their pixels: grey, resized, with a border."""

import dataclasses
import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps

from ddpm_jax.data.images import DataError
from ddpm_jax.errors import first_line

__all__ = ["STORED", "BadImageError", "Preparation", "decode", "is_grey"]

_MOST_PIXELS = 89_478_485
"""Largest number of pixels that is decoded: Pillow's own limit, 0.27 GB of colours."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are decoded. Pillow has more readers, some of which run other programs."""
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB"}

_GREY = {"1", "L", "LA", "La"}


class BadImageError(DataError):
    """An image cannot be used; the sentence says where it is, and why."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done to each image, in the order of the fields; nothing by default.

    Raises:
        DataError: `size` or `pad` is below 1.

    Example:
        >>> from ddpm_jax.data import Preparation
        >>> print(Preparation(pad=32))
        black border to 32x32
        >>> Preparation(pad=32).shape_of((28, 28, 1))
        (32, 32, 1)
    """

    grey: bool = False
    """Convert colours to grey by the weights of ITU-R 601."""
    size: int | None = None
    """Side in pixels: resize the shorter side to it, by Pillow's bicubic filter with antialiasing,
    and cut the longer side to it in the middle."""
    pad: int | None = None
    """Side in pixels: add a black border, so that the image is a square of this side."""

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
        """The shape of the prepared images.

        Args:
            stored: (height, width, channel) of the stored images; None if images differ in it.

        Returns:
            (height, width, channel).

        Raises:
            DataError: the images have several sizes and there is no `size`, or they are larger than
                `pad`.
        """
        height, width, channels = stored
        if self.size is not None:
            height = width = self.size
        if height is None or width is None:
            raise DataError(
                f"images have the shape {stored}, so their sizes differ; --preparation.size 64"
                " makes them 64x64"
            )
        if self.pad is not None:
            if max(height, width) > self.pad:
                raise DataError(
                    f"preparation.pad is {self.pad}; it has to be {max(height, width)} or more for"
                    f" images of {height}x{width}"
                )
            height = width = self.pad
        return height, width, 1 if self.grey else channels

    def of_picture(self, picture: PIL.Image.Image) -> np.ndarray:
        """The pixels of one picture.

        Args:
            picture: in mode L or RGB.

        Returns:
            uint8 `[height, width, channel]`.

        Raises:
            BadImageError: the picture is larger than `pad`, or too long and narrow to be resized.
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
                f"is {picture.height}x{picture.width}, larger than preparation.pad, {self.pad};"
                " --preparation.size resizes it"
            )
        return _bordered(pixels, self.pad)

    def of_array(self, images: np.ndarray) -> np.ndarray:
        """The prepared images of an array.

        Args:
            images: uint8 `[n, height, width, channel]` with 256 levels.

        Returns:
            uint8 `[n, height, width, channel]`.

        Raises:
            BadImageError: as in `of_picture`.
        """
        if self.grey or self.size is not None:
            flat = images.squeeze(-1) if images.shape[-1] == 1 else images
            return np.stack([self.of_picture(PIL.Image.fromarray(image)) for image in flat])
        return images if self.pad is None else _bordered(images, self.pad)


STORED = Preparation()
"""The preparation that leaves images as they are stored."""


def decode(encoded: bytes, channels: int) -> PIL.Image.Image:
    """A picture in mode L or RGB, turned upright by its EXIF data, on white if it is transparent.

    Raises:
        BadImageError: the bytes are not a picture, or it is truncated, has more than 89 million
            pixels, or more than 8 bits. The sentence does not name the file.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        with _open(encoded) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise BadImageError(_too_large(picture.height, picture.width))
            kind = _kind(picture)
            if picture.mode not in _EIGHT_BITS or ";16" in kind:
                raise BadImageError(f"has pixels of the mode {kind!r}, not of 8 bits")
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


def is_grey(encoded: bytes) -> bool:
    """Whether the pixels of a picture are stored as grey levels; they are not decoded.

    Raises:
        BadImageError: the bytes are not a picture. The sentence does not name the file.
    """
    try:
        with _open(encoded) as picture:
            return picture.mode in _GREY
    except BadImageError:
        raise
    except Exception as error:  # as in `decode`
        raise BadImageError(f"cannot be decoded ({first_line(error)})") from error


def _open(encoded: bytes) -> PIL.Image.Image:
    """PIL.Image.open without its warning of many pixels.

    All threads share the filters that decide whether a warning is printed or raised.
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
    raise BadImageError(f"is not an image in a known format ({', '.join(_FORMATS)})")


def _kind(picture: PIL.Image.Image) -> str:
    """The mode of the stored pixels: Pillow silently converts some of 16 bits to 8."""
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
    """Adds black around height and width, the first two of the last three axes."""
    borders = [(0, 0)] * pixels.ndim
    for axis in (-3, -2):
        missing = side - pixels.shape[axis]
        borders[axis] = (missing // 2, missing - missing // 2)
    return np.pad(pixels, borders)


def _too_large(height: int, width: int) -> str:
    return (
        f"is {height}x{width}, of more than {_MOST_PIXELS:,} pixels: it may be a decompression bomb"
    )
