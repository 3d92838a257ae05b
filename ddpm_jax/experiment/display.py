"""The display of a training run: a progress bar, or plain lines."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ddpm_jax.terminal import say

__all__ = ["TrainingDisplay"]


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
            disable=not console.is_interactive,
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
        """Removes the bar; may be called twice."""
        self._bar.stop()

    def advance(self, step: int, waited: float) -> None:
        """Notes a dispatched step; the compilation before a process's first step is not timed.

        The device waited `waited` seconds for its batch.
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
        if not self._console.is_interactive:
            self.say("  ".join([f"step {step}/{self._steps}", *figures.values()]))
        return speed

    def pause(self) -> None:
        """Restarts the measurement of the speed at the next step, after some other work."""
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


def _minutes(seconds: float) -> str:
    if math.isinf(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
