"""Pictures of samples, as PNG: a grid of finished images and a strip of how they came to be."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.data import to_bytes
from ddpm_jax.files import whole_file

__all__ = ["image_grid", "save_png", "strip_times"]

_SMALLEST_SIDE = 64
"""Images are magnified by a whole factor until their height reaches this many pixels."""


def image_grid(images: np.ndarray, *, levels: int, columns: int | None = None) -> np.ndarray:
    """Lays out uint8 `[n, height, width, channel]` row by row, a thin border around each.

    Values 0 ... levels - 1 are stretched to 0 ... 255; pixels are enlarged without smoothing.

    Args:
        images: with 1 or 3 channels.
        levels: number of grey levels.
        columns: images in a row; by default the grid is as square as can be.

    Returns:
        One uint8 image `[height, width, channel]`.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, _SMALLEST_SIDE // height)
    stretched = to_bytes(images, levels)
    enlarged = stretched.repeat(scale, axis=1).repeat(scale, axis=2)
    border = 2
    cell_height, cell_width = height * scale + border, width * scale + border
    grid = np.full((rows * cell_height + border, columns * cell_width + border, channels), 96)
    for index, image in enumerate(enlarged):
        row, column = divmod(index, columns)
        top, left = row * cell_height + border, column * cell_width + border
        grid[top : top + height * scale, left : left + width * scale] = image
    return grid.astype(np.uint8)


def strip_times(num_steps: int, columns: int) -> np.ndarray:
    """Indices of `columns` of a trajectory's steps, evenly spread, the last always among them."""
    return np.unique(np.linspace(0, num_steps - 1, min(columns, num_steps)).round().astype(int))


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 `[height, width, channel]`; a reader never sees half a file."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    with whole_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")
