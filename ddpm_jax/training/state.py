"""The state of a training run, which has only arrays: each step maps it, checkpoints store it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

__all__ = ["Bad", "TrainState", "Window", "init_state"]


class Window(NamedTuple):
    """Sums since the last log, on the device and in checkpoints.

    A log line is the mean over its window. A resumed run writes the same line as an uninterrupted
    one, even if it was killed inside a window.
    """

    loss: Float[Array, ""]
    """Sum of the losses of the good steps."""
    gradient_norm: Float[Array, ""]
    """Sum of the gradient norms of the good steps."""
    steps: Float[Array, ""]
    """Number of good steps."""


class Bad(NamedTuple):
    """Steps whose loss or gradient was NaN or Inf. Steps are counted from 1; 0 means none."""

    stop: Int[Array, ""]
    """The step after which training has to stop: one bad step too many in a row, or parameters that
    are NaN or Inf."""
    skipped: Int[Array, ""]
    """Number of bad steps so far."""
    in_a_row: Int[Array, ""]
    """Number of consecutive bad steps up to now."""
    last: Int[Array, ""]
    """The last bad step."""


class TrainState(NamedTuple):
    """The state of a training run: a pytree of arrays.

    The noise of a step follows from `key` and `step`, so that a resumed run repeats it.
    """

    step: Int[Array, ""]
    """Number of steps done."""
    params: Any
    """Variables of the network."""
    averages: tuple[Any, ...]
    """Moving averages of the parameters, float32."""
    opt_state: Any
    """State of the optimizer."""
    memory: Any
    """Memory of the law of times, see `training.TimeLaw`; `()` if it has none."""
    key: Key[Array, ""]
    """Root of all randomness in training; it never changes."""
    window: Window
    """Sums for the next log line."""
    bad: Bad
    """Counts of bad steps."""

    @property
    def ema_params(self) -> Any:
        """The first of the averages, which evaluation and sampling use."""
        return self.averages[0]


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    averages: int = 1,
    memory: Any = (),
) -> TrainState:
    """The state before the first step.

    The function is pure: `jax.jit` with output shardings creates the state already sharded.

    Args:
        params: variables of the network.
        optimizer: an optax transformation.
        key: root of all randomness in training.
        averages: number of moving averages.
        memory: initial memory of the law of times.

    Returns:
        The state.
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
