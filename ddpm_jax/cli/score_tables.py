"""The scores of samples as a table, and what has to be known to read it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ddpm_jax.terminal import cell

__all__ = ["reference_lines", "score_lines", "score_table"]


def score_table(
    columns: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str,
    caption: str = "",
) -> Table:
    """A row for each metric, a column for each set of samples, and columns to compare with.

    Args:
        columns: the metrics of each set, as results.json holds them.
        title: above the table.
        caption: below it.
    """
    first = next(iter(columns.values()))
    floors = {
        heading: name
        for heading, name in (("held out", "held_out"), ("halves", "halves"))
        if any(score[name] is not None for score in first)
    }
    table = Table(title=cell(title), caption=cell(caption) if caption and floors else None)
    table.add_column("metric")
    for heading in (*columns, *floors):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        values = [Text(_interval(score)) for score in row]
        table.add_row(
            cell(row[0]["name"]), *values, *(_number(row[0][name]) for name in floors.values())
        )
    return table


def reference_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """What samples were compared with in the features of each network.

    Args:
        results: "networks", as results.json holds them.
    """
    for network in results["networks"]:
        num = network["images"]
        number = "an unknown number of images" if num is None else f"{num:,} images"
        name = ", ".join(filter(None, (network["dataset"], network["split"])))
        yield f"compared by {network['network']} with {name}: {number}"


def score_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """What a table of scores does not say: reasons, the bias of the distance, memorization.

    Args:
        results: "metrics", "left_out" and "memorization", as results.json holds them.
    """
    yield from _grouped(
        "not computed", ((score["name"], score["reason"]) for score in results["left_out"])
    )
    yield from _grouped(
        "no interval",
        (
            (score["name"], score["note"].removeprefix("no interval: "))
            for score in results["metrics"]
            if score["low"] is None
        ),
    )
    for near in results["memorization"]:
        yield (
            f"nearer to a training image than 1 in 100 held-out images, by {near['distance']}:"
            f" {_percent(near)} of the samples"
        )


def _grouped(heading: str, reasons: Iterator[tuple[str, str]]) -> Iterator[str]:
    """One line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    for reason, those in names.items():
        yield f"{heading}: {'; '.join(those)}: {reason}"


def _interval(score: Mapping[str, Any]) -> str:
    value = _number(score["value"])
    if score["low"] is None:
        return value
    return f"{value}\n[{score['low']:.3g}, {score['high']:.3g}]"


def _percent(near: Mapping[str, Any]) -> str:
    value = f"{100 * near['value']:.2g} %"
    if near["low"] is None:
        return value
    return f"{value} [{100 * near['low']:.2g}, {100 * near['high']:.2g}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
