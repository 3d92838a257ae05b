"""The whole of a training run's state, arrays only: what a checkpoint holds and a step maps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

__all__ = ["TrainState", "Window", "init_state"]


class Window(NamedTuple):
    """Sums since the last log, kept on the device and in checkpoints.

    A log line is the mean over its window, and a resumed run writes the same line as an
    uninterrupted one even if it was killed in the middle of a window.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    steps: Float[Array, ""]


class TrainState(NamedTuple):
    """A pytree. The noise of a step follows from `key` and `step`: resuming repeats it."""

    step: Int[Array, ""]
    """Steps done."""
    params: Any
    ema_params: Any
    """Their exponential moving average, float32."""
    opt_state: Any
    key: Key[Array, ""]
    """Root of all randomness in training; never changes."""
    window: Window
    memory: Any
    """What the loss remembers of itself, see `ddpm_jax.training.objective`; `()` if nothing."""
    first_bad_step: Int[Array, ""]
    """The first step whose loss, gradient or result was NaN or Inf, counted from 1; 0 if none."""


def init_state(
    params: Any, optimizer: optax.GradientTransformation, key: Array, memory: Any = ()
) -> TrainState:
    """The state before the first step; pure, so `jit` with output shardings can bear it sharded."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=key,
        window=Window(*(jnp.zeros((), jnp.float32) for _ in Window._fields)),
        memory=memory,
        first_bad_step=jnp.zeros((), jnp.int32),
    )
