"""A comparison of runs as one page of HTML that needs no other file, no network and no script.

All text from runs is escaped, and the page's own policy lets a browser load nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from ddpm_jax import config as configs
from ddpm_jax.comparison.comparison import Comparison
from ddpm_jax.comparison.html import (
    STYLE,
    data_uri,
    figure_html,
    run_html,
    table_html,
    text_html,
)
from ddpm_jax.comparison.pictures import (
    COLUMNS,
    MOST_CURVES,
    Series,
    samples_png,
    series_of,
)
from ddpm_jax.comparison.run_summary import RunSummary
from ddpm_jax.comparison.sections import bits_section, metrics_section
from ddpm_jax.config import Affects
from ddpm_jax.files import whole_file

__all__ = ["make_page", "write_page"]

_PARAMS = {"ema": "the moving average of the parameters", "raw": "the raw parameters"}
_LESS_IMPORTANT = (Affects.ROUNDING, Affects.REPORTS, Affects.PLACE)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: Path, comparison: Comparison) -> None:
    """Writes the page, either completely or not at all.

    Raises:
        OSError: the disk refuses; what was at `path` is still there.
    """
    page = make_page(comparison).encode()
    with whole_file(path) as file:
        file.write(page)


def make_page(comparison: Comparison) -> str:
    """The page; the same comparison gives the same text."""
    runs = comparison.runs
    sections = (
        ("Runs", _runs(runs)),
        ("Notes", _notes(comparison.notes)),
        ("Bits per dimension", bits_section(comparison)),
        ("Metrics of samples", metrics_section(comparison)),
        ("Training curves", _curves(runs)),
        ("Samples from the same noise", _samples(comparison)),
        ("Differences of the configs", _fields(comparison)),
    )
    body = "\n".join(
        f"<section>\n<h2>{title}</h2>\n{content}\n</section>"
        for title, content in sections
        if content
    )
    names = ", ".join(run.path.name for run in runs)
    params = (
        f"Results and samples are of {_PARAMS[comparison.params]}, unless a line says otherwise."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text_html(f"Comparison of {names}")}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<h1>Comparison of {len(runs)} runs</h1>
<p>{params} ± is one standard error; an interval in brackets is of 95&nbsp;%.</p>
{body}
</main>
</body>
</html>
"""


def _runs(runs: Sequence[RunSummary]) -> str:
    rows = [[text_html(name), *map(text_html, values)] for name, values in _facts(runs)]
    return table_html(["", *(run_html(run.letter) for run in runs)], rows)


def _facts(runs: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    """Names, and the values of each run."""
    facts = {
        "directory": [str(run.path) for run in runs],
        "state": [run.state for run in runs],
        "steps": [f"{run.step:,}" for run in runs],
        "data set": [_data_set(run) for run in runs],
        "network": [_field(run, "network") for run in runs],
        "parameters": ["" if (n := run.num_parameters) is None else f"{n:,}" for run in runs],
        "schedule": [_schedule(run) for run in runs],
        "batch size": [_field(run, "train.batch_size") for run in runs],
        "seed": [_field(run, "seed") for run in runs],
        "hours": ["" if run.hours is None else f"{run.hours:.2g}" for run in runs],
    }
    return [(name, values) for name, values in facts.items() if any(values)]


def _field(run: RunSummary, name: str) -> str:
    value = run.field(name)
    if value is None:
        return ""
    return value if isinstance(value, str) else configs.shown(value)


def _schedule(run: RunSummary) -> str:
    name, num_steps = _field(run, "schedule"), _field(run, "schedule.num_steps")
    return f"{name}, T = {num_steps}" if num_steps else name


def _data_set(run: RunSummary) -> str:
    if run.record is None:
        return ""
    spec, count = run.record.spec, run.record.train_images
    size = "x".join(map(str, spec.shape))
    return f"{spec.name}, {size}" + ("" if count is None else f", {count:,} images to train on")


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{text_html(note)}</li>\n" for note in notes)
    return f"<ul>\n{items}</ul>" if notes else ""


def _curves(runs: Sequence[RunSummary]) -> str:
    by_name = series_of(runs)
    if not by_name:
        return "<p>No run has logged numbers yet.</p>"
    names = list(by_name)[:MOST_CURVES]
    figures = "\n".join(_curve(name, by_name[name]) for name in names)
    left_out = ", ".join(list(by_name)[MOST_CURVES:])
    more = f"<p>Not shown: {text_html(left_out)}.</p>" if left_out else ""
    sizes = {run.letter: _field(run, "train.batch_size") for run in runs}
    steps = ""
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{letter} {size}" for letter, size in sizes.items())
        steps = f"<p>Images in one step: {text_html(each)}.</p>\n"
    if len({_field(run, "objective") for run in runs}) > 1:
        steps += "<p>The objectives differ: compare the shapes of the losses, not their values.</p>"
    return f'{steps}\n<div class="curves">\n{figures}\n</div>\n{more}'


def _curve(name: str, series: Sequence[Series]) -> str:
    title = name.replace("_", " ")
    ends = ", ".join(f"{one.letter} {one.y[-1]:.4g} at step {one.x[-1]:.0f}" for one in series)
    return figure_html(f"{title}; last: {ends}", series, x="step", y=title)


def _samples(comparison: Comparison) -> str:
    rows = comparison.samples
    drawn = {row.letter: row.images for row in rows if row.images is not None}
    texts = "".join(f"<li>{run_html(row.letter)}: {text_html(row.text)}</li>\n" for row in rows)
    if not drawn:
        return f"<ul>\n{texts}</ul>" if rows else ""
    count = len(next(iter(drawn.values())))
    blocks = []
    for first in range(0, count, COLUMNS):
        lines = [
            f'<div class="strip">{run_html(letter)}<img'
            f' src="{data_uri(samples_png(images[first : first + COLUMNS]))}"'
            f' alt="samples of {letter}, from number {first} on"></div>'
            for letter, images in drawn.items()
        ]
        blocks.append('<div class="block">\n' + "\n".join(lines) + "\n</div>")
    return (
        "<p>Images one below the other start from the same noise, and get the same noise at the"
        " same time t.</p>\n" + "\n".join(blocks) + f"\n<ul>\n{texts}</ul>"
    )


def _fields(comparison: Comparison) -> str:
    if not comparison.fields:
        return "<p>The configs are the same.</p>"
    runs = [run_html(run.letter) for run in comparison.runs]
    parts = []
    for affects in Affects:
        rows = [
            [f"<code>{text_html(row.field)}</code>", *map(text_html, row.values)]
            for row in comparison.fields
            if row.affects is affects
        ]
        if rows:
            table, title = table_html(["field", *runs], rows), f"They change {affects.value}"
            if affects in _LESS_IMPORTANT:
                parts.append(f"<details><summary>{text_html(title)}</summary>\n{table}\n</details>")
            else:
                parts.append(f"<h3>{text_html(title)}</h3>\n{table}")
    return "\n".join(parts)
