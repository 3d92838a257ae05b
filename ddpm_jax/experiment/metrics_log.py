"""metrics.jsonl: the numbers of a run; interruptions do not change its bytes."""

import contextlib
import itertools
import json
import math
from typing import Any

from ddpm_jax.config import Train
from ddpm_jax.experiment.run_directory import RunDirectory
from ddpm_jax.files import whole_file

__all__ = ["MetricsLog", "missing_metrics"]

_MOST_GAPS = 3
"""A sentence names at most so many."""


class MetricsLog:
    """metrics.jsonl of one run, continued after `resumed_at` steps.

    The lines hold only what follows from config and seed, so that an interrupted run writes the
    same bytes as an uninterrupted one; lines past `resumed_at` are dropped and written again.
    Speed goes to TensorBoard alone.

    The disk may refuse later on: lines stay in memory, too, and all of them are written as soon
    as it takes them.
    """

    def __init__(self, run: RunDirectory, *, resumed_at: int) -> None:
        self._run = run
        lines = run.read_metrics(until=resumed_at)
        self._text = [_as_line(line) for line in lines]
        self.refusal: str | None = None
        """Why the file does not have all lines."""
        self._whole = -1
        """Lines that are safely in the file; -1 if it cannot be trusted."""
        self._write_all()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._whole != len(self._text):
            with contextlib.suppress(OSError):
                self._write_all()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, which survives the process when this returns."""
        self._text.append(_as_line({"step": step, **values}))
        try:
            if self._whole == len(self._text) - 1 and self._run.metrics.exists():
                self._whole = -1  # until the line is there
                with self._run.metrics.open("a") as file:
                    file.write(self._text[-1])
                self._whole = len(self._text)
            else:
                self._write_all()
            self.refusal = None
        except OSError as error:
            self.refusal = error.strerror or str(error)

    def _write_all(self) -> None:
        """Writes the whole file again, also if its folder has been deleted."""
        self._whole = -1
        with whole_file(self._run.metrics) as file:
            file.write("".join(self._text).encode())
        self._whole = len(self._text)


def missing_metrics(run: RunDirectory, config: Train, resumed_at: int) -> str:
    """A sentence about the lines that metrics.jsonl had up to step `resumed_at` and has no more.

    "" if it has all of them, as far as the intervals tell that the run has had.
    """
    lines, missing = run.read_metrics(until=resumed_at), []
    for metric, field in (("loss", "log_every"), ("held_out_loss", "save_every")):
        every = getattr(config, field)
        if past := run.past_values(f"train.{field}"):  # the first interval after a change is odd
            every = 2 * max(every, *past)
        steps = [0, *(line["step"] for line in lines if metric in line)]
        gaps = [f"{a + 1} to {b - 1}" for a, b in itertools.pairwise(steps) if b - a > every]
        if resumed_at - steps[-1] >= every:
            gaps.append(f"{steps[-1] + 1} to {resumed_at}")
        if gaps:
            missing.append(f"no {metric} of steps {', '.join(gaps[:_MOST_GAPS])}")
    if not missing:
        return ""
    return f"{run.metrics} has lost lines, {' and '.join(missing)}; training continues without them"


def _as_line(values: dict[str, Any]) -> str:
    """JSON has no NaN: a window without a good step has the loss null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite) + "\n"
