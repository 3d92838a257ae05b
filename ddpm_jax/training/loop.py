"""The training loop on the host, which does not wait for the device without need."""

import collections
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax

from ddpm_jax.training.interrupts import InterruptedTraining
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepMetrics, TrainStep

__all__ = ["DivergenceError", "Hooks", "fit"]

_AHEAD = 3
"""Steps that may be dispatched and not yet computed: enough that the device never waits for the
host, and few enough that logs are recent and queued batches do not fill its memory."""
_LONG = 2.0
"""Steps that take longer are dispatched one ahead: a signal waits for all that are dispatched."""


class DivergenceError(RuntimeError):
    """The loss, its gradient or the parameters turned NaN or Inf, more often than was allowed."""

    def __init__(self, step: int, advice: str = "") -> None:
        super().__init__(f"the loss or the parameters turned NaN or Inf at step {step}{advice}")
        self.step = step


@runtime_checkable
class Hooks(Protocol):
    """What happens around the steps. Steps are counted from 1."""

    def advance(self, step: int, waited: float) -> None:
        """A step was dispatched, and may not be computed yet.

        The device waited at most `waited` seconds for its batch.
        """

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Metrics of `step` arrived on the host; steps come in order."""

    def draw(self, step: int, state: TrainState) -> None:
        """Time for pictures; `state` is finite."""

    def keep(self, step: int, state: TrainState) -> None:
        """Time for a snapshot of the averages; `state` is finite."""

    def save(self, step: int, state: TrainState, *, due: bool, leaving: bool) -> None:
        """`state` is finite, and everything up to `step` is logged and drawn.

        `due`: the step is one at which every run saves. `leaving`: the run stops after it, so it
        has to be on the disk when this returns.
        """


def fit(
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[Any],
    hooks: Hooks,
    *,
    start: int,
    steps: int,
    log_every: int,
    save_every: int,
    draw_every: int,
    keep_every: int | None = None,
    interrupted: Callable[[int], int | None] = lambda step: None,
    computed: Callable[[int], None] = lambda step: None,
) -> TrainState:
    """Trains from step `start` to step `steps` and returns the last state.

    Metrics are copied to the host while later steps run, and logged after those are dispatched.
    Before a picture, a snapshot or a save the loop waits for them: hooks never get a state with a
    NaN in its past. A save comes last, so that a run resumed from it misses nothing. The last step
    is always logged, drawn, kept and saved.

    `interrupted` returns after each step the number of a signal to stop for, or None; `computed`
    is called when the device is done with a step, at the latest before a save.

    Raises:
        DivergenceError: with the number of the step at which it was one bad step too many; that
            state is not saved.
        InterruptedTraining: with the signal's number, after a save.
    """
    running: collections.deque[tuple[int, StepMetrics, bool]] = collections.deque()
    ahead, begun = _AHEAD, math.inf

    def finish(until: int) -> None:
        """Waits for all steps but the last `until`, and logs those that are due."""
        while len(running) > until:
            step, metrics, log_due = running.popleft()
            jax.block_until_ready(metrics)
            computed(step)
            if log_due:
                _raise_if_bad(metrics)
                hooks.log(step, metrics)

    for step in range(start + 1, steps + 1):
        before = time.perf_counter()
        batch = next(batches)
        # With work in line the device did not notice how long the batch took.
        idle = not running or _is_ready(running[-1][1])
        waited = time.perf_counter() - before if idle and step > start + 1 else 0.0
        state, metrics = train_step(state, batch)
        hooks.advance(step, waited)
        log_due, draw_due, save_due = (
            step % every == 0 or step == steps for every in (log_every, draw_every, save_every)
        )
        if log_due:
            jax.tree.map(lambda scalar: scalar.copy_to_host_async(), metrics)
        running.append((step, metrics, log_due))
        finish(ahead)
        ahead, begun = 1 if time.monotonic() - begun > _LONG else _AHEAD, time.monotonic()
        keep_due = keep_every is not None and (step % keep_every == 0 or step == steps)
        if draw_due or keep_due or save_due:
            finish(0)
            _raise_if_bad(metrics)
        if draw_due:
            hooks.draw(step, state)
        if keep_due:
            hooks.keep(step, state)
        signal_number = interrupted(step)  # which may have come while it drew
        if save_due or signal_number is not None:
            finish(0)
            _raise_if_bad(metrics)
            leaving = signal_number is not None and step < steps
            hooks.save(step, state, due=save_due, leaving=leaving)
            if signal_number is not None and leaving:
                raise InterruptedTraining(step, signal_number)
    return state


def _is_ready(metrics: StepMetrics) -> bool:
    return all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))


def _raise_if_bad(metrics: StepMetrics) -> None:
    if step := int(metrics.bad.stop):
        raise DivergenceError(step)
