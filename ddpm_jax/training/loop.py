"""The training loop on the host, which waits for the device only when it has to."""

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
"""Number of steps that may be dispatched and not yet computed: enough that the device never waits
for the host, and few enough that logs are recent and queued batches do not fill its memory."""
_LONG = 2.0
"""Steps that take longer, in seconds, are dispatched one ahead: a signal waits for all of them."""


class DivergenceError(RuntimeError):
    """The loss, its gradient or the parameters became NaN or Inf, more often than allowed.

    Args:
        step: the first step after which training cannot go on.
        advice: text after the sentence.
    """

    def __init__(self, step: int, advice: str = "") -> None:
        super().__init__(f"the loss or the parameters became NaN or Inf at step {step}{advice}")
        self.step = step


@runtime_checkable
class Hooks(Protocol):
    """Calls of the training loop. Steps are counted from 1."""

    def advance(self, step: int, waited: float) -> None:
        """Called when a step is dispatched; it may not be computed yet.

        Args:
            step: number of the step.
            waited: upper bound of the time for which the device waited for its batch, in seconds.
        """

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Called in the order of the steps when the metrics of a step are due and computed.

        Args:
            step: number of the step.
            metrics: its metrics.
        """

    def monitor(self, step: int, state: TrainState) -> None:
        """Called when a number on held-out images is due; only if `fit` gets `eval_every`.

        Args:
            step: number of the step.
            state: the state after it, which is finite.
        """

    def draw(self, step: int, state: TrainState) -> None:
        """Called when pictures are due.

        Args:
            step: number of the step.
            state: the state after it, which is finite.
        """

    def keep(self, step: int, state: TrainState) -> None:
        """Called when a snapshot of the averages is due.

        Args:
            step: number of the step.
            state: the state after it, which is finite.
        """

    def save(self, step: int, state: TrainState, *, due: bool, leaving: bool) -> None:
        """Called when a checkpoint is due, after everything up to `step` is logged and drawn.

        Args:
            step: number of the step.
            state: the state after it, which is finite.
            due: whether each run saves at this step; False for a save before an early end.
            leaving: whether the run stops after this call, so that the checkpoint has to be on the
                disk when it returns.
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
    eval_every: int | None = None,
    interrupted: Callable[[int], int | None] = lambda step: None,
    computed: Callable[[int], None] = lambda step: None,
) -> TrainState:
    """Trains from step `start` to step `steps`.

    Metrics are copied to the host while later steps run, and logged after these are dispatched.
    Before any other hook the loop waits for the metrics, so that hooks never get a state that has
    been NaN. A save comes last, so that a run resumed from it misses nothing. The last step is
    always logged, drawn, kept and saved.

    Args:
        train_step: the compiled step.
        state: the state after step `start`; its arrays may be donated.
        batches: yields the batch of each step.
        hooks: called around the steps.
        start: number of steps done before.
        steps: number of the last step.
        log_every: steps between two calls of `hooks.log`.
        save_every: steps between two calls of `hooks.save`.
        draw_every: steps between two calls of `hooks.draw`.
        keep_every: steps between two calls of `hooks.keep`; None for none.
        eval_every: steps between two calls of `hooks.monitor`; None for none.
        interrupted: `step -> signal number` after each step; None to go on.
        computed: called with the step when the device has computed it, at the latest before a save.

    Returns:
        The state after the last step.

    Raises:
        DivergenceError: there was one bad step too many. The state is not saved.
        InterruptedTraining: `interrupted` returned a signal. The state is saved.
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
        # If steps are queued, the device did not wait for the batch.
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
        eval_due = eval_every is not None and step % eval_every == 0
        if draw_due or keep_due or eval_due or save_due:
            finish(0)
            _raise_if_bad(metrics)
        if eval_due:
            hooks.monitor(step, state)
        if draw_due:
            hooks.draw(step, state)
        if keep_due:
            hooks.keep(step, state)
        signal_number = interrupted(step)  # the signal may have come while it drew
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
