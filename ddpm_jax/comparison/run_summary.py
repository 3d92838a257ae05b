"""The files of one run in short, as far as they can be read: what a comparison of runs needs."""

import contextlib
import dataclasses
import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ddpm_jax import config as configs
from ddpm_jax.comparison.image_bits import BitsPerImage, read_bits_per_image
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.data_record import DataRecord, read_data_record
from ddpm_jax.experiment.held_out import per_image_name
from ddpm_jax.experiment.imported import imported_files
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.files import read_json
from ddpm_jax.training import manifest

__all__ = ["TRAINING_RESULTS", "RunSummary", "logged_hours", "old_results", "read_summary"]

TRAINING_RESULTS = "ema"
"""The parameters that are measured at the end of training."""
_T = TypeVar("_T")


@dataclasses.dataclass
class RunSummary:
    """The files of one run, as far as they can be read."""

    letter: str
    """A, B, ...: what the page calls it."""
    path: Path
    """The run directory, as the user named it."""
    params: str
    """Which parameters the results are of, "ema" or "raw"."""
    stored: dict[str, Any] | None = None
    """Its config.json."""
    record: DataRecord | None = None
    """Of its data set."""
    step: int = 0
    """Number of steps of its newest checkpoint."""
    state: str = ""
    """Whether it has ended, in words."""
    num_parameters: int | None = None
    """Of the network."""
    hours: float | None = None
    """Hours of training, as far as TensorBoard's files of events say."""
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of metrics.jsonl."""
    results: dict[str, Any] | None = None
    """Of the end of training."""
    evaluation: dict[str, Any] | None = None
    """Results of the newest `ddpm-jax evaluate`, with `values`, those of the parameters, and
    `step`."""
    bits: BitsPerImage | None = None
    """Bits/dim of each held-out image."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences about what is missing or damaged."""

    def field(self, name: str) -> Any:
        """A field of the config by its dotted name; None if it has none."""
        return configs.flat(self.stored or {}).get(name)


def read_summary(letter: str, path: Path, params: str) -> RunSummary:
    """Reads all files of a run that are compared; what cannot be read is a note.

    Args:
        letter: what the page calls it.
        path: the run directory.
        params: "ema" or "raw": of which parameters the results are read.
    """
    files, run = RunDirectory(path), RunSummary(letter, path, params)

    def read(function: Callable[[], _T], default: _T) -> _T:
        try:
            return function()
        except (UserError, OSError) as error:
            run.notes.append(str(error))
            return default

    run.stored = read(files.read_stored, None)
    run.record = read(lambda: read_data_record(files.images), None)
    run.lines = read(files.read_metrics, [])
    run.results = read(files.read_results, None)
    unknown: tuple[int, int | None] = (0, None)
    run.step, run.num_parameters = read(lambda: _newest(files), unknown)
    run.hours = logged_hours(files.tensorboard)
    steps = run.field("train.steps")
    if files.imported.exists():
        run.state = "imported"
    elif run.results is not None:
        run.state = "finished"
    else:
        run.state = f"not finished: step {run.step} of {steps}"
        run.notes.append(f"it is {run.state}; it may still be training")
    run.evaluation = read(lambda: _newest_evaluation(files, params), None)
    run.bits = read(lambda: _newest_bits(files, params), None)
    return run


def old_results(run: RunSummary) -> list[str]:
    """Sentences about results of a run that are of an older step than its newest."""
    steps = {
        "its results": None if run.evaluation is None else run.evaluation["step"],
        "its bits/dim of single images": None if run.bits is None else run.bits.about.get("step"),
    }
    return [
        f"{what} are of step {step}, and it has reached step {run.step};"
        f" `ddpm-jax evaluate {run.path}` evaluates that step"
        for what, step in steps.items()
        if isinstance(step, int) and step < run.step
    ]


def _newest(files: RunDirectory) -> tuple[int, int | None]:
    """The step and the number of parameters of the newest checkpoint that can be read."""
    if own := imported_files(files):
        return own["ema"].step, own["ema"].num_parameters
    for step, folder in sorted(manifest.step_folders(files.checkpoints).items(), reverse=True):
        with contextlib.suppress(manifest.DamageError):
            arrays = manifest.read(folder, step).arrays
            shapes = [text for name, text in arrays.items() if name.startswith("params/")]
            return step, sum(math.prod(_shape(text)) for text in shapes)
    return 0, None


def _shape(text: str) -> list[int]:
    """Of `float32[3, 5]`."""
    return [int(size) for size in re.findall(r"\d+", text.partition("[")[2])]


def logged_hours(tensorboard: Path) -> float | None:
    """Hours from the first to the last event of each file, together; None without events.

    Each start of training writes a file of its own, so the time between two starts is not counted.
    """
    total = 0.0
    for path in tensorboard.glob("events.out.tfevents.*"):
        with contextlib.suppress(OSError):
            times = list(_event_times(path))
            total += max(times) - min(times) if times else 0.0
    return total / 3600 if total else None


def _event_times(path: Path) -> Iterator[float]:
    """The wall time of each event: its first field, the number 1, of eight bytes (0x09)."""
    with path.open("rb") as file:
        while len(start := file.read(21)) == 21:
            length, _, field, wall_time = struct.unpack("<QIBd", start)
            if field != 0x09 or length < 9:
                return
            yield wall_time
            file.seek(length - 9 + 4, 1)


def _newest_evaluation(files: RunDirectory, params: str) -> dict[str, Any] | None:
    """The results of the newest evaluation of these parameters."""
    for step, path in _of_evaluations(files, "results.json"):
        results = read_json(path)
        by_name = results.get("params")
        if not isinstance(by_name, dict):
            raise RunDirectoryError(
                f"{str(path)!r} has no results of parameters; delete it, and evaluate again"
            )
        if isinstance(by_name.get(params), dict):
            return {**results, "values": by_name[params], "step": step}
    return None


def _newest_bits(files: RunDirectory, params: str) -> BitsPerImage | None:
    for _, path in _of_evaluations(files, per_image_name(params)):
        return read_bits_per_image(path)
    return None


def _of_evaluations(files: RunDirectory, name: str) -> Iterator[tuple[int, Path]]:
    """The files of this name in the folders of evaluations, with their steps, the newest first."""
    steps = {
        int(match[1]): folder / name
        for folder in files.evaluation.glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", folder.name)) and (folder / name).exists()
    }
    yield from sorted(steps.items(), reverse=True)
