"""The host's side of training: feed the step, and never wait for the device without need."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import jax

from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepMetrics

__all__ = ["DivergenceError", "Hooks", "fit"]


class DivergenceError(RuntimeError):
    """The loss, its gradient or the parameters turned NaN or Inf."""

    def __init__(self, step: int, advice: str = "") -> None:
        super().__init__(f"the loss or the parameters turned NaN or Inf at step {step}{advice}")
        self.step = step


@runtime_checkable
class Hooks(Protocol):
    """What happens around the steps. Steps are counted from 1."""

    def advance(self, step: int) -> None:
        """A step was dispatched (and perhaps not yet computed)."""

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Metrics of `step` arrived on the host, all finite; steps come in order."""

    def draw(self, step: int, state: TrainState) -> None:
        """Time for pictures; `state` is finite."""

    def save(self, step: int, state: TrainState) -> None:
        """`state` is finite, and everything up to `step` is logged and drawn."""


def fit(
    train_step: Callable[[TrainState, jax.Array], tuple[TrainState, StepMetrics]],
    state: TrainState,
    batches: Iterator[jax.Array],
    hooks: Hooks,
    *,
    start: int,
    steps: int,
    log_every: int,
    save_every: int,
    draw_every: int,
) -> TrainState:
    """Trains from step `start` to step `steps` and returns the last state.

    Metrics are copied to the host while the next step runs. Before a picture or a save they are
    waited for: a state with a NaN in its past is never handed on. A save comes last, so that a run
    resumed from it misses nothing. The last step is always logged, drawn and saved.

    Raises:
        DivergenceError: with the number of the first bad step; that state is not saved.
    """
    pending: tuple[int, StepMetrics] | None = None

    def arrive() -> None:
        nonlocal pending
        if pending is not None:
            (step, metrics), pending = pending, None
            _raise_if_bad(metrics)
            hooks.log(step, metrics)

    for step in range(start + 1, steps + 1):
        state, metrics = train_step(state, next(batches))
        hooks.advance(step)
        arrive()  # of an earlier step: this one keeps the device busy meanwhile
        log_due, draw_due, save_due = (
            step % every == 0 or step == steps for every in (log_every, draw_every, save_every)
        )
        if log_due:
            jax.tree.map(lambda scalar: scalar.copy_to_host_async(), metrics)
            pending = step, metrics
        if draw_due or save_due:
            arrive()
            _raise_if_bad(metrics)
        if draw_due:
            hooks.draw(step, state)
        if save_due:
            hooks.save(step, state)
    return state


def _raise_if_bad(metrics: StepMetrics) -> None:
    if bad := int(metrics.first_bad_step):
        raise DivergenceError(bad)
