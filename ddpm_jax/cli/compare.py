"""`ddpm-jax compare RUN RUN --out compare.html`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import (
    DEFAULTS,
    ParamsName,
    check_at_least,
    check_seed,
    parse_options,
    replace_members,
)
from ddpm_jax.cli.help import SHORT, options_help
from ddpm_jax.comparison.comparison import BitsRow, Comparison, compare
from ddpm_jax.comparison.metrics import MetricRow, number_text
from ddpm_jax.comparison.page import write_page
from ddpm_jax.config import Sampler
from ddpm_jax.errors import UserError
from ddpm_jax.terminal import cell, complain, say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Lays 2 to 8 runs side by side on one page of HTML.

    It shows configs, curves, bits per dimension image by image, metrics, and samples from the same
    noise. Nothing is written to the runs without --measure.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The run directories; differences are to the first one."""
    out: Path = Path("compare.html")
    """The page to write, one .html file that needs no other file."""
    params: ParamsName = "ema"
    """Which parameters: the moving average, or the raw ones."""
    num: int = 16
    """Number of samples of each run, from the same noise; 0 for none."""
    sampler: Sampler = DEFAULTS.sampler
    """The sampler of all runs; by default each has its own. --sampler ddim takes another one."""
    seed: int = 0
    """Seed of the samples, in [0, 2^32)."""
    batch_size: int | None = None
    """Images in one call of the network; by default evaluation.batch_size of each run. Lower it if
    memory runs out."""
    measure: bool = False
    """Measure bits per dimension of single held-out images of runs that have none of their newest
    step. It needs the data sets, and writes to evaluation/ in the runs, as evaluate does."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Compares, prints tables, and writes the page."""
    if set(SHORT) & set(arguments):
        print(options_help("compare RUN RUN ...", Arguments))
        return
    options, sampler = _parse(arguments)
    comparison = compare(
        options.runs,
        params=options.params,
        num=options.num,
        seed=options.seed,
        sampler=sampler,
        batch_size=options.batch_size,
        measure=options.measure,
        report=functools.partial(say, console),
    )
    for note in comparison.notes:
        complain(note)
    write_page(options.out, comparison)
    console.print(_runs_table(comparison))
    if comparison.metrics:
        console.print(_metrics_table(comparison))
    say(console, f"the page   {options.out}")


def _parse(arguments: Sequence[str]) -> tuple[Arguments, Sampler | None]:
    """The options, and the sampler if one was given."""
    default, rest = replace_members(Arguments(()), arguments)
    options: Arguments = parse_options(Arguments, "ddpm-jax compare", rest, default=default)
    if options.out.suffix != ".html":
        raise UserError(f"--out is {str(options.out)!r}; its name has to end in .html")
    if not options.out.parent.is_dir():
        raise UserError(f"--out is {str(options.out)!r}; there is no folder {options.out.parent}")
    if options.out.is_dir():
        raise UserError(f"--out is {str(options.out)!r}, which is a folder")
    check_seed(options.seed)
    check_at_least(options, 0, "num")
    check_at_least(options, 1, "batch_size")
    names = (argument.partition("=")[0].partition(".")[0] for argument in arguments)
    return options, options.sampler if "--sampler" in names else None


def _runs_table(comparison: Comparison) -> Table:
    bits = {row.letter: row for row in comparison.bits}
    first = comparison.bits[0].letter if bits else ""
    table = Table(title="runs")
    for heading in ("", "run", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("step", "bits/dim", f"difference to {first}"):
        table.add_column(heading, justify="right")
    for one in comparison.runs:
        texts = _bits_texts(bits.get(one.letter))
        step = f"{one.step:,}"
        table.add_row(one.letter, cell(one.path), cell(one.state), step, *map(cell, texts))
    return table


def _bits_texts(row: BitsRow | None) -> list[str]:
    if row is None:
        return ["", ""]
    error = "" if row.standard_error is None else f" +- {row.standard_error:.2g}"
    match row.difference:
        case None:
            text = ""
        case str(reason):
            text = reason
        case difference:
            value, low, high, _ = difference.difference
            text = f"{value:+.4f}" if low is None else f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return [f"{row.value:.4f}{error}", text]


def _metrics_table(comparison: Comparison) -> Table:
    table = Table(title="metrics of samples")
    table.add_column("metric")
    for heading in (*(one.letter for one in comparison.runs), "held out", "halves"):
        table.add_column(heading, justify="right")
    for row in comparison.metrics:
        values = ["" if value is None else number_text(value) for value in row.values]
        floors = ["" if value is None else f"{value:.4g}" for value in (row.held_out, row.halves)]
        table.add_row(cell(_name(row)), *values, *floors)
    return table


def _name(row: MetricRow) -> str:
    return f"{row.name} ({row.reference})" if row.reference else row.name
