"""PNG pictures: grids of images, strips of sampling steps, and plots of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.data import to_bytes
from ddpm_jax.errors import require
from ddpm_jax.files import whole_file
from ddpm_jax.terminal import escape

__all__ = ["Curve", "image_grid", "plot_per_time", "plot_training", "save_png", "strip_times"]

_SMALLEST_SIDE = 64
"""Images are magnified by a whole factor until their height reaches this many pixels."""


class Curve(NamedTuple):
    """Values over t with their standard errors, `[T]` each; NaN where there is none."""

    mean: np.ndarray
    standard_error: np.ndarray


def image_grid(images: np.ndarray, *, levels: int, columns: int | None = None) -> np.ndarray:
    """A grid of images, row by row, with thin borders.

    Values 0 to levels - 1 are scaled to 0 to 255; small images are enlarged without smoothing.

    Args:
        images: uint8 `[n, height, width, channel]` with 1 or 3 channels.
        levels: number of grey levels.
        columns: number of images in a row; by default the grid is almost square.

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
    """Indices of steps for a strip of pictures.

    Args:
        num_steps: number of steps of the trajectory.
        columns: largest number of indices.

    Returns:
        Indices spread evenly over the steps, rising, with the first and the last.
    """
    return np.unique(np.linspace(0, num_steps - 1, min(columns, num_steps)).round().astype(int))


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes an image as a PNG file, either completely or not at all.

    Args:
        path: of the file.
        image: uint8 `[height, width, channel]` with 1 or 3 channels.
    """
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    with whole_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def plot_per_time(path: Path, curves: Mapping[str, Curve], *, title: str) -> None:
    """The ELBO's terms over t, in bits per dimension, with a band of two standard errors.

    Args:
        path: of the PNG.
        curves: by their names.
        title: above it.
    """
    figure, axes = _figure()
    for name, curve in curves.items():
        known = np.flatnonzero(np.isfinite(curve.mean))
        mean, error = curve.mean[known], 2.0 * curve.standard_error[known]
        (line,) = axes.plot(known, mean, label=name, linewidth=1.2)
        axes.fill_between(
            known, np.maximum(mean - error, 1e-12), mean + error, color=line.get_color(), alpha=0.2
        )
    _title(axes, title)
    axes.set(xlabel="t", ylabel="bits per dimension", yscale="log")
    axes.legend(frameon=False)
    _save(figure, path)


def plot_training(path: Path, lines: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """The loss of training and that of held-out images over the steps.

    Args:
        path: of the PNG.
        lines: of metrics.jsonl.
        title: above it.
    """
    figure, axes = _figure()
    for name in ("loss", "held_out_loss"):
        points = [
            (line["step"], line[name])
            for line in lines
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        if points:
            steps, values = np.array(points).T
            marker = "o" if name == "held_out_loss" else None
            label = name.replace("_", "-", 1).replace("_", " ")
            axes.plot(steps, values, marker=marker, markersize=3, linewidth=1.2, label=label)
    _title(axes, title)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    _save(figure, path)


def _figure() -> tuple[Any, Any]:
    require("ddpm_jax.evaluation.pictures", "evaluate", "matplotlib")
    from matplotlib.figure import Figure  # no pyplot: it would keep figures, and open windows

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(axes: Any, title: str) -> None:
    """Sets a title as plain text: dollar signs in a data set's name are not a formula."""
    axes.set_title(escape(title), parse_math=False)


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as file:
        # Without the version of matplotlib, the same numbers give the same bytes.
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
