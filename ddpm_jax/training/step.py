"""One training step, a pure function: the caller compiles and shards it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ddpm_jax.training import ema
from ddpm_jax.training.objective import LossFn
from ddpm_jax.training.state import TrainState, Window

__all__ = ["StepMetrics", "make_train_step"]


class StepMetrics(NamedTuple):
    """Scalars of one step. They stay on the device until somebody prints them."""

    loss: Float[Array, ""]
    """Mean over the window since the last log."""
    gradient_norm: Float[Array, ""]
    """Global norm before clipping, mean over the same window."""
    first_bad_step: Int[Array, ""]
    """As in TrainState: 0 while everything is finite."""


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    window_steps: int,
) -> Callable[[TrainState, Array], tuple[TrainState, StepMetrics]]:
    """A pure `train_step(state, batch) -> (state, metrics)`.

    Args:
        loss_fn: `(params, key, batch, memory) -> (loss [batch], memory)`; the mean over the batch
            is descended.
        optimizer: an optax transformation.
        ema_decay: final decay of the parameters' moving average, in [0, 1).
        window_steps: steps that a log line averages; the window empties itself after as many.
    """

    def train_step(state: TrainState, batch: Array) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)

        def mean_loss(params: Any) -> tuple[Array, Any]:
            losses, memory = loss_fn(params, key, batch, state.memory)
            return jnp.mean(losses), memory

        (loss, memory), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        done = state.step + 1
        gradient_norm = optax.tree.norm(gradient)
        window = _add(state.window, loss, gradient_norm, fresh=state.step % window_steps == 0)
        # A finite gradient can still overflow the parameters; their norm tells.
        watched = jnp.stack([loss, gradient_norm, optax.tree.norm(params)])
        bad = ~jnp.all(jnp.isfinite(watched))
        first_bad_step = jnp.where((state.first_bad_step == 0) & bad, done, state.first_bad_step)

        metrics = StepMetrics(
            window.loss / window.steps, window.gradient_norm / window.steps, first_bad_step
        )
        new_state = state._replace(
            step=done,
            params=params,
            ema_params=ema.update(state.ema_params, params, ema.decay_at(state.step, ema_decay)),
            opt_state=opt_state,
            window=window,
            memory=memory,
            first_bad_step=first_bad_step,
        )
        return new_state, metrics

    return train_step


def _add(window: Window, loss: Array, gradient_norm: Array, *, fresh: Array) -> Window:
    before = jax.tree.map(lambda total: jnp.where(fresh, 0.0, total), window)
    return Window(before.loss + loss, before.gradient_norm + gradient_norm, before.steps + 1.0)
