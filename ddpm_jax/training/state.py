"""The state of a training run, arrays only: a checkpoint holds it and a step maps it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

__all__ = ["Bad", "TrainState", "Window", "init_state"]


class Window(NamedTuple):
    """Sums since the last log, kept on the device and in checkpoints.

    A log line is the mean over its window, and a resumed run writes the same line as an
    uninterrupted one even if it was killed in the middle of a window.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    steps: Float[Array, ""]


class Bad(NamedTuple):
    """Steps whose loss or gradient was NaN or Inf. Steps are counted from 1; 0 is none."""

    stop: Int[Array, ""]
    """The first step after which nothing may go on: one bad step too many in a row, or parameters
    that are NaN or Inf."""
    skipped: Int[Array, ""]
    """Bad steps so far."""
    in_a_row: Int[Array, ""]
    """Bad steps up to the last one without a good one between."""
    last: Int[Array, ""]
    """The last bad step."""


class TrainState(NamedTuple):
    """A pytree. The noise of a step follows from `key` and `step`: resuming repeats it."""

    step: Int[Array, ""]
    """Steps done."""
    params: Any
    averages: tuple[Any, ...]
    """Moving averages of the parameters, float32."""
    opt_state: Any
    memory: Any
    """The memory of the law of times, see `training.TimeLaw`; `()` if it has none."""
    key: Key[Array, ""]
    """Root of all randomness in training; never changes."""
    window: Window
    bad: Bad

    @property
    def ema_params(self) -> Any:
        """The first of the averages, which is evaluated and drawn from."""
        return self.averages[0]


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    averages: int = 1,
    memory: Any = (),
) -> TrainState:
    """The state before the first step, with so many averages.

    It is pure: `jit` with output shardings creates it already sharded.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        averages=tuple(jax.tree.map(jnp.copy, params) for _ in range(averages)),
        opt_state=optimizer.init(params),
        memory=memory,
        key=key,
        window=Window(*(jnp.zeros((), jnp.float32) for _ in Window._fields)),
        bad=Bad(*(jnp.zeros((), jnp.int32) for _ in Bad._fields)),
    )
