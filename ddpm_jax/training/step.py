"""The training step, a pure function; a form of `ddpm_jax.parallel` shards and compiles it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ddpm_jax.parallel import Form, Gradient, one_device
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Drawn, Losses, Objective, draw
from ddpm_jax.training.state import Bad, TrainState, Window

__all__ = ["StepMetrics", "TrainStep", "make_gradient", "make_train_step"]


class StepMetrics(NamedTuple):
    """Scalars of one step. They stay on the device until they are logged."""

    loss: Float[Array, ""]
    """Mean loss over the window since the last log; NaN if all its steps were bad."""
    gradient_norm: Float[Array, ""]
    """Global norm of the gradient before clipping, mean over the same window."""
    bad: Bad
    """Counts of bad steps, as in `TrainState`."""
    watched: dict[str, Float[Array, ""]]
    """Scalars of the parameters after the step by name, such as the ends of a learned schedule."""


Decay = Callable[[Array], Array]
"""`steps done -> decay` of a moving average."""
TrainStep = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
"""`(state, batch) -> (state, metrics)`."""


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    averages: Sequence[Decay],
    window_steps: int,
    accumulate: int = 1,
    skips: int = 0,
    watch: Callable[[Any], dict[str, Array]] = lambda params: {},
    form: Form | None = None,
) -> TrainStep:
    """Makes the training step, a pure function.

    A step whose loss or gradient is NaN or Inf is bad. Up to `skips` consecutive bad steps are
    skipped: only the number of steps changes. After one more, or if the parameters become NaN or
    Inf with a finite gradient, `state.bad.stop` is the number of that step and stays so.

    Args:
        objective: the losses and the law of times; the step descends their weighted mean.
        optimizer: an optax transformation.
        averages: the decay of each moving average of the parameters as a function of steps done.
        window_steps: number of steps that a log line averages; then a new window begins.
        accumulate: number of parts of the batch that are computed one after the other.
        skips: number of consecutive bad steps that are skipped.
        watch: `params -> scalars by name`, which the metrics have; by default none.
        form: how the step runs on a mesh; by default on one device.

    Returns:
        A function `train_step(state, batch) -> (state, metrics)`.
    """
    form = one_device() if form is None else form
    gradient_of = form.spread(make_gradient(objective.losses, accumulate=accumulate))

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        drawn = draw(objective, key, form.batch_size(batch), state.memory)
        losses, gradient = gradient_of(state.params, batch, drawn)
        loss, gradient_norm = jnp.mean(drawn.weight * losses), optax.tree.norm(gradient)

        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = tuple(
            ema.update(average, params, decay(state.step))
            for average, decay in zip(state.averages, averages, strict=True)
        )
        memory = objective.times.remember(state.memory, drawn.t, losses)
        before = state.params, state.averages, state.opt_state, state.memory
        # An optimizer or an objective may compute in float64, if JAX_ENABLE_X64 is set.
        after: tuple[Any, Any, Any, Any] = jax.tree.map(
            _as_before, before, (params, averaged, opt_state, memory)
        )

        is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))
        bad = _counted(state, is_bad, optax.tree.norm(params), skips)
        if skips:
            after = jax.tree.map(lambda old, new: jnp.where(is_bad, old, new), before, after)
        window = _added(
            state.window, loss, gradient_norm, is_bad, fresh=state.step % window_steps == 0
        )
        metrics = StepMetrics(
            window.loss / window.steps,
            window.gradient_norm / window.steps,
            bad,
            watched=watch(after[0]),
        )
        return TrainState(state.step + 1, *after, state.key, window, bad), metrics

    return train_step


def make_gradient(losses: Losses, *, accumulate: int = 1) -> Gradient:
    """The gradient of the weighted mean of the losses.

    With `accumulate` > 1 the batch is computed in that many parts, one after the other, and their
    gradients are averaged. The result is the same up to rounding, and needs the memory of one part.
    Part k has the examples k, k + accumulate, ...: on a mesh each device then has its share of each
    part, and no example is sent.

    Args:
        losses: `(params, batch, drawn) -> losses [batch]`, without weights.
        accumulate: number of parts.

    Returns:
        A function `(params, batch, drawn) -> (losses [batch], gradient)`.
    """

    def gradient(params: Any, batch: Any, drawn: Drawn) -> tuple[jax.Array, Any]:
        def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
            values = losses(params, batch, drawn)
            return jnp.mean(drawn.weight * values), values

        grads, values = jax.grad(mean_loss, has_aux=True)(params)
        return values, grads

    def accumulated(params: Any, batch: Any, drawn: Drawn) -> tuple[jax.Array, Any]:
        def add(total: Any, part: Any) -> tuple[Any, jax.Array]:
            values, grads = gradient(params, *part)
            return jax.tree.map(jnp.add, total, grads), values

        parts = jax.tree.map(lambda x: _in_parts(x, accumulate), (batch, drawn))
        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        mean = jax.tree.map(lambda leaf: leaf / accumulate, total)
        return values.swapaxes(0, 1).reshape(-1), mean

    return gradient if accumulate == 1 else accumulated


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _as_before(old: Array, new: Array) -> Array:
    return new.astype(old.dtype)


def _counted(state: TrainState, is_bad: Array, params_norm: Array, skips: int) -> Bad:
    before, done = state.bad, state.step + 1
    in_a_row = jnp.where(is_bad, before.in_a_row + 1, 0)
    # A finite gradient can still overflow the parameters; their norm shows it.
    ruined = (in_a_row > skips) | ~(is_bad | jnp.isfinite(params_norm))
    return Bad(
        stop=jnp.where((before.stop == 0) & ruined, done, before.stop),
        skipped=before.skipped + is_bad.astype(jnp.int32),
        in_a_row=in_a_row,
        last=jnp.where(is_bad, done, before.last),
    )


def _added(
    window: Window, loss: Array, gradient_norm: Array, is_bad: Array, *, fresh: Array
) -> Window:
    """The sums with one more step, unless it was bad."""
    before = jax.tree.map(lambda total: jnp.where(fresh, 0.0, total), window)
    with_this = Window(before.loss + loss, before.gradient_norm + gradient_norm, before.steps + 1.0)
    with_this = jax.tree.map(_as_before, window, with_this)
    return jax.tree.map(lambda old, new: jnp.where(is_bad, old, new), before, with_this)
