"""What a run tells: a progress bar or plain lines, metrics.jsonl, TensorBoard, pictures."""

import contextlib
import itertools
import json
import math
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import image, scalar

from ddpm_jax.config import TrainConfig
from ddpm_jax.evaluation import image_grid, save_png
from ddpm_jax.experiment.directory import RunDirectory
from ddpm_jax.experiment.draw import Drawn
from ddpm_jax.files import whole_file

__all__ = ["MetricsLog", "TrainingDisplay", "missing_metrics", "save_drawn", "say"]

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
        with contextlib.suppress(OSError):
            if self._whole == len(self._text) - 1 and self._run.metrics.exists():
                self._whole = -1  # until the line is there
                with self._run.metrics.open("a") as file:
                    file.write(self._text[-1])
                self._whole = len(self._text)
            else:
                self._write_all()
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
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=start, told="compiling")

    def __enter__(self) -> "TrainingDisplay":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
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
        told = f"loss {loss:.4f}  {steps_per_second:.1f} steps/s  {images_per_second:.0f} images/s"
        if step > before:
            speed["waited_for_data"] = waited / (now - then)
            told += f"  {speed['waited_for_data']:.1%} waiting for data"
        if skipped:
            told += f"  {skipped} bad steps skipped"
        self._bar.update(self._task, told=told)
        if not self._console.is_terminal:
            left = (self._steps - step) / steps_per_second if steps_per_second else math.inf
            self.say(f"step {step}/{self._steps}  {told}  {_minutes(left)} left")
        return speed

    def pause(self) -> None:
        """Something else took its time; the speed is measured anew from the next step."""
        self._last = None

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        say(self._console, text)


def say(console: Console, text: str) -> None:
    """One line exactly as it is: paths are neither wrapped nor coloured."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
