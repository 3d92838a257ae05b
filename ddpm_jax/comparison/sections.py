"""The sections on bits per dimension and on metrics of the page of a comparison."""

from collections.abc import Sequence

from ddpm_jax.comparison.comparison import BitsRow, Comparison, pair_runs
from ddpm_jax.comparison.html import figure_html, run_html, table_html, text_html
from ddpm_jax.comparison.image_bits import PairedDifference
from ddpm_jax.comparison.metrics import MetricRow, number_text
from ddpm_jax.comparison.pictures import Series, terms_of
from ddpm_jax.comparison.run_summary import RunSummary

__all__ = ["bits_section", "metrics_section"]

_PLOT = 160
"""Width of a plot of an interval in a table, in pixels."""


def bits_section(comparison: Comparison) -> str:
    """Bits/dim of each run, the differences image by image, and the terms of the ELBO."""
    rows, runs = comparison.bits, comparison.runs
    if not rows:
        return "<p>No run has a measurement in bits per dimension.</p>"
    first = rows[0].letter
    known = [row.difference for row in rows if isinstance(row.difference, PairedDifference)]
    widest = max((abs(end) for difference in known for end in _ends(difference)), default=0.0)
    headings = ["run", "bits/dim"]
    headings += [f"difference to {run_html(first)}"] if len(rows) > 1 else []
    headings += ["", "images with fewer bits"] if known else []
    between = len(headings) - 2
    cells = [
        [
            run_html(row.letter),
            _number(f"{row.value:.4f}{_error(row.standard_error)}"),
            *_difference(row, widest)[:between],
            text_html(row.origin),
        ]
        for row in rows
    ]
    parts = [table_html([*headings, "measured at"], cells)]
    if known:
        parts.append(
            "<p>A difference is the mean over the held-out images that both runs measured, image by"
            " image: what is hard for both runs cancels. It is negative if the run needs fewer bits"
            f" than {run_html(first)}. Its interval covers the choice of the held-out images. It"
            " does not cover another seed of training, and it is not wider because several runs are"
            " compared.</p>"
        )
    if missing := [run_html(run.letter) for run in runs if run.bits is None]:
        parts.append(
            f"<p>There are no bits/dim of single images of {', '.join(missing)}:"
            " <code>ddpm-jax compare --measure</code> measures them, and so does"
            " <code>ddpm-jax evaluate RUN</code>.</p>"
        )
    with_bits = [run for run in runs if run.bits is not None]
    if len(with_bits) > 2:
        parts.append(_pairs(with_bits))
    if terms := terms_of(runs):
        parts.append(f'<div class="curves">\n{_terms(terms)}\n</div>')
    return "\n".join(parts)


def _number(text: str) -> str:
    """Numbers, between which a line breaks only before a bracket."""
    return text_html(text).replace(" ", "&nbsp;").replace("&nbsp;[", " [")


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f" ± {standard_error:.2g}"


def _difference(row: BitsRow, widest: float) -> list[str]:
    match row.difference:
        case None:
            return ["", "", ""]
        case str(reason):
            return [text_html(reason), "", ""]
        case difference:
            share = f"{difference.better:.0%} of {difference.images:,}"
            return [_number(_signed(difference)), _plot(difference, widest), share]


def _signed(difference: PairedDifference) -> str:
    value, low, high, _ = difference.difference
    text = f"{value:+.4f}"
    return text if low is None else f"{text} [{low:+.4f}, {high:+.4f}]"


def _ends(difference: PairedDifference) -> tuple[float, float]:
    value, low, high, _ = difference.difference
    return (value, value) if low is None or high is None else (low, high)


def _plot(difference: PairedDifference, widest: float) -> str:
    """The interval on an axis with zero in the middle."""
    if not widest:
        return ""

    def place(value: float) -> float:
        return round(_PLOT / 2 * (1 + 0.95 * value / widest), 1)

    low, high = map(place, _ends(difference))
    value = place(difference.difference.value)
    return (
        f'<svg width="{_PLOT}" height="18" role="img" aria-label="the interval beside zero">'
        f'<line class="zero" x1="{_PLOT / 2}" x2="{_PLOT / 2}" y1="0" y2="18"/>'
        f'<line x1="{low}" x2="{high}" y1="9" y2="9"/><circle cx="{value}" cy="9" r="3.5"/></svg>'
    )


def _pairs(runs: Sequence[RunSummary]) -> str:
    """The differences of all pairs: the run of the row minus that of the column."""
    rows = []
    for run in runs:
        row = [run_html(run.letter)]
        for other in runs:
            match "" if run is other else pair_runs(run, other):
                case str(reason):
                    row.append(text_html(reason))
                case difference:
                    value = f"{difference.difference.value:+.4f}"
                    row.append(_number(value + _error(difference.standard_error)))
        rows.append(row)
    table = table_html(["", *(f"minus {run_html(run.letter)}" for run in runs)], rows)
    return f"<h3>All pairs</h3>\n{table}"


def metrics_section(comparison: Comparison) -> str:
    """Metrics of samples with their intervals, a column for each run."""
    rows, runs = comparison.metrics, comparison.runs
    if not rows:
        return (
            "<p>No run has metrics of samples: <code>ddpm-jax evaluate RUN</code> measures"
            " them.</p>"
        )
    with_floors = any(row.held_out is not None or row.halves is not None for row in rows)
    headings = ["metric", *(run_html(run.letter) for run in runs)]
    headings += ["held out", "halves"] if with_floors else []
    table = table_html(headings, [_metric(row, with_floors) for row in rows])
    how = [
        f"<li>{run_html(run.letter)}: {text_html(sentence)}</li>"
        for run in runs
        if (sentence := _sampling(run))
    ]
    floors = (
        "<p>Held out: held-out images in place of samples. Halves: one half of the training images"
        " in place of samples, compared with the other half. Samples of a perfect model are as far"
        " from the training images as these, not at zero.</p>"
    )
    covers = "".join(
        f"<li>{text_html(row.name)}: {text_html(note)} ({', '.join(letters)})</li>\n"
        for row in rows
        for note, letters in _notes(row, runs).items()
    )
    return "\n".join(
        [
            table,
            f"<ul>\n{''.join(how)}</ul>",
            floors if with_floors else "",
            f"<details><summary>What the intervals cover</summary><ul>{covers}</ul></details>"
            if covers
            else "",
        ]
    )


def _notes(row: MetricRow, runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """What the intervals of a row cover, and the letters of the runs."""
    notes: dict[str, list[str]] = {}
    for run, value in zip(runs, row.values, strict=True):
        if value is not None and value.note:
            notes.setdefault(value.note, []).append(run.letter)
    return notes


def _metric(row: MetricRow, with_floors: bool) -> list[str]:
    name = text_html(row.name)
    name += f"<br><small>{text_html(row.reference)}</small>" if row.reference else ""
    cells = ["" if value is None else _number(number_text(value)) for value in row.values]
    floors = [row.held_out, row.halves] if with_floors else []
    return [name, *cells, *("" if floor is None else f"{floor:.4g}" for floor in floors)]


def _sampling(run: RunSummary) -> str:
    """How the samples of an evaluation were drawn."""
    sampling = run.evaluation.get("sampling") if run.evaluation else None
    if run.evaluation is None or not isinstance(sampling, dict):
        return ""
    sampler = str(sampling.get("class")).rpartition(":")[2]
    seeds = sampling.get("seeds", 1)
    return (
        f"step {run.evaluation['step']}, {sampling.get('images')} samples by {sampler} in"
        f" {sampling.get('steps') or 'all'} steps,"
        + (f" seed {sampling.get('seed')}" if seeds == 1 else f" {seeds} seeds")
    )


def _terms(series: Sequence[Series]) -> str:
    return figure_html(
        "The terms of the ELBO over t / T; times T, so that their mean is their sum in bits/dim",
        series,
        x="t / T",
        y="T x term, bits/dim",
        smooth=False,
    )
