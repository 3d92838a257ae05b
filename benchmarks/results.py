"""Results of a suite: rows of numbers, the machine they are of, and how two files compare."""

import contextlib
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

import ddpm_jax
from benchmarks.timing import spread
from ddpm_jax.errors import UserError
from ddpm_jax.files import whole_file

__all__ = [
    "Comparison",
    "Report",
    "Row",
    "compare",
    "conclusions",
    "find",
    "load",
    "machine",
    "now",
    "overlap",
    "ratio",
    "run_range",
    "save",
    "versions",
]

FORMAT = 1
"""Of the JSON files; a reader refuses others."""

FEW = 10
"""With fewer runs than this the spread is their whole range, and not their quartiles."""

LEAST = 4
"""Fewer runs say nothing of a spread."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    case: dict[str, Any]
    """What was measured. No two rows of a report have the same."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of every run, compilation apart; empty where time is not what the row is about."""
    compile_seconds: float | None = None
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else is known of it, by names that say the unit."""

    @property
    def median(self) -> float:
        """Seconds."""
        return spread(self.seconds).median


@dataclasses.dataclass(frozen=True)
class Report:
    """One run of a suite."""

    suite: str
    arguments: dict[str, Any]
    seeds: dict[str, int]
    machine: dict[str, Any]
    versions: dict[str, str]
    started: str
    """UTC, ISO 8601."""
    took_seconds: float
    rows: list[Row]
    notes: list[str]
    """Sentences made of the numbers."""
    finished: bool = True
    """Not if ctrl-C or an error ended it: the rows are then those that were there."""


class Comparison(NamedTuple):
    """One row in two reports."""

    case: dict[str, Any]
    ratio: float
    """Median of the second over median of the first."""
    lower: float
    upper: float
    """The ratio's range, if each side is anywhere in its spread."""
    verdict: str


def find(rows: Sequence[Row], **case: Any) -> list[Row]:
    """The rows of which all this holds."""
    return [row for row in rows if all(row.case.get(k) == v for k, v in case.items())]


def machine() -> dict[str, Any]:
    """What this runs on."""
    device = jax.devices()[0]
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": len(jax.devices()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
        "load_before": busy,
        "compilation_cache": bool(jax.config.values["jax_compilation_cache_dir"]),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of Python and the libraries that did the work, and of those named that are installed."""
    numbers = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "ddpm_jax": ddpm_jax.__version__,
    }
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            numbers[package] = metadata.version(package)
    return numbers


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def save(report: Report, path: Path) -> None:
    """Writes `report` as JSON, with median and quartiles beside every row's runs."""
    plain = {"format": FORMAT, **dataclasses.asdict(report)}
    for row in plain["rows"]:
        if row["seconds"]:
            row["spread"] = spread(row["seconds"])._asdict()
    with whole_file(path) as file:
        file.write((json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())


def load(path: Path) -> Report:
    """The report in a JSON file.

    Raises:
        UserError: no such file, or it is none of this suite's files.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; python -m benchmarks SUITE --out writes such files"
        )
    try:
        plain = json.loads(path.read_text())
        number = plain.pop("format")
        rows = [{k: v for k, v in row.items() if k != "spread"} for row in plain.pop("rows")]
        report = Report(**plain, rows=[Row(**row) for row in rows])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a result of python -m benchmarks ({type(error).__name__}: {error})"
        ) from error
    if number != FORMAT:
        raise UserError(f"{path} has format {number}; this version reads {FORMAT}")
    return report


def compare(before: Report, after: Report) -> list[Comparison]:
    """Rows of both, with times of both; ratios are those of medians.

    The range of a ratio is that of its two sides: each from its first to its third quartile, or
    over all its runs where they are fewer than 10. A difference is called one when 1 is outside. Of
    two samples of one distribution that happens to less than one pair in twenty.

    Raises:
        UserError: reports of two suites, or without a row in common.
    """
    if before.suite != after.suite:
        raise UserError(
            f"the first file is of the suite {before.suite!r} and the second of {after.suite!r};"
            " they have to be of one"
        )
    others = {_identity(row): row for row in after.rows}
    pairs = [(row, others[_identity(row)]) for row in before.rows if _identity(row) in others]
    timed = [(one, other) for one, other in pairs if one.seconds and other.seconds]
    if not timed:
        raise UserError("the two files have no timed row in common: they ran other cases")
    return [_compared(one, other) for one, other in timed]


def conclusions(before: Report, after: Report, compared: Sequence[Comparison]) -> list[str]:
    """What a comparison comes to, and what else differs between the two runs."""
    counts = {row.verdict: 0 for row in compared}
    for row in compared:
        counts[row.verdict] += 1
    sentences = [
        f"{len(compared)} rows: "
        + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        + "."
    ]
    only = {_identity(row) for row in before.rows} ^ {_identity(row) for row in after.rows}
    if only:
        sentences.append(f"{len(only)} rows are in one of the files only.")
    for which, report in (("first", before), ("second", after)):
        if not report.finished:
            sentences.append(f"The {which} run did not end: some of its rows are missing.")
    for what in ("machine", "versions", "arguments", "seeds"):
        one, other = getattr(before, what), getattr(after, what)
        for name in sorted({*one, *other} - {"load_before", "out"}):
            if one.get(name) != other.get(name):
                sentences.append(
                    f"Different {what}: {name} was {one.get(name)} and is {other.get(name)}."
                )
    return sentences


def run_range(runs: list[float]) -> tuple[float, float]:
    """Where the time of a run is: between its quartiles, or anywhere for fewer than 10 runs."""
    quartiles = spread(runs)
    return (min(runs), max(runs)) if len(runs) < FEW else (quartiles.lower, quartiles.upper)


def overlap(one: Row, other: Row) -> bool:
    """Whether a run of each could have taken the same time."""
    (low, high), (other_low, other_high) = run_range(one.seconds), run_range(other.seconds)
    return low <= other_high and high >= other_low


def ratio(one: Row, other: Row) -> tuple[float, float, float]:
    """Median of `one` over that of `other`, and its range if each is anywhere in its spread."""
    (low, high), (other_low, other_high) = run_range(one.seconds), run_range(other.seconds)
    return one.median / other.median, low / other_high, high / other_low


def _compared(one: Row, other: Row) -> Comparison:
    of_medians, lower, upper = ratio(other, one)
    fewest = min(len(one.seconds), len(other.seconds))
    if fewest < LEAST:
        verdict = f"too few runs ({fewest})"
    elif lower > 1.0:
        verdict = "slower"
    elif upper < 1.0:
        verdict = "faster"
    else:
        verdict = "within the spread"
    return Comparison(one.case, of_medians, lower, upper, verdict)


def _identity(row: Row) -> str:
    return json.dumps(row.case, sort_keys=True)


def _processor() -> str:
    """Its name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
