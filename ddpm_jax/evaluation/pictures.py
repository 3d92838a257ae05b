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
    """The loss of training and that of held-out images over the steps, and numbers with an error.

    Args:
        path: of the PNG.
        lines: of metrics.jsonl. A number `NAME` with a `NAME_error` has a panel of its own, with a
            band of two errors on both sides.
        title: above it.
    """
    errors = dict.fromkeys(name for line in lines for name in line if name.endswith("_error"))
    panels = {name.removesuffix("_error"): name for name in errors}
    panels = {name: error for name, error in panels.items() if len(_points(lines, name, error))}
    figure, axes, *others = _figure(1 + len(panels))
    for name in ("loss", "held_out_loss"):
        points = _points(lines, name)
        if len(points):
            steps, values = points.T
            marker = "o" if name == "held_out_loss" else None
            axes.plot(steps, values, marker=marker, markersize=3, linewidth=1.2, label=_label(name))
    for panel, (name, error) in zip(others, panels.items(), strict=True):
        steps, values, errors_of = _points(lines, name, error).T
        (line,) = panel.plot(steps, values, marker="o", markersize=3, linewidth=1.2)
        low, high = values - 2.0 * errors_of, values + 2.0 * errors_of
        panel.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
        panel.set(ylabel=_label(name))
    _title(axes, title)
    axes.set(ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.axes[-1].set(xlabel="step")
    _save(figure, path)


def _points(lines: Sequence[Mapping[str, Any]], *names: str) -> np.ndarray:
    """Step and numbers of the lines that have all of them, `[lines, 1 + names]`."""
    rows = [[line.get(name) for name in ("step", *names)] for line in lines]
    return np.array([row for row in rows if all(map(_is_number, row))], np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _label(name: str) -> str:
    return name.replace("held_out", "held-out").replace("_", " ")


def _figure(panels: int = 1) -> tuple[Any, ...]:
    """A figure, and the axes of panels that are stacked and share their abscissa."""
    require("ddpm_jax.evaluation.pictures", "evaluate", "matplotlib")
    from matplotlib.figure import Figure  # no pyplot: it would keep figures, and open windows

    figure = Figure(figsize=(7.0, 1.2 + 3.0 * panels), layout="constrained")
    stack = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    for axes in stack:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, *stack


def _title(axes: Any, title: str) -> None:
    """Sets a title as plain text: dollar signs in a data set's name are not a formula."""
    axes.set_title(escape(title), parse_math=False)


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as file:
        # Without the version of matplotlib, the same numbers give the same bytes.
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
