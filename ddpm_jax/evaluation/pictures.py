"""Pictures as PNG: grids of images, strips of how they came to be, and plots of an evaluation."""

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
    """As text: the name of a data set may have dollars in it, which is no formula."""
    axes.set_title(escape(title), parse_math=False)


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as file:
        # Without the version of matplotlib, the same numbers give the same bytes.
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
