"""What a run tells: a progress bar or plain lines, metrics.jsonl, TensorBoard, pictures."""

import contextlib
import itertools
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import image, scalar

from ddpm_jax.config import TrainConfig
from ddpm_jax.evaluation import image_grid, save_png
from ddpm_jax.experiment.directory import RunDirectory
from ddpm_jax.experiment.draw import Drawn
from ddpm_jax.files import whole_file
from ddpm_jax.terminal import say

__all__ = ["MetricsLog", "TrainingDisplay", "missing_metrics", "save_drawn"]

_MOST_GAPS = 3
"""A sentence names at most so many."""


class MetricsLog:
    """metrics.jsonl and TensorBoard events of one run, continued after `resumed_at` steps.

    The lines hold only what follows from config and seed, so that an interrupted run writes the
    same bytes as an uninterrupted one; lines past `resumed_at` are dropped and written again.
    Speed goes to TensorBoard alone.

    The disk may refuse later on: lines are kept in memory, too, and all of them are written as soon
    as it takes them. Events and pictures that it refused are lost.
    """

    def __init__(self, run: RunDirectory, *, resumed_at: int) -> None:
        self._run = run
        kept = run.read_metrics(until=resumed_at)
        self._text = [_as_line(line) for line in kept]
        self.refusal: str | None = None
        """Why the file does not have all lines."""
        self._whole = -1
        """Lines that are safely in the file; -1 if it cannot be trusted."""
        self._write_all()
        now = time.time()
        self._events = run.tensorboard / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        header = Event(wall_time=now, file_version="brain.Event:2")
        # What a killed process told of later steps is void.
        begun = Event(
            wall_time=now,
            step=resumed_at + 1,
            session_log=SessionLog(status=SessionLog.START),
        )
        _append(self._events, _record(header) + _record(begun))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._whole != len(self._text):
            with contextlib.suppress(OSError):
                self._write_all()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, which survives the process when this returns, and scalars for TensorBoard."""
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
        self.scalars(step, values)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """TensorBoard only."""
        for name, value in values.items():
            self._event(step, summary=scalar(name, value))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """TensorBoard only; uint8 `[height, width, channel]`."""
        self._event(step, summary=image(name, picture, dataformats="HWC"))

    def _write_all(self) -> None:
        """The file anew, also if its folder is gone."""
        self._whole = -1
        with whole_file(self._run.metrics) as file:
            file.write("".join(self._text).encode())
        self._whole = len(self._text)

    def _event(self, step: int, **what: Any) -> None:
        """At once: a writer with a thread of its own would never come back from a full disk."""
        with contextlib.suppress(OSError):
            _append(self._events, _record(Event(step=step, wall_time=time.time(), **what)))


def missing_metrics(run: RunDirectory, config: TrainConfig, resumed_at: int) -> str:
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
    return f"{run.metrics} has lost lines, {' and '.join(missing)}; training goes on without them"


def _record(event: Event) -> bytes:
    """As TensorBoard reads it: length, its checksum, the event, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


def _append(path: Path, data: bytes) -> None:
    """All of it or, if the disk refuses, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(data) != len(data):
            file.truncate(end)


class TrainingDisplay:
    """Loss, steps/s, images/s and time left: a bar on a terminal, a plain line elsewhere."""

    def __init__(self, console: Console, *, start: int, steps: int, batch_size: int) -> None:
        self._console = console
        self._steps = steps
        self._batch_size = batch_size
        self._last: tuple[int, float] | None = None
        self._waited = 0.0
        self._line = _Line(steps)
        self._bar = Progress(
            self._line,
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=start)

    def __enter__(self) -> "TrainingDisplay":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; may be called twice."""
        self._bar.stop()

    def advance(self, step: int, waited: float) -> None:
        """A step was dispatched; the first of a process was compiled before that, untimed.

        Its batch kept the device waiting for so many seconds.
        """
        if self._last is None:
            self._last = step, time.perf_counter()
            self._waited = 0.0
        else:
            self._waited += waited
        self._line.figures.pop("note", None)
        self._bar.update(self._task, completed=step)

    def log(self, step: int, loss: float, *, skipped: int = 0) -> dict[str, float]:
        """Shows the loss, bad steps and the speed since the last call; returns the speed."""
        now = time.perf_counter()
        before, then = self._last or (step, now)
        self._last = step, now
        waited, self._waited = self._waited, 0.0
        steps_per_second = (step - before) / (now - then) if step > before else 0.0
        images_per_second = steps_per_second * self._batch_size
        speed = {"steps_per_second": steps_per_second, "images_per_second": images_per_second}
        figures = {
            "loss": f"loss {loss:.4f}",
            "speed": f"{steps_per_second:.1f} steps/s",
            "images": f"{images_per_second:.0f} images/s",
        }
        if step > before:
            speed["waited_for_data"] = waited / (now - then)
            figures["waiting"] = f"{speed['waited_for_data']:.1%} waiting for data"
        if skipped:
            figures["skipped"] = f"{skipped} bad steps skipped"
        left = (self._steps - step) / steps_per_second if steps_per_second else math.inf
        figures["left"] = f"{_minutes(left)} left"
        self._line.figures = figures
        self._bar.update(self._task, completed=step)
        if not self._console.is_terminal:
            self.say("  ".join([f"step {step}/{self._steps}", *figures.values()]))
        return speed

    def pause(self) -> None:
        """Something else took its time; the speed is measured anew from the next step."""
        self._last = None

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        say(self._console, text)


class _Line(ProgressColumn):
    """The bar and its figures; what matters least is left out where the terminal is narrow."""

    def __init__(self, steps: int) -> None:
        self.figures = {"note": "compiling"}
        self._steps = steps
        super().__init__()

    def render(self, task: Task) -> "_Fitted":
        share = task.percentage / 100.0
        parts = {"percent": f"{share:4.0%}", "step": f"step {task.completed:.0f}/{self._steps}"}
        return _Fitted(parts | self.figures, share)


class _Fitted(NamedTuple):
    """What of these parts fits in the width that there is, in their order."""

    parts: dict[str, str]
    share: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        chosen = dict(self.parts)
        for name in _FIRST_TO_GO:
            if len(_GAP.join(chosen.values())) <= options.max_width:
                break
            chosen.pop(name, None)
        text = _GAP.join(chosen.values())
        room = min(options.max_width - len(text) - len(_GAP), _LONGEST_BAR)
        if room < _SHORTEST_BAR:
            yield Text(text[: options.max_width], no_wrap=True)
            return
        grid = Table.grid()
        grid.add_row(ProgressBar(1.0, self.share, width=room), Text(_GAP + text, no_wrap=True))
        yield grid

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


_GAP = "  "
_FIRST_TO_GO = ("waiting", "images", "percent", "skipped", "speed", "loss", "note", "left")
"""The step's number stays."""
_SHORTEST_BAR, _LONGEST_BAR = 8, 40


def save_drawn(directory: Path, name: str, drawn: Drawn, *, levels: int) -> dict[str, np.ndarray]:
    """`samples_NAME.png` and `strip_NAME.png`; returns the two pictures."""
    few, columns = drawn.strip.shape[:2]
    frames = drawn.strip.reshape(few * columns, *drawn.strip.shape[2:])
    pictures = {
        "samples": image_grid(drawn.images, levels=levels),
        "strip": image_grid(frames, levels=levels, columns=columns),
    }
    for kind, picture in pictures.items():
        save_png(directory / f"{kind}_{name}.png", picture)
    return pictures


def _as_line(values: dict[str, Any]) -> str:
    """JSON has no NaN: a window without a good step has the loss null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite) + "\n"


def _minutes(seconds: float) -> str:
    if math.isinf(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
