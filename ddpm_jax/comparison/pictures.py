"""The pictures of a comparison of runs, as PNG in memory: curves over each other, and samples."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.comparison.run_summary import RunSummary
from ddpm_jax.errors import require
from ddpm_jax.evaluation import image_grid

__all__ = [
    "COLOURS",
    "COLUMNS",
    "MOST_CURVES",
    "Palette",
    "Series",
    "curve_png",
    "samples_png",
    "series_of",
]

COLUMNS = 8
"""Samples in a row."""
MOST_CURVES = 8
"""Numbers of metrics.jsonl that are shown."""
_FIRST, _LAST = ("loss", "held_out_loss"), ("gradient_norm", "learning_rate")
_ERROR = "_error"
"""The end of the name of a number's standard error."""
_SMOOTH = 100
"""A line with more points is shown pale, with the mean of a fiftieth of it over it."""
_STYLES = ("-", "--", "-.", ":")


class Palette(NamedTuple):
    """Colours of a light or a dark page."""

    paper: str
    ink: str
    lines: tuple[str, ...]
    """Of each run."""


COLOURS = {
    "light": Palette(
        "#ffffff",
        "#22262b",
        *[("#0072b2", "#d55e00", "#008a63", "#b0508f", "#8a6d00", "#3c8dbc", "#6f4ab0", "#555555")],
    ),
    "dark": Palette(
        "#16191d",
        "#d8dde3",
        *[("#56b4e9", "#ff9a4d", "#2fd0a0", "#f09ccb", "#e3c23c", "#9ad7ff", "#b79cff", "#cfcfcf")],
    ),
}
"""Of a page on a light and on a dark screen; the colours of runs differ also for the colour-blind,
and each has a line style, too."""


class Series(NamedTuple):
    """One number of a run over its steps."""

    run: int
    """Index of the run."""
    letter: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    """Standard errors of y, or None."""


def series_of(runs: Sequence[RunSummary]) -> dict[str, list[Series]]:
    """The numbers of metrics.jsonl by their names, of each run that has them."""
    names = {name for run in runs for line in run.lines for name in line} - {"step"}
    names -= {name for name in names if name.removesuffix(_ERROR) in names - {name}}
    middle = sorted(names - {*_FIRST, *_LAST})
    result: dict[str, list[Series]] = {}
    for name in (*_FIRST, *middle, *_LAST):
        for index, run in enumerate(runs):
            points = [
                (line["step"], line[name], line.get(f"{name}{_ERROR}") or 0.0)
                for line in run.lines
                if isinstance(line.get(name), int | float) and math.isfinite(line[name])
            ]
            if points:
                x, y, error = np.array(points, np.float64).T
                one = Series(index, run.letter, x, y, error if error.any() else None)
                result.setdefault(name, []).append(one)
    return result


def terms_of(runs: Sequence[RunSummary]) -> list[Series]:
    """The terms of the ELBO over t / T, times T: of the same size in chains of any length T."""
    result = []
    for index, run in enumerate(runs):
        per_time = run.evaluation["values"].get("per_time") if run.evaluation else None
        means = per_time.get("mean") if isinstance(per_time, dict) else None
        if isinstance(means, list) and all(isinstance(m, int | float | None) for m in means):
            y = len(means) * np.array(means, np.float64)
            finite = np.isfinite(y)
            if finite.any():
                x = np.arange(len(y)) / len(y)
                result.append(Series(index, run.letter, x[finite], y[finite]))
    return result


def curve_png(
    series: Sequence[Series], palette: Palette, *, x: str, y: str, smooth: bool = True
) -> bytes:
    """A plot of one number of each run over each other, with bands of two standard errors.

    The axis of y is logarithmic if all values are positive and the greatest is ten times the least.
    """
    require("ddpm_jax.comparison.pictures", "train", "matplotlib")
    from matplotlib.figure import Figure  # no pyplot: it would keep figures, and open windows
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(6.0, 3.4), layout="constrained", facecolor=palette.paper)
    axes = figure.subplots()
    axes.set_facecolor(palette.paper)
    for one in series:
        _draw(axes, one, palette, smooth=smooth)
    values = np.concatenate([one.y for one in series])
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        few = values.max() < 1000 * values.min()
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if few else (1.0,)))
        axes.yaxis.set_minor_formatter(_plain)
    axes.set_xlabel(x, color=palette.ink, parse_math=False)
    axes.set_ylabel(y, color=palette.ink, parse_math=False)
    axes.tick_params(which="both", colors=palette.ink)
    axes.grid(alpha=0.25)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(palette.ink)
    axes.legend(frameon=False, labelcolor=palette.ink, ncols=2 if len(series) > 4 else 1)
    file = io.BytesIO()
    # Without the version of matplotlib, the same numbers give the same bytes.
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def _plain(value: float, place: float | int) -> str:
    """A number at an axis."""
    return f"{value:g}"


def _draw(axes: Any, one: Series, palette: Palette, *, smooth: bool) -> None:
    colour, style = palette.lines[one.run], _STYLES[one.run % len(_STYLES)]
    kind: Mapping[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.4}
    if one.error is not None:
        below, above = one.y - 2 * one.error, one.y + 2 * one.error
        axes.fill_between(one.x, below, above, color=colour, alpha=0.15, linewidth=0)
    if len(one.x) <= _SMOOTH or not smooth:
        marker = "o" if len(one.x) < 20 else None
        axes.plot(one.x, one.y, label=one.letter, marker=marker, markersize=3, **kind)
        return
    width = len(one.x) // 50
    mean = np.convolve(one.y, np.full(width, 1 / width), "valid")
    first = (width - 1) // 2
    axes.plot(one.x, one.y, color=colour, linewidth=0.6, alpha=0.25)
    axes.plot(one.x[first : first + len(mean)], mean, label=one.letter, **kind)


def samples_png(images: np.ndarray) -> bytes:
    """One row of images, uint8 of 256 levels `[n, height, width, channel]`."""
    grid = image_grid(images, levels=256, columns=COLUMNS)
    pixels = grid[..., 0] if grid.shape[-1] == 1 else grid
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()
