"""The host's side of training: feed the step, and never wait for the device without need."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import jax

from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepMetrics

__all__ = ["DivergenceError", "Hooks", "fit"]


class DivergenceError(RuntimeError):
    """The loss or its gradient turned NaN or Inf."""

    def __init__(self, step: int, advice: str = "") -> None:
        super().__init__(f"the loss or its gradient turned NaN or Inf at step {step}{advice}")
        self.step = step


@runtime_checkable
class Hooks(Protocol):
    """What happens around the steps. Steps are counted from 1."""

    def advance(self, step: int) -> None:
        """A step was dispatched (and perhaps not yet computed)."""

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Metrics of `step` arrived on the host, all finite; steps come in order."""

    def save(self, step: int, state: TrainState) -> None:
        """`state` is finite, and everything up to `step` is logged."""

    def draw(self, step: int, state: TrainState) -> None:
        """Time for pictures."""


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

    Metrics are copied to the host while the next step runs. Before a save they are waited for:
    a state with a NaN in its past is never handed to `hooks.save`. The last step is always
    logged, saved and drawn.

    Raises:
        DivergenceError: with the number of the first bad step; that state is not saved.
    """
    pending: tuple[int, StepMetrics] | None = None

    def arrive() -> None:
        nonlocal pending
        if pending is not None:
            (step, metrics), pending = pending, None
            if bad := int(metrics.first_bad_step):
                raise DivergenceError(bad)
            hooks.log(step, metrics)

    for step in range(start + 1, steps + 1):
        state, metrics = train_step(state, next(batches))
        hooks.advance(step)
        arrive()  # of an earlier step: this one keeps the device busy meanwhile

        def due(every: int, step: int = step) -> bool:
            return step % every == 0 or step == steps

        if due(log_every):
            jax.tree.map(lambda scalar: scalar.copy_to_host_async(), metrics)
            pending = step, metrics
        if due(save_every):
            arrive()
            if bad := int(metrics.first_bad_step):
                raise DivergenceError(bad)
            hooks.save(step, state)
        if due(draw_every):
            hooks.draw(step, state)
    arrive()
    return state
