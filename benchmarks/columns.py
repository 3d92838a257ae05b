"""Rows as a table of text."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.results import Row
from benchmarks.timing import spread

__all__ = [
    "Columns",
    "case",
    "compiling",
    "duration",
    "figure",
    "number",
    "of_rows",
    "quartiles",
    "table",
    "time",
]

Columns = dict[str, Callable[[Row], str]]
"""Headers of a table, and what stands under them."""


def of_rows(rows: Sequence[Row], columns: Columns) -> str:
    """A table with a line for each row."""
    return table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; the first is text, the others numbers."""
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headers), line(rule), *map(line, rows)])


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands apart; nothing for None."""
    if value is None:
        return ""
    if value == 0.0 or not np.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10.0 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 else f"{value:.{digits - 1}e}"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} us"


def case(name: str) -> Callable[[Row], str]:
    """The column of one part of the case."""
    return lambda row: str(row.case.get(name, ""))


def figure(name: str, *, unit: float = 1.0) -> Callable[[Row], str]:
    """The column of one of the numbers, in a unit."""
    return lambda row: "" if row.numbers.get(name) is None else number(row.numbers[name] / unit)


def time(row: Row) -> str:
    """The median."""
    return duration(row.median) if row.seconds else ""


def quartiles(row: Row) -> str:
    """First and third."""
    if not row.seconds:
        return ""
    of_runs = spread(row.seconds)
    return f"{duration(of_runs.lower)} - {duration(of_runs.upper)}"


def compiling(row: Row) -> str:
    """How long the compiler took."""
    return duration(row.compile_seconds)
