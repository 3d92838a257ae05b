"""Plots of an evaluation, as PNG. Matplotlib is imported when one is made."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.files import whole_file
from ddpm_jax.terminal import escape

__all__ = ["Curve", "plot_per_time", "plot_training"]


class Curve(NamedTuple):
    """Values over t with their standard errors, `[T]` each; NaN where there is none."""

    mean: np.ndarray
    standard_error: np.ndarray


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
        told = [
            (line["step"], line[name])
            for line in lines
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        if told:
            steps, values = np.array(told).T
            marker = "o" if name == "held_out_loss" else None
            label = name.replace("_", "-", 1).replace("_", " ")
            axes.plot(steps, values, marker=marker, markersize=3, linewidth=1.2, label=label)
    _title(axes, title)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    _save(figure, path)


def _figure() -> tuple[Any, Any]:
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
