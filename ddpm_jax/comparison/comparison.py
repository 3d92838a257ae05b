"""What several runs have in common and in what they differ: the content of `ddpm-jax compare`.

A part of a run that is missing or damaged is a note, and the rest is compared.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.comparison.image_bits import (
    PairedDifference,
    measure_bits_per_image,
    pair,
    read_bits_per_image,
)
from ddpm_jax.comparison.metrics import MetricRow, finite_number, metric_rows
from ddpm_jax.comparison.run_summary import (
    TRAINING_RESULTS,
    RunSummary,
    old_results,
    read_summary,
)
from ddpm_jax.config import Affects, Config
from ddpm_jax.data import to_bytes, to_levels
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.run import Run, load_run
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError

__all__ = [
    "MOST_RUNS",
    "BitsRow",
    "Comparison",
    "FieldRow",
    "SampleRow",
    "bits_rows",
    "compare",
    "field_rows",
    "pair_runs",
    "run_names",
]

MOST_RUNS = 8
"""A page with more runs cannot be read."""
_LETTERS = "ABCDEFGH"
_ALREADY_SHOWN = ("workdir",)


class FieldRow(NamedTuple):
    """A field of the config that is not the same in all runs."""

    field: str
    affects: Affects
    values: list[str]
    """Of each run; "" where a run has no such field."""


class BitsRow(NamedTuple):
    """Bits/dim of one run, and its difference to the first run."""

    letter: str
    value: float
    standard_error: float | None
    origin: str
    """Where the number is from."""
    difference: PairedDifference | str | None
    """To the first run, image by image, or why there is none; None for the first run itself."""


class SampleRow(NamedTuple):
    """Samples of one run, which start from the same noise as those of the others."""

    letter: str
    images: np.ndarray | None
    """uint8 of 256 levels `[num, height, width, channel]`; None if the run is left out."""
    text: str
    """How they were drawn, or why there are none."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that is compared."""

    runs: list[RunSummary]
    params: str
    """Which parameters: "ema" or "raw"."""
    fields: list[FieldRow]
    bits: list[BitsRow]
    metrics: list[MetricRow]
    samples: list[SampleRow]
    notes: list[str]
    """Sentences about what is missing or damaged, which begin with the run's letter."""


def compare(
    paths: Sequence[Path],
    *,
    params: Literal["ema", "raw"] = "ema",
    num: int = 16,
    seed: int = 0,
    sampler: configs.Sampler | None = None,
    batch_size: int | None = None,
    measure: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compares runs, which may still be training.

    Nothing is written to them, except for bits/dim of single images if these are to be measured.

    Args:
        paths: 2 to 8 run directories.
        params: which parameters: the moving average, or the raw ones.
        num: number of samples of each run; 0 for none.
        seed: of the samples.
        sampler: of all runs; by default each has its own.
        batch_size: images drawn at once; by default `evaluation.batch_size` of each run.
        measure: measure bits/dim of single images of runs that have none of their newest step.
        report: gets a line for each part that takes time.

    Returns:
        The comparison.

    Raises:
        UserError: fewer than two runs or more than eight, or a path without a run.
    """
    names, notes = run_names(paths)
    runs = [read_summary(letter, path, params) for letter, path in names.items()]
    if measure:
        for run in runs:
            _measure(run, params, report)
    metrics = metric_rows(runs)
    samples = [] if num == 0 else _samples(runs, params, num, seed, sampler, batch_size, report)
    for run in runs:
        notes += [
            f"{run.letter}: {note}" for note in dict.fromkeys([*run.notes, *old_results(run)])
        ]
    return Comparison(runs, params, field_rows(runs), bits_rows(runs), metrics, samples, notes)


def run_names(paths: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """The run directories by letter, without those that were named twice; and notes about these.

    Raises:
        UserError: fewer than two runs, more than eight, or a path without a run.
    """
    runs: dict[Path, Path] = {}
    notes = []
    for path in paths:
        if not RunDirectory(path).config.exists():
            raise RunDirectoryError(f"{str(path)!r} is not a run directory: it has no config.json")
        place = path.resolve()
        if place in runs:
            notes.append(f"{str(path)!r} is the same run as {str(runs[place])!r}; it is used once")
        else:
            runs[place] = path
    if not 2 <= len(runs) <= MOST_RUNS:
        more = f" ({notes[0]})" if notes else ""
        raise UserError(f"the number of runs is {len(runs)}{more}; it has to be 2 to {MOST_RUNS}")
    return dict(zip(_LETTERS, runs.values(), strict=False)), notes


def field_rows(runs: Sequence[RunSummary]) -> list[FieldRow]:
    """The fields in which the configs of any two runs differ, the most important kind first."""
    stored = {run.letter: run.stored for run in runs if run.stored is not None}
    rows: dict[str, tuple[Affects, dict[str, Any]]] = {}
    for first, second in itertools.combinations(stored, 2):
        known = _known(stored[first])
        for change in configs.differences(stored[first], stored[second], known):
            _, values = rows.setdefault(change.field, (change.affects, {}))
            values |= {first: change.first, second: change.second}
    flat = {letter: configs.flat(values) for letter, values in stored.items()}

    def text(letter: str, name: str, values: dict[str, Any]) -> str:
        own = flat.get(letter, {})
        value = own.get(name, values.get(letter))
        if value is None and name not in own:
            return ""
        return value if isinstance(value, str) else configs.shown(value)

    unsorted = [
        FieldRow(name, affects, [text(run.letter, name, values) for run in runs])
        for name, (affects, values) in rows.items()
        if name not in _ALREADY_SHOWN
    ]
    kinds = list(Affects)
    return sorted(unsorted, key=lambda row: kinds.index(row.affects))


def _known(stored: Mapping[str, Any]) -> Config:
    """The config, for what its fields affect; no code of the run is executed."""
    if stored.get("source") is None:
        with contextlib.suppress(UserError):
            return configs.from_json(stored)
    return Config()


def bits_rows(runs: Sequence[RunSummary]) -> list[BitsRow]:
    """Bits/dim of each run that has them, and its difference to the first of these."""
    rows: list[BitsRow] = []
    first: RunSummary | None = None
    for run in runs:
        value, error, origin = _bits_of(run)
        if value is None:
            continue
        difference = None if first is None else pair_runs(run, first)
        first = first or run
        rows.append(BitsRow(run.letter, value, error, origin, difference))
    return rows


def pair_runs(run: RunSummary, other: RunSummary) -> PairedDifference | str:
    """The bits/dim of `run` minus those of `other`, or the reason why there is no difference."""
    if run.bits is None or other.bits is None:
        names = " and ".join(each.letter for each in (other, run) if each.bits is None)
        return f"no bits/dim of single images of {names}"
    return pair(run.bits, other.bits)


def _bits_of(run: RunSummary) -> tuple[float | None, float | None, str]:
    """Bits/dim, their standard error, and where they are from: the best place that has them."""
    if run.bits is not None:
        step, count = run.bits.about.get("step"), len(run.bits.bits)
        return run.bits.mean, run.bits.standard_error, f"step {step}, {count} images"
    places: list[tuple[Any, str]] = []
    if run.evaluation is not None:
        places.append((run.evaluation["values"].get("results"), f"step {run.evaluation['step']}"))
    if run.results is not None and run.params == TRAINING_RESULTS:
        places.append((run.results, f"end of training, step {run.results['step']}"))
    for results, origin in places:
        value = finite_number(results.get("bits_per_dim")) if isinstance(results, dict) else None
        if value is not None:
            origin = f"{origin}, {results.get('images')} images"
            return value, finite_number(results.get("standard_error")), origin
    return None, None, ""


def _measure(run: RunSummary, params: Literal["ema", "raw"], report: Callable[[str], None]) -> None:
    """Measures bits/dim of single images, unless there are those of the newest step."""
    step = None if run.bits is None else run.bits.about.get("step")
    if isinstance(step, int) and step >= run.step:
        return
    report(f"evaluating held-out images of {run.letter}, step {run.step}")
    try:
        path = measure_bits_per_image(run.path, params, run.notes.append)
        run.bits = read_bits_per_image(path)
    except (UserError, OSError) as error:
        run.notes.append(f"bits/dim of single images are not measured: {error}")


def _samples(
    runs: Sequence[RunSummary],
    params: Literal["ema", "raw"],
    num: int,
    seed: int,
    sampler: configs.Sampler | None,
    batch_size: int | None,
    report: Callable[[str], None],
) -> list[SampleRow]:
    """Draws from one run after the other; a run that cannot be drawn from is left out."""
    rows: list[SampleRow] = []
    shape: tuple[int, ...] | None = None
    for run in runs:
        try:
            loaded = load_run(run.path, params=params, report=run.notes.append)
            own = loaded.images.shape
            if shape not in (own, None):
                raise UserError(
                    f"its images are {_times(own)}, and those of the runs above {_times(shape)}"
                )
            report(f"drawing {num} images of {run.letter}, step {loaded.step}")
            images = _draw(loaded, num, seed, sampler, batch_size)
        except (UserError, OSError) as error:
            rows.append(SampleRow(run.letter, None, str(error)))
            run.notes.append(f"no samples: {error}")
        else:
            shape = own
            rows.append(SampleRow(run.letter, images, _how(loaded, sampler)))
    return rows


def _draw(
    run: Run, num: int, seed: int, sampler: configs.Sampler | None, batch_size: int | None
) -> np.ndarray:
    key = jax.random.key(seed, impl="threefry2x32")  # see Experiment.key
    images = np.asarray(run.sample(key, num, sampler=sampler, batch_size=batch_size))
    if not np.isfinite(images).all():
        raise UserError("the images that its network draws are not finite")
    return to_bytes(
        np.asarray(to_levels(jnp.asarray(images), run.images.levels)), run.images.levels
    )


def _how(run: Run, sampler: configs.Sampler | None) -> str:
    sampler = sampler or run.config.sampler
    steps, chain = len(sampler.times(run.process)), run.process.num_steps
    name = configs.member_name(type(sampler))
    return f"step {run.step}, {name}, {steps} of {chain} steps"


def _times(shape: Sequence[int] | None) -> str:
    return "x".join(map(str, shape or ()))
