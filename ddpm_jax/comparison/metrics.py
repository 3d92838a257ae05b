"""Metrics of samples of several runs side by side, from the results of their evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.comparison.run_summary import RunSummary

__all__ = ["MetricRow", "MetricValue", "finite_number", "metric_rows", "number_text"]

_NEAR = "fraction of samples near training images"
_UNNAMED = "Inception"
"""The network that the names of metrics do not need to say, as in FID."""


class MetricValue(NamedTuple):
    """One number of a table of metrics."""

    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    """Of results that have a standard error or a standard deviation and no interval."""
    note: str = ""


class MetricRow(NamedTuple):
    """A metric of the samples of each run."""

    name: str
    reference: str
    """What the runs of this row compare with, if runs of other rows compare with other things."""
    values: list[MetricValue | None]
    held_out: float | None
    """The same of the held-out images in place of samples."""
    halves: float | None
    """The same of two halves of the training images."""


def metric_rows(runs: Sequence[RunSummary]) -> list[MetricRow]:
    """The metrics of samples, those with the same name and the same reference in one row."""
    cells: dict[str, dict[tuple[str, ...], dict[int, dict[str, Any]]]] = {}
    for index, run in enumerate(runs):
        if run.evaluation is None:
            continue
        values = run.evaluation["values"]
        metrics, near = values.get("metrics", []), values.get("memorization", [])
        if not _are_entries(metrics, "name") or not _are_entries(near, "distance"):
            step = run.evaluation["step"]
            run.notes.append(f"its metrics of step {step} are damaged; evaluate it again")
            continue
        fractions = [{**entry, "name": f"{_NEAR}, {entry['distance']}"} for entry in near]
        for entry in (*metrics, *fractions):
            references = cells.setdefault(entry["name"], {})
            references.setdefault(_reference(run.evaluation, entry["name"]), {})[index] = entry
    rows = []
    for name, references in cells.items():
        for entries in references.values():
            one = next(iter(entries.values()))
            letters = ", ".join(runs[index].letter for index in entries)
            rows.append(
                MetricRow(
                    name,
                    f"the reference of {letters}" if len(references) > 1 else "",
                    [_value(entries.get(index)) for index in range(len(runs))],
                    finite_number(one.get("held_out")),
                    finite_number(one.get("halves")),
                )
            )
    return rows


def _are_entries(values: Any, key: str) -> bool:
    """Whether this is a list of objects with a text of this name."""
    return isinstance(values, list) and all(
        isinstance(entry, dict) and isinstance(entry.get(key), str) for entry in values
    )


def _reference(evaluation: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """What a metric compares with: the images, and the network that its name says."""
    networks = evaluation.get("networks")
    own = (
        [each for each in networks if _is_network(each, name)] if isinstance(networks, list) else []
    )
    fields = ("dataset", "pixels_sha256", "preprocessing", "network", "network_sha256")
    return (
        str(evaluation.get("dataset")),
        *(str(each.get(field)) for each in own for field in fields),
    )


def _is_network(network: Any, metric: str) -> bool:
    """Whether a metric is of this network: its name says so, or it is FID and such."""
    if not isinstance(network, dict):
        return False
    name, _, resize = str(network.get("network")).partition(", ")
    if not name.startswith(_UNNAMED):
        return str(network.get("network")) in metric
    return resize in metric and (bool(resize) or "resize" not in metric)


def _value(entry: Mapping[str, Any] | None) -> MetricValue | None:
    if entry is None:
        return None
    value, low, high, spread = (
        finite_number(entry.get(name)) for name in ("value", "low", "high", "spread")
    )
    note = entry.get("note")
    return MetricValue(value, low, high, spread, note if isinstance(note, str) else "")


def finite_number(value: Any) -> float | None:
    """A finite number of a file, or None."""
    is_number = type(value) in (int, float) and np.isfinite(value)
    return float(value) if is_number else None


def number_text(value: MetricValue) -> str:
    """A number of a table of metrics, with its interval or its spread."""
    if value.value is None:
        return ""
    text = f"{value.value:.4g}"
    if value.low is not None and value.high is not None:
        return f"{text} [{value.low:.4g}, {value.high:.4g}]"
    return text if value.spread is None else f"{text} ± {value.spread:.2g}"
